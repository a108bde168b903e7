"""folds, or `partshot evaluate --folds`: DatasetGAN's and GANORCON's five folds over the models of one training run.

A fifth of the images chooses among the models, the others tell how good the chosen one is, five times. Knows files;
what a fold is stands in evaluate.py.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from partshot.artifact import replacing_file
from partshot.data.shots import find_pairs, read_pair
from partshot.errors import BadArtifact, BadLabels, BadParts
from partshot.metrics import Score, Summary, confusions, pooled, summarize
from partshot.ops.overlap import mean_iou
from partshot.parts import PartSet
from partshot.tasks.evaluate import open_model


class Fold(NamedTuple):
    """One fold of the published protocol: which candidate its validation part chose, and the score of the rest.

    validation: names of the images that chose. candidates: mean IoU of each on those, 0..1.
    """

    chosen: str
    validation: tuple[str, ...]
    candidates: dict[str, float]
    score: Score


class Folded(NamedTuple):
    """The folds in their order, and mean and deviation over them."""

    folds: list[Fold]
    summary: Summary


def folds(
    models: Path | str, images: Path | str, masks: Path | str, out: Path | str, rgb_masks: bool = False
) -> Folded:
    """Scores the models of a folder by folds; writes out/folds.json.

    models: a folder of ONNX files, such as the snapshots/ of `partshot distill --snapshots`, or of folders of predicted
    masks. The rest as for `evaluate`. Raises what it does, BadLabels for fewer images than folds, and BadArtifact for
    a folder without models.
    """
    models, out = Path(models), Path(out)
    if models.is_file():
        raise BadArtifact(f"{models}: is one model; give a folder of several, such as snapshots/, or leave --folds out")
    # Not the hidden file of an export that was killed.
    shown = [path for path in models.glob("*") if not path.name.startswith(".")]
    found = sorted(path for path in shown if path.suffix == ".onnx" or next(path.glob("*.png"), None))
    if not found:
        inside = "; did you mean its snapshots/?" if (models / "snapshots").is_dir() else ""
        raise BadArtifact(f"{models}: holds no ONNX file and no folder of masks{inside}")
    pairs = find_pairs(masks, images)
    names = [pair.name for pair in pairs]
    # Too few are refused before anything is predicted.
    places_of_folds(names)
    opened = {path.name: open_model(path, pairs[0].mask.parent) for path in found}
    parts = next(iter(opened.values()))[0]
    truths = [read_pair(pair, parts, rgb_masks)[1] for pair in pairs]
    _refuse_other_parts({name: theirs for name, (theirs, _) in opened.items()})
    # One model's predictions at a time: all of them would fill the memory.
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
    with replacing_file(out / "folds.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    return result


def places_of_folds(names: Sequence[str], count: int = 5) -> list[tuple[list[int], list[int]]]:
    """DatasetGAN's folds, also GANORCON's: for each, the places in `names` of its validation and of its test images.

    Names are sorted lexicographically; fold i validates on the i-th run of floor(n / count) images and tests on all
    others. Images past count * floor(n / count) are always tested on, and the test sets overlap, so the spread over
    folds is no spread over seeds. Raises BadLabels when there are fewer images than folds.
    """
    length = len(names) // count
    if not length:
        raise BadLabels(f"{len(names)} images cannot make {count} folds; {count} or more are needed")
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

    candidates: name -> predictions of all images. In each fold the candidate with the highest mean IoU on the
    validation part is scored on the rest; of equal ones the first. Report `summarize([f.score for f in result])`.
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
