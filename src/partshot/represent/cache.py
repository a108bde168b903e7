"""Feature cache on disk, shared by fits and runs, so that the features of an image are computed once.

A `Store` is a folder of arrays by key with a size limit, which several processes can share. `Cached` wraps a
Representation and looks features up in a store first. The key covers everything that determines the features: the
fingerprint (weights and preprocessing), the pixels and size of the image, the device type, the dtype of the computation
and the version of partshot. A lost file only costs recomputation, so I/O errors are never raised: an unreadable entry
counts as missing, and an entry that cannot be written is dropped.
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
"""Default size limit of a store in bytes.

ResNet-18 features take 0.25 MB for an image of 64 px and 1 MB for 128 px. A default fit with its leave-one-out estimate
needs features of up to 2,400 images; the unlabeled images of the folder are needed once.
"""

# The folder is listed again each time an eighth of the limit was written: a trade-off between limit and speed.
_SHARE = 8
_LARGEST = torch.finfo(torch.float16).max


class Store:
    """Lists of arrays by key, one file per key.

    folder: created on the first write. limit: total size of all files in bytes. When it is reached, least recently used
    files are deleted (LRU), except those used since this Store was opened: a pass over more images than fit would else
    evict every file just before it is needed again. If that frees no space, this Store writes nothing more. Processes
    that write at the same time may exceed the limit by an eighth of it each, until one of them lists the folder.
    found, extracted: number of hits of `get` and of calls of `put`.
    """

    def __init__(self, folder: Path | str, limit: int = LIMIT):
        self.folder, self.limit = Path(folder), limit
        self.found = self.extracted = 0
        self._opened = time.time_ns()
        # Bytes that may be written before the folder is listed again; None: no more writes.
        self._room: int | None = 0

    def __str__(self) -> str:
        return f"{self.found:,} from cache, {self.extracted:,} extracted"

    def get(self, key: str) -> list[np.ndarray] | None:
        """The arrays stored under a key; None if they are missing, evicted or damaged."""
        path = self._path(key)
        try:
            # Memory-mapped. safe_open raises if the file size does not match the header; the checksum detects changes.
            with safetensors.safe_open(path, "np") as file:
                arrays = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
                whole = (file.metadata() or {}).get("checksum") == _checksum(arrays)
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError):
            whole = False
        with suppress(OSError):  # read-only folder
            if whole:
                _touch(path)
            else:
                path.unlink()
        self.found += whole
        return arrays if whole else None

    def put(self, key: str, arrays: Sequence[np.ndarray]) -> None:
        """Stores arrays under a key, if there is space. Warns once if the disk cannot be written."""
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
        except FileNotFoundError:  # the folder was deleted in the meantime
            pass
        except (OSError, DiskFull) as error:
            self._room = None
            warnings.warn(
                f"features are not cached ({error}); set {VARIABLE} to another folder, or to an empty value to switch "
                "the cache off",
                stacklevel=2,
            )

    def _make_room(self, wanted: int) -> int | None:
        """Evicts least recently used files; returns the bytes that may be written, or None if `wanted` does not fit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files, share = _files(self.folder), max(wanted, self.limit // _SHARE)
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            if total + share <= self.limit or used >= self._opened:
                break
            with suppress(OSError):
                path.unlink()
            total -= size
        # Results are usually written to the same disk, so half of the free space is left for them.
        free = shutil.disk_usage(self.folder).free // 2
        if free < wanted:
            raise OSError(errno.ENOSPC, "the disk is nearly full", str(self.folder))
        room = min(share, self.limit - total, free)
        return room if room >= wanted else None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def open_store(wanted: bool = True) -> Store | None:
    """The user's feature store; None if `wanted` is false or the cache is switched off."""
    folder = cache_folder() if wanted else None
    return None if folder is None else Store(folder / "features")


class Cached(nn.Module):
    """A Representation that loads features from a store, and computes and stores only missing ones.

    Features are rounded to float16, whether they come from the store or not. Images are processed one by one, because
    rounding errors of a network depend on the batch. An image's features are therefore bit-identical on every call, in
    any batch and for any content of the store. If a value exceeds the range of float16, the image is stored in float32.

    The fingerprint is that of the wrapped representation, although features are rounded: float16 is eight times as
    precise as bf16, in which heads are fitted where the device supports it, and the fingerprint does not cover that
    either. Fits with and without a store are thus interchangeable, and switching the cache off restarts no run.
    """

    def __init__(self, representation: Representation, store: Store):
        super().__init__()
        self.representation, self.store = representation, store

    @property
    def spec(self) -> Spec:
        """The spec of the wrapped representation."""
        return self.representation.spec

    def train(self, mode: bool = True) -> "Cached":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Float[torch.Tensor, "b 3 h w"]) -> Pyramid:
        """The maps of the wrapped representation in float32; raises what that raises."""
        images_maps = [self._one(image) for image in images.detach().split(1)]
        maps = [torch.cat(level).to(images.device) for level in zip(*images_maps, strict=True)]
        return Pyramid(tuple(maps), tuple(images.shape[2:]))

    def card(self) -> dict:
        """The card of the wrapped representation; the store is not saved."""
        return self.representation.card()

    def _one(self, image: torch.Tensor) -> list[torch.Tensor]:
        key = key_of(self.spec.fingerprint, image)
        kept = self.store.get(key)
        if kept is None:
            maps = [m.float() for m in self.representation.features(image).maps]
            fits = all(float(m.abs().max()) <= _LARGEST for m in maps)
            # Stored as [h, w, c], since encoders and convolutions use channels_last.
            maps = [m[0].permute(1, 2, 0).to(torch.float16 if fits else torch.float32).contiguous() for m in maps]
            kept = [m.cpu().numpy() for m in maps]
            self.store.put(key, kept)
        return [torch.from_numpy(array).float().permute(2, 0, 1)[None] for array in kept]


def key_of(fingerprint: str, image: Float[torch.Tensor, "1 3 h w"]) -> str:
    """The key of one image's features, for a fingerprint, device type, autocast dtype and version."""
    device = image.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
    # The version, because changes of the code are not part of the fingerprint.
    digest = hashlib.sha256(f"{__version__}/{device}/{computed}/{tuple(image.shape)}".encode())
    digest.update(image.detach().float().cpu().contiguous().numpy())
    return f"{fingerprint}-{digest.hexdigest()[:32]}"


def _touch(path: Path) -> None:
    """Sets the time of last use, from the clock that `Store` uses; a file system's own clock is coarser."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(time of last use in ns, bytes, path) of all files, least recently used first."""
    found = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # deleted in the meantime
            stat = entry.stat()
            found.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
    return sorted(found)


def _checksum(arrays: Sequence[np.ndarray]) -> str:
    total = 0
    for array in arrays:
        total = zlib.crc32(f"{array.dtype}{array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array), total)
    return f"{total:08x}"
