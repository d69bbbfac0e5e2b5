"""Twisted SMC: an unbiased evidence, exact samples whatever the guidance, particles of each sample's own."""

import pytest
import torch
from posterior_cases import NOISE, OPERATOR, Y, correlated, four_modes, random
from sampling_cases import SIX

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.guidance import (
    Blur,
    JacobianFree,
    Mask,
    MomentMatching,
    PointEstimate,
    PosteriorDenoiser,
    PseudoInverse,
    RowSum,
)
from sde_diffusion.guidance.likelihoods import MeasurementLikelihood
from sde_diffusion.sampling import AncestralSampler, TwistedSMC, noised

VP = SIX["vp"]


def ratios(sampler, likelihood, n, y=Y):
    """Estimates of the evidence over the exact one, [len(y), n], and the samples."""
    mixture = four_modes(VP)
    posterior = PosteriorDenoiser(mixture, OPERATOR, NOISE, likelihood)
    found = sampler(posterior, (n * len(y), 2), y=y.repeat_interleave(n, 0), dtype=torch.float64)
    exact = mixture.posterior(OPERATOR, NOISE).log_evidence(y)
    return (found.log_evidence.reshape(len(y), n) - exact.unsqueeze(1)).exp(), found.x.reshape(len(y), n, 2)


def weights_of_modes(x):
    """Mean responsibilities of the posterior's components, [len(y), 4], and the exact weights."""
    conditioned = [four_modes(VP).condition(OPERATOR, y, NOISE) for y in Y]
    found = [one.log_responsibility(some, VP.t_min).exp().mean(0) for one, some in zip(conditioned, x, strict=True)]
    return torch.stack(found), torch.stack([one.log_weights.exp() for one in conditioned])


@pytest.mark.parametrize(
    "likelihood",
    [MomentMatching(1), PseudoInverse(0.6), JacobianFree(0.6), RowSum()],
    ids=lambda one: type(one).__name__,
)
def test_evidence_and_modes(likelihood):
    """100 steps, 16 particles, 60 samples each of 4 measurements.

    Ratio to p(y) within 4 standard errors (false alarms 6e-5), and .03 for the steps; weights of modes to 4 standard
    errors of 60 draws, at most .26.
    """
    found, x = ratios(TwistedSMC(100, 16), likelihood, 60)
    assert abs(found.mean() - 1) < 4 * found.std() / found.numel() ** 0.5 + 0.03
    share, exact = weights_of_modes(x)
    assert ((share - exact).abs() < 4 * (exact * (1 - exact) / 60).sqrt() + 0.02).all()


@pytest.mark.slow
def test_evidence_in_many_steps():
    """400 steps, 64 particles: within 3 standard errors of p(y) (false alarms .3%); measured 1.003 +- .003."""
    found, _ = ratios(TwistedSMC(400, 64), MomentMatching(1), 50)
    assert abs(found.mean() - 1) < 3 * found.std() / found.numel() ** 0.5


@pytest.mark.slow
def test_modes_with_many_particles():
    """64 particles, 1000 draws for each of 4 measurements: the total variation of the modes' weights.

    Measured .01 to .02, of which about .015 is the spread of 1000 draws.
    """
    _, x = ratios(TwistedSMC(100, 64), JacobianFree(0.6), 1000)
    share, exact = weights_of_modes(x)
    assert (share - exact).abs().sum(1).mean() / 2 < 0.03


def test_gaussians_are_exact():
    """One particle is enough, with weights near 1. Mean, covariance: 4 standard errors and 5%; evidence: 2%."""
    denoiser = correlated(VP, 0.9)
    y, n = torch.tensor([[0.8]], dtype=torch.float64), 2000
    operator = Mask(torch.tensor([1, 0]))
    posterior = PosteriorDenoiser(denoiser, operator, 0.3, MomentMatching(1))
    found = TwistedSMC(200, 1)(posterior, (n, 2), y=y, dtype=torch.float64)
    exact = denoiser.condition(operator, y[0], 0.3)
    std = exact.covariances()[0].diagonal().sqrt()
    assert ((found.x.mean(0) - exact.means[0]).abs() < 4 * std / n**0.5 + 0.05 * std).all()
    assert (found.x.T.cov() - exact.covariances()[0]).abs().max() < (4 * (2 / n) ** 0.5 + 0.05) * std.max() ** 2
    evidence = denoiser.posterior(operator, 0.3).log_evidence(y)
    assert abs((found.log_evidence - evidence).exp().mean() - 1) < 0.02
    # Of a walk that ends early, E N(y; A x0, noise^2) of its beliefs x0, whose covariance is C - V.
    t_end = float(VP.time(torch.tensor(2.0, dtype=torch.float64)))
    rest = denoiser.covariance(torch.zeros(1, 2), t_end)[0, 0, 0]
    found = TwistedSMC(100, 1, t_end=t_end)(posterior, (n, 2), y=y, dtype=torch.float64)
    evidence = torch.distributions.Normal(0.0, (1 - rest + 0.09).sqrt()).log_prob(y[0])
    ratio = (found.log_evidence - evidence).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / n**0.5 + 0.02


@pytest.mark.parametrize("denoise", [True, False])
def test_from_a_given_state(denoise):
    """All particles begin there, and the evidence is p(y | x_t), exact for Gaussian data."""
    denoiser, t = correlated(VP, 0.9), 0.4
    operator = Mask(torch.tensor([1, 0]))
    posterior = PosteriorDenoiser(denoiser, operator, 0.3, MomentMatching(1))
    x_t, y = noised(VP, random(4, 2, seed=1), t), random(4, 1, seed=2)
    exact = posterior.twist(x_t, t, y=y).log_prob  # tested against dense algebra
    sampler = TwistedSMC(200, 32, denoise=denoise)
    found = sampler(posterior, (4, 2), latent=x_t, t_start=t, y=y, dtype=torch.float64)
    assert (found.log_evidence - exact).abs().max() < 0.1


def test_each_sample_has_its_own_particles():
    """Sample i and its evidence in a batch of 64 are those drawn alone, also with one y for all."""
    posterior = PosteriorDenoiser(four_modes(VP), OPERATOR, NOISE)
    sampler = TwistedSMC(8, 5)
    for y in (random(64, 1, seed=3), Y[:1]):
        together = sampler(posterior, (64, 2), y=y, dtype=torch.float64)
        for i in (0, 63):
            mine = y[i : i + 1] if len(y) > 1 else y
            with torch.inference_mode():
                alone = sampler(posterior, (1, 2), seeds=[i], y=mine, dtype=torch.float64)
            torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(alone.log_evidence[0], together.log_evidence[i], rtol=1e-9, atol=1e-9)
        assert torch.pdist(together.x).min() > 1e-9


def test_a_likelihood_of_its_own():
    """That of the sampler takes the place of the denoiser's."""
    mixture = four_modes(VP)
    own = TwistedSMC(8, 5, "jacobian_free")
    found = own(PosteriorDenoiser(mixture, OPERATOR, NOISE, MomentMatching(1)), (3, 2), y=Y[:3], dtype=torch.float64)
    expected = TwistedSMC(8, 5)(
        PosteriorDenoiser(mixture, OPERATOR, NOISE, JacobianFree()), (3, 2), y=Y[:3], dtype=torch.float64
    )
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.log_evidence, expected.log_evidence)
    assert found.gradients == 0
    likelihood, sampler = own.likelihood_and_sampler(AncestralSampler(3))
    assert isinstance(likelihood, JacobianFree)
    assert (sampler, sampler.states) == (own, 5)
    assert MomentMatching(2).likelihood_and_sampler(own)[1] is own


def test_passes_gradients_frames_and_callbacks():
    posterior = PosteriorDenoiser(four_modes(VP), OPERATOR, NOISE, MomentMatching(2))
    seen = []
    sampler = TwistedSMC(6, 5)
    found = sampler(posterior, (3, 2), y=Y[:3], callback=lambda *row: seen.append(row), trajectory=4)
    assert (found.nfe, found.gradients) == (6 * 5, 6 * 5 * 2)  # one measurement: one for S, one for the shift
    assert [row[0] for row in seen] == list(range(6))
    assert {row[2].shape for row in seen} == {row[3].shape for row in seen} == {(3, 2)}
    assert found.states.shape == found.trajectory.shape == (4, 3, 2)
    assert torch.equal(sampler(posterior, (3, 2), y=Y[:3], callback=lambda step, *row: step == 2).x, seen[2][3])
    assert TwistedSMC(6, 5, denoise=False)(posterior, (3, 2), y=Y[:3]).nfe == 6 * 5
    # Of other samplers: as many a pass as the likelihood says.
    assert AncestralSampler(7)(posterior, (3, 2), y=Y[:3]).gradients == 7 * 2
    assert AncestralSampler(7)(four_modes(VP), (3, 2)).gradients == 0


class Own(MeasurementLikelihood):
    gradients = 0

    def shift(self, guess):
        return 0 * guess.adjoint(guess.residual)


def test_mistakes():
    mixture = four_modes(VP)
    sampler = TwistedSMC(4, 2)
    for posterior, y, error, message in (
        (mixture, None, TypeError, "TwistedSMC needs a PosteriorDenoiser"),
        (PosteriorDenoiser(mixture, OPERATOR, 0.0), Y[:1], ValueError, "noise > 0, or use Replacement or RePaint"),
        (
            PosteriorDenoiser(mixture, OPERATOR, 0.1, Own()),
            Y[:1],
            ValueError,
            r"Own\(\) has no log p\(y \| x_t\).*use Mom",
        ),
        (PosteriorDenoiser(mixture, OPERATOR, 0.1), Y[:1].expand(1, 2), ValueError, r"y has shape \[2\], but"),
        (
            PosteriorDenoiser(mixture, Blur(torch.ones(1), "zero"), 0.1, PseudoInverse()),
            torch.ones(1, 2),
            ValueError,
            "eigenvectors of Blur",
        ),
    ):
        with pytest.raises(error, match=message):
            sampler(posterior, (1, 2), y=y)
    wide = PosteriorDenoiser(GaussianDenoiser(VP, torch.zeros(70), 1.0), Mask(torch.arange(70) > 2), 0.1)
    with pytest.raises(ValueError, match=r"y has 67 \(at most 64\): use PseudoInverse"):
        sampler(wide, (1, 70), y=torch.ones(1, 67))
    for arguments in ((0, 4), (4, 0), (4, 2.5)):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            TwistedSMC(*arguments)
    with pytest.raises(ValueError, match="at least 2 with denoise=False"):
        TwistedSMC(1, 4, denoise=False)
    with pytest.raises(ValueError, match="TwistedSMC cannot be inverted"):
        sampler.invert(PosteriorDenoiser(mixture, OPERATOR, 0.1), torch.zeros(1, 2), y=Y[:1])


def test_a_bad_twist_is_corrected():
    """A likelihood that is too weak, and its S too small. The evidence to 4 standard errors (false alarms 6e-5), and 5%
    for the steps; its relative spread is .27, and .52 if weights remained after particles are resampled."""
    posterior = PosteriorDenoiser(four_modes(VP), OPERATOR, 0.4, PointEstimate(0.7))
    found = TwistedSMC(40, 32)(posterior, (200, 2), y=Y[:1], dtype=torch.float64)
    exact = four_modes(VP).posterior(OPERATOR, 0.4).log_evidence(Y[:1])
    ratio = (found.log_evidence - exact).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 200**0.5 + 0.05
    assert ratio.std() < 0.39
