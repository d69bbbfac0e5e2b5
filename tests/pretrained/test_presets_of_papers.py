"""The presets of papers tell their networks what the authors' checkpoints are told, at the same noise levels."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from sde_diffusion.commands.app import register_resolvers, resolved
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.config import build
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.pretrained.score_sde import path_of

TIMESTEP, FOURIER = {"embedding": "timestep"}, {"embedding": "gaussian_fourier"}
LEVELS = torch.linspace(torch.tensor(50.0).log(), torch.tensor(0.01).log(), 1000, dtype=torch.float64).exp()


class Told(nn.Module):
    """A network that keeps what it is told."""

    def forward(self, x, c_noise):
        self.x, self.c_noise = x, c_noise
        return x.roll(1, -1)


def of_preset(name):
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", [f"experiment={name}", "network.shape=[3,32,32]"])
    return build({**resolved(cfg.denoiser), "network": Told(), "sigma_data": 0.5})


def of_checkpoint(sde, settings, sigmas=None):
    found = path_of(sde, Path("checkpoint.pth"), settings, sigmas)
    return NetworkDenoiser(
        build(found.sde),
        Told(),
        prediction=found.prediction,
        noise_conditioning=build(found.noise_conditioning),
        input_scale="none",
    )


@pytest.mark.parametrize(
    ("preset", "sde", "settings"),
    [
        ("cifar10_vp_ddpmpp", "vp", TIMESTEP),
        ("cifar10_subvp_ddpmpp", "subvp", TIMESTEP),
        ("cifar10_ve_ncsnpp", "ve", FOURIER),
    ],
)
def test_a_preset_is_the_paper_s(preset, sde, settings):
    ours, theirs = of_preset(preset), of_checkpoint(sde, settings)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for log_snr in (6.0, 0.0, -6.0):
        scores = [
            model(x, model.sde.time(torch.tensor(log_snr, dtype=torch.float64))).score for model in (ours, theirs)
        ]
        torch.testing.assert_close(scores[0], scores[1])
        torch.testing.assert_close(ours.network.x, theirs.network.x)
        torch.testing.assert_close(ours.network.c_noise, theirs.network.c_noise)


def test_networks_of_discrete_steps_are_told_the_number_of_their_level():
    """VP counts the rows of DDPM's table from the data, VE its noise levels from the noise."""
    vp, ve = of_checkpoint("vp_discrete", TIMESTEP), of_checkpoint("ve_discrete", TIMESTEP, LEVELS)
    alphas_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    numbers = torch.tensor([0, 1, 400, 998, 999])
    told = vp.noise_conditioning(vp.sde, vp.sde.time(alphas_bar[numbers].logit()))
    torch.testing.assert_close(told, numbers.double(), atol=1e-6, rtol=0)
    told = ve.noise_conditioning(ve.sde, ve.sde.time(-2 * (2 * LEVELS[numbers]).log()))
    torch.testing.assert_close(told, numbers.double(), atol=1e-6, rtol=0)
