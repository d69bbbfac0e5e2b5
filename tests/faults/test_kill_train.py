"""kill -9 before every change of a file by a training run: resumed, it ends like the uninterrupted run."""

import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from faults.outcomes import difference, names, training

RUN = (
    "network.width=8",
    "network.depth=1",
    "data=moons",
    "data.n_train=64",
    "data.n_val=32",
    "data.n_test=32",
    "data.batch_size=16",
    "trainer.max_steps=6",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "callbacks.samples.n=4",
    "sampler=ddpm",
    "sampler.steps=2",
    "model.validation_draws=1",
    "model.lr=1",
    "model.warmup_steps=0",  # of three validations the second has the lowest loss
)
CHUNKS = 8


@pytest.fixture(scope="module")
def elsewhere():
    """A TMPDIR on another file system than the tests' own folders, where there is one."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory, elsewhere):
    """The results of an uninterrupted run, and how often it changes files."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = command("train", *RUN, f"hydra.run.dir={folder}", cwd=folder.parent, watch=[folder, elsewhere])
    assert done.status == 0, done.err
    assert done.changes > 100
    return training(folder), done.changes


@pytest.fixture(scope="module")
def halfway(command, tmp_path_factory):
    """A run that was killed in its second validation."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    done = command("train", *RUN, f"hydra.run.dir={folder}", cwd=folder.parent, watch=[folder], kill_at=100)
    assert done.status == -9  # of 161 changes, as best.ckpt is replaced; last.ckpt is of the first validation
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    return folder


@pytest.fixture
def kill(command, tmp_path, uninterrupted, elsewhere):
    """kill(words, folder, fault...): run, be killed, resume as a user would, and compare with the uninterrupted run."""

    def check(*words: str, folder: Path, **fault) -> int:
        fault = {"watch": [folder, elsewhere], "environment": {"TMPDIR": str(elsewhere)}, **fault}
        status = command("train", *words, f"hydra.run.dir={folder}", cwd=tmp_path, **fault).status
        last = folder / "checkpoints" / "last.ckpt"
        again = [f"ckpt={last}"] if last.is_file() else [*words, f"hydra.run.dir={folder}"]
        done = command("train", *again, cwd=tmp_path)
        if done.status and (advice := re.search(r"resume it with (\S+),", done.err)):  # which has to be true
            done = command("train", advice[1], cwd=tmp_path)
        assert done.status == 0, (fault, done.err)
        assert not difference(uninterrupted[0], training(folder)), fault
        assert names(elsewhere) == [], fault
        shutil.rmtree(folder)
        return status

    return check


# At 0.41 best.ckpt is written for the first time, and last.ckpt is not: the advice to resume with the former is taken.
@pytest.mark.parametrize("share", [0.41, 0.7, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.1, 0.3, 0.97))])
def test_some_kills_of_a_run(kill, uninterrupted, tmp_path, share):
    assert kill(*RUN, folder=tmp_path / "run", kill_at=round(share * uninterrupted[1])) == -9


def test_no_advice_to_resume_within_a_step(command, tmp_path):
    """A validation between two batches of a step writes best.ckpt, without gradients; last.ckpt comes later."""
    folder = tmp_path / "run"
    typed = (*RUN, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3", f"hydra.run.dir={folder}")
    done = command("train", *typed, cwd=tmp_path, signal_at="unfinished:3", number=9)  # after best.ckpt is written
    assert done.status == -9
    assert [path.name for path in (folder / "checkpoints").glob("*.ckpt")] == ["best.ckpt"]
    done = command("train", *typed, cwd=tmp_path)
    assert done.status == 1
    assert "it cannot be resumed" in done.err
    assert "written within a step" in done.err


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_kill_of_a_run(kill, uninterrupted, tmp_path, chunk):
    for place in range(chunk, uninterrupted[1], CHUNKS):
        assert kill(*RUN, folder=tmp_path / f"run-{place}", kill_at=place) == -9


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_kill_of_a_resumed_run(kill, halfway, command, tmp_path, elsewhere, chunk):
    shutil.copytree(halfway, tmp_path / "complete")
    ckpt = tmp_path / "complete" / "checkpoints" / "last.ckpt"
    complete = command("train", f"ckpt={ckpt}", cwd=tmp_path, watch=[tmp_path / "complete", elsewhere])
    assert complete.status == 0, complete.err
    for place in range(chunk, complete.changes, CHUNKS):
        folder = tmp_path / f"run-{place}"
        shutil.copytree(halfway, folder)
        assert kill(f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", folder=folder, kill_at=place) == -9


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(4))
def test_kills_at_random_moments(kill, tmp_path, chunk):
    """25 each; some come after the end."""
    moment, killed = random.Random(chunk), 0
    for number in range(25):
        folder = tmp_path / f"run-{number}"
        killed += kill(*RUN, folder=folder, watch=[], kill_after=moment.uniform(0.05, 1.6)) < 0
    assert killed >= 10
