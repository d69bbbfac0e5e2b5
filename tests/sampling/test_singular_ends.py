"""Paths that are singular at an end: the path is blamed, not the network, and methods that can pass go on working."""

import math

import pytest
import torch
from sampling_cases import MEAN, SIX, STD, gaussian

from sde_diffusion.denoiser import Denoiser, GaussianDenoiser, Prediction
from sde_diffusion.density import log_likelihood
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import (
    AncestralSampler,
    DEISSampler,
    HeunSampler,
    NoiseToSignal,
    ODESampler,
    PredictorCorrector,
    SDESampler,
    UnitVariance,
)
from sde_diffusion.sde import EDMSDE, VPSDE, RectifiedFlow, UniformTime

NOISE_ONLY = RectifiedFlow(t_max=1.0)
"""alpha(t_max) = 0."""

MESSAGE = "singular at an end: give it t_min > 0 .* and t_max < 1"
UNIFORM = UniformTime()


class Network(Denoiser):
    """x0 = 0 of a network that knows nothing of closed forms, or something else."""

    def __init__(self, sde, answer=torch.zeros_like):
        super().__init__()
        self.sde = sde
        self.answer = answer

    def forward(self, x_t, t, **conditions):
        return Prediction(self.sde, x_t, t, self.answer(x_t))


AT_NOISE = {
    "deis": DEISSampler(10),
    "heun": HeunSampler(10, grid=UNIFORM),
    "sde": SDESampler("euler", 10),
    "sde srk": SDESampler("srk", 10),
    "sde heun": SDESampler("heun", 10),
    "sde adaptive": SDESampler("euler", 10, adaptive=True),
    "ode in y": ODESampler(coordinate=NoiseToSignal()),
    "pc euler_maruyama": PredictorCorrector("euler_maruyama", "none", 10),
    "pc none": PredictorCorrector("none", "langevin", 10),
}
AT_DATA = {
    "heun": HeunSampler(10, grid=UNIFORM, t_end=0.0, denoise=False),
    "sde heun": SDESampler("heun", 10, t_end=0.0),
    "sde reversible_heun": SDESampler("reversible_heun", 10, t_end=0.0),
    **{f"ode {name}": ODESampler(name, t_end=0.0) for name in ("adams", "dopri5", "dopri8", "bosh3", "scipy_solver")},
    **{f"ode {name}": ODESampler(name, steps=10, t_end=0.0) for name in ("heun2", "rk4", "implicit_adams")},
    "ode in unit variance": ODESampler("rk4", steps=10, t_end=0.0, coordinate=UnitVariance()),
}


@pytest.mark.parametrize("name", AT_NOISE)
def test_no_signal_at_the_start(name):
    """Refused at the latest after one pass, and no other."""
    seen = []
    with pytest.raises(ValueError, match=MESSAGE):
        AT_NOISE[name](gaussian(NOISE_ONLY), (2, 3), callback=lambda step, *_: seen.append(step))
    assert seen in ([], [0])


@pytest.mark.parametrize("denoiser", [gaussian(VPSDE()), Network(SIX["subvp"])], ids=["vp", "network"])
@pytest.mark.parametrize("name", AT_DATA)
def test_no_noise_at_the_end(name, denoiser):
    """On VP sigma' is infinite at 0, whatever the denoiser; on sub-VP a network's eps there is 0 / 0."""
    with pytest.raises(ValueError, match=MESSAGE):
        AT_DATA[name](denoiser, (2, 3), dtype=torch.float64)


def test_a_network_is_still_blamed_for_its_own():
    for t_end in (None, 0.0):
        with pytest.raises(UserError, match=r"denoiser's output at network pass 1, t = 1 .* other weights"):
            ODESampler("rk4", steps=10, t_end=t_end)(Network(VPSDE(), lambda x: x * math.nan), (2, 3))


@pytest.mark.parametrize(
    "sampler",
    [
        AncestralSampler(200),
        AncestralSampler(200, eta=1.0),
        *(PredictorCorrector(p, "none", 200) for p in ("reverse_diffusion", "ancestral", "probability_flow")),
        PredictorCorrector("ancestral", "annealed_langevin", 100),
        ODESampler(),
        ODESampler("rk4", steps=50),
        *(SDESampler(method, 100, eta=0.0) for method in ("euler", "srk", "heun", "reversible_heun")),
    ],
)
def test_who_can_begin_without_signal(sampler):
    """Means and standard deviations of Gaussian data, of 2000 samples: to 5 standard errors and 15%, or 0.06."""
    x = sampler(gaussian(NOISE_ONLY), (2000, 3)).x.double()
    assert ((x.mean(0) - MEAN).abs() < 0.15 * STD + 0.02).all()
    assert ((x.std(0) - STD).abs() < 0.15 * STD + 0.06).all()


@pytest.mark.parametrize("sde", [VPSDE(), SIX["subvp"], RectifiedFlow()], ids=str)
@pytest.mark.parametrize(
    "sampler",
    [
        AncestralSampler(100, t_end=0.0),
        DEISSampler(50, t_end=0.0),
        PredictorCorrector("ancestral", "none", 100, t_end=0.0),
        ODESampler("euler", steps=100, t_end=0.0),
        ODESampler("midpoint", steps=50, t_end=0.0),
        SDESampler("euler", 200, t_end=0.0),
        SDESampler("srk", 100, t_end=0.0),
    ],
)
def test_who_never_looks_at_the_end(sampler, sde):
    x = sampler(GaussianDenoiser(sde, torch.tensor([0.3]), 0.5), (2000, 1)).x
    assert abs(float(x.mean()) - 0.3) < 0.06
    assert abs(float(x.std()) - 0.5) < 0.07


@pytest.mark.parametrize("sde", [RectifiedFlow(t_min=0.0, t_max=1.0), EDMSDE(t_min=0.0)], ids=["rectified", "edm"])
def test_likelihoods_at_ends_that_are_not_singular_for_the_flow(sde):
    """In y of unit variance the velocity is finite without signal and without noise: exact log-density of the data."""
    denoiser = gaussian(sde)
    x = MEAN + STD * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1)
    found = log_likelihood(denoiser, x, rtol=1e-8, atol=1e-8, trace="exact").log_prob
    assert (found - exact).abs().max() < (1e-5 if sde.t_max == 1 else 0.05)  # EDM's prior is off by (data / 80)^2
    with pytest.raises(ValueError, match=MESSAGE):
        log_likelihood(gaussian(VPSDE()), x, t_end=0.0)
