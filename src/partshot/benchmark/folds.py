"""folds, or `partshot evaluate --folds`: the five-fold protocol of DatasetGAN and GANORCON.

The candidates are the models of one training run. In each fold, the model with the highest mean IoU on a fifth of the
images is selected and scored on the other images.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from partshot.artifact import write_json
from partshot.data.shots import find_pairs, read_pair
from partshot.errors import BadArtifact, BadLabels, BadParts
from partshot.metrics import Score, Summary, confusions, pooled, summarize
from partshot.ops.overlap import mean_iou
from partshot.parts import PartSet
from partshot.tasks.evaluate import open_model


class Fold(NamedTuple):
    """One fold of the published protocol.

    chosen: name of the selected candidate. validation: names of the images on which it was selected. candidates: mean
    IoU of each candidate on those images, 0..1. score: of the selected candidate on the other images.
    """

    chosen: str
    validation: tuple[str, ...]
    candidates: dict[str, float]
    score: Score


class Folded(NamedTuple):
    """The folds in order, and the mean and standard deviation over them."""

    folds: list[Fold]
    summary: Summary


def folds(
    models: Path | str, images: Path | str, masks: Path | str, out: Path | str, rgb_masks: bool = False
) -> Folded:
    """Scores the models in a folder with the five-fold protocol; writes out/folds.json.

    models: a folder of ONNX files, such as the snapshots/ of `partshot distill --snapshots`, or of folders of predicted
    masks. The other arguments are those of `evaluate`. Raises the errors of `evaluate`, BadLabels if there are fewer
    images than folds, and BadArtifact if the folder has no models.
    """
    models, out = Path(models), Path(out)
    if models.is_file():
        raise BadArtifact(f"{models}: is one model; give a folder of several, such as snapshots/, or omit --folds")
    # Without the hidden temporary file of an interrupted export.
    visible = [path for path in models.glob("*") if not path.name.startswith(".")]
    found = sorted(path for path in visible if path.suffix == ".onnx" or next(path.glob("*.png"), None))
    if not found:
        inside = "; did you mean its snapshots/?" if (models / "snapshots").is_dir() else ""
        raise BadArtifact(f"{models}: contains no ONNX file and no folder of masks{inside}")
    pairs = find_pairs(masks, images)
    names = [pair.name for pair in pairs]
    # Raises BadLabels for too few images, before anything is predicted.
    places_of_folds(names)
    opened = {path.name: open_model(path, pairs[0].mask.parent) for path in found}
    parts = next(iter(opened.values()))[0]
    truths = [read_pair(pair, parts, rgb_masks)[1] for pair in pairs]
    _refuse_other_parts({name: theirs for name, (theirs, _) in opened.items()})
    # Lazy, so that only one model's predictions are in memory at a time.
    candidates = {name: map(labeler, pairs) for name, (_, labeler) in opened.items()}
    several = score_folds(candidates, truths, parts, names)
    result = Folded(several, summarize([fold.score for fold in several]))
    mean = {name: value for name, value in result.summary.to_dict().items() if name != "seeds"}
    values = {
        "models": str(models),
        "images": len(pairs),
        **mean,
        "folds": [
            {
                "chosen": fold.chosen,
                "validation": fold.validation,
                "candidates": fold.candidates,
                **fold.score.to_dict(),
            }
            for fold in several
        ],
    }
    write_json(out / "folds.json", values)
    return result


def places_of_folds(names: Sequence[str], count: int = 5) -> list[tuple[list[int], list[int]]]:
    """The folds of DatasetGAN and GANORCON: for each fold, the indices in `names` of its validation and test images.

    Names are sorted lexicographically; fold i validates on the i-th block of floor(n / count) images and tests on all
    others. Images after the first count * floor(n / count) are test images in every fold. The test sets overlap, so the
    deviation over folds is not comparable with one over seeds. Raises BadLabels if there are fewer images than folds.
    """
    length = len(names) // count
    if not length:
        raise BadLabels(f"{len(names)} images cannot make {count} folds; use {count} images or more")
    order = sorted(range(len(names)), key=lambda place: names[place])
    cuts = [(order[i * length : (i + 1) * length], i) for i in range(count)]
    return [(validation, order[: i * length] + order[(i + 1) * length :]) for validation, i in cuts]


def score_folds(
    candidates: Mapping[str, Iterable[np.ndarray]],
    truths: Sequence[np.ndarray],
    parts: PartSet,
    names: Sequence[str],
) -> list[Fold]:
    """The five-fold protocol of DatasetGAN and GANORCON over the checkpoints of one training run.

    candidates: name -> predictions for all images. In each fold the candidate with the highest mean IoU on the
    validation images is scored on the others; of equal candidates, the first. The published number is the mean over the
    folds: `summarize([fold.score for fold in result])`.
    """
    counts = {name: confusions(truths, predictions, parts, names) for name, predictions in candidates.items()}
    results = []
    for validation, rest in places_of_folds(names):
        mious = {name: mean_iou(matrices[validation].sum(0)) for name, matrices in counts.items()}
        chosen = max(mious, key=mious.__getitem__)
        chose = tuple(names[place] for place in validation)
        results.append(Fold(chosen, chose, mious, pooled(counts[chosen], rest, parts, names)))
    return results


def _refuse_other_parts(known: Mapping[str, PartSet]) -> None:
    (first, parts), *others = known.items()
    for name, theirs in others:
        if theirs.names != parts.names:
            raise BadParts(f"{name} has the parts {', '.join(theirs.names)}, {first} has {', '.join(parts.names)}")
