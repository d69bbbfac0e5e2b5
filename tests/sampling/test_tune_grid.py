"""The grid on which few steps come nearest to many: against brute force, the exact flow, and default grids."""

import numpy as np
import pytest
import torch
from sampling_cases import MEAN, SIX, STD, gaussian, gaussian_flow, mixture

from sde_diffusion.guidance import Composition
from sde_diffusion.sampling import AncestralSampler, DPMSolver, HeunSampler, Noise, ODESampler, UniPC, tune_grid
from sde_diffusion.sde import KarrasRho, TunedGrid

FEW, SEEDS = 5, range(64)


def drawn(sampler, denoiser, seeds):
    return sampler(denoiser, (len(seeds), *denoiser.means.shape[1:]), seeds=seeds).x


def distance(a, b):
    return (a - b).double().square().mean().sqrt().item()


def test_the_optimum_is_that_of_brute_force():
    """DDIM in three passes on a Gaussian: an affine map for each pair of times, whose error is known in closed form."""
    sde = SIX["vp"]
    denoiser, seeds = gaussian(sde), range(400)
    noise = Noise(list(seeds), (3,), torch.device("cpu"), torch.float32).normal(0).double()
    state = noise * sde.sigma(sde.t_max)
    target = gaussian_flow(sde, state, sde.t_max, 0.0)
    found = tune_grid(AncestralSampler(3, eta=0.0), denoiser, target.float(), seeds)

    def belief(x, a, s):
        return MEAN.numpy() + a * STD.numpy() ** 2 / ((a * STD.numpy()) ** 2 + s**2) * (x - a * MEAN.numpy())

    def error(first, last):
        log_snr = np.array([sde.log_snr(sde.t_max).item(), first, last])
        alpha, sigma = (1 / (1 + np.exp(-log_snr))) ** 0.5, (1 / (1 + np.exp(log_snr))) ** 0.5
        x = state.numpy()
        for a, s, b, t in zip(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], strict=True):
            x0 = belief(x, a, s)
            x = b * x0 + t * (x - a * x0) / s
        return np.square(belief(x, alpha[-1], sigma[-1]) - target.numpy()).mean() ** 0.5

    brute = min(error(a, b) for a in np.arange(-5, 4, 0.25) for b in np.arange(-3, 8, 0.25) if a < b)
    assert found.error == pytest.approx(error(*found.log_snr[1:]), rel=1e-4)
    assert 0.97 * brute < found.error < 1.0001 * brute


def check_gain(denoiser, sampler, factor):
    """On other seeds than those of the search, the error is that much smaller than on any untuned grid."""
    many = type(sampler)(200)
    found = tune_grid(sampler, denoiser, drawn(many, denoiser, SEEDS), SEEDS)
    others = range(1000, 1400)
    target = drawn(many, denoiser, others)
    assert found.log_snr == list(found.grid.log_snr[0])

    def error(grid):
        return distance(drawn(type(sampler)(sampler.steps, grid=grid), denoiser, others), target)

    tuned, default = error(found.grid), error(None)
    assert found.untuned == pytest.approx(default, rel=0.3)  # of other seeds
    assert tuned * factor < min(default, error(KarrasRho()))
    return found


def test_a_tuned_grid_beats_the_defaults_at_equal_passes():
    check_gain(mixture(SIX["vp"]), UniPC(FEW), 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DPMSolver, UniPC, HeunSampler])
@pytest.mark.parametrize("name", sorted(SIX))
def test_on_every_path(name, kind):
    check_gain(mixture(SIX[name]), kind(FEW), 1.2)


def test_a_guided_denoiser_and_a_start():
    """With a grid of fewer steps to begin with; the search counts its walks and reports the least error."""
    sde = SIX["edm"]
    denoiser = Composition([mixture(sde), mixture(sde)], [2, -1])  # the same, by way of guidance
    target = UniPC(60)(denoiser, (16, 2), seeds=range(16)).x
    seen = []
    start = TunedGrid([[sde.log_snr(sde.t_max).item(), 0.0, 4.0]])
    found = tune_grid(UniPC(4), denoiser, target, range(16), [start], 1, 2, 7, lambda *now: seen.append(now))
    assert [walks for walks, _ in seen] == list(range(1, found.walks + 1))
    assert seen[-1][1] == min(error for _, error in seen) == found.error
    assert found.error < found.untuned
    assert len(found.log_snr) == 4


def test_refused():
    denoiser, x = mixture(SIX["vp"]), torch.zeros(4, 2)
    for sampler, words in (
        (DPMSolver(4, eta=1.0), "a sampler without noise"),
        (ODESampler(steps=4, method="euler"), "no steps between times of a grid"),
        (DPMSolver(1), "no steps between times of a grid"),
    ):
        with pytest.raises(ValueError, match=words):
            tune_grid(sampler, denoiser, x)
    with pytest.raises(ValueError, match="log-SNR is infinite"):
        tune_grid(AncestralSampler(3, eta=0.0, t_end=0.0), denoiser, x)
    with pytest.raises(TypeError, match="sampler must be a Sampler"):
        tune_grid("dpm", denoiser, x)
