"""Weights stay what they were: a file is checked against every hash that is known of it before it is used.

Three are known: the table's, of packages; the name of the file in the hub's cache, which is the hash that the hub gave
when it was downloaded; and what this machine used first, kept in encoders.json beside the features. The last pins
encoders whose commit the table does not name: a later download takes the same commit, and another file is refused.
"""

import hashlib
import json
import re
from pathlib import Path

from partshot.artifact import replacing_file
from partshot.errors import BadArtifact, DiskFull
from partshot.represent.cache_folder import cache_folder
from partshot.represent.encoder_table import Encoder
from partshot.represent.hub import Found

_SHA256 = re.compile(r"[0-9a-f]{64}")


def recorded_revision(encoder: Encoder) -> str | None:
    """The commit that this machine used first; None when it never did, or the table names one itself."""
    return None if encoder.revision else _records().get(encoder.name, {}).get("revision")


def checked_sha256(encoder: Encoder, found: Found) -> str:
    """The SHA-256 of a file of weights, hex; recorded, if it is the first of its kind.

    Raises BadArtifact when it is not the one that the table, the hub or this machine's record knows.
    """
    with found.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    blob = found.path.resolve().name
    if found.packaged:
        _compare(sha256, encoder.package_sha256, f"{found.path}: is not the file that {found.source} came with")
    elif _SHA256.fullmatch(blob):
        _compare(sha256, blob, f"{found.path}: truncated or changed since it was downloaded")
    if not found.packaged:
        _compare_with_record(encoder, found, sha256)
    return sha256


def _compare(sha256: str, wanted: str | None, what: str) -> None:
    if wanted is not None and sha256 != wanted:
        raise BadArtifact(f"{what} (sha256 {sha256[:12]}, {wanted[:12]} is needed); delete it and get it again")


def _compare_with_record(encoder: Encoder, found: Found, sha256: str) -> None:
    # A row whose commit changes with partshot's version has a new record; one without a commit keeps its first.
    records, key = _records(), f"{encoder.name}@{encoder.revision}" if encoder.revision else encoder.name
    if key not in records:
        _write(records | {key: {"revision": found.revision, "sha256": sha256}})
    elif records[key]["sha256"] != sha256:
        raise BadArtifact(
            f"{found.path}: weights of '{encoder.name}' are not those that were first used here (sha256 {sha256[:12]}, "
            f"then {records[key]['sha256'][:12]}); delete it and get it again, or delete {_path()} to accept it"
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
        with replacing_file(path) as temporary:
            temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    except (OSError, DiskFull):  # a cache that cannot be written keeps nothing, and stops nobody
        return
