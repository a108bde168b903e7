"""Journal: the log of a training as JSON lines, readable while it is being written.

Lines are only appended, each in one write. A killed run may leave an incomplete last line, which readers skip, and
lines from after its last checkpoint, which a resumed run removes, so that every step is in the file once.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from partshot.artifact import disk_errors, replacing_file
from partshot.errors import BadArtifact


class Journal:
    """Appends lines to `path`; the first one also creates the folder."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, line: Mapping[str, float | int | str | None]) -> None:
        """Appends a line and closes the file. NaN and infinity become null, since JSON has neither."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_as_json(line))

    def repair(self) -> None:
        """Removes an incomplete last line, as killed runs leave it, so that the next line starts on its own."""
        self._keep(lambda line: True)

    def rewind(self, step: int) -> None:
        """Removes lines with a "step" after `step`, and an incomplete last line."""
        self._keep(lambda line: line.get("step", 0) <= step)

    def _keep(self, wanted: Callable[[dict], bool]) -> None:
        if self.path.exists():
            kept = [line for line in read_journal(self.path) if wanted(line)]
            with replacing_file(self.path) as temporary:
                temporary.write_text("".join(map(_as_json, kept)), encoding="utf-8")


def read_journal(path: Path) -> list[dict]:
    """The lines of a journal, oldest first; an empty list when there is no file.

    An incomplete last line, as killed runs leave it, is skipped. Raises BadArtifact for any other line that is not a
    JSON object.
    """
    if not path.exists():
        return []
    complete, _, _incomplete = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    lines = []
    for number, text in enumerate(complete.splitlines(), start=1):
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
