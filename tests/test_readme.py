"""The README's promises that a test can hold: its tree is the real one, its Python and commands exist."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import partshot
from partshot.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tree_lists_every_file():
    """A file without a caption, or a caption without a file, is a lie to a newcomer."""
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
    tree = README.rsplit("```", 2)[1].strip().splitlines()
    told = {line.split()[0] for line in tree}
    # Folders of data are told as one.
    folders = tuple(name for name in told if name.endswith("/"))
    real = {f for f in listed if not f.startswith(folders) and (ROOT / f).exists()}

    assert folders == () or all(any(f.startswith(folder) for f in listed) for folder in folders)
    assert told - set(folders) == real


def test_every_file_of_the_tree_has_a_caption():
    """A name alone explains nothing."""
    tree = README.rsplit("```", 2)[1].strip().splitlines()
    assert [line for line in tree if len(line.split()) < 2] == []


def test_commands_exist():
    """Every `partshot VERB` of the README is a command."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    told = set(re.findall(r"(?:^|/)partshot ([a-z]+) ", blocks, re.MULTILINE))
    assert told
    assert told <= known


def test_python_parses_and_names_exist():
    """Every Python block parses, and every public name it imports or uses is there."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
        for name in re.findall(r"partshot\.([a-z_]+)\(", block) + re.findall(r"from partshot import (\w+)", block):
            assert hasattr(partshot, name)


def test_import_pulls_in_no_torch():
    """`import partshot` and its command line are light."""
    code = "import sys, partshot, partshot.cli; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    import sys

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
