"""Many runs at once."""

import importlib.util

import pytest
import yaml
from sweep_cases import SHORT, run_json

from sde_diffusion.commands import configurations


def test_multirun(command, tmp_path):
    """Each of the runs with its own settings, record and command."""
    done = command("train", "--multirun", "sde=vp,ve", *SHORT, f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert done.status == 0, done.err
    for number, name in enumerate(("vp", "ve")):
        record = run_json(tmp_path / str(number))
        assert record["config"]["sde"]["_target_"] == f"sde_diffusion.sde.{name.upper()}SDE"
        assert record["command"].split()[:4] == ["python", "-m", "sde_diffusion.train", f"sde={name}"]
        assert record["finished"] is not None


def test_a_run_that_fails_does_not_stop_the_others(command, tmp_path):
    """Each failure is reported when it happens, and the failed runs are listed at the end."""
    settings = ("sde=ve,vp,edm", "denoiser=v", *SHORT, f"hydra.sweep.dir={tmp_path}")
    done = command("train", "--multirun", *settings, cwd=tmp_path)
    assert (done.status, "Traceback" in done.err) == (1, False), done.err
    assert done.err.count("error: denoiser.prediction 'v' is defined on variance-preserving paths only") == 2
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: these runs failed")
    assert [str(tmp_path / number) in last for number in "012"] == [True, False, True]
    assert run_json(tmp_path / "1")["finished"] is not None


def test_multirun_with_ddp(command, tmp_path):
    done = command("train", "--multirun", "sde=vp,ve", "trainer.strategy=ddp", cwd=tmp_path)
    assert (done.status, "ddp_spawn" in done.err, "Traceback" in done.err) == (1, True, False)


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    if importlib.util.find_spec("hydra_plugins")
    else False,
    reason="asks for the slurm extra as something that is not there",
)
@pytest.mark.parametrize("launcher", ["slurm", "submitit_local"])
def test_slurm_without_its_extra(launcher, command, tmp_path):
    done = command("train", "--multirun", f"hydra/launcher={launcher}", "sde=vp,ve", cwd=tmp_path)
    assert (done.status, done.err.count("\n")) == (1, 1), done.err
    assert "pip install 'sde_diffusion[slurm]'" in done.err


def test_slurm_preset():
    """The launcher has these settings."""
    config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    preset = yaml.safe_load((configurations.config_folder() / "hydra" / "launcher" / "slurm.yaml").read_text())
    assert preset.pop("defaults") == ["submitit_slurm"]
    assert preset.keys() <= config.SlurmQueueConf.__dataclass_fields__.keys()


def test_sweeps_as_a_group(command, tmp_path):
    done = command("train", "sweeps=grid", cwd=tmp_path)
    assert (done.status, "python -m sde_diffusion.sweep" in done.err) == (1, True)
    assert not list(tmp_path.iterdir())
