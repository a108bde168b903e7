"""Journal: what a run measured, one JSON object per line, readable while it is being written.

Lines are only ever appended, each in one write. A run that was killed may leave a torn last line, and lines from
after its last checkpoint: readers pass over the first, and a resumed run drops the second before it writes on, so
that no step stands in the file twice. Knows nothing of what the numbers mean.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from partshot.artifact import disk_errors, replacing_file
from partshot.errors import BadArtifact


class Journal:
    """Appends lines to `path`; the folder is made when the first one comes."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, line: Mapping[str, float | int | str | None]) -> None:
        """One more line, on disk when this returns; NaN and infinity, which JSON has not, become null."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_as_json(line))

    def rewind(self, step: int) -> None:
        """Drops every line whose "step" comes after `step`, and a torn last line."""
        if self.path.exists():
            kept = [line for line in read_journal(self.path) if line.get("step", 0) <= step]
            with replacing_file(self.path) as temporary:
                temporary.write_text("".join(map(_as_json, kept)), encoding="utf-8")


def read_journal(path: Path) -> list[dict]:
    """The lines of a journal, oldest first; none when there is no file yet.

    A last line without its end is one that a killed run was writing, and is passed over. Raises BadArtifact for any
    other line that is not a JSON object.
    """
    if not path.exists():
        return []
    whole, _, _torn = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    lines = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise BadArtifact(f"{path}: line {number} is not a JSON object; delete that line, or the file")
        lines.append(line)
    return lines


def _as_json(line: Mapping) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, ensure_ascii=False) + "\n"
