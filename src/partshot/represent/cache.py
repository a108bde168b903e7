"""What was read of images, kept on disk: none is read twice, not by the next fit, the next run, or other labels.

A `Store` is a folder of arrays by key, bounded, which any number of processes may share; `Cached` is a Representation
around another one that asks a store first. A key covers all that decides what is read: the weights and the way of
reading (the fingerprint), the image's pixels and size, and the numbers it is computed in. Losing a file only costs
reading anew, so nothing here ever fails: what cannot be read is missing, what cannot be written is not kept.

Knows keys, files and bounds. Refuses to know how images are read and what becomes of it.
"""

import errno
import hashlib
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from jaxtyping import Float
from torch import nn

from partshot import __version__
from partshot.artifact import replacing_file
from partshot.errors import DiskFull
from partshot.pyramid import Pyramid
from partshot.represent.cache_folder import VARIABLE, cache_folder
from partshot.represent.spec import Representation, Spec

LIMIT = 4 << 30
"""Bytes of a store. A ResNet-18 reads 0.25 MB off an image of 64 px and 1 MB off 128 px; a default fit, together with
the estimate from its left-out shots, reads up to 2,400 of them, and the folder behind it is read once."""

# A store is listed anew whenever an eighth of it was written: often enough for its bound, seldom enough for speed.
_SHARE = 8
_LARGEST = torch.finfo(torch.float16).max


class Store:
    """Arrays by key, one file each.

    folder: made when the first one comes. limit: bytes that all files may have together; room is made by throwing out
    what was used longest ago, but nothing that was used since this Store was opened: a pass over more than fits would
    else push out every file just before it is asked for again. Then nothing more is kept until the next Store. Several
    processes that write at once may go over the limit by an eighth of it each, until one of them looks.
    found, extracted: how often `get` had an answer, and `put` was called.
    """

    def __init__(self, folder: Path | str, limit: int = LIMIT):
        self.folder, self.limit = Path(folder), limit
        self.found = self.extracted = 0
        self._opened = time.time_ns()
        # Bytes that may be written before the folder is listed anew; None: nothing is written any more.
        self._room: int | None = 0

    def __str__(self) -> str:
        return f"{self.found:,} from cache, {self.extracted:,} extracted"

    def get(self, key: str) -> list[np.ndarray] | None:
        """What was put there; None when it never was, was thrown out, or is damaged."""
        path = self._path(key)
        try:
            # Memory-mapped; a length that does not fit the header is refused here, changed bytes by the checksum.
            with safetensors.safe_open(path, "np") as file:
                arrays = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
                whole = (file.metadata() or {}).get("checksum") == _checksum(arrays)
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError):
            whole = False
        with suppress(OSError):  # a folder that may only be read
            if whole:
                _touch(path)
            else:
                path.unlink()
        self.found += whole
        return arrays if whole else None

    def put(self, key: str, arrays: Sequence[np.ndarray]) -> None:
        """Keeps what was extracted, if there is room; the first time that the disk refuses, a warning says so."""
        self.extracted += 1
        if self._room is None:
            return
        named = {str(i): np.ascontiguousarray(array) for i, array in enumerate(arrays)}
        blob = safetensors.numpy.save(named, {"checksum": _checksum(arrays)})
        try:
            if len(blob) > self._room:
                self._room = self._make_room(len(blob))
            if self._room is not None:
                with replacing_file(self._path(key)) as temporary:
                    temporary.write_bytes(blob)
                    _touch(temporary)
                self._room -= len(blob)
        except FileNotFoundError:  # somebody emptied the folder meanwhile
            pass
        except (OSError, DiskFull) as error:
            self._room = None
            warnings.warn(
                f"what is read of images is not kept ({error}); name another folder in {VARIABLE}, or empty it to "
                "keep nothing",
                stacklevel=2,
            )

    def _make_room(self, wanted: int) -> int | None:
        """Throws out what was used longest ago; bytes that may be written now, None when it is too few for good."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files, share = _files(self.folder), max(wanted, self.limit // _SHARE)
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            if total + share <= self.limit or used >= self._opened:
                break
            with suppress(OSError):
                path.unlink()
            total -= size
        # Results are written to the same disk, as a rule: half of what is free stays theirs.
        free = shutil.disk_usage(self.folder).free // 2
        if free < wanted:
            raise OSError(errno.ENOSPC, "the disk is nearly full", str(self.folder))
        room = min(share, self.limit - total, free)
        return room if room >= wanted else None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def open_store(wanted: bool = True) -> Store | None:
    """The user's own store of features; None when it is not wanted or switched off."""
    folder = cache_folder() if wanted else None
    return None if folder is None else Store(folder / "features")


class Cached(nn.Module):
    """A Representation that reads from a store what it holds, and extracts and puts there only the rest.

    Features are rounded to float16, whether they come from the store or not, and images are extracted one by one,
    since a network's sums differ in the last digits with the batch: so an image's features are the same bits the first
    time and later, in any batch, whatever the store holds. An image with values beyond float16 is kept in float32.

    The fingerprint is the wrapped one's. It names the weights and the way of reading, and float16 rounds eight times as
    finely as the bf16 that heads are fitted in where a machine has it, which no fingerprint tells either. So what was
    fitted with a store is taken up without one, and switching it off makes no run begin anew.
    """

    def __init__(self, representation: Representation, store: Store):
        super().__init__()
        self.representation, self.store = representation, store

    @property
    def spec(self) -> Spec:
        """The wrapped one's."""
        return self.representation.spec

    def train(self, mode: bool = True) -> "Cached":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The wrapped one's maps, float32; raises what it raises."""
        read = [self._one(image) for image in images.detach().split(1)]
        maps = [torch.cat(level).to(images.device) for level in zip(*read, strict=True)]
        return Pyramid(tuple(maps), tuple(images.shape[2:]))

    def card(self) -> dict:
        """The wrapped one's: what is saved knows of no store."""
        return self.representation.card()

    def _one(self, image: torch.Tensor) -> list[torch.Tensor]:
        key = key_of(self.spec.fingerprint, image)
        kept = self.store.get(key)
        if kept is None:
            maps = [m.float() for m in self.representation.features(image).maps]
            fits = all(float(m.abs().max()) <= _LARGEST for m in maps)
            # Channels last, as convolutions here take their maps and as the encoders give them.
            maps = [m[0].permute(1, 2, 0).to(torch.float16 if fits else torch.float32).contiguous() for m in maps]
            kept = [m.cpu().numpy() for m in maps]
            self.store.put(key, kept)
        return [torch.from_numpy(array).float().permute(2, 0, 1)[None] for array in kept]


def key_of(fingerprint: str, image: Float[torch.Tensor, "1 3 h w"]) -> str:
    """The key of what a representation of that fingerprint reads of one image, here and now."""
    device = image.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
    # The version, because code that reads otherwise has no other sign.
    digest = hashlib.sha256(f"{__version__}/{device}/{computed}/{tuple(image.shape)}".encode())
    digest.update(image.detach().float().cpu().contiguous().numpy())
    return f"{fingerprint}-{digest.hexdigest()[:32]}"


def _touch(path: Path) -> None:
    """Notes that a file is used now, by the clock that a store is opened by: a file system's own goes in ticks."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(when last used in ns, bytes, path) of all files, those used longest ago first."""
    found = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # gone since
            stat = entry.stat()
            found.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
    return sorted(found)


def _checksum(arrays: Sequence[np.ndarray]) -> str:
    total = 0
    for array in arrays:
        total = zlib.crc32(f"{array.dtype}{array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array), total)
    return f"{total:08x}"
