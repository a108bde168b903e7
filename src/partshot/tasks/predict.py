"""predict: masks for a folder of images by an exported student, without torch.

Images are read and masks written in threads beside the network. The ONNX file resizes and normalizes images itself. See
also inference/: predictions.py for the folder of masks, settings.py and windows.py for windows, refine.py for edges.
"""

import io
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from partshot.artifact import replacing_file, write_json
from partshot.data.images import image_size, list_images, pixel_limit, read_image, write_overlay
from partshot.data.labels import write_labels
from partshot.errors import BadImage, BadRecipe
from partshot.inference.exported_model import ExportedModel
from partshot.inference.predictions import MANIFEST, ModelInfo, OutputPaths, prepare_folder
from partshot.inference.refine import refine
from partshot.inference.settings import InferenceOptions
from partshot.inference.windows import sliding_window_predict
from partshot.machine import available_cores
from partshot.progress import Ticker
from partshot.recipe import Recipe

# Images that are predicted whole are shrunk to so many pixels, and their labels enlarged: the network works at a few
# hundred pixels a side, and logits of larger images would fill the memory.
_MOST_PIXELS = 2**22
# Images of more pixels, and those predicted in windows, are processed one by one, to limit memory.
_MOST_AHEAD = 2**25
_READERS = 4
_WAITING_BATCHES = 4  # of images whose sizes are too rare to fill a batch


@dataclass(frozen=True)
class Summary:
    """Counts of images predicted now, kept from before, and skipped, each with a one-line reason.

    windowed: how many of those predicted now were predicted in windows.
    """

    out: Path
    written: int
    kept: int
    skipped: tuple[tuple[Path, str], ...]
    seconds: float
    windowed: int = 0

    def __str__(self) -> str:
        kept = f", {self.kept} kept from before" if self.kept else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        speed = f" ({self.written / self.seconds:.0f} a second)" if self.written and self.seconds else ""
        windowed = f", {self.windowed} predicted in windows (--window)" if self.windowed else ""
        return f"{self.written} masks written to {self.out}{speed}{windowed}{kept}{skipped}"


@dataclass(frozen=True)
class LoadedImage:
    """An image as the network gets it.

    size: height and width of the image in the file; `image` may be smaller. error: why it could not be read, or "".
    """

    path: Path
    image: np.ndarray
    size: tuple[int, int]
    error: str = ""


class PredictOptions(Recipe):
    """How `predict` reads images and what it writes.

    overlays: also write the images with their parts in color, as out/overlays/NAME.jpg. confidence: also write each
    label's probability times 255, as out/confidence/NAME.png. batch: images of one size that are predicted together.
    overwrite: predict again what is there. window: side in pixels of the overlapping windows in which images are
    predicted; "off": all images whole; "auto": images at most twice as large as those that the model was trained on, or
    all if the model does not know their size, whole, and others in windows of that size. scale: by what factor windows
    are enlarged, or several factors, as in "0.5,1,2", whose probabilities are averaged. max_megapixels: larger images
    are skipped. refined: labels are moved to the edges of the image (a guided filter), where the image is larger than
    the network's input; images of more than 4 megapixels that are predicted whole are shrunk to that first.
    """

    overlays: bool = False
    confidence: bool = False
    batch: int = 8
    overwrite: bool = False
    window: str | int = "auto"
    scale: str | int | float = "1"
    max_megapixels: float = 500
    refined: bool = False


_DEFAULTS = PredictOptions()


def predict(
    model: Path | str,
    images: Path | str,
    out: Path | str,
    options: PredictOptions = _DEFAULTS,
    leave_out: Iterable[Path] = (),
    quiet: bool = False,
    **changes,
) -> Summary:
    """Writes an indexed PNG of the same stem and size for every image, ids and palette as in out/classes.json.

    model: an ONNX file that `partshot export` wrote. images: a folder of images, or one image. leave_out: files that
    are no images, such as masks that lie beside them. changes: options by name, as in `predict(..., overlays=True)`.

    An image that cannot be read is skipped and listed in the summary. Resumes after a stop: masks of this model that
    are newer than their image are kept, unless `overwrite`. Another model's predictions are replaced, also those
    corrected by hand; masks that predict did not write are not.

    Raises BadArtifact for a file that is no exported student; BadImage when there is no image, none can be read, or
    two share a stem; BadLabels when `out` holds masks that partshot did not predict; DiskFull.
    """
    options = options.changed(**changes)
    if options.batch < 1:
        raise BadRecipe(f"--batch {options.batch}: must be 1 or more")
    began, reading = time.monotonic(), InferenceOptions.parse(options.window, options.scale, options.refined)
    network, paths = ExportedModel(model), _paths(Path(images), leave_out)
    reading.windows(network, 1, 1)  # raises for an invalid scale, before any work
    places = OutputPaths(Path(out), options.overlays, options.confidence)
    author = ModelInfo(network.sha256, network.version, network.parts)
    manifest = prepare_folder(places, author, paths, options.overwrite, reading)

    todo = [path for path in paths if not places.done(path, manifest["since"])]
    with pixel_limit(options.max_megapixels), Ticker("predict masks", total=len(todo), done=0, quiet=quiet) as ticker:
        alone = _alone(network, todo, reading)
        together = [path for path in todo if path not in alone]
        skipped = _predict_together(network, together, places, reading, options.batch, ticker)
        skipped += _predict_alone(network, alone, places, reading, ticker, len(together))
    unread = {path for path, _ in skipped}
    windowed = sum(bool(windows) for path, windows in alone.items() if path not in unread)
    write_json(places.out / MANIFEST, {**manifest, "skipped": {path.name: reason for path, reason in skipped}})

    if skipped and len(skipped) == len(paths):
        raise BadImage(f"none of {len(paths)} images can be read; first: {skipped[0][1]}")
    written, kept = len(todo) - len(skipped), len(paths) - len(todo)
    return Summary(places.out, written, kept, tuple(skipped), time.monotonic() - began, windowed)


def predict_labels(network: ExportedModel, path: Path) -> np.ndarray:
    """The labels, uint8 [h, w], that `predict` writes for an image by default; raises BadImage where it skips it."""
    options = PredictOptions()
    reading = InferenceOptions.parse(options.window, options.scale, options.refined)
    with pixel_limit(options.max_megapixels):
        windows = reading.windows(network, *image_size(path))
        loaded = _read(path, whole=not windows)
    if loaded.error:
        raise BadImage(loaded.error)
    return _resized(_predict_one(network, loaded.image, windows)[0], loaded.size)


def _alone(network: ExportedModel, todo: Sequence[Path], reading: InferenceOptions) -> dict[Path, tuple[int, ...]]:
    # Images that are processed one by one, each with its windows; () for one that is predicted whole.
    found = {}
    for path in todo:
        try:
            height, width = image_size(path)
        except BadImage:
            continue  # reported when it is read
        windows = reading.windows(network, height, width)
        if windows or height * width > _MOST_AHEAD:
            found[path] = windows
    return found


def _predict_alone(
    network: ExportedModel,
    todo: Mapping[Path, tuple[int, ...]],
    places: OutputPaths,
    reading: InferenceOptions,
    ticker: Ticker,
    done: int,
) -> list[tuple[Path, str]]:
    skipped: list[tuple[Path, str]] = []
    for path, windows in todo.items():
        for loaded in _readable([_read(path, whole=not windows)], skipped):
            labels, confidence = _predict_one(network, loaded.image, windows)
            _write(places, loaded, labels, confidence, network, reading)
        done += 1
        ticker.tick(done)
    return skipped


def _predict_one(network: ExportedModel, image: np.ndarray, windows: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    if windows:
        return sliding_window_predict(network.predict, image, windows, len(network.parts), network.size)
    (labels,), (confidence,) = network.predict(image[None])
    return labels, confidence


def _predict_together(
    network: ExportedModel,
    todo: Sequence[Path],
    places: OutputPaths,
    reading: InferenceOptions,
    batch: int,
    ticker: Ticker,
) -> list[tuple[Path, str]]:
    # Reading and writing run in threads beside the network, at most `ahead` images ahead or behind.
    skipped: list[tuple[Path, str]] = []
    ahead = batch * 2
    readers, writers = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(max(2, available_cores()))
    try:
        writing: deque[Future] = deque()
        done = 0
        read = _readable(_ahead(readers, _read, todo, ahead), skipped)
        for group in in_batches(read, batch):
            labels, confidence = network.predict(np.stack([loaded.image for loaded in group]))
            for loaded, ids, probability in zip(group, labels, confidence, strict=True):
                writing.append(writers.submit(_write, places, loaded, ids, probability, network, reading))
            while len(writing) > ahead:
                writing.popleft().result()
            done += len(group)
            ticker.tick(done + len(skipped))
        for future in writing:
            future.result()
    finally:
        # After a stop or on a full disk, what is only queued is dropped.
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)
    return skipped


def in_batches(images: Iterable[LoadedImage], most: int) -> Iterator[list[LoadedImage]]:
    """Groups of up to `most` images of one size, for sizes in any order.

    When images of many sizes wait, the largest group is yielded as it is, to limit memory. A group holds no more pixels
    than one image may have.
    """
    waiting: dict[tuple[int, ...], list[LoadedImage]] = {}
    for loaded in images:
        shape = loaded.image.shape
        group = waiting.setdefault(shape, [])
        group.append(loaded)
        if len(group) >= min(most, _MOST_PIXELS // (shape[0] * shape[1])):
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) >= _WAITING_BATCHES * most:
            yield waiting.pop(max(waiting, key=lambda s: len(waiting[s])))
    yield from waiting.values()


def _paths(images: Path, leave_out: Iterable[Path]) -> list[Path]:
    return [images] if images.is_file() else list_images(images, leave_out)


def _read(path: Path, whole: bool = True) -> LoadedImage:
    try:
        image = read_image(path)
    except BadImage as error:
        return LoadedImage(path, np.empty((0, 0, 3), np.uint8), (0, 0), str(error))
    return LoadedImage(path, _shrunk(image) if whole else image, image.shape[:2])


def _shrunk(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    shrink = (_MOST_PIXELS / (height * width)) ** 0.5
    if shrink >= 1:
        return image
    small = max(1, int(width * shrink)), max(1, int(height * shrink))
    return np.array(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR))


def _readable(images: Iterable[LoadedImage], skipped: list[tuple[Path, str]]) -> Iterator[LoadedImage]:
    for loaded in images:
        if loaded.error:
            skipped.append((loaded.path, loaded.error))
        else:
            yield loaded


def _ahead(pool: ThreadPoolExecutor, work: Callable, items: Sequence, count: int) -> Iterator:
    # Like map, with at most `count` results waiting.
    waiting: deque[Future] = deque()
    rest = iter(items)
    waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, count))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, 1))
        yield result


def _write(
    places: OutputPaths,
    loaded: LoadedImage,
    labels: np.ndarray,
    confidence: np.ndarray,
    network: ExportedModel,
    reading: InferenceOptions,
) -> None:
    if reading.refined:
        factor = reading.factor(network, *loaded.image.shape[:2])
        labels, confidence = refine(loaded.image, labels, confidence, factor)
    # Labels are written last: without them the image counts as not done.
    if places.overlays:
        # Every second pixel of a very large image: Pillow would copy all of it twice.
        step = 1 if loaded.image.shape[0] * loaded.image.shape[1] <= _MOST_AHEAD else 2
        image = _shrunk(loaded.image[::step, ::step])
        write_overlay(places.overlay(loaded.path), image, _resized(labels, image.shape[:2]), network.parts)
    if places.confidence:
        _write_gray(places.confidence_map(loaded.path), _resized(confidence, loaded.size))
    write_labels(places.labels(loaded.path), _resized(labels, loaded.size), network.parts)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    return np.array(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))


def _write_gray(path: Path, values: np.ndarray) -> None:
    blob = io.BytesIO()
    Image.fromarray(values).save(blob, "PNG")
    with replacing_file(path) as temporary:
        temporary.write_bytes(blob.getvalue())
