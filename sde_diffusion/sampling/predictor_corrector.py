r"""Predictor-corrector sampling: a step of the reverse process, and Langevin steps that correct its marginal.

Over a step from t to s < t the forward kernel is q(x_t | x_s) = N(scale x_s, std^2) (on VP, scale^2 = 1 - beta_i and
std^2 = beta_i). Predictors are discretised with it, so they need no step size on any path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive, check_choice, check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.correctors import CORRECTORS, Corrector
from sde_diffusion.sampling.walk import Walk, check_coefficients
from sde_diffusion.sde import SDE, Grid, Number, add_, numbers


@dataclass
class Step:
    """The scales of a step of the walk from t to s < t, computed in float64.

    Attributes:
        t: Time at which the step begins.
        s: Time at which it ends, s < t.
        scale: Scale of q(x_t | x_s).
        std: Standard deviation of q(x_t | x_s).
        from_x0: Coefficient of x_0 in the mean of q(x_s | x_t, x_0).
        from_x: Coefficient of x_t in it.
        posterior_std: Standard deviation of q(x_s | x_t, x_0).
        drift: f(t) (t - s).
        diffusion: g(t) sqrt(t - s).
        alpha: alpha(t).
        sigma: sigma(t).
        alpha_s: alpha(s).
        sigma_s: sigma(s).
    """

    t: Number
    s: Number
    scale: Number
    std: Number
    from_x0: Number
    from_x: Number
    posterior_std: Number
    drift: Number
    diffusion: Number
    alpha: Number
    sigma: Number
    alpha_s: Number
    sigma_s: Number

    @classmethod
    def walk(cls, sde: SDE, times: Tensor) -> list[Step]:
        """The steps between consecutive times."""
        t, s = times[:-1], times[1:]
        drift = sde.log_alpha_rate(t) * (t - s)
        kernels = [*sde.transition(s, t), *sde.posterior_coefficients(s, t)]
        diffusion = sde.diffusion(t) * (t - s).sqrt()
        columns = [t, s, *kernels, drift, diffusion, sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)]
        return [cls(*row) for row in numbers(torch.stack(columns, 1))]


class Predictor(ShowsArguments, ABC):
    """A step of the reverse process, x_s = a x_t + b m(x_t, t) + c z: a prediction m and fresh noise z ~ N(0, I)."""

    prediction: str | None = "score"
    """The form of the prediction m that the step is linear in: x0, eps, score or velocity (attributes of `Prediction`).
    None if it needs no network pass."""

    @abstractmethod
    def coefficients(self, step: Step) -> tuple[Number, Number, Number]:
        """The factors (a, b, c) of x_t, m and z.

        They are numbers, the same for all samples and dimensions; on a learned path tensors [] with gradients. If one
        is infinite, as at a singular end of a path, the sampler raises an error.

        Args:
            step: The step from t to s, with the scales of the path at both ends and of its kernels.
        """

    def climb(self, step: Step) -> tuple[Number, Number] | None:
        """The factors (a, b) of the step back from s to t, x_t = a x_s + b m(x_s, s), for `invert`.

        Returns:
            None if there is no such step, as for every predictor that draws noise.
        """
        return None


class ReverseDiffusion(Predictor):
    """x_s = x_t - [(scale - 1) x_t - std^2 score] + std z (Song et al. 2021, equation 46, appendix E)."""

    def coefficients(self, step: Step) -> tuple[Number, Number, Number]:
        """2 - scale, std^2, std."""
        return 2 - step.scale, step.std**2, step.std


class Ancestral(Predictor):
    """x_s drawn from q(x_s | x_t, x0) (Ho et al. 2020, algorithm 2), on any path."""

    prediction = "x0"

    def coefficients(self, step: Step) -> tuple[Number, Number, Number]:
        """The coefficients of the posterior's mean, and its standard deviation."""
        return step.from_x, step.from_x0, step.posterior_std


class EulerMaruyama(Predictor):
    """x_s = x_t - [f x_t - g^2 score] (t - s) + g sqrt(t - s) z (Song et al. 2021, appendix D)."""

    def coefficients(self, step: Step) -> tuple[Number, Number, Number]:
        """The coefficients of Euler's step in t."""
        return 1 - step.drift, step.diffusion**2, step.diffusion


class ProbabilityFlow(Predictor):
    """x_s = alpha_s x0 + sigma_s eps, without noise: DDIM (Song et al. 2021, equation 12, with eta = 0).

    It replaces x_t - [(scale - 1) x_t - std^2 score / 2] (Song et al. 2021, "Score-Based Generative Modeling through
    SDEs", appendix D.3), which it equals in the limit of short steps: if alpha goes to zero, as on the cosine and the
    rectified path, the first steps have scale << 1, and each would scale x by about 3 / 2.
    """

    prediction = "x0"

    def coefficients(self, step: Step) -> tuple[Number, Number, Number]:
        """sigma_s / sigma, alpha_s - alpha sigma_s / sigma, and no noise."""
        shrink = step.sigma_s / step.sigma
        return shrink, step.alpha_s - step.alpha * shrink, 0.0

    def climb(self, step: Step) -> tuple[Number, Number]:
        """sigma / sigma_s and alpha - alpha_s sigma / sigma_s: the same step, with s and t exchanged."""
        grow = step.sigma / step.sigma_s if step.sigma_s else math.inf
        return grow, step.alpha - step.alpha_s * grow


class Stay(Predictor):
    """x_s = x_t / scale, which keeps x / alpha: the corrector alone takes the walk to the data, as in NCSN."""

    prediction = None

    def coefficients(self, step: Step) -> tuple[Number, Number, Number]:
        """1 / scale, and neither prediction nor noise."""
        return 1 / step.scale if step.scale else math.inf, 0.0, 0.0


PREDICTORS: dict[str, type[Predictor]] = {
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "probability_flow": ProbabilityFlow,
    "none": Stay,
}


class PredictorCorrector(Sampler):
    """At each time corrector_steps Langevin steps, then one predictor step to the next time.

    The corrector precedes the predictor at the same time, as in the published code. The last predictor step returns its
    mean, without noise: with denoise=False the result is a state at t_end without that noise, and its variance a little
    too small. With `denoise` the result is x0 at t_end, for one further pass. Without a corrector each predictor has
    weak order 1.

    The correctors take steps of eps = 2 (scale snr sigma)^2 with the scale of q(x_t | x_s), s the next time:

        leimkuhler_matthews   exact for Gaussian data of any covariance, whatever snr; otherwise its bias is of order
                              snr^4. Its step shrinks with those of the walk, so that for a fixed snr it is unbiased in
                              the limit of many steps, in any number of dimensions. It makes no step at t_max, and
                              evaluates noise levels up to 1 + snr^2 / 2 times those of the grid
        annealed_langevin     for a fixed snr a relative bias of eps / (2 v - eps) in a variance v remains, up to snr^2,
                              however many steps there are; it is small at the end of a walk
        langevin              the published rule, with sigma replaced by the norms of score and noise: for many
                              dimensions only, as its bias in few is large (see `correctors.Langevin`)

    Network passes: steps * (1 + corrector_steps); without a corrector steps; without a predictor steps *
    corrector_steps; with leimkuhler_matthews corrector_steps fewer; and one more with `denoise`.

    Args:
        predictor: reverse_diffusion, ancestral, euler_maruyama, probability_flow or none, or a `Predictor`.
        corrector: leimkuhler_matthews, annealed_langevin, langevin or none, or a `Corrector`, which has its own snr.
        steps: Number of predictor steps, at least 1.
        snr: Signal-to-noise ratio of the Langevin steps, positive: 0.16 CIFAR-10, 0.17 CelebA, 0.075 LSUN.
        corrector_steps: Langevin steps at each time, at least 1.
        grid: See `Sampler`.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If a name is unknown, steps or corrector_steps < 1, or snr is not positive; from a call, if the path
            is singular at an end of the walk in a way that the predictor cannot pass.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", algorithms 1 to 5.
    """

    always_shown = ("predictor", "corrector", "steps")

    def __init__(
        self,
        predictor: str | Predictor = "reverse_diffusion",
        corrector: str | Corrector = "leimkuhler_matthews",
        steps: int = 1000,
        snr: float = 0.16,
        corrector_steps: int = 1,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end, grid)
        self.snr = as_positive("snr", snr, " (0.16 for CIFAR-10)")
        self.predictor, self.corrector = predictor, corrector
        form = self._parts()[0].prediction
        if form is not None:
            check_choice("prediction of the predictor", form, ("x0", "eps", "score", "velocity"))
        if predictor == "none" and corrector == "none":
            raise ValueError("predictor=none needs a corrector: with corrector=none too, no step would be made")
        self.steps = check_count("steps", steps)
        self.corrector_steps = check_count("corrector_steps", corrector_steps)

    def _parts(self) -> tuple[Predictor, Corrector]:
        """The predictor and the corrector, from their names if they have one."""
        correctors = {name: partial(kind, self.snr) for name, kind in CORRECTORS.items()}
        predictor: Predictor = as_instance("predictor", self.predictor, PREDICTORS, Predictor)
        corrector: Corrector = as_instance("corrector", self.corrector, correctors, Corrector)
        return predictor, corrector

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk down the grid; see `Sampler.walk`."""
        predictor, corrector = self._parts()
        times, steps = self._steps(run)
        table = [predictor.coefficients(step) for step in steps]
        check_coefficients(table, run.sde)
        corrections = corrector.moves(run.sde, times, predictor.prediction is not None)
        if self.corrector_steps and any(correct is not None for correct in corrections):
            run.check_correctable(type(self).__name__)
        draws = self.corrector_steps + 1
        run.plan(times)
        for i, (step, correct, (a, b, c)) in enumerate(zip(steps, corrections, table, strict=True)):
            x = run.visit(x, step.t)
            if correct is not None:
                for j in range(self.corrector_steps):
                    handed = [x]
                    del x  # the corrector may let it go before the network computes
                    x = correct(handed.pop(), run, run.normal(i * draws + j))
            x = _predicted(predictor, x, run, step.t, a, b)
            if c and i + 1 < self.steps:
                x = add_(x, run.normal(i * draws + self.corrector_steps), c)
        x = run.visit(x, times[-1])
        return run.predict(x, times[-1]).x0 if self.denoise else x

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """The predictor's steps up, if it has any, without a corrector; see `Sampler.climb`."""
        predictor, corrector = self._parts()
        times, steps = self._steps(run)
        table = [factors for step in steps if (factors := predictor.climb(step)) is not None]
        if len(table) < len(steps) or any(corrector.moves(run.sde, times)):
            raise ValueError(
                "only the deterministic walk (predictor=probability_flow, corrector=none) can be inverted; got "
                f"predictor={self.predictor}, corrector={self.corrector}"
            )
        check_coefficients(table, run.sde)
        run.plan(times.flip(0))
        for step, (a, b) in zip(reversed(steps), reversed(table), strict=True):
            run.visit(x, step.s)
            x = _predicted(predictor, x, run, step.s, a, b)
        run.visit(x, times[0])
        return x

    def _steps(self, run: Walk) -> tuple[Tensor, list[Step]]:
        """The times from t_max down to t_end, [steps + 1], and the steps between them."""
        times = self.grid_on(run.sde).times(run.sde, self.steps + 1, run.t_end)
        return times, Step.walk(run.sde, times)


def _predicted(predictor: Predictor, x: Tensor, run: Walk, t: Number, a: Number, b: Number) -> Tensor:
    """The predictor's step without noise, a x + b m(x, t)."""
    if predictor.prediction is None:
        return x * a
    prediction = getattr(run.predict(x, t), predictor.prediction)
    return add_(x * a, prediction, b)
