"""Posterior denoisers against exact posteriors of Gaussians and mixtures."""

import pytest
import torch
from reference_paths import PATHS

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.density import log_likelihood
from sde_diffusion.guidance import (
    JacobianFree,
    LinearOperator,
    Mask,
    MomentMatching,
    Nonlinear,
    PointEstimate,
    PosteriorDenoiser,
    PseudoInverse,
    RowSum,
)
from sde_diffusion.sampling import AncestralSampler

NOISE = 0.1
X = torch.zeros(2, 6)
FORMS = ("x0", "eps", "score", "velocity")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(name, size=6, seed=1):
    factor = random(size, size, seed=seed) / size**0.5
    return GaussianDenoiser(PATHS[name][0], random(size, seed=seed + 1), covariance=factor @ factor.T)


def states(denoiser, log_snr, n=3):
    """Times, and states x_t of data drawn from the denoiser's own distribution."""
    sde = denoiser.sde
    t = sde.time(torch.tensor(log_snr, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
    x0 = denoiser.sample(n, torch.Generator().manual_seed(3))
    return t, sde.alpha(t) * x0 + sde.sigma(t) * random(*x0.shape, seed=4), x0


@pytest.mark.parametrize("log_snr", [-6.0, -2.0, 0.0, 4.0, 10.0])
@pytest.mark.parametrize("name", PATHS)
def test_moment_matching_is_exact_for_gaussians(name, log_snr):
    """With as many iterations as measurements, in float64 to 1e-10 and in float32 to 1e-4, in each form."""
    denoiser = gaussian(name)
    operator = LinearOperator(random(3, 6, seed=5))
    t, x_t, x0 = states(denoiser, log_snr)
    y = operator(x0) + NOISE * random(3, 3, seed=6)
    found = PosteriorDenoiser(denoiser, operator, NOISE, MomentMatching(3))(x_t, t, y=y)
    exact = denoiser.posterior(operator, NOISE)(x_t, t, y=y)
    for form in FORMS:
        a, b = getattr(found, form), getattr(exact, form)
        assert (a - b).norm() <= 1e-10 * b.norm(), form
    single = PosteriorDenoiser(denoiser, operator, NOISE, MomentMatching(3))(x_t.float(), t, y=y.float())
    assert (single.x0 - exact.x0).norm() <= 1e-4 * exact.x0.norm()


def test_moment_matching_of_correlated_numbers_needs_iterations():
    """A smooth signal, eight of whose 16 numbers are known: conjugate gradients end after eight iterations."""
    places = torch.arange(16, dtype=torch.float64)
    covariance = 0.25 * torch.exp(-(places[:, None] - places).square() / 18) + 1e-4 * torch.eye(16)
    denoiser = GaussianDenoiser(PATHS["vp"][0], torch.zeros(16, dtype=torch.float64), covariance=covariance)
    operator = Mask(places % 2 == 0)
    for log_snr in (-4.0, 0.0, 4.0):
        t, x_t, x0 = states(denoiser, log_snr)
        y = operator(x0) + NOISE * random(3, 8, seed=6)
        exact = denoiser.posterior(operator, NOISE)(x_t, t, y=y).x0
        errors = []
        for iterations in (1, 3, 8, 16):
            found = PosteriorDenoiser(denoiser, operator, NOISE, MomentMatching(iterations))(x_t, t, y=y)
            errors.append(float((found.x0 - exact).norm() / exact.norm()))
        assert errors[0] > errors[1] > errors[2]
        assert max(errors[2:]) < 1e-6


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
@pytest.mark.parametrize(
    "likelihood",
    [PseudoInverse(0.5), JacobianFree(0.5), RowSum(), MomentMatching(1)],
    ids=lambda one: type(one).__name__,
)
def test_the_others_are_exact_for_white_gaussians(name, likelihood):
    """N(m, s^2 I) and a mask, with s told to those that assume one."""
    denoiser = GaussianDenoiser(PATHS[name][0], random(6), 0.5)
    operator = Mask(torch.tensor([1, 0, 1, 1, 0, 0]))
    for log_snr in (-4.0, 0.0, 4.0):
        t, x_t, x0 = states(denoiser, log_snr)
        y = operator(x0) + NOISE * random(3, 3, seed=6)
        found = PosteriorDenoiser(denoiser, operator, NOISE, likelihood)(x_t, t, y=y)
        exact = denoiser.posterior(operator, NOISE)(x_t, t, y=y)
        for form in FORMS:
            torch.testing.assert_close(getattr(found, form), getattr(exact, form), rtol=1e-10, atol=1e-10)


def test_without_noise_jacobian_free_is_the_projection():
    """x0 + A^+ (y - A x0), whatever sigma_data."""
    denoiser = gaussian("vp")
    operator = LinearOperator(random(3, 6, seed=5))
    t, x_t, x0 = states(denoiser, 0.0)
    belief = denoiser(x_t, t).x0
    expected = belief + (operator(x0) - operator(belief)) @ torch.linalg.pinv(operator.matrix).T
    for sigma_data in (0.3, 5.0, float("inf")):
        found = PosteriorDenoiser(denoiser, operator, 0.0, JacobianFree(sigma_data))(x_t, t, y=operator(x0))
        torch.testing.assert_close(found.x0, expected, rtol=1e-9, atol=1e-9)


def test_gauss_newton_of_an_affine_function_is_exact():
    """y = B x + c as a function, with y - c as the linear measurement."""
    denoiser = gaussian("cosine")
    linear = LinearOperator(random(3, 6, seed=5))
    t, x_t, x0 = states(denoiser, 1.0)
    y = linear(x0)
    found = PosteriorDenoiser(denoiser, Nonlinear(lambda x: linear(x) + 2), NOISE, MomentMatching(3))(x_t, t, y=y + 2)
    exact = denoiser.posterior(linear, NOISE)(x_t, t, y=y)
    torch.testing.assert_close(found.x0, exact.x0, rtol=1e-9, atol=1e-9)


def test_negative_curvature_stops_a_sample():
    """A denoiser whose Jacobian is negative definite must not reverse the measurement's pull."""

    class Wrong(GaussianDenoiser):
        def forward(self, x_t, t, **conditions):
            right = super().forward(x_t, t)
            return type(right).__mro__[1](self.sde, x_t, t, output=-right.x0)  # a plain Prediction

    denoiser = Wrong(PATHS["vp"][0], torch.zeros(4), 1.0)
    posterior = PosteriorDenoiser(denoiser, Mask(torch.tensor([1, 0, 0, 1])), 0.1)
    x_t = random(2, 4)
    torch.testing.assert_close(posterior(x_t, 0.5, y=random(2, 2)).x0, denoiser(x_t, 0.5).x0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_each_sample_is_its_own(mode):
    """Sample i of a batch is that drawn alone, for each likelihood."""
    means, stds = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.5, 0.3]]), torch.tensor([0.2, 0.4])
    denoiser = GaussianMixtureDenoiser(PATHS["vp"][0], means, stds)
    operator = LinearOperator(random(2, 3, seed=5))
    y = random(8, 2, seed=6)
    for likelihood in (MomentMatching(2), PseudoInverse(), JacobianFree(), RowSum(), PointEstimate(0.01)):
        posterior = PosteriorDenoiser(denoiser, operator, 0.5, likelihood)
        sampler = AncestralSampler(10, eta=1.0)
        with mode():
            together = sampler(posterior, (8, 3), y=y, dtype=torch.float64).x
            alone = sampler(posterior, (1, 3), seeds=[5], y=y[5:6], dtype=torch.float64).x
        torch.testing.assert_close(alone[0], together[5], rtol=1e-9, atol=1e-9)


def test_likelihood_of_the_posterior_of_a_gaussian():
    """The exact trace differentiates through the guidance; the exact posterior's denoiser has the same flow."""
    denoiser = gaussian("vp", size=3)
    operator = LinearOperator(random(2, 3, seed=5))
    posterior = PosteriorDenoiser(denoiser, operator, 0.3, MomentMatching(2))
    y = torch.tensor([[0.2, -0.5]], dtype=torch.float64)
    exact = denoiser.condition(operator, y[0], 0.3)
    x = exact.sample(3, torch.Generator().manual_seed(0))
    found = log_likelihood(posterior, x, trace="exact", y=y).log_prob
    torch.testing.assert_close(found, log_likelihood(exact, x, trace="exact").log_prob, rtol=0, atol=1e-6)
    # The rest is the mean that is left at t_max, where the flow begins at N(0, sigma^2).
    torch.testing.assert_close(found, exact.log_prob(x, denoiser.sde.t_min), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(random(2, 6), 0.5), "measurement y="),
        (lambda p: p(random(2, 6), 0.5, y=random(3, 2)), r"floats \[2, ...\] or \[1, ...\]"),
        (lambda p: p(random(2, 6), 0.5, y=torch.zeros(2, 3, dtype=torch.int64)), "floats"),
        (lambda p: p(random(2, 6), 0.5, y=random(2, 4)), r"y has shape \[4\], but the operator gives \[3\]"),
        (lambda p: p(random(2, 6), 0.5, y=torch.full((2, 3), float("nan"))), "y is not finite"),
        (
            lambda p: PosteriorDenoiser(p.denoiser, Nonlinear(torch.log))(random(1, 6), 0.5, y=random(1, 6)),
            r"Nonlinear.* gives NaN or infinite values for data that have none",
        ),
        (lambda p: PosteriorDenoiser(p.denoiser, p.operator, -0.1), "at least 0"),
        (lambda p: PosteriorDenoiser(p, p.operator, 0.1), "denoiser has a condition named y itself"),
        (lambda p: PosteriorDenoiser(p.denoiser, p.operator, float("inf")), "finite"),
        (lambda p: PosteriorDenoiser(p.denoiser, p.operator, 0.1, "dps"), "point_estimate"),
        (
            lambda p: PosteriorDenoiser(p.denoiser, p.operator, 0, PointEstimate())(random(1, 6), 0.5, y=random(1, 3)),
            "0",
        ),
        (lambda p: MomentMatching(0), "at least 1"),
        (lambda p: PseudoInverse(0.0), "positive"),
    ],
)
def test_mistakes(call, message):
    posterior = PosteriorDenoiser(gaussian("vp"), LinearOperator(random(3, 6, seed=5)), NOISE)
    with pytest.raises(ValueError, match=message):
        call(posterior)
