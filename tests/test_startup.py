"""How quickly the package and its commands start, what they import, and the contents of the wheel."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
IMPORT = """
import json, sys, time
import torch
begin = time.process_time()
import sde_diffusion
seconds = time.process_time() - begin
heavy = ("lightning", "scipy", "matplotlib", "hydra", "sklearn", "torchsde", "torchdiffeq", "wandb", "torchmetrics")
loaded = [name for name in heavy if name in sys.modules]
sde_diffusion.VPSDE, sde_diffusion.AncestralSampler, sde_diffusion.MLP, sde_diffusion.GaussianDenoiser
print(json.dumps([seconds, loaded, "lightning" in sys.modules, dir(sde_diffusion)]))
"""


def test_import_is_quick_and_light():
    """CPU time beyond that of torch, median of three; it does not depend on other programs."""
    answers = [json.loads(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(3)]
    assert median(seconds for seconds, *_ in answers) <= 0.3
    _, loaded, lightning, names = answers[0]
    assert loaded == []
    assert not lightning  # nor for paths, samplers and networks, which were asked for after the clock stopped
    assert {"VPSDE", "ODESampler", "ScoreModel", "UserError"} <= set(names)


@pytest.mark.parametrize(
    "command", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sample", "evaluate"))]
)
def test_help_is_quick_and_lists_groups_and_choices(command, tmp_path):
    typed = [sys.executable, "-m", f"sde_diffusion.{command}", "--help"]
    subprocess.run(typed, cwd=tmp_path, capture_output=True, check=True)  # a new environment is compiled at first
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 6
    groups = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line and not line[0].isspace())
    expected = ["sampler"] if command != "train" else ["sde", "network", "denoiser", "objective", "data", "sampler"]
    for group in expected:
        choices = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        assert set(groups[group].split(", ")) == choices, group
    assert f"python -m sde_diffusion.{command}" in done.stdout
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind


def test_lists_that_nobody_reads_on(tmp_path):
    """As after `| head`: nothing is reported."""
    for words in (["sde_diffusion"], ["sde_diffusion.sample", "--help"]):
        typed = [sys.executable, "-m", *words]
        with subprocess.Popen(typed, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


def test_the_wheel_is_told_of_every_folder():
    """A folder missing from the list would be missing only in the wheel: in the source tree all imports work."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "sde_diffusion").rglob("__init__.py")}
    assert sorted(told) == sorted({".".join(folder.parts) for folder in folders})


@pytest.mark.slow
def test_the_wheel_works_on_its_own(tmp_path):
    """Built, holding conf/ and weights, installed apart from the source tree, and run from another folder."""
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"  # building writes into it
    for name in ("sde_diffusion", "conf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, tree)
    shutil.copy(ROOT / "LICENSE", tree)
    build = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--no-index", "-w", str(tmp_path)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("sde_diffusion-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {f"sde_diffusion/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "sde_diffusion").rglob("*.py")}
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "sde_diffusion").rglob("*.safetensors")}
    assert names >= source | code | weights | {"sde_diffusion/py.typed"}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "conf/"))]

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    packages = next(environment.glob("lib/python*/site-packages"))
    # The dependencies come from the environment of the tests, the package itself from the wheel.
    here = Path(pytest.__file__).parents[1]
    for entry in here.iterdir():
        if "sde_diffusion" not in entry.name and not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(entry)
    zipfile.ZipFile(wheel).extractall(packages)
    python = environment / "bin" / "python"
    away = tmp_path / "away"
    away.mkdir()
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    tiny = ["network=mlp", "network.width=16", "network.depth=1", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    typed = [python, "-m", "sde_diffusion.train", *tiny, "callbacks.samples=null", "hydra.run.dir=run"]
    subprocess.run(typed, check=True, cwd=away, env=environ)
    assert (away / "run" / "checkpoints" / "last.ckpt").is_file()
    ask = "import sde_diffusion; print(sde_diffusion.__file__)"
    where = subprocess.check_output([python, "-c", ask], env=environ, cwd=away)
    assert str(environment) in where.decode()
