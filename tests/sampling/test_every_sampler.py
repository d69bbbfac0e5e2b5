"""What every sampler that a configuration names owes its caller: sample i is a function of seed i alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sampling_cases import SIX, mixture
from torch import Tensor

from sde_diffusion.config import build
from sde_diffusion.sampling import Sampler

CONF = Path(__file__).parents[2] / "conf" / "sampler"
SETTINGS = {
    "ode": {"rtol": 1e-8, "atol": 1e-8},  # steps are chosen for a whole batch: to within the tolerance
    "heun": {"steps": 12, "churn": 6.0},
    "dpm": {"steps": 12, "eta": 1.0},
    "langevin": {"levels": 12, "steps_per_level": 2},
}
"""Where the defaults would be slow, or draw no noise."""

SEEDS = [*range(40), -3, 2**40, 10**30, *range(500, 521)]


def sampler(name: str) -> Sampler:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    built: Sampler = build({**config, **SETTINGS.get(name, {"steps": 12})})
    return built


def draw(name: str, seeds: list[int]) -> Tensor:
    path = SIX["ve" if name == "langevin" else "vp"]
    return sampler(name)(mixture(path), (len(seeds), 2), seeds=seeds, dtype=torch.float64).x


NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.fixture(scope="module")
def together() -> dict[str, Tensor]:
    return {name: draw(name, SEEDS) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_in_batches_of_1_and_7_and_in_another_order(name, together):
    order = [*reversed(range(len(SEEDS)))]
    backwards = draw(name, [SEEDS[i] for i in order])
    sevens = torch.cat([draw(name, SEEDS[i : i + 7]) for i in range(0, 28, 7)])
    ones = torch.cat([draw(name, [seed]) for seed in SEEDS[38:43]])
    for part, rows in ((backwards, order), (sevens, range(28)), (ones, range(38, 43))):
        assert (part - together[name][[*rows]]).abs().max() < (1e-5 if name == "ode" else 1e-9)
    # Samples of different seeds do differ.
    assert torch.pdist(together[name]).min() > 1e-6


def test_in_two_processes(together, tmp_path):
    """Another process draws every other sample of this one."""
    file = tmp_path / "drawn.npz"
    code = f"""
import numpy, test_every_sampler as tests
numpy.savez(r"{file}", **{{name: tests.draw(name, tests.SEEDS[::2]) for name in tests.NAMES}})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    drawn = np.load(file)
    for name in NAMES:
        assert np.abs(drawn[name] - together[name][::2].numpy()).max() < 1e-5, name
