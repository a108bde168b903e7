"""Artifact: anything trained, saved as a folder with tensors.safetensors and card.json.

Writes are atomic: both files are written to a temporary folder next to the target, which is then renamed. The card
holds the kind, the format version, the recipe's fingerprint and the SHA-256 of the tensors. Loading checks them, so
that a truncated, unknown or mismatched artifact raises an error before any tensor is used. No code from a file is
executed.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from partshot.errors import BadArtifact, DiskFull

FORMAT = 1

T = TypeVar("T")

# What saving may replace: the artifact's own files, and those that file managers leave behind.
_REPLACEABLE = {"card.json", "tensors.safetensors", ".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Artifact:
    """kind: type of the artifact: "segmenter", "student", "representation", "latents" or "checkpoint".

    card: metadata as plain JSON values. tensors: name -> array; NumPy has no bfloat16, so callers convert it to
    float32.
    """

    kind: str
    card: dict = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self, folder: Path | str) -> Path:
        """Writes the folder atomically and replaces an existing artifact.

        Raises DiskFull, in which case an existing artifact stays unchanged, and BadArtifact if the folder holds other
        files.
        """
        folder = Path(folder)
        _refuse_other_files(folder)
        # asarray instead of ascontiguousarray, which turns scalars (step counters) into 1-D arrays.
        blob = safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in self.tensors.items()})
        # These keys come last, to replace the old checksum in the card of an artifact that was loaded and changed.
        card = {**self.card, "partshot": FORMAT, "kind": self.kind, "sha256": hashlib.sha256(blob).hexdigest()}
        with replacing_folder(folder) as temporary:
            (temporary / "tensors.safetensors").write_bytes(blob)
            (temporary / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: Path | str, kind: str | None = None, fingerprint: str | None = None) -> "Artifact":
        """Loads a folder written by `save`.

        kind, fingerprint: expected values; None accepts any. Raises BadArtifact if a file is missing or truncated, has
        a newer format version, or has another kind or fingerprint.
        """
        requested = Path(folder)
        folder = standing(requested)
        card = read_card(folder)
        if kind is not None and card["kind"] != kind:
            raise BadArtifact(f"{folder}: is an artifact of kind {card['kind']}, not {kind}")
        if fingerprint is not None and card.get("fingerprint") != fingerprint:
            raise BadArtifact(
                f"{folder}: was made with other settings or other data; use those again, or delete it, or choose "
                "another --out"
            )
        path = folder / "tensors.safetensors"
        try:
            blob = path.read_bytes()
            if hashlib.sha256(blob).hexdigest() != card["sha256"]:
                raise BadArtifact(f"{path}: truncated or changed since it was written; delete {folder} and run again")
            tensors = safetensors.numpy.load(blob)
        except (OSError, SafetensorError) as error:
            raise BadArtifact(f"{path}: cannot be read ({error}); delete {folder} and run again") from error
        if folder == requested:
            _remove_backup(folder)
        return cls(kind=card["kind"], card=card, tensors=tensors)


def _refuse_other_files(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(names - _REPLACEABLE if "card.json" in names else names)
    if others:
        raise BadArtifact(
            f"{folder}: contains other files, which would be lost, such as {others[0]}; choose another folder"
        )


def read_card(folder: Path) -> dict:
    """The card of an artifact, without its tensors; raises BadArtifact if it is missing or invalid."""
    path = standing(folder) / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = int(card["partshot"]), card["kind"], card["sha256"]
    except OSError as error:
        what = "no trained artifact in this folder (card.json is missing)" if folder.is_dir() else "no such folder"
        raise BadArtifact(f"{folder}: {what}; give the --out of the command that trained it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{path}: not an artifact's card; delete {folder} and run again") from error
    if version > FORMAT:
        raise BadArtifact(f"{path}: written by a newer partshot (format {version}); upgrade partshot")
    return card


def strip_prefix(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors whose name starts with the prefix, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def inside(folder: Path, name: str) -> Path:
    """folder/name if an artifact exists there, as in the --out folder of a command; else the folder itself."""
    return folder / name if standing(folder / name).exists() else folder


def standing(folder: Path) -> Path:
    """The path from which to read the artifact of `folder`; it may not exist.

    This is `folder` itself, unless a writer was killed between the two renames of `replacing_folder`. Then only the
    backup of the older artifact exists, and its path is returned.
    """
    backup = _backup(folder)
    return backup if backup.exists() and not folder.exists() else folder


@contextmanager
def replacing_folder(folder: Path):
    """A temporary folder that replaces `folder` when the block succeeds, and is deleted when the block raises."""
    backup = _backup(folder)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file exists there", str(folder))
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        os.chmod(temporary, 0o755)
        try:
            yield temporary
            if folder.exists():
                shutil.rmtree(backup, ignore_errors=True)
                os.replace(folder, backup)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if backup.exists() and not folder.exists():
                os.replace(backup, folder)
            raise
        _remove_backup(folder)


def _backup(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-old")


def _remove_backup(folder: Path) -> None:
    """Deletes the backup of a complete folder, if there is one.

    It is renamed first: after a killed deletion, `standing` must not find it once the folder itself is deleted.
    """
    removed = folder.with_name(f".{folder.name}-removed")
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        os.replace(_backup(folder), removed)
        shutil.rmtree(removed, ignore_errors=True)


@contextmanager
def replacing_file(path: Path):
    """A temporary file with the same suffix that replaces `path` when the block succeeds; else it is deleted."""
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


def write_json(path: Path, values: dict) -> None:
    """Writes JSON values atomically, in UTF-8; raises DiskFull as `disk_errors` does."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


@contextmanager
def disk_errors(path: Path):
    """Converts a full disk, a missing permission or a conflicting path to DiskFull, with the path and the remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space and run again",
        errno.EDQUOT: "the disk quota is used up; free some space and run again",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.EACCES: "no permission to write there; choose another place",
        errno.ENOTDIR: "a file is in the way of a folder of that name; choose another place",
        errno.EEXIST: "a file is in the way of a folder of that name; choose another place",
        errno.EISDIR: "a folder of that name exists; choose another name",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise DiskFull(f"{path}: {remedies[error.errno]}; no partial files were left") from error
