"""Journals: lines in order, incomplete last lines, repairing and rewinding."""

import math

import pytest

from partshot.errors import BadArtifact
from partshot.train.journal import Journal, read_journal


def test_lines_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    assert read_journal(journal.path) == []
    journal.write({"step": 1, "loss": 0.5})
    assert read_journal(journal.path) == [{"step": 1, "loss": 0.5}]
    journal.write({"step": 2, "loss": 0.25, "note": "ein Stück"})
    assert read_journal(journal.path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "note": "ein Stück"}]


def test_nan_and_infinity_become_null(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write({"step": 1, "a": math.nan, "b": -math.inf})
    assert read_journal(journal.path) == [{"step": 1, "a": None, "b": None}]


def test_rewinding_removes_later_and_incomplete_lines(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.rewind(0)
    for step in (5, 10, 15):
        journal.write({"step": step})
    with journal.path.open("a") as file:
        file.write('{"step": 2')
    assert [line["step"] for line in read_journal(journal.path)] == [5, 10, 15]

    journal.rewind(10)
    journal.write({"step": 12})

    assert journal.path.read_text() == '{"step": 5}\n{"step": 10}\n{"step": 12}\n'


def test_repairing_removes_only_an_incomplete_line(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.repair()
    journal.write({"step": 5})
    journal.write({"name": "a"})
    whole = journal.path.read_bytes()
    with journal.path.open("a") as file:
        file.write('{"step": 2')
    journal.repair()
    assert journal.path.read_bytes() == whole


@pytest.mark.parametrize("bad", ["{nonsense", "[1, 2]", "\x00"])
def test_the_error_names_an_invalid_line(tmp_path, bad):
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(BadArtifact, match="line 2"):
        read_journal(path)
