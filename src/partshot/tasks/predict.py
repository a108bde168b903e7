"""predict: masks for a folder of images by an exported student, without torch.

Knows how a long prediction stays busy. The net, and what is done to an image before and after it, is the ONNX file's
affair; what lies where in the folder of masks is inference/predictions.py's; what is read in windows, options.py's;
how labels are moved onto edges, refine.py's.
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

from partshot.artifact import replacing_file
from partshot.data.images import allowing, image_size, list_images, read_image, write_overlay
from partshot.data.labels import write_labels
from partshot.errors import BadImage, BadRecipe
from partshot.inference.exported_model import ExportedModel
from partshot.inference.options import InferenceOptions
from partshot.inference.predictions import MANIFEST, ModelInfo, OutputPaths, prepare_folder, write_json
from partshot.inference.refine import refine
from partshot.inference.windows import sliding_window_predict
from partshot.machine import available_cores
from partshot.train.progress import Ticker

# A net that looks at a few hundred pixels says nothing finer than a 4-megapixel mask shows, and the logits of a much
# larger one would fill the memory: larger images are predicted at this size and their labels enlarged.
_MOST_PIXELS = 2**22
# Images of more pixels, and those that are read in windows, are taken one by one, so that no two fill the memory.
_MOST_AHEAD = 2**25
_READERS = 4
_WAITING_BATCHES = 4  # of images whose sizes are too rare to fill a batch


@dataclass(frozen=True)
class Summary:
    """What a prediction did: images predicted now, kept from before, and skipped, each with the one-line reason.

    windowed: how many of those predicted now were read in windows.
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
        windowed = f", {self.windowed} read in windows (--window)" if self.windowed else ""
        return f"{self.written} masks written to {self.out}{speed}{windowed}{kept}{skipped}"


@dataclass(frozen=True)
class LoadedImage:
    """An image as the net gets it. size: height and width of the file's own image, which `image` may be below.

    error: why it could not be read, else empty.
    """

    path: Path
    image: np.ndarray
    size: tuple[int, int]
    error: str = ""


def predict(
    model: Path | str,
    images: Path | str,
    out: Path | str,
    overlays: bool = False,
    confidence: bool = False,
    batch: int = 8,
    overwrite: bool = False,
    quiet: bool = False,
    leave_out: Iterable[Path] = (),
    window: str | int = "auto",
    scale: str | int | float = "1",
    max_megapixels: int | float = 500,
    refined: bool = False,
) -> Summary:
    """Writes an indexed PNG of the same stem and size for every image, ids and palette as in out/classes.json.

    model: an ONNX file that `partshot export` wrote. images: a folder of images, or one image.
    overlays: also draw the parts on the images, as out/overlays/STEM.jpg. confidence: also write each label's
    probability times 255, as out/confidence/STEM.png. batch: images of one size that are predicted together.
    leave_out: files that are no images, such as masks that lie beside them. window: side in pixels of the overlapping
    windows in which images are read; "off" reads all of them whole; "auto" those that are at most twice as large as the
    images that the model learned from, or all where it does not say, and others in windows of that size. scale: how
    many times as large things are in windows as in those images, or several numbers, as in "0.5,1,2", whose votes are
    averaged. max_megapixels: larger images are left out. refined: labels are moved onto the edges of the image, where
    that is larger than what the model sees of it; of images of more than 4 megapixels that are read whole, onto those
    of the image shrunk to that.

    An image that cannot be read is left out and listed in the summary. Run again after a stop, it goes on where it
    was: what this model wrote and no image is newer than is kept, unless `overwrite`. Another model's predictions
    are replaced, those corrected by hand too; masks in a folder that holds no predictions are not.

    Raises BadArtifact for a file that is no exported student; BadImage when there is no image, none can be read, or
    two share a stem; BadLabels when `out` holds masks that partshot did not predict; DiskFull.
    """
    if batch < 1:
        raise BadRecipe(f"batch {batch} given; 1 or more images are needed")
    began, reading = time.monotonic(), InferenceOptions.parse(window, scale, refined)
    shipped, paths = ExportedModel(model), _paths(Path(images), leave_out)
    reading.windows(shipped, 1, 1)  # refuses a scale of nothing, before any work
    places = OutputPaths(Path(out), overlays, confidence)
    author = ModelInfo(shipped.sha256, shipped.version, shipped.parts)
    manifest = prepare_folder(places, author, paths, overwrite, reading)

    todo = [path for path in paths if not places.done(path, manifest["since"])]
    with allowing(max_megapixels), Ticker("predicting", total=len(todo), done=0, quiet=quiet) as ticker:
        alone = _alone(shipped, todo, reading)
        together = [path for path in todo if path not in alone]
        skipped = _predict_together(shipped, together, places, reading, batch, ticker)
        skipped += _predict_alone(shipped, alone, places, reading, ticker, len(together))
    windowed = sum(bool(windows) for windows in alone.values())
    write_json(places.out / MANIFEST, {**manifest, "skipped": {path.name: reason for path, reason in skipped}})

    if skipped and len(skipped) == len(paths):
        raise BadImage(f"none of {len(paths)} images can be read; first: {skipped[0][1]}")
    written, kept = len(todo) - len(skipped), len(paths) - len(todo)
    return Summary(places.out, written, kept, tuple(skipped), time.monotonic() - began, windowed)


def _alone(shipped: ExportedModel, todo: Sequence[Path], reading: InferenceOptions) -> dict[Path, tuple[int, ...]]:
    # Which images are read one by one, each with its windows; none for one that is read whole.
    found = {}
    for path in todo:
        try:
            height, width = image_size(path)
        except BadImage:
            continue  # reading it says so
        windows = reading.windows(shipped, height, width)
        if windows or height * width > _MOST_AHEAD:
            found[path] = windows
    return found


def _predict_alone(
    shipped: ExportedModel,
    todo: Mapping[Path, tuple[int, ...]],
    places: OutputPaths,
    reading: InferenceOptions,
    ticker: Ticker,
    done: int,
) -> list[tuple[Path, str]]:
    skipped: list[tuple[Path, str]] = []
    for path, windows in todo.items():
        for loaded in _readable([_read(path, whole=not windows)], skipped):
            if windows:
                given = (loaded.image, windows, len(shipped.parts), shipped.size)
                labels, confidence = sliding_window_predict(shipped.predict, *given)
            else:
                (labels,), (confidence,) = shipped.predict(loaded.image[None])
            _write(places, loaded, labels, confidence, shipped, reading)
        done += 1
        ticker.tick(done)
    return skipped


def _predict_together(
    shipped: ExportedModel,
    todo: Sequence[Path],
    places: OutputPaths,
    reading: InferenceOptions,
    batch: int,
    ticker: Ticker,
) -> list[tuple[Path, str]]:
    # Reading and writing run in threads beside the net, each a bounded number of images ahead or behind.
    skipped: list[tuple[Path, str]] = []
    ahead = batch * 2
    readers, writers = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(max(2, available_cores()))
    try:
        writing: deque[Future] = deque()
        done = 0
        read = _readable(_ahead(readers, _read, todo, ahead), skipped)
        for group in in_batches(read, batch):
            labels, confidence = shipped.predict(np.stack([loaded.image for loaded in group]))
            for loaded, ids, sure in zip(group, labels, confidence, strict=True):
                writing.append(writers.submit(_write, places, loaded, ids, sure, shipped, reading))
            while len(writing) > ahead:
                writing.popleft().result()
            done += len(group)
            ticker.tick(done + len(skipped))
        for future in writing:
            future.result()
    finally:
        # A stop or a full disk must not wait for what was only queued.
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)
    return skipped


def in_batches(images: Iterable[LoadedImage], most: int) -> Iterator[list[LoadedImage]]:
    """Groups of up to `most` images of one size, whatever order the sizes come in.

    When images of many sizes wait, the largest group goes as it is, so that memory stays bounded; and a group holds
    no more pixels than one image may.
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
    # Like map, but never more than `count` results wait to be taken.
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
    shipped: ExportedModel,
    reading: InferenceOptions,
) -> None:
    if reading.refined:
        factor = reading.factor(shipped, *loaded.image.shape[:2])
        labels, confidence = refine(loaded.image, labels, confidence, factor)
    # The labels last: without them the image counts as not done.
    if places.overlays:
        # Of a very large image every second pixel: Pillow would copy all of it, twice.
        step = 1 if loaded.image.shape[0] * loaded.image.shape[1] <= _MOST_AHEAD else 2
        image = _shrunk(loaded.image[::step, ::step])
        write_overlay(places.overlay(loaded.path), image, _resized(labels, image.shape[:2]), shipped.parts)
    if places.confidence:
        _write_gray(places.confidence_map(loaded.path), _resized(confidence, loaded.size))
    write_labels(places.labels(loaded.path), _resized(labels, loaded.size), shipped.parts)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    return np.array(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))


def _write_gray(path: Path, values: np.ndarray) -> None:
    blob = io.BytesIO()
    Image.fromarray(values).save(blob, "PNG")
    with replacing_file(path) as temporary:
        temporary.write_bytes(blob.getvalue())
