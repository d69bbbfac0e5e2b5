"""What a training run records of itself, wherever it is kept."""

import json
import platform
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY

import sde_diffusion
from sde_diffusion.errors import UserError
from sde_diffusion.storage import record

GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_finished_run_has_it_all(trained):
    found = record.read(trained)
    assert found["command"] == " ".join(["python -m sde_diffusion.train", *TINY])
    written = yaml.safe_load((trained / "config.yaml").read_text())
    assert found["config"].keys() == written.keys()
    assert found["config"]["denoiser"]["network"] == written["network"]  # resolved, where the file says ${network}
    assert "${" not in json.dumps(found["config"])
    assert found["seeds"] == {"seed": 0, "data.seed": 0}
    assert found["versions"].keys() >= {"python", "torch", "lightning", "sde_diffusion", "cuda", "numpy"}
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["sde_diffusion"] == sde_diffusion.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["cuda"] == torch.version.cuda
    assert found["hardware"].keys() == {"device", "kind", "devices", "nodes", "threads"}
    assert found["hardware"]["device"]
    assert (found["hardware"]["devices"], found["hardware"]["nodes"]) == (1, 1)
    assert found["git"] == record.git_state()
    assert found["started"] <= found["finished"]
    rows = (trained / "metrics.csv").read_text().splitlines()
    assert f"{found['metrics']['val/loss']}" in rows[-1]
    assert found["earlier"] == []


def test_it_says_nothing_of_the_machine(trained):
    text = (trained / "run.json").read_text()
    assert str(trained) not in text
    assert str(ROOT) not in text
    assert str(Path.home()) + "/" not in text
    assert socket.gethostname() not in text


def test_a_checkpoint_has_it(trained):
    for name in ("last", "best"):
        kept = torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)["sde_diffusion"]["run"]["record"]
        found = record.read(trained)
        assert kept == {key: found[key] for key in ("command", "seeds", "versions", "git", "hardware")}


def test_a_resumed_run_keeps_the_earlier_record(command, tmp_path):
    folder = tmp_path / "run"
    assert command("train", *TINY, f"hydra.run.dir={folder}", "callbacks.samples=None", cwd=tmp_path).status == 0
    before = record.read(folder)
    assert before["config"]["callbacks"]["samples"] is None  # which is what agents call null
    last = folder / "checkpoints" / "last.ckpt"
    for steps in (45, 60):
        assert command("train", f"ckpt={last}", f"trainer.max_steps={steps}", cwd=tmp_path).status == 0
    after = record.read(folder)
    assert after["earlier"][0] == {key: value for key, value in before.items() if key != "earlier"}
    assert ["max_steps=45" in one["command"] for one in after["earlier"]] == [False, True]
    assert after["config"]["trainer"]["max_steps"] == 60
    assert after["config"]["network"]["width"] == 32


def test_a_run_that_fails_has_one_too(command, tmp_path):
    arguments = (*TINY, "model.lr=1e30", "trainer.gradient_clip_val=null", "model.warmup_steps=0")
    done = command("train", *arguments, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert (done.status, "training stopped" in done.err) == (1, True), done.err
    found = record.read(tmp_path / "run")
    assert found["config"]["model"]["lr"] == 1e30
    assert (found["finished"], found["metrics"]) == (None, None)


@pytest.mark.parametrize("content", [b"[]", b'{"finished": ', b"\xff"])
def test_a_damaged_record_is_reported(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        record.read(tmp_path)


@pytest.fixture
def repository(tmp_path):
    """A package with configurations beside it, committed."""
    for path in ("pack/__init__.py", "conf/a.yaml", "notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    return tmp_path


def test_git_revision(repository):
    package, revision = repository / "pack", git(repository, "rev-parse", "HEAD")
    assert record.git_state(package) == {"revision": revision, "dirty": False}
    (repository / "notes.txt").write_text("changes nothing that runs")
    assert record.git_state(package) == {"revision": revision, "dirty": False}
    (repository / "conf" / "b.yaml").write_text("a choice that no revision has")
    assert record.git_state(package) == {"revision": revision, "dirty": True}
    (repository / "conf" / "b.yaml").unlink()
    (package / "__init__.py").write_text("changed")
    assert record.git_state(package) == {"revision": revision, "dirty": True}


def test_no_git_revision(repository, tmp_path_factory, monkeypatch):
    installed = repository / ".venv" / "pack"  # in a repository that does not hold it
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert record.git_state(installed) is None
    assert record.git_state(tmp_path_factory.mktemp("nowhere")) is None
    monkeypatch.setenv("PATH", "")
    assert record.git_state(repository / "pack") is None
