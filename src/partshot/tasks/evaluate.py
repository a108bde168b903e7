"""evaluate: scores a model's masks against true masks; writes results.json and a report.

Two kinds of models can be scored without torch: an exported network (ONNX) and a folder of predicted masks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from partshot.artifact import write_json
from partshot.data.labels import read_labels
from partshot.data.shots import Pair, find_pairs, find_parts, read_pair
from partshot.errors import BadArtifact, BadLabels, BadParts
from partshot.inference.exported_model import ExportedModel
from partshot.metrics import Score, score
from partshot.parts import PartSet
from partshot.report import (
    Confusion,
    Example,
    Figure,
    Gallery,
    Headline,
    PartBars,
    scores_in_words,
    worst_gallery,
    write_report,
)
from partshot.tasks.predict import predict_labels

_SHOWN = 8  # images in each of the report's two galleries
_SPREAD = "Evenly spaced between the best and the worst image, by mean IoU over the parts in each."

Labeler = Callable[[Pair], np.ndarray]
"""From an image and its mask on disk to the predicted labels, uint8 [h, w]."""


def evaluate(
    model: Path | str, images: Path | str, masks: Path | str, out: Path | str, rgb_masks: bool = False
) -> Score:
    """Scores a model on every image that has a mask; writes out/results.json and out/report.html.

    model: an ONNX file that `partshot export` wrote, or a folder of predicted masks, NAME.png.
    images, masks: as in `data.shots.find_pairs`; images without a mask are passed over. Scored is what `predict` writes
    by default, at the masks' own size: large images are predicted in windows. rgb_masks: map RGB masks by the parts'
    exact colors.

    Images are read one at a time. Raises BadLabels or BadImage for the first mask, image or prediction that is missing
    or wrong, BadArtifact when the model cannot be read, BadParts when no classes.json gives the meaning of the ids or
    the model and the masks disagree about it.
    """
    model, out = Path(model), Path(out)
    pairs = find_pairs(masks, images)
    parts, labeler = open_model(model, pairs[0].mask.parent)
    truths = (read_pair(pair, parts, rgb_masks)[1] for pair in pairs)
    result = score(truths, (labeler(pair) for pair in pairs), parts, [pair.name for pair in pairs])

    _write_results(out / "results.json", model, parts, result)
    worst, spread = _worth_showing(result)
    shown = {name: _image(name, pairs, result, parts, labeler, rgb_masks) for name in {*worst, *spread}}
    # A part that occurs nowhere has no IoU of its own; it only enters the mean as papers define it.
    occurring = result.occurring
    sections = [
        Headline(scores_in_words(result.miou, occurring, len(pairs)), _figures(result, len(pairs))),
        PartBars({model.name: occurring}, _shares(result)),
        worst_gallery([shown[name] for name in worst], _SHOWN),
        Gallery("From the best to the worst", [shown[name] for name in spread], _SPREAD, _SHOWN),
        Confusion(result.confusion),
    ]
    write_report(out / "report.html", f"Evaluation of {model.name}", parts, sections, f"masks: {pairs[0].mask.parent}")
    return result


def open_model(model: Path, masks: Path) -> tuple[PartSet, Labeler]:
    """The parts of a model and its predict function. masks: the folder of true masks. Errors as above."""
    theirs = find_parts(masks)
    if model.is_dir():
        _refuse_other_folders(model)
        parts = _agreed(find_parts(model), theirs, model, masks)
        return parts, lambda pair: _read_prediction(model, pair.name, parts)
    if not model.is_file():
        raise BadArtifact(f"{model}: no such file or folder; give student.onnx or a folder of predicted masks")
    network = ExportedModel(model)
    parts = _agreed(network.parts, theirs, model, masks)
    return parts, lambda pair: predict_labels(network, pair.image)


def _refuse_other_folders(model: Path) -> None:
    """BadArtifact for a folder that holds models instead of masks."""
    if next(model.glob("*.png"), None) is None:
        if next(model.glob("*.onnx"), None):
            raise BadArtifact(f"{model}: contains several models; name one of them, or add --folds")
        if (model / "card.json").is_file():
            raise BadArtifact(f"{model}: is no ONNX file yet; run: partshot export {model} student.onnx")


def _agreed(ours: PartSet | None, theirs: PartSet | None, model: Path, masks: Path) -> PartSet:
    parts = ours or theirs
    if parts is None:
        raise BadParts(f"{masks}: no classes.json there or beside {model} gives the meaning of the ids; write one")
    if ours and theirs and ours.names != theirs.names:
        raise BadParts(
            f"{model} has the parts {', '.join(ours.names)}, the masks in {masks} have {', '.join(theirs.names)}; "
            "use masks made with the model's classes.json"
        )
    return parts


def _read_prediction(folder: Path, stem: str, parts: PartSet) -> np.ndarray:
    path = folder / f"{stem}.png"
    if not path.is_file():
        raise BadLabels(
            f"{path}: no predicted mask for image '{stem}'; predict it: partshot predict MODEL IMAGES --out {folder}"
        )
    return read_labels(path, parts)


def _write_results(path: Path, model: Path, parts: PartSet, result: Score) -> None:
    values = {"model": str(model), "parts": list(parts.names), "images": len(result.per_image), **result.to_dict()}
    write_json(path, values)


def _figures(result: Score, images: int) -> list[Figure]:
    figures = [
        Figure("mean IoU", f"{result.miou:.3f}", f"{images} images, background included"),
        Figure("weighted IoU", f"{result.wiou:.3f}", "parts weighted by their pixels"),
    ]
    if result.absent:
        missing = ", ".join(result.absent)
        figures.append(Figure("mean IoU of what occurs", f"{result.miou_nan:.3f}", f"nowhere: {missing}"))
    return figures


def _shares(result: Score) -> dict[str, float]:
    pixels = result.confusion.sum(1) / result.confusion.sum()
    return dict(zip(result.per_part, pixels.tolist(), strict=True))


def _worth_showing(result: Score) -> tuple[list[str], list[str]]:
    # The names of the worst images, and of some that are evenly spaced from the best to the worst.
    ranking = [name for name, _ in result.worst(len(result.per_image))]
    steps = np.linspace(len(ranking) - 1, 0, min(len(ranking), _SHOWN)).round().astype(int)
    return ranking[:_SHOWN], [ranking[i] for i in steps]


def _image(name: str, pairs: Sequence[Pair], result: Score, parts: PartSet, labeler: Labeler, rgb: bool) -> Example:
    # Read and predicted again: which images to show is only known after all have been scored.
    pair = next(pair for pair in pairs if pair.name == name)
    image, truth = read_pair(pair, parts, rgb)
    return Example(name, image, truth, prediction=labeler(pair), score=dict(result.per_image)[name])
