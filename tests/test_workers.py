"""Workers: in order, as many as asked, and none outlives an error.

What they do is code as text: a test's own functions cannot be imported in another process.
"""

import os
import time
from pickle import PicklingError

import pytest

from partshot.workers import side_by_side

FAILS = """
import time
from pickle import PicklingError
while not open_.exists():
    time.sleep(0.01)
raise ZeroDivisionError("no")
"""
WAITS = """
import time
from pickle import PicklingError
began.touch()
try:
    time.sleep(120)
except KeyboardInterrupt:
    saved.touch()
    raise
"""


def with_paths(code, **paths):
    return "\n".join(["from pathlib import Path", *(f"{k} = Path({str(v)!r})" for k, v in paths.items()), code])


def test_results_come_in_order_from_processes_of_their_own():
    results = side_by_side(eval, [f"({i}, __import__('os').getpid())" for i in (3, 1, 2)], 2)
    assert [item for item, _ in results] == [3, 1, 2]
    assert os.getpid() not in {pid for _, pid in results}


def test_one_job_needs_no_other_process():
    assert side_by_side(eval, ["__import__('os').getpid()"] * 2, 1) == [os.getpid()] * 2


def test_the_first_error_is_told_and_the_others_are_interrupted(tmp_path):
    began, saved = tmp_path / "began", tmp_path / "saved"
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="no"):
        side_by_side(exec, [with_paths(WAITS, began=began, saved=saved), with_paths(FAILS, open_=began)], 2)
    assert time.monotonic() - start < 60 and saved.exists()


def test_one_that_dies_is_told():
    with pytest.raises(RuntimeError, match="code 7"):
        side_by_side(exec, ["import os; os._exit(7)", "pass"], 2)


def test_an_error_brings_the_place_where_it_happened():
    with pytest.raises(KeyError) as caught:
        side_by_side(exec, ["{}['gone']", "pass"], 2)
    assert any("_answer" in note and "gone" in note for note in caught.value.__notes__)


def test_an_answer_that_cannot_be_sent_is_told():
    with pytest.raises(PicklingError, match="lambda"):
        side_by_side(eval, ["lambda: 0", "0"], 2)
