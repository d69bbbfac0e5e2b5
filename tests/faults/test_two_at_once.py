"""Every command twice in one folder: one runs, and the other stops with a message."""

import json
import time

import pytest
from faults.test_kill_commands import COMMANDS, words
from faults.test_kill_train import RUN
from sweep_cases import SHORT, written

LONGER = {  # so that the first is still at work when the second comes
    "sample": ("n=400", "sampler.steps=60"),
    "likelihood": ("n=400", "steps=20"),
    "evaluate": ("n=1200", "sampler.steps=60"),
    "nfe_fid": ("n=400", "nfe=[4,50]"),
    "train": ("trainer.max_steps=40",),
}


def together(start, tmp_path, seconds: float, name: str, *typed: str):
    """Both processes' statuses and messages, the one that worked first."""
    first = start(name, *typed, cwd=tmp_path)
    time.sleep(seconds)
    ended = []
    for process in (first, start(name, *typed, cwd=tmp_path)):
        out, err = process.communicate(timeout=250)
        ended.append((process.returncode, out, err))
        assert "Traceback" not in out + err
    return sorted(ended, key=lambda one: one[0])


def check(ended, out) -> None:
    (worked, _, err), (told, _, message) = ended
    assert worked == 0, err
    assert told == 1
    assert f"{out} is in use by" in message or "already contains a run" in message or "exists already" in message
    assert not (out / ".lock").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [0, 0.3, 1, 3])
@pytest.mark.parametrize("name", [*COMMANDS, "train", "resume", "sweep"])
def test_two_at_once(start, command, trained, tmp_path, name, seconds):
    out = tmp_path / "out"
    if name in COMMANDS:
        module = "benchmarks.nfe_fid" if name == "nfe_fid" else name
        check(together(start, tmp_path, seconds, module, *words(name, trained), *LONGER[name], f"out={out}"), out)
    elif name == "sweep":
        typed = (f"file={written(tmp_path)}", f"out={out}", "--", *SHORT)
        check(together(start, tmp_path, seconds, name, *typed), out)
        assert (out / "runs.csv").read_text().count("\n") == 3
    else:
        typed = (*RUN, *LONGER["train"], f"hydra.run.dir={out}")
        if name == "resume":
            command("train", *typed, "trainer.max_steps=4", cwd=tmp_path)
            typed = (f"ckpt={out / 'checkpoints' / 'last.ckpt'}", *LONGER["train"])
        check(together(start, tmp_path, seconds, "train", *typed), out)
        assert json.loads((out / "run.json").read_text())["finished"]
        steps = [line for line in (out / "metrics.csv").read_text().splitlines()[1:] if line]
        assert len(steps) == 40 + 20  # a row a step and one a validation


@pytest.mark.slow
def test_two_samples_at_once(start, trained, tmp_path):
    typed = (*words("sample", trained), *LONGER["sample"], f"out={tmp_path / 'out'}")
    check(together(start, tmp_path, 0.3, "sample", *typed), tmp_path / "out")
