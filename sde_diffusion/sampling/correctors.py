r"""Correctors: Langevin steps at a fixed time, which correct the marginal there.

They are defined in y = x / alpha, whose noise level is r = sigma / alpha, and so are the same on every path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sampling.langevin import langevin_step
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import SDE, Number, add, add_, float64, numbers

Move = Callable[[Tensor, Walk, Tensor], Tensor]
"""One step at one time: (x [B, *dims], run, z [B, *dims] standard normal) -> x; one network pass."""


class Corrector(ShowsArguments, ABC):
    """A rule for Langevin steps.

    Args:
        snr: Signal-to-noise ratio of the step, positive.
    """

    def __init__(self, snr: float) -> None:
        self.snr = float(snr)

    @abstractmethod
    def moves(self, sde: SDE, times: Tensor, predicted: bool = True) -> list[Move | None]:
        """The corrector's step at each time of a walk but the last; None where there is none, which costs no pass.

        Args:
            sde: The path.
            times: Times of the walk, [N + 1], float64, decreasing.
            predicted: Whether a predictor takes the walk from time to time.

        Returns:
            N moves.
        """


class NoCorrector(Corrector):
    """No correction: the predictor alone walks."""

    def moves(self, sde: SDE, times: Tensor, predicted: bool = True) -> list[Move | None]:
        """N times None; see `Corrector.moves`."""
        return [None] * (len(times) - 1)


class LeimkuhlerMatthews(Corrector):
    r"""y <- y + 2 nu z - (2 nu^2 / r_+) eps_+,  eps_+ predicted at y_+ = y + nu z and its noise level r_+.

    nu = scale snr r, r_+^2 = r^2 + nu^2, with scale as in `Langevin`. This is a Langevin step of size eps = 2 nu^2 = 2
    (scale snr r)^2, the mean of the published rule in many dimensions, which evaluates the score after half of the
    step's noise. It is the method of Leimkuhler and Matthews, whose error in the invariant measure is of second order
    in the step (Euler's Langevin step: of first order); on a path of noise levels it need not store earlier noise.

    The marginal of Gaussian data of any covariance is preserved exactly, whatever snr: with v = d^2 + r^2, v_+ = v +
    nu^2 and k = nu^2 / v_+, y <- (1 - 2 k) y + 2 (1 - k) nu z has the variance (1 - 2 k)^2 (1 - k) v_+ + 4 (1 - k)^2 k
    v_+ = v. As k < 1, no step is too large. For other data the stationary distribution is off by order snr^4 (Euler's
    Langevin step: snr^2).

    nu^2 is at most r_before^2 - r^2, by which the last predictor step has reduced the noise. So no pass is made above
    the noise level that the walk comes from (hence none at t_max), and the step, and with it the error, shrinks with
    the steps of the walk. In walks of a few hundred steps this limit has no effect. Without a predictor, only t_max is
    a limit, so that the steps do not shrink.

    References:
        Leimkuhler & Matthews 2013, "Rational Construction of Stochastic Numerical Methods for Molecular Sampling",
        equation 1.6; as a step with a post-processing noise: Vilmart 2015, "Postprocessed Integrators for the High
        Order Integration of Ergodic SDEs".
    """

    def moves(self, sde: SDE, times: Tensor, predicted: bool = True) -> list[Move | None]:
        """None at t_max, then a move at each time; see `Corrector.moves`."""
        before, here, after = times[:-2], times[1:-1], times[2:]
        r_before, r = ((-0.5 * sde.log_snr(t)).exp() for t in (before, here))
        scale, _ = sde.transition(after, here)
        most = r_before if predicted else r_before[:1]
        variance = torch.minimum((scale * self.snr * r).square(), most.square() - r.square())
        r_above = (r.square() + variance).sqrt()
        above = sde.time(-2 * r_above.log()).clamp(max=sde.t_max)
        alpha = sde.alpha(here)
        columns = (above, sde.alpha(above) / alpha, alpha * variance.sqrt(), 2 * alpha * variance / r_above)
        return [None, *(_raised(*row) for row in numbers(torch.stack(columns, 1)))]


def _raised(above: Number, up: Number, noise: Number, pull: Number) -> Move:
    """A step of `LeimkuhlerMatthews` in x: noise = alpha nu, up = alpha_+ / alpha, pull = 2 alpha nu^2 / r_+."""

    def move(x: Tensor, run: Walk, z: Tensor) -> Tensor:
        raised = add(x, z, noise)
        asked = raised * up
        raised = add_(raised, z, noise)
        del x, z  # memory that the network can use
        return add_(raised, run.predict(asked, above).eps, -pull)

    return move


class LangevinRule(Corrector):
    """A Langevin step x + eps score + sqrt(2 eps) z at the time itself, with a rule for the step size eps."""

    @abstractmethod
    def step_size(self, score: Tensor, z: Tensor, scale: Number, alpha: Number, sigma: Number) -> Tensor:
        """Eps for each sample, [B], or [] if it is the same for all; alpha and sigma are those of the time."""

    def moves(self, sde: SDE, times: Tensor, predicted: bool = True) -> list[Move | None]:
        """See `Corrector.moves`."""
        t, s = times[:-1], times[1:]
        scale, _ = sde.transition(s, t)
        return [self._move(*row) for row in numbers(torch.stack((t, scale, sde.alpha(t), sde.sigma(t)), 1))]

    def _move(self, t: Number, scale: Number, alpha: Number, sigma: Number) -> Move:
        def move(x: Tensor, run: Walk, z: Tensor) -> Tensor:
            score = run.predict(x, t).score
            return langevin_step(x, score, z, self.step_size(score, z, scale, alpha, sigma))

        return move


class Langevin(LangevinRule):
    """eps = 2 scale^2 (snr |z| / |score|)^2, norms over each sample (Song et al. 2021, algorithms 4 and 5).

    The published rule. The published code uses the means of the norms over the batch, which couples the samples. A
    single sample's score may be near zero, especially in few dimensions: its norm counts as at least sqrt(D / (alpha^2
    + sigma^2)), that of data of unit variance, so that no step is excessive. (With sqrt(D) / sigma, which bounds every
    score's root mean square, the rule would be that of `annealed_langevin`.)

    For many dimensions only: a step size that depends on the state biases the marginal, however many steps there are.
    In few dimensions the samples are much too wide; the other correctors have no such bias (benchmarks/README.md).
    """

    def step_size(self, score: Tensor, z: Tensor, scale: Number, alpha: Number, sigma: Number) -> Tensor:
        """From the norms of this sample's score and noise."""
        z, score = z.flatten(1), score.flatten(1)
        least = (score.shape[1] / (alpha**2 + sigma**2)) ** 0.5
        ratio: Tensor = z.norm(dim=1) / score.norm(dim=1).clamp(min=least)
        return 2 * scale**2 * (self.snr * ratio).square()


class AnnealedLangevinStep(LangevinRule):
    """eps = 2 scale^2 (snr sigma_t)^2, the same for all samples (Song et al. 2021, in their code, after NCSNv2).

    Euler's step, whose stationary variance is v / (1 - eps / 2 v) instead of v: up to v / (1 - snr^2) where there is
    only noise, however many steps are taken. The bias vanishes towards the end of a walk, where v is the variance of
    the data.
    """

    def step_size(self, score: Tensor, z: Tensor, scale: Number, alpha: Number, sigma: Number) -> Tensor:
        """From the noise level alone."""
        return float64(2 * scale**2 * (self.snr * sigma) ** 2)


CORRECTORS: dict[str, type[Corrector]] = {
    "leimkuhler_matthews": LeimkuhlerMatthews,
    "annealed_langevin": AnnealedLangevinStep,
    "langevin": Langevin,
    "none": NoCorrector,
}
"""The correctors by name."""
