"""Artifact: anything trained, on disk, as a folder of tensors.safetensors + card.json.

Written whole or not at all: both files go to a temporary folder beside the target, which then takes its place. The
card names the kind, the version of the format, the recipe's fingerprint and the SHA-256 of the tensors, so that a
truncated, foreign or mixed-up artifact is refused before a number of it is used. Nothing here runs code from a file.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from partshot.errors import BadArtifact, DiskFull

FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """kind: what it is ("representation", "head", "checkpoint", ...).

    card: plain JSON values that describe it. tensors: name -> array; bfloat16 is not a numpy type, so callers widen it.
    """

    kind: str
    card: dict = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self, folder: Path | str) -> Path:
        """Writes the folder atomically, replacing an older artifact.

        Raises DiskFull, which leaves the older one as it was, and BadArtifact when the folder holds anything else.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "card.json").is_file():
            raise BadArtifact(f"{folder}: holds other files, which would be lost; choose another folder")
        # asarray and not ascontiguousarray, which would give scalars (step counters) a dimension.
        blob = safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in self.tensors.items()})
        # Last, so that the card of an artifact that was read and changed does not keep its old checksum.
        card = {**self.card, "partshot": FORMAT, "kind": self.kind, "sha256": hashlib.sha256(blob).hexdigest()}
        with replacing_folder(folder) as temporary:
            (temporary / "tensors.safetensors").write_bytes(blob)
            (temporary / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: Path | str, kind: str | None = None, fingerprint: str | None = None) -> "Artifact":
        """Reads a folder that `save` wrote.

        kind, fingerprint: when given, refuse anything else. Raises BadArtifact when a file is missing, truncated,
        newer than this version reads, of another kind, or of another recipe.
        """
        folder = standing(Path(folder))
        card = read_card(folder)
        if kind is not None and card["kind"] != kind:
            raise BadArtifact(f"{folder}: holds a {card['kind']}, a {kind} is needed")
        if fingerprint is not None and card.get("fingerprint") != fingerprint:
            raise BadArtifact(
                f"{folder}: was made with another recipe ({card.get('fingerprint')}, now {fingerprint}); "
                "use the settings it was made with, or delete it, or choose another --out"
            )
        path = folder / "tensors.safetensors"
        try:
            blob = path.read_bytes()
            if hashlib.sha256(blob).hexdigest() != card["sha256"]:
                raise BadArtifact(f"{path}: truncated or changed since it was written; delete {folder} and run again")
            tensors = safetensors.numpy.load(blob)
        except (OSError, SafetensorError) as error:
            raise BadArtifact(f"{path}: cannot be read ({error}); delete {folder} and run again") from error
        return cls(kind=card["kind"], card=card, tensors=tensors)


def read_card(folder: Path) -> dict:
    """The card of an artifact, without its tensors; BadArtifact when there is none or it is not one of ours."""
    path = standing(folder) / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = int(card["partshot"]), card["kind"], card["sha256"]
    except OSError as error:
        what = "nothing that was trained lies there (card.json is missing)" if folder.is_dir() else "no such folder"
        raise BadArtifact(f"{folder}: {what}; give the --out of the command that trained it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{path}: not an artifact's card; delete {folder} and run again") from error
    if version > FORMAT:
        raise BadArtifact(f"{path}: written by a newer partshot (format {version}); upgrade partshot")
    return card


def below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """What is stored under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def inside(folder: Path, name: str) -> Path:
    """folder/name where an artifact stands there, as in what a command was told as --out; else the folder itself."""
    return folder / name if standing(folder / name).exists() else folder


def standing(folder: Path) -> Path:
    """Where the artifact that belongs at `folder` is to be read.

    It is `folder`, except when a writer was killed in the moment between moving the older folder aside and the new
    one in: then it is the older one, aside.
    """
    aside = _aside(folder)
    return aside if aside.exists() and not folder.exists() else folder


@contextmanager
def replacing_folder(folder: Path):
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes when not."""
    aside = _aside(folder)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file stands there", str(folder))
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        os.chmod(temporary, 0o755)
        try:
            yield temporary
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if aside.exists() and not folder.exists():
                os.replace(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-old")


@contextmanager
def replacing_file(path: Path):
    """A temporary path beside `path` (same suffix) that takes its place when the block ends well."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        os.chmod(name, 0o644)
        try:
            yield Path(name)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path):
    """Turns a disk that is full, read-only, forbidden or taken into a DiskFull that names the path and the cure."""
    cures = {
        errno.ENOSPC: "the disk is full; free some space and run again",
        errno.EDQUOT: "the disk quota is used up; free some space and run again",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.EACCES: "no permission to write there; choose another place",
        errno.ENOTDIR: "a file stands in the way of a folder; choose another place",
        errno.EEXIST: "a file stands in the way of a folder; choose another place",
        errno.EISDIR: "a folder stands there; choose another name",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in cures:
            raise
        raise DiskFull(f"{path}: {cures[error.errno]}; nothing was left half-written") from error
