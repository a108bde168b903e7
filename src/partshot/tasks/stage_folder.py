"""The folder of a stage that depends on the labels: what another state of them left there is removed first."""

import shutil
from pathlib import Path

from partshot.artifact import replacing_file


def stage_folder(folder: Path, state: str) -> Path:
    """The folder, which is emptied if an earlier run left another state there, and in which this state is recorded.

    state: all that decides whether work in the folder can be resumed. A folder without a recorded state is kept.
    """
    path = folder / "labels.txt"
    if path.exists() and path.read_text(encoding="utf-8") != state:
        shutil.rmtree(folder)
    with replacing_file(path) as temporary:
        temporary.write_text(state, encoding="utf-8")
    return folder
