"""Each command, stopped by each signal at many points of its run: status, message, and the same results at the end."""

import signal
from collections.abc import Iterator

import pytest
from faults.outcomes import difference, results, training
from faults.test_kill_commands import COMMANDS, words
from faults.test_kill_train import RUN

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def places(calls: int, n: int) -> Iterator[tuple[int, int]]:
    """n calls spread over the run, and a signal for each."""
    for i in range(n):
        yield 1 + i * (calls - 1) // (n - 1), SIGNALS[i % len(SIGNALS)]


def stopped(done, number: int) -> bool:
    """Whether a signal has stopped a command, which its status says; it may have come too late."""
    assert done.status in (0, 128 + number), (done.out, done.err)
    assert "Traceback" not in done.out + done.err, done.err
    return done.status > 0


def check_train(command, tmp_path, n: int) -> None:
    complete = command("train", *RUN, f"hydra.run.dir={tmp_path / 'complete'}", cwd=tmp_path, signal_at=0)
    assert complete.status == 0, complete.err
    expected, too_late = training(tmp_path / "complete"), 0
    for at, number in places(complete.calls, n):
        folder = tmp_path / str(at)
        typed = (*RUN, f"hydra.run.dir={folder}")
        done = command("train", *typed, cwd=tmp_path, signal_at=at, number=number)
        if stopped(done, number):
            last = folder / "checkpoints" / "last.ckpt"
            assert (f"ckpt={last}" in done.out) == last.is_file()
            again = command("train", *([f"ckpt={last}"] if last.is_file() else typed), cwd=tmp_path)
            assert again.status == 0, again.err
        else:
            too_late += 1
        assert not difference(expected, training(folder)), (at, number)
    assert too_late <= max(1, n // 5)


def check_results(command, name, ckpt_run, tmp_path, n: int) -> None:
    typed = words(name, ckpt_run)
    complete = command(name, *typed, f"out={tmp_path / 'complete' / 'out'}", cwd=tmp_path, signal_at=0)
    assert complete.status == 0, complete.err
    for at, number in places(complete.calls, n):
        out = tmp_path / str(at) / "out"
        done = command(name, *typed, f"out={out}", cwd=tmp_path, signal_at=at, number=number)
        if stopped(done, number):
            again = command(name, *typed, f"out={out}", cwd=tmp_path)
            finished = "exists already" in again.err  # where the signal came after the last file
            assert again.status == (1 if finished else 0), (at, again.err)
        assert not difference(results(tmp_path / "complete" / "out"), results(out)), (at, number)


@pytest.mark.slow
def test_train_at_some_places(command, tmp_path):
    check_train(command, tmp_path, 4)


@pytest.mark.slow
def test_sample_at_some_places(command, trained, tmp_path):
    check_results(command, "sample", trained, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_train_at_many_places(command, tmp_path):
    check_train(command, tmp_path, 120)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", COMMANDS)
def test_results_at_many_places(name, command, trained, tmp_path):
    check_results(command, name, trained, tmp_path, 20)


def test_how_to_go_on_is_said(command, trained, tmp_path):
    """The same command with the same out= resumes, and draws nothing twice; nothing finished is not called kept."""
    typed = (*words("sample", trained), f"out={tmp_path / 'out'}")
    done = command("sample", *typed, cwd=tmp_path, signal_at="in_batches:1")
    assert done.status == 143
    assert "stopped before any work was finished: the same command starts again" in done.out
    typed = (*typed[:-1], f"out={tmp_path / 'again'}")
    done = command("sample", *typed, cwd=tmp_path, signal_at="keep:2", number=signal.SIGHUP)  # of the second batch
    assert done.status == 129
    assert f"the same command with out={tmp_path / 'again'} resumes there" in done.out
    again = command("sample", *typed, cwd=tmp_path)
    assert again.status == 0, again.err


@pytest.mark.parametrize("then", ["training_step:1", "validation_step:2"])
@pytest.mark.slow
def test_a_stop_in_a_validation_and_a_kill_soon_after(command, tmp_path, then):
    """The validation is repeated once, even if that run is stopped too."""
    complete = command("train", *RUN, f"hydra.run.dir={tmp_path / 'complete'}", cwd=tmp_path)
    assert complete.status == 0, complete.err
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    done = command("train", *RUN, f"hydra.run.dir={folder}", cwd=tmp_path, signal_at="validation_step:3")
    assert done.status == 143
    for number in (signal.SIGKILL, signal.SIGTERM):
        killed = command("train", f"ckpt={last}", cwd=tmp_path, signal_at=then, number=number)
        assert killed.status in (-9, 143)
    again = command("train", f"ckpt={last}", cwd=tmp_path)
    assert again.status == 0, again.err
    assert not difference(training(tmp_path / "complete"), training(folder))
