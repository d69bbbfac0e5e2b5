"""The bound's estimate: below the exact density, its standard error honest, its draws the samples' own."""

import math

import pytest
import torch
from density_cases import MEAN, PATHS, STD, Perceptron, bits, digits, gaussian, network, terminal
from scipy.integrate import quad

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser, NetworkDenoiser
from sde_diffusion.density import LevelDecoder, elbo
from sde_diffusion.modality.levels import from_levels
from sde_diffusion.nn import MLP
from sde_diffusion.sde import VESDE, VPSDE, KarrasRho, UniformTime


@pytest.mark.parametrize("name", PATHS)
def test_below_the_exact_density_of_the_digits_mixture(name):
    """On average over 200 samples of the data, within 4.5 standard errors; and near it where the decoder stands close
    to the data (the smallest deviation is 0.03, and VE's noise 0.01 there).
    """
    sde = PATHS[name]
    denoiser = digits(sde)
    x = denoiser.sample(200, torch.Generator().manual_seed(3))
    exact = denoiser.log_prob(x, 0.0)
    if name == "ve":  # which begins with noise of 0.01: there, the density of the data themselves
        exact = digits(PATHS["edm"]).log_prob(x, 0.0)
    continuous = elbo(denoiser, x, None, 64, prior=terminal(denoiser))
    gaps = exact - continuous.log_prob
    error = float(gaps.std()) / 200**0.5
    assert float(gaps.mean()) > -4.5 * error
    assert bits(gaps.mean(), 64) < (0.2 if name == "ve" else 0.05)
    discrete = elbo(denoiser, x, 50, 25, prior=terminal(denoiser))
    assert float((exact - discrete.log_prob).mean()) > float(gaps.mean())


CASES = {
    "continuous": {"steps": None, "draws": 32},
    "every step": {"steps": 24},
    "some steps": {"steps": 200, "draws": 9},
    "grid": {"steps": None, "draws": 32, "grid": KarrasRho(3.0)},
    "levels": {"steps": None, "draws": 32, "decoder": LevelDecoder(257), "t_end": 0.6},
    "prior": {"steps": None, "draws": 32, "t_end": 0.5, "prior": lambda x: -0.7 * x.abs().pow(3).flatten(1).sum(1)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_standard_error_is_at_least_the_spread_over_seeds(case):
    """Of one sample with 600 seeds, in the root mean square: from 3% too small, as far as 600 seeds tell, to three
    times as large (widened for the skewness of the draws, and the strata's own course counts as noise).
    """
    x = from_levels(torch.tensor([[3, 11, 16, 8]]), 17).repeat(600, 1)
    denoiser = network(PATHS["cosine"], 4, gain=0.7).double()
    result = elbo(denoiser, x, **CASES[case])
    said, seen = float(result.std_error.square().mean().sqrt()), float(result.log_prob.std())
    assert seen > 0.01
    assert said > 0.87 * seen
    assert said < 3 * seen


def _coverage(dims: int, draws: int, repetitions: int) -> float:
    """How often log_prob ± 1.96 std_error holds the bound's value, of one point of a narrow mixture."""
    generator = torch.Generator().manual_seed(dims)
    means, stds = torch.randn(5, dims, generator=generator) / 2, torch.tensor([0.05, 0.1, 0.2, 0.3, 0.1])
    denoiser = GaussianMixtureDenoiser(PATHS["vp"], means, stds=stds)
    x = denoiser.sample(1, generator)
    truth = elbo(denoiser, x.expand(64, -1), None, 2048, seed=10**6).log_prob.mean()
    result = elbo(denoiser, x.expand(repetitions, -1), None, draws)
    return float(((result.log_prob - truth).abs() <= 1.96 * result.std_error).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("draws", [4, 8, 32, 128])
@pytest.mark.parametrize("dims", [1, 2, 64])
def test_intervals_hold_the_truth(dims, draws):
    """In 95% of 1,000 repetitions, less 2.2 of their standard errors of 0.7% (1.4% false alarms a case)."""
    assert _coverage(dims, draws, 1000) > 0.95 - 2.2 * 0.0069


@pytest.mark.parametrize("draws", [4, 32])
def test_intervals_of_few_draws_in_one_dimension_hold_the_truth(draws):
    """In 95% of 300 repetitions, less 3 standard errors; with normal quantiles of the strata's spread 60% to 88%."""
    assert _coverage(1, draws, 300) > 0.95 - 3 * 0.0126


def test_too_few_draws_have_no_error():
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert [elbo(gaussian(PATHS["vp"]), x, None, draws).std_error is None for draws in (1, 2, 3, 4)] == [
        *[True] * 3,
        False,
    ]


@pytest.mark.parametrize("draws", [2, 3, 4, 8, 128])
def test_the_control_variate_takes_noise_off_and_no_more(draws):
    """Where noise is small beside the data. Of 1,000 estimates of the diffusion term, 1/2 int E|eps_hat - eps|^2
    dlambda: the mean is the closed form's, within 4.5 standard errors, and the variance less than half of that of the
    sum written out, with one draw of noise in each of as many strata and no control variate.
    """
    sde, x = PATHS["vp"], torch.tensor([0.5, -0.2, 0.3], dtype=torch.float64)
    found = elbo(gaussian(sde), x.repeat(1000, 1), None, draws, t_end=sde.t_min).diffusion
    high, low = (float(sde.log_snr(t)) for t in (sde.t_min, sde.t_max))

    def parts(lambda_):  # eps_hat - eps = (x - mean) shift - k eps for x_t = alpha x + sigma eps
        ratio = (0.5 * lambda_).exp()
        k = ratio * STD.square() / (1 + ratio.square() * STD.square()) * ratio
        return ratio * (1 - k), k

    def mean(lambda_):
        shift, k = parts(torch.tensor([lambda_], dtype=torch.float64).unsqueeze(-1))
        return 0.5 * float((((x - MEAN) * shift).square() + k.square()).sum())

    assert abs(float(found.mean()) - quad(mean, low, high)[0]) < 4.5 * float(found.std()) / 1000**0.5
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(1000, draws, generator=generator, dtype=torch.float64) + torch.arange(draws)
    shift, k = parts((low + (high - low) * places / draws).unsqueeze(-1))
    eps = torch.randn(1000, draws, 3, generator=generator, dtype=torch.float64)
    bare = 0.5 * (high - low) * ((x - MEAN) * shift - k * eps).square().sum(-1).mean(1)
    assert found.var() < 0.5 * bare.var()


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_a_sample_depends_on_its_seed_alone(rows):
    """Whatever its companions, and however many rows go through the network at once."""
    denoiser = network(PATHS["cosine"], 3).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps in (None, 20):
        together = elbo(denoiser, x, steps, 10, seed=50)
        alone = elbo(denoiser, x[3:4], steps, 10, seeds=[53], rows=rows)
        for part in ("log_prob", "reconstruction", "prior", "diffusion", "std_error"):
            torch.testing.assert_close(getattr(alone, part), getattr(together, part)[3:4], rtol=1e-11, atol=1e-11)
        assert not torch.isclose(elbo(denoiser, x[3:4], steps, 10, seeds=[54]).log_prob, alone.log_prob)
        assert elbo(denoiser, x, steps, 10, rows=rows).nfe == 10


def test_passes_and_rows():
    """128 in continuous time, one a step else; in as many calls as rows allow."""
    denoiser = network(PATHS["vp"], 2)
    x = torch.zeros(4, 2)
    for options, nfe, calls in (
        ({"steps": None}, 128, 1),
        ({"steps": 30}, 30, 1),
        ({"steps": 30, "rows": 40}, 30, 3),
        ({"steps": 1000, "draws": 7, "rows": 3}, 7, 14),
    ):
        denoiser.network.passes = 0
        result = elbo(denoiser, x, **options)
        assert (result.nfe, denoiser.network.passes) == (nfe, calls)


def test_images_labels_and_modes():
    """A shape, labels repeated with their samples, inference mode and autocast."""
    denoiser = NetworkDenoiser(PATHS["vp"], MLP((1, 2, 3), n_classes=5, width=16, depth=1))
    for p in denoiser.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    label = torch.tensor([0, 4, 2, 2])
    together = elbo(denoiser, x, 20, label=label)
    for i in range(4):
        alone = elbo(denoiser, x[i : i + 1], 20, seeds=[i], label=label[i : i + 1])
        torch.testing.assert_close(alone.log_prob, together.log_prob[i : i + 1], rtol=1e-5, atol=1e-4)
    assert not torch.allclose(elbo(denoiser, x, 20, label=label.flip(0)).log_prob, together.log_prob, rtol=1e-5)
    with torch.inference_mode():
        for steps in (20, None):
            inside = elbo(denoiser, x.clone(), steps, label=label.clone()).log_prob
            torch.testing.assert_close(inside.clone(), elbo(denoiser, x, steps, label=label).log_prob)
    with torch.autocast("cpu", torch.bfloat16):
        half = elbo(denoiser, x, 20, label=label)
    assert not torch.equal(half.log_prob, together.log_prob)
    assert torch.allclose(half.log_prob, together.log_prob, rtol=0.05)
    vectors = NetworkDenoiser(PATHS["vp"], Perceptron((6,)))
    images = NetworkDenoiser(PATHS["vp"], Perceptron((1, 2, 3)))
    torch.testing.assert_close(elbo(images, x, 20).log_prob, elbo(vectors, x.flatten(1), 20).log_prob)


def test_grids_give_the_same_mean():
    """A network's bound in continuous time by uniform t and by uniform log-SNR."""
    denoiser = network(PATHS["rectified"], 3, gain=0.8).double()
    x = torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64).repeat(2000, 1)
    first, second = (elbo(denoiser, x, None, 32, t_end=0.05, grid=grid).log_prob for grid in (None, UniformTime()))
    error = math.hypot(float(first.std()), float(second.std())) / 2000**0.5
    assert abs(float(first.mean() - second.mean())) < 4.5 * error
    assert error < 0.1


def test_the_bound_does_not_depend_on_the_scale_of_the_path():
    """VP and VE with the same ends of the log-SNR, at the same draws."""
    vp = VPSDE()
    first, last = (float(vp.log_snr(t)) for t in (vp.t_min, vp.t_max))
    ve = VESDE(sigma_min=math.exp(-first / 2), sigma_max=math.exp(-last / 2))
    x, mean = torch.tensor([[0.4, -1.0, 2.0]], dtype=torch.float64), torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    one, other = (elbo(GaussianDenoiser(sde, mean, 0.5), x, None, draws=64, t_end=sde.t_min) for sde in (vp, ve))
    torch.testing.assert_close(one.kl, other.kl, atol=1e-9, rtol=0)
    torch.testing.assert_close(one.log_prob, other.log_prob, atol=1e-9, rtol=0)


def test_no_pass_of_the_network_has_more_rows_than_allowed():
    model, x = network(PATHS["cosine"], 4, gain=0.7).double(), torch.randn(7, 4, dtype=torch.float64)
    whole, seen = elbo(model, x, None, 4), []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    torch.testing.assert_close(elbo(model, x, None, 4, rows=3).log_prob, whole.log_prob)
    assert max(seen) == 3
