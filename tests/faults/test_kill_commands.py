"""kill -9 during a command: started again, it ends with the same results as without the kill, and nothing else."""

import random
import shutil
import signal

import pytest
from faults.outcomes import difference, results
from sweep_cases import SHORT, written

COMMANDS = {
    "sample": ("n=40", "batch_size=10", "film=3", "sampler=ddpm", "sampler.steps=6"),
    "likelihood": ("n=12", "batch_size=4", "method=rk4", "steps=4", "elbo=null"),
    "evaluate": (
        "n=120",
        "batch_size=40",
        "sampler=ddpm",
        "sampler.steps=4",
        "metrics=[frechet,kernel]",
        "resamples=20",
    ),
    "nfe_fid": (
        "nfe=[4]",
        "n=200",
        "long=null",
        "batch_size=100",
        *(f"~samplers.{name}" for name in ("ddpm", "sde", "pc", "dpm_2", "dpm_2_rho", "dpm_3", "dpm_sde_rho", "heun")),
        *(f"~samplers.{name}" for name in ("unipc_2", "unipc_3")),
    ),
}
KILLS = 20


@pytest.fixture(scope="module")
def uninterrupted(command, trained, tmp_path_factory):
    """uninterrupted(name) -> (results, number of changes), of a command that is run once without a kill."""
    known = {}

    def run(name: str):
        if name not in known:
            out = tmp_path_factory.mktemp(name) / "out"
            done = command(name, *words(name, trained), f"out={out}", cwd=out.parent, watch=[out.parent])
            assert done.status == 0, done.err
            known[name] = results(out), done.changes
        return known[name]

    return run


def words(name, trained):
    return (*COMMANDS[name], f"ckpt={trained / 'checkpoints' / 'last.ckpt'}")


def killed_and_repeated(command, name, trained, out, place):
    """A command killed at its change number `place`, and again."""
    typed = (*words(name, trained), f"out={out}")
    first = command(name, *typed, cwd=out.parent, watch=[out.parent], kill_at=place)
    assert first.status == -9
    again = command(name, *typed, cwd=out.parent)
    if again.status:  # it had been finished, all but for the last traces of its work
        assert "exists already" in again.err
        assert again.status == 1
    assert "Traceback" not in again.err
    left = [path for path in out.parent.rglob(".*") if path.name.endswith(".part") or path.name == ".lock"]
    assert left == []
    return results(out)


@pytest.mark.parametrize(
    ("name", "share"), [("sample", 0.35), ("likelihood", 0.6), ("evaluate", 0.99), ("nfe_fid", 0.5)]
)
def test_a_kill(command, uninterrupted, trained, tmp_path, name, share):
    expected, changes = uninterrupted(name)
    found = killed_and_repeated(command, name, trained, tmp_path / "out", round(share * (changes - 1)))
    assert not difference(expected, found)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", COMMANDS)
def test_twenty_kills(command, uninterrupted, trained, tmp_path, name):
    expected, changes = uninterrupted(name)
    assert changes > KILLS
    for number in range(KILLS):
        place = round(number * (changes - 1) / (KILLS - 1))
        out = tmp_path / str(place) / "out"
        out.parent.mkdir()
        found = killed_and_repeated(command, name, trained, out, place)
        assert not difference(expected, found), (place, changes)
        shutil.rmtree(out.parent)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_of_a_sweep(command, tmp_path):
    """Its runs are separate processes, which may outlive it; the next sweep waits for such a run."""
    path = written(tmp_path)
    typed = (f"file={path}", "--", *SHORT)

    def run(out, **fault):
        place = typed.index("--")
        return command("sweep", *typed[:place], f"out={out}", *typed[place:], cwd=tmp_path, **fault)

    complete = run(tmp_path / "uninterrupted", watch=[tmp_path])
    assert complete.status == 0, complete.err
    expected = results(tmp_path / "uninterrupted")
    moments, killed = random.Random(0), 0
    for number in range(KILLS):
        out = tmp_path / str(number)
        places = {"watch": [tmp_path], "kill_at": number} if number < complete.changes else {}
        first = run(out, **places or {"kill_after": moments.uniform(0.5, 20)})
        assert first.status in ((-signal.SIGKILL,) if places else (-signal.SIGALRM, 0)), (number, first)  # 0: too late
        killed += first.status != 0
        again = run(out)
        assert again.status == 0, again.err
        assert not difference(expected, results(out)), number
        shutil.rmtree(out)
    assert killed >= KILLS // 2
