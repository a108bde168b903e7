"""Verifies files of pretrained weights against all known SHA-256 hashes before they are loaded.

There are three sources of hashes: the table, for packages; the file's name in the hub's cache, which is the hash given
by the hub at download time; and encoders.json in the cache folder, which records the file first used on this machine.
This record pins encoders for which the table has no commit: later downloads use the recorded commit, and a different
file is rejected.
"""

import hashlib
import json
import re
from pathlib import Path

from partshot.artifact import write_json
from partshot.errors import BadArtifact, DiskFull
from partshot.represent.cache_folder import cache_folder
from partshot.represent.encoder_table import Encoder
from partshot.represent.hub import Found

_SHA256 = re.compile(r"[0-9a-f]{64}")


def recorded_revision(encoder: Encoder) -> str | None:
    """The commit first used on this machine; None if there is no record, or if the table has a commit."""
    return None if encoder.revision else _records().get(encoder.name, {}).get("revision")


def checked_sha256(encoder: Encoder, found: Found) -> str:
    """The SHA-256 of a file of weights, hex; recorded if there is no record yet.

    Raises BadArtifact if it differs from the hash in the table, of the hub, or in this machine's record.
    """
    with found.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    blob = found.path.resolve().name
    if found.packaged:
        _compare(sha256, encoder.package_sha256, f"{found.path}: is not the original file of {found.source}")
    elif _SHA256.fullmatch(blob):
        _compare(sha256, blob, f"{found.path}: truncated or changed since it was downloaded")
    if not found.packaged:
        _compare_with_record(encoder, found, sha256)
    return sha256


def _compare(sha256: str, wanted: str | None, what: str) -> None:
    if wanted is not None and sha256 != wanted:
        raise BadArtifact(f"{what} (sha256 {sha256[:12]}, expected {wanted[:12]}); delete it and get it again")


def _compare_with_record(encoder: Encoder, found: Found, sha256: str) -> None:
    # A new commit in the table gets a new record; encoders without a commit keep the first record.
    records, key = _records(), f"{encoder.name}@{encoder.revision}" if encoder.revision else encoder.name
    if key not in records:
        _write(records | {key: {"revision": found.revision, "sha256": sha256}})
    elif records[key]["sha256"] != sha256:
        raise BadArtifact(
            f"{found.path}: weights of '{encoder.name}' differ from those first used on this machine (sha256 "
            f"{sha256[:12]}, recorded {records[key]['sha256'][:12]}); delete the file and download it again, or delete "
            f"{_path()} to accept it"
        )


def _path() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "encoders.json"


def _records() -> dict[str, dict[str, str]]:
    path = _path()
    try:
        return {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadArtifact(f"{path}: the record of encoders cannot be read ({error}); delete it") from error


def _write(records: dict[str, dict[str, str]]) -> None:
    path = _path()
    if path is None:
        return
    try:
        write_json(path, records)
    except (OSError, DiskFull):  # without a writable cache there is no record
        return
