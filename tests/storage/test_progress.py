"""Progress without a terminal."""

import io
import logging
import re
import sys
import time
from contextlib import suppress

import rich
import torch

from sde_diffusion.storage import progress


def test_lines_now_and_then(monkeypatch, caplog):
    """One line for each 30 seconds that pass, with the time that is left at the pace so far."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO)
    with progress.bar("sampling", total=200) as bar:
        for step in range(1, 101):
            now[0] += 1.0
            bar.update(completed=step, text="12 passes")
        bar.update(limit=-7.0, stays=True)  # seven seconds after the end of a time limit
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4, lines
    assert lines[3] == "sampling  100 of 200, 1:40 so far, about 0:00 left  (12 passes)"
    assert lines[0] == "sampling  30 of 200, 0:30 so far, about 2:50 left  (12 passes)"
    assert lines[2] == "sampling  90 of 200, 1:30 so far, about 1:50 left  (12 passes)"


def test_silence_for_short_work(caplog):
    caplog.set_level(logging.INFO)
    with progress.bar("sampling", total=None, completed=3) as bar:
        bar.update(advance=1, name="drawing")
    assert not caplog.records


def test_work_within_work_writes_its_own_lines(monkeypatch, caplog):
    """Also where it ends with an error; a quiet one leaves no lines, and passes are counted in its block alone."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO)
    module = torch.nn.Identity()
    with progress.bar("points", total=2):
        for quiet in (False, True):
            with suppress(ZeroDivisionError), progress.bar("sampling", total=8, quiet=quiet) as inner:
                inner.text = "0.5 bits/dim"
                with progress.passes(inner, module):
                    module(torch.zeros(1))
                    now[0] += 40
                    module(torch.zeros(1))
                raise ZeroDivisionError
    now[0] += 100
    module(torch.zeros(1))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["sampling  0 of 8, 0:40 so far  (0.5 bits/dim; pass 2)"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_bars_of_work_within_work_are_shown_together(monkeypatch):
    """The inner bar comes below the outer one, and goes with its work, also where that ends with an error."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    rich.reconfigure()

    def frame(wanted):
        """The next picture of the display for which `wanted` is true."""
        begun, before = time.monotonic(), len(terminal.getvalue())
        while time.monotonic() < begun + 20:
            time.sleep(0.02)
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()[before:])
            for text in plain.split("points")[1:]:
                if wanted(text):
                    return text
        raise AssertionError(repr(plain))

    with progress.bar("points", total=2) as outer:
        with suppress(ZeroDivisionError), progress.bar("sampling", total=8) as inner:
            inner.update(3, text="0.5 bits/dim")
            assert "3/8 0.5 bits/dim" in frame(lambda text: "bits/dim" in text)
            raise ZeroDivisionError
        outer.update(1)
        assert "1/2" in frame(lambda text: "1/2" in text and "sampling" not in text)
    with progress.bar("another", total=2):
        pass


def test_no_more_lines_than_long_work_needs(monkeypatch, caplog):
    """Of ten hours one each fiftieth of the time so far; the time left is never more than a limit allows."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO)
    with progress.bar("step", total=None) as bar:
        for step in range(3600):
            now[0] += 10.0
            bar.update(completed=step, limit=36_000 - now[0])
    lines = [record.getMessage() for record in caplog.records]
    assert 170 < len(lines) < 220  # 50 in the first 25 minutes, then 1 + 50 ln(24)
    assert lines[0] == "step  2, 0:30 so far, about 9:59:30 left"
    caplog.clear()
    with progress.bar("step", total=None) as bar:
        now[0] += 60.0
        bar.update(completed=1, limit=-0.7)  # a timer ends a run after the step in which its time is over
    assert caplog.records[0].getMessage().endswith("about 0:00 left")


def test_clock():
    assert [progress._clock(seconds) for seconds in (5, 65.4, 3725)] == ["0:05", "1:05", "1:02:05"]
