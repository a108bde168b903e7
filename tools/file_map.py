"""Rewrites the file map of docs/architecture.md: one line per file of the repository, with a caption.

A file keeps the caption that the map already has, also after a move. A new file gets the first sentence of its
docstring, or of a Markdown file the title. Folders in FOLDERS are listed as one line.

    python tools/file_map.py [--check]
"""

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
MARK = "<!-- file map -->"

# Folders whose files are not listed one by one.
FOLDERS = ("bench/results/", "docs/adr/", "src/partshot/represent/toy_face_64/")

_BLOCK = re.compile(rf"{MARK}\n```text\n(.*?)```", re.DOTALL)
_LONGEST = 110


def main() -> int:
    """Writes the map, or with --check reports whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 if the map is out of date.")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = _BLOCK.sub(lambda _: f"{MARK}\n```text\n{file_map(captions(before))}```", before)
    if after != before and not check:
        PAGE.write_text(after, encoding="utf-8")
    return int(check and after != before)


def captions(page: str) -> dict[str, str]:
    """The captions that a page's map has, by file."""
    found = _BLOCK.search(page)
    if found is None:
        raise SystemExit(f"{PAGE}: no block ```text after {MARK}")
    lines = [line.split(None, 1) for line in found.group(1).splitlines() if line.strip()]
    return {line[0]: line[1].strip() if len(line) > 1 else "" for line in lines}


def file_map(known: dict[str, str]) -> str:
    """The map of the files that git tracks or would track."""
    by_name = {Path(name).name: text for name, text in known.items()}
    lines = []
    for name in sorted({*FOLDERS, *(f for f in files() if not f.startswith(FOLDERS))}):
        moved = "" if Path(name).name in ("__init__.py", "conftest.py") else by_name.get(Path(name).name, "")
        lines.append(f"{name:<47} {known.get(name) or moved or described(ROOT / name)}\n")
    return "".join(lines)


def files() -> list[str]:
    """Paths from the repository's root, as `git ls-files` has them, without deleted ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).exists()]


def described(path: Path) -> str:
    """A caption for a file that has none yet."""
    text = ""
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    elif path.suffix == ".md":
        text = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    first = re.split(r"(?<=[.?!])\s", " ".join(text.split()))[0].rstrip(".")
    return first[:_LONGEST] or f"{path.stem.replace('_', ' ')} (no caption yet)"


if __name__ == "__main__":
    sys.exit(main())
