"""Progress without a terminal."""

import logging

from sde_diffusion import progress


def test_lines_now_and_then(monkeypatch, caplog):
    """One line for each 30 seconds that pass, with the time that is left at the pace so far."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO)
    with progress.bar("sampling", total=200) as bar:
        for step in range(1, 101):
            now[0] += 1.0
            bar.update(completed=step, text="12 passes")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3, lines
    assert lines[0] == "sampling  30 of 200, 0:30 so far, about 2:50 left  (12 passes)"
    assert lines[2] == "sampling  90 of 200, 1:30 so far, about 1:50 left  (12 passes)"


def test_silence_for_short_work(caplog):
    caplog.set_level(logging.INFO)
    with progress.bar("sampling", total=None, completed=3) as bar:
        bar.update(advance=1, name="drawing")
    assert not caplog.records


def test_clock():
    assert [progress._clock(seconds) for seconds in (5, 65.4, 3725)] == ["0:05", "1:05", "1:02:05"]
