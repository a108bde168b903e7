"""The file map of docs/architecture.md is that of the repository, README commands exist, and imports are light."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def tree() -> list[str]:
    """The lines of the file map, which tools/file_map.py writes."""
    return ARCHITECTURE.split("<!-- file map -->\n```text\n")[1].split("```")[0].strip().splitlines()


def test_tree_lists_every_file():
    """After adding, moving or deleting a file: python tools/file_map.py."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    told = {line.split()[0] for line in tree()}
    # Some folders are one line.
    folders = tuple(name for name in told if name.endswith("/"))
    real = {f for f in listed if not f.startswith(folders) and (ROOT / f).exists()}

    assert folders == () or all(any(f.startswith(folder) for f in listed) for folder in folders)
    assert told - set(folders) == real


def test_every_file_of_the_tree_has_a_caption():
    """A short one, on one line."""
    assert [line for line in tree() if len(line.split()) < 2 or len(line) > 160] == []


def test_files_named_in_where_to_change_what_exist():
    section = ARCHITECTURE.split("## Where to change what")[1].split("## Decisions")[0]
    named = re.findall(r"`([a-z_]+(?:/[a-z0-9_]+)*(?:\.py|/))`", section)
    assert len(named) >= 25
    assert [n for n in named if n != "src/partshot/" and not (ROOT / "src" / "partshot" / n).exists()] == []
    for file, name in re.findall(r"`([a-z_/]+\.py)` \(`(\w+)`\)", section):
        assert re.search(
            rf"^(?:class )?{name}\b", (ROOT / "src" / "partshot" / file).read_text(encoding="utf-8"), re.MULTILINE
        )


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_import_pulls_in_no_torch():
    """`import partshot` and its command line are light."""
    code = "import sys, partshot, partshot.cli; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
