"""Worker processes: results in order, at most `jobs` at a time, and no process is left after an error.

The functions are given as code strings, since functions of a test cannot be imported in another process.
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


def test_results_are_in_order_and_from_separate_processes():
    results = side_by_side(eval, [f"({i}, __import__('os').getpid())" for i in (3, 1, 2)], 2)
    assert [item for item, _ in results] == [3, 1, 2]
    assert os.getpid() not in {pid for _, pid in results}


def test_one_job_runs_in_this_process():
    assert side_by_side(eval, ["__import__('os').getpid()"] * 2, 1) == [os.getpid()] * 2


def test_the_first_error_is_raised_and_the_others_are_interrupted(tmp_path):
    began, saved = tmp_path / "began", tmp_path / "saved"
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="no"):
        side_by_side(exec, [with_paths(WAITS, began=began, saved=saved), with_paths(FAILS, open_=began)], 2)
    assert time.monotonic() - start < 60 and saved.exists()


def test_a_dying_process_raises_an_error():
    with pytest.raises(RuntimeError, match="code 7"):
        side_by_side(exec, ["import os; os._exit(7)", "pass"], 2)


def test_an_error_includes_its_traceback():
    with pytest.raises(KeyError) as caught:
        side_by_side(exec, ["{}['gone']", "pass"], 2)
    assert any("_run_and_send" in note and "gone" in note for note in caught.value.__notes__)


def test_a_result_that_cannot_be_pickled_raises_an_error():
    with pytest.raises(PicklingError, match="lambda"):
        side_by_side(eval, ["lambda: 0", "0"], 2)
