"""predict: masks for a folder of pictures by an exported student, without torch.

Knows how a long prediction stays busy, goes on after a stop, and what lies where in its folder. The net, and what is
done to a picture before and after it, is the ONNX file's affair.
"""

import io
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from partshot.artifact import replacing_file
from partshot.data.images import list_images, read_image, write_overlay
from partshot.data.labels import write_labels
from partshot.errors import BadImage, BadLabels, BadRecipe
from partshot.machine import available_cores
from partshot.parts import PartSet
from partshot.shipped import Shipped
from partshot.train.progress import Ticker

MANIFEST = "predictions.json"

# A net that looks at a few hundred pixels says nothing finer than a 4-megapixel mask shows, and the logits of a much
# larger one would fill the memory: larger pictures are predicted at this size and their labels enlarged.
_MOST_PIXELS = 2**22
# File times advance in ticks of some milliseconds; waiting one out makes every older file older than the manifest.
_TICK_SECONDS = 0.02
_READERS = 4
_WAITING_BATCHES = 4  # of pictures whose sizes are too rare to fill a batch


@dataclass(frozen=True)
class Summary:
    """What a prediction did: pictures predicted now, kept from before, and skipped, each with the one-line reason."""

    out: Path
    written: int
    kept: int
    skipped: tuple[tuple[Path, str], ...]
    seconds: float

    def __str__(self) -> str:
        kept = f", {self.kept} kept from before" if self.kept else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        speed = f" ({self.written / self.seconds:.0f} a second)" if self.written and self.seconds else ""
        return f"{self.written} masks written to {self.out}{speed}{kept}{skipped}"


@dataclass(frozen=True)
class Places:
    """Where the results of a picture go: out/STEM.png, out/overlays/STEM.jpg, out/confidence/STEM.png."""

    out: Path
    overlays: bool
    confidence: bool

    def labels(self, picture: Path) -> Path:
        return self.out / f"{picture.stem}.png"

    def overlay(self, picture: Path) -> Path:
        return self.out / "overlays" / f"{picture.stem}.jpg"

    def sureness(self, picture: Path) -> Path:
        return self.out / "confidence" / f"{picture.stem}.png"

    def done(self, picture: Path, since: int) -> bool:
        """Whether all that is wanted of a picture was written after `since` (ns) and after the picture itself."""
        wanted = [self.labels(picture)]
        wanted += [self.overlay(picture)] if self.overlays else []
        wanted += [self.sureness(picture)] if self.confidence else []
        oldest = max(since, picture.stat().st_mtime_ns)
        return all(p.is_file() and p.stat().st_mtime_ns >= oldest for p in wanted)


@dataclass(frozen=True)
class Picture:
    """A picture as the net gets it. size: height and width of the file's own picture, which `image` may be below.

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
) -> Summary:
    """Writes an indexed PNG of the same stem and size for every picture, ids and palette as in out/classes.json.

    model: an ONNX file that `partshot export` wrote. images: a folder of pictures, or one picture.
    overlays: also draw the parts on the pictures, as out/overlays/STEM.jpg. confidence: also write each label's
    probability times 255, as out/confidence/STEM.png. batch: pictures of one size that are predicted together.
    leave_out: files that are no pictures, such as masks that lie beside them.

    A picture that cannot be read is left out and listed in the summary. Run again after a stop, it goes on where it
    was: what this model wrote and no picture is newer than is kept, unless `overwrite`. Another model's predictions
    are replaced, those corrected by hand too; masks in a folder that holds no predictions are not.

    Raises BadArtifact for a file that is no exported student; BadImage when there is no picture, none can be read, or
    two share a stem; BadLabels when `out` holds masks that partshot did not predict; DiskFull.
    """
    if batch < 1:
        raise BadRecipe(f"batch {batch} given; 1 or more pictures are needed")
    began = time.monotonic()
    shipped, pictures = Shipped(model), _pictures(Path(images), leave_out)
    places = Places(Path(out), overlays, confidence)
    manifest = _claim(places, shipped, pictures, overwrite)

    todo = [picture for picture in pictures if not places.done(picture, manifest["since"])]
    skipped = _predict_all(shipped, todo, places, batch, quiet)
    _write_json(places.out / MANIFEST, {**manifest, "skipped": {path.name: reason for path, reason in skipped}})

    if skipped and len(skipped) == len(pictures):
        raise BadImage(f"none of {len(pictures)} pictures can be read; first: {skipped[0][1]}")
    written, kept = len(todo) - len(skipped), len(pictures) - len(todo)
    return Summary(places.out, written, kept, tuple(skipped), time.monotonic() - began)


def _predict_all(
    shipped: Shipped, todo: Sequence[Path], places: Places, batch: int, quiet: bool
) -> list[tuple[Path, str]]:
    # Reading and writing run in threads beside the net, each a bounded number of pictures ahead or behind.
    skipped: list[tuple[Path, str]] = []
    ahead = batch * 2
    readers, writers = ThreadPoolExecutor(_READERS), ThreadPoolExecutor(max(2, available_cores()))
    try:
        with Ticker("predicting", total=len(todo), done=0, quiet=quiet) as ticker:
            writing: deque[Future] = deque()
            done = 0
            read = _readable(_ahead(readers, _read, todo, ahead), skipped)
            for group in in_batches(read, batch):
                labels, confidence = shipped.predict(np.stack([picture.image for picture in group]))
                for picture, ids, sure in zip(group, labels, confidence, strict=True):
                    writing.append(writers.submit(_write, places, picture, ids, sure, shipped.parts))
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


def in_batches(pictures: Iterable[Picture], most: int) -> Iterator[list[Picture]]:
    """Groups of up to `most` pictures of one size, whatever order the sizes come in.

    When pictures of many sizes wait, the largest group goes as it is, so that memory stays bounded; and a group holds
    no more pixels than one picture may.
    """
    waiting: dict[tuple[int, ...], list[Picture]] = {}
    for picture in pictures:
        shape = picture.image.shape
        group = waiting.setdefault(shape, [])
        group.append(picture)
        if len(group) >= min(most, _MOST_PIXELS // (shape[0] * shape[1])):
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) >= _WAITING_BATCHES * most:
            yield waiting.pop(max(waiting, key=lambda s: len(waiting[s])))
    yield from waiting.values()


def _pictures(images: Path, leave_out: Iterable[Path]) -> list[Path]:
    return [images] if images.is_file() else list_images(images, leave_out)


def _claim(places: Places, shipped: Shipped, pictures: Sequence[Path], overwrite: bool) -> dict:
    # Makes the folder this model's; the manifest says since when (ns, by the folder's own clock) its files are.
    out = places.out
    if out.exists() and not out.is_dir():
        raise BadImage(f"{out}: is a file; give a folder for the masks")
    if out.exists() and out.resolve() == pictures[0].parent.resolve():
        raise BadImage(f"{out}: holds the pictures themselves; give another folder for the masks")
    manifest = _read_manifest(out / MANIFEST)
    if manifest is None and not overwrite:
        _refuse_foreign_masks(places, pictures)
    if manifest is None or manifest["sha256"] != shipped.sha256 or overwrite:
        time.sleep(_TICK_SECONDS)
        with replacing_file(out / MANIFEST) as temporary:
            manifest = {"sha256": shipped.sha256, "partshot": shipped.version, "since": temporary.stat().st_mtime_ns}
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _write_json(out / "classes.json", shipped.parts.to_dict())
    return manifest


def _read_manifest(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {**values, "sha256": str(values["sha256"]), "since": int(values["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_foreign_masks(places: Places, pictures: Sequence[Path]) -> None:
    # Masks drawn by hand are the most valuable files there are.
    for picture in pictures:
        mask = places.labels(picture)
        if mask.exists():
            raise BadLabels(
                f"{mask}: was not predicted by partshot; choose another --out, or replace it by --overwrite"
            )


def _write_json(path: Path, values: dict) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _read(path: Path) -> Picture:
    try:
        image = read_image(path)
    except BadImage as error:
        return Picture(path, np.empty((0, 0, 3), np.uint8), (0, 0), str(error))
    height, width = image.shape[:2]
    shrink = (_MOST_PIXELS / (height * width)) ** 0.5
    if shrink < 1:
        small = max(1, int(width * shrink)), max(1, int(height * shrink))
        image = np.array(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR))
    return Picture(path, image, (height, width))


def _readable(pictures: Iterable[Picture], skipped: list[tuple[Path, str]]) -> Iterator[Picture]:
    for picture in pictures:
        if picture.error:
            skipped.append((picture.path, picture.error))
        else:
            yield picture


def _ahead(pool: ThreadPoolExecutor, work: Callable, items: Sequence, count: int) -> Iterator:
    # Like map, but never more than `count` results wait to be taken.
    waiting: deque[Future] = deque()
    rest = iter(items)
    waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, count))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in itertools.islice(rest, 1))
        yield result


def _write(places: Places, picture: Picture, labels: np.ndarray, confidence: np.ndarray, parts: PartSet) -> None:
    # The labels last: without them the picture counts as not done.
    if places.overlays:
        write_overlay(places.overlay(picture.path), picture.image, labels, parts)
    if places.confidence:
        _write_gray(places.sureness(picture.path), _enlarge(confidence, picture.size))
    write_labels(places.labels(picture.path), _enlarge(labels, picture.size), parts)


def _enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    return np.array(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))


def _write_gray(path: Path, values: np.ndarray) -> None:
    blob = io.BytesIO()
    Image.fromarray(values).save(blob, "PNG")
    with replacing_file(path) as temporary:
        temporary.write_bytes(blob.getvalue())
