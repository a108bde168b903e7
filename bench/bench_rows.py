"""Helpers of the benchmarks on real images: options, and rows that are kept with the repository."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from partshot.benchmark.kshot import Row
from partshot.train.journal import read_journal

DATA = Path(os.environ.get("PARTSHOT_DATA", "../shared/data"))
RESULTS = Path(__file__).parent / "results"


def names(text: str) -> tuple[str, ...]:
    """Parses an option with comma-separated names. A comma followed by a space is part of a name."""
    return tuple(name.replace("\0", ", ") for name in text.replace(", ", "\0").split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Parses an option with comma-separated numbers."""
    return tuple(map(int, text.split(",")))


def own_rows(folder: Path) -> list[Row]:
    """The rows in folder/rows.jsonl."""
    return [Row.from_dict(line) for line in read_journal(folder / "rows.jsonl")]


def read_rows(folder: Path, committed: Path) -> list[Row]:
    """The rows in folder/rows.jsonl, and those of the committed file that are not among them."""
    own = own_rows(folder)
    known = {(row.method, row.k, row.seed) for row in own}
    earlier = (Row.from_dict(line) for line in read_journal(committed))
    return own + [row for row in earlier if (row.method, row.k, row.seed) not in known]


def commit_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes rows to their committed file, without the scores of single images."""
    kept = [replace(row, score=replace(row.score, per_image=())).to_dict() for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
