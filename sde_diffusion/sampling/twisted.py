r"""Twisted sequential Monte Carlo: weighted particles, whose weights correct an approximate guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion.checks import check_count, check_finite
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser import Prediction
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import LIKELIHOODS, MeasurementLikelihood, PosteriorDenoiser
from sde_diffusion.guidance.posterior import Twist
from sde_diffusion.sampling.measured import PosteriorSampler, measured
from sde_diffusion.sampling.walk import PRIOR_DRAW, Walk, singular
from sde_diffusion.sde import BandLogSNR, Grid, Time, add, add_, number, numbers


class TwistedSMC(PosteriorSampler):
    r"""Samples of p(x_0 | y), exact in the limit of many particles, whatever the guidance; and estimates of log p(y).

    The denoiser is a `PosteriorDenoiser` whose likelihood has log p~(y | x_t) (see `MeasurementLikelihood.log_prob`),
    and y is passed as y=. Each returned sample has `particles` of its own, so that it depends on its seed alone. They
    take DDPM's steps with the mean moved by the step's variance times grad log p~, q(x_s | x_t, y), and have weights

        w_s = w_t p~(y | x_s) p(x_s | x_t) / (p~(y | x_t) q(x_s | x_t, y)),

    p being DDPM's step without y; in the end p~ is the likelihood N(y; A x0, noise^2 I) itself. Where the effective
    number of particles 1 / sum w^2 is less than half of them, they are resampled, systematically. One of them, drawn by
    weight, is the sample.

    `Samples.log_evidence` is log Z, with E[Z] = p(y) for the distribution that DDPM's steps without y make: unbiased,
    and so below log p(y) in the mean. One sample costs `particles` times the passes of a step, and the vector-Jacobian
    products of the likelihood. Given a latent, all particles begin there, and log Z estimates log p(y | latent).

    For samples, few particles and `JacobianFree` are often enough, which needs no derivatives of the network. Evidence
    in more than a few dimensions needs a likelihood that is close to the true one: `MomentMatching`.

    Callbacks and frames see the particle of the largest weight at their time, and its guided belief.

    Args:
        steps: Number of network passes of a particle, at least 1 (2 without `denoise`); the last is at t_end.
        particles: Number of particles of each sample, at least 1.
        likelihood: p~, a name of `LIKELIHOODS` or a `MeasurementLikelihood`; the denoiser's by default.
        grid: Spacing of the times; `BandLogSNR` by default, for which the error of few steps is small on any path.
        denoise: See `Sampler`; if False, the state at t_end is weighted by p~.
        t_end: See `Sampler`.

    Raises:
        ValueError: If a number is out of range, or the likelihood unknown; from a call, if the noise of the measurement
            is 0, the likelihood has no log p~(y | x_t), the path is singular at t_end, create_graph is asked for, or
            the denoiser has settings for each sample of a batch.
        UserError: From a call, if the weights of the particles are NaN or infinite.
        TypeError: From a call, if the denoiser is not a `PosteriorDenoiser`.

    References:
        Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models", algorithm 1.
    """

    always_shown = ("steps", "particles")
    has_evidence = True

    def __init__(
        self,
        steps: int = 100,
        particles: int = 64,
        likelihood: str | MeasurementLikelihood | None = None,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, BandLogSNR() if grid is None else grid)
        also = "" if self.denoise else " with denoise=False, where the last pass weighs the state at t_end"
        self.steps = check_count("steps", steps, least=1 + (not self.denoise), also=also)
        self.particles = check_count("particles", particles)
        self.likelihood: MeasurementLikelihood | None = None
        if likelihood is not None:
            self.likelihood = as_instance("likelihood", likelihood, LIKELIHOODS, MeasurementLikelihood)

    @property
    def states(self) -> int:  # type: ignore[override]
        """One for each particle."""
        return self.particles

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk all particles down the grid; see `Sampler.walk`."""
        sde = run.sde
        times = self.grid_on(sde).times(sde, self.steps, run.t_end)
        table = torch.stack(sde.posterior_coefficients(times[1:], times[:-1]), 1)
        if not bool((table.isfinite() & (table[:, 2:] > 0)).all()):
            raise singular(sde)
        if torch.is_grad_enabled():
            raise ValueError("TwistedSMC draws particles by weight, which has no derivative: leave out create_graph")
        cloud = _Cloud(run, self, x)
        run.plan(times)
        twist = cloud.twist(times[0])
        cloud.weigh(twist.log_prob)
        cloud.report(twist, times[0])
        score = numbers(sde.alpha(times) / sde.sigma(times).square())  # of log p~, for each unit of shift
        for step, (from_x0, from_x, std) in enumerate(numbers(table)):
            twist = cloud.resampled(twist, step)
            z = cloud.noise.normal(1 + step)
            pull = twist.shift * (std * score[step])
            cloud.x = add_(add(cloud.x * from_x, twist.prediction.x0, from_x0), z + pull, std)
            before, twist = twist, cloud.twist(times[step + 1])
            # log p / q of a step that the shift moves by pull standard deviations
            moved = -(pull * (0.5 * pull + z)).double().flatten(1).sum(1)
            cloud.weigh(twist.log_prob - before.log_prob + moved)
            cloud.report(twist, times[step + 1])
        if self.denoise:
            cloud.x = twist.prediction.x0
            cloud.weigh(cloud.log_likelihood() - twist.log_prob)
        check_finite("the logarithm of the particles' weights", cloud.log_evidence, error=UserError)
        run.log_evidence = cloud.log_evidence
        return cloud.drawn()


class _Cloud:
    """The particles of all samples, those of one sample next to each other.

    Attributes:
        x: Their states, [B K, *dims].
        log_weight: Logarithms of their weights, [B, K], float64.
        log_evidence: log Z up to now, [B].
    """

    def __init__(self, run: Walk, sampler: TwistedSMC, start: Tensor) -> None:
        self.run, self.count = run, sampler.particles
        self.posterior = measured(run.denoiser, type(sampler).__name__)
        if sampler.likelihood is not None:
            inner, operator, noise = self.posterior.denoiser, self.posterior.operator, self.posterior.noise
            self.posterior = run.denoiser = PosteriorDenoiser(inner, operator, noise, sampler.likelihood)
        if self.posterior.per_sample:
            raise ValueError(
                "TwistedSMC walks many particles for each sample, and the denoiser has settings for each sample of a "
                "batch, such as a scale [B]: give one for all"
            )
        if not self.posterior.noise:
            raise ValueError(
                "TwistedSMC weighs particles by the density of y, which has none without noise: give the "
                "PosteriorDenoiser noise > 0, or use Replacement or RePaint"
            )
        self.noise = run.noise.stream("particles", n=self.count)
        self.choices = run.noise.stream("resampling", ())
        self.conditions = {
            name: value.repeat_interleave(self.count, 0) if isinstance(value, Tensor) and value.ndim else value
            for name, value in run.conditions.items()
        }
        if run.given:
            self.x = start.repeat_interleave(self.count, 0)
        else:
            self.x = self.noise.normal(PRIOR_DRAW) * number(run.sde.sigma(run.sde.t_max))
        self.log_weight = torch.zeros(len(start), self.count, dtype=torch.float64, device=start.device)
        self.log_evidence = torch.zeros_like(self.log_weight[:, 0])

    def twist(self, t: Time) -> Twist:
        """The beliefs at the particles, and what y says of them."""
        return self.posterior.twist(self.x, t, **self.conditions)

    def report(self, twist: Twist, t: Time) -> None:
        """Count the cost of a twist, and report it for the particle of the largest weight of each sample."""
        best = self._of_each(self.log_weight.argmax(1))
        x, x0 = self.x[best], (twist.prediction.x0 + twist.shift)[best]
        passes = self.count * self.posterior.passes_at(t)
        self.run.visit(x, t)
        self.run.report(Prediction(self.posterior.sde, x, t, output=x0), x, t, passes, self.count * twist.gradients)

    def weigh(self, log_factor: Tensor) -> None:
        """Multiply the weights, and keep them normalised to a mean of 1."""
        joint = self.log_weight + log_factor.reshape(self.log_weight.shape)
        mean = joint.logsumexp(1, keepdim=True) - math.log(self.count)
        self.log_evidence = self.log_evidence + mean.squeeze(1)
        self.log_weight = joint - mean

    def resampled(self, twist: Twist, step: int) -> Twist:
        """Resample the particles of those samples whose weights have become too unequal."""
        share = self.log_weight.softmax(1)
        few = share.square().sum(1, keepdim=True).reciprocal() < 0.5 * self.count
        places = (torch.arange(self.count, device=share.device) + self.choices.uniform(step).unsqueeze(1)) / self.count
        chosen = torch.searchsorted(share.cumsum(1), places).clamp(max=self.count - 1)
        kept = torch.where(few, chosen, torch.arange(self.count, device=share.device))
        self.log_weight = torch.where(few, 0.0, self.log_weight)
        rows = self._of_each(kept).flatten()
        self.x = self.x[rows]
        x0, shift, log_prob = twist.prediction.x0[rows], twist.shift[rows], twist.log_prob[rows]
        return Twist(Prediction(self.posterior.sde, self.x, twist.prediction.t, x0), shift, log_prob, twist.gradients)

    def log_likelihood(self) -> Tensor:
        """log N(y; A x, noise^2 I), [B K]."""
        noise = self.posterior.noise
        error: Tensor = (self.conditions["y"] - self.posterior.operator(self.x)).double().flatten(1) / noise
        constant = error.shape[1] * (math.log(noise) + 0.5 * math.log(2 * math.pi))
        return -0.5 * error.square().sum(1) - constant

    def drawn(self) -> Tensor:
        """One particle of each sample, drawn by weight, [B, *dims]."""
        place = self.choices.uniform(-1).unsqueeze(1).contiguous()
        chosen = torch.searchsorted(self.log_weight.softmax(1).cumsum(1), place).clamp(max=self.count - 1)
        return self.x[self._of_each(chosen.squeeze(1))]

    def _of_each(self, index: Tensor) -> Tensor:
        """Rows of the particles with these numbers of each sample, [B] or [B, K]."""
        first = torch.arange(len(index), device=index.device) * self.count
        rows: Tensor = index + first.reshape(-1, *(1,) * (index.ndim - 1))
        return rows
