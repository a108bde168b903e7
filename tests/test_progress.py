"""Progress display: nothing when quiet, few lines in a log, a bar on a terminal."""

import pytest
from rich.console import Console

from partshot import progress
from partshot.progress import Ticker


def tick_through(ticker):
    with ticker:
        for images in (25, 50, 75, 100):
            ticker.tick(images, {"loss": 0.5} if images == 50 else None)


def test_a_log_has_a_line_every_30_seconds_and_at_the_end(capsys, monkeypatch):
    tick_through(Ticker("faces", total=100, done=0, quiet=False))
    assert capsys.readouterr().err == "faces: 100 %, 0 s, 0 s left; loss 0.5\n"

    monkeypatch.setattr(progress, "EVERY", -1.0)
    tick_through(Ticker("faces", total=100, done=0, quiet=False))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"faces: {percent} %" for percent in (25, 50, 75, 100)
    ]


def test_long_lines_of_a_log_are_not_wrapped(capsys):
    path = "/a/path" * 40
    progress.print_status(path, quiet=False)
    assert capsys.readouterr().err == f"{path}\n"


def test_quiet_prints_nothing(capsys):
    tick_through(Ticker("faces", total=100, done=0, quiet=True))
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100))
    tick_through(Ticker("faces", total=100, done=0, quiet=False))
    shown = capsys.readouterr().err
    assert "faces" in shown and "100% loss 0.5" in shown


def test_the_remaining_time_of_a_resumed_run_is_estimated_from_its_own_images(capsys, monkeypatch):
    clock = iter([0.0, 40.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Ticker("faces", total=100, done=60, quiet=False) as ticker:
        ticker.tick(80)  # 20 images in 40 s, and 20 more to go
    assert "40 s left" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_short_work_shows_nothing_and_longer_work_its_progress(capsys, monkeypatch, terminal):
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=terminal, width=100))
    tick_through(Ticker("faces", total=100, done=0, quiet=False, after=60.0))
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""

    ticker = Ticker("faces", total=100, done=0, quiet=False, after=60.0)
    ticker.began -= 61
    tick_through(ticker)
    shown = capsys.readouterr().err
    assert "faces" in shown and ("100% loss 0.5" if terminal else "100 %") in shown
