r"""Linear multistep samplers: one walk for DDPM, DDIM, DPM-Solver++, UniPC and DEIS.

Each step is a linear combination, with coefficients worked out in float64 for all steps at once,

    x_s = a x_t + b_0 m(t) + b_1 m(t_-1) + ... + c z,

where m is the prediction (x0 or eps) of this step and of earlier ones, and z is fresh noise. A step may first make
predictions at intermediate times (singlestep methods), and a corrector may add to x_t, once m(t) is known, a
combination of the predictions up to then. A method is defined by its table of coefficients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.sampling.arguments import NO_STEP_LEFT
from sde_diffusion.sampling.base import Sampler
from sde_diffusion.sampling.walk import Walk, check_coefficients
from sde_diffusion.sde import SDE, Grid, Number, Time, add, add_


@dataclass
class Stage:
    """A prediction at an intermediate time of a step.

    Attributes:
        t: The intermediate time.
        from_x: a.
        from_predictions: b, for the predictions known by then, the newest first.
    """

    t: Time
    from_x: Number
    from_predictions: list[Number]


@dataclass
class Coefficients:
    """The coefficients of a method's N steps.

    Attributes:
        from_x: a, [N].
        from_predictions: b, one list for each step: for the predictions at its stages from the last to the first, then
            at its beginning, then at the beginnings of earlier steps, the newest first.
        from_noise: c, [N]; None for a deterministic method.
        stages: The stages of each step that has some, by its number.
        corrector: For each step but the first, weights of the predictions, its own first, whose sum is added to its
            state; None without a corrector.
    """

    from_x: list[Number]
    from_predictions: list[list[Number]]
    from_noise: list[Number] | None = None
    stages: dict[int, list[Stage]] = field(default_factory=dict)
    corrector: list[list[Number]] | None = None

    @property
    def kept(self) -> int:
        """Number of earlier steps' predictions that some step uses."""
        own = [len(self.stages.get(step, ())) + 1 for step in range(len(self.from_predictions))]
        used = [len(b) - new for b, new in zip(self.from_predictions, own, strict=True)]
        return max([0, *used, *(len(b) - 1 for b in self.corrector or ())])


class MultistepSampler(Sampler):
    """Base of samplers that are defined by the `coefficients` of their steps.

    `steps` counts network passes. With `denoise` the last pass gives the prediction of x0 at t_end; without it the walk
    ends with the state there, and all passes go into the steps.

    Args:
        steps: Number of network passes, at least 1.
        grid: See `Sampler`.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1.
    """

    always_shown: tuple[str, ...] | None = ("steps",)

    prediction = "x0"
    """Which form of the prediction the steps are linear in: x0, eps, score or velocity (attributes of `Prediction`)."""

    def __init__(
        self, steps: int, grid: str | Grid | None = None, denoise: bool = True, t_end: float | None = None
    ) -> None:
        super().__init__(denoise, t_end, grid)
        self.steps = check_count("steps", steps)

    @abstractmethod
    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """The method's coefficients.

        Args:
            sde: The path.
            times: Times of the walk, [N + 1], float64.

        Returns:
            The coefficients of the N steps.
        """

    def transitions(self, passes: int) -> int:
        """Number of steps that a number of network passes allows: as many, unless overridden."""
        return passes

    def walk(self, x: Tensor, run: Walk, up: bool = False) -> Tensor:
        """Walk down the grid, or up it without a last prediction; see `Sampler.walk`.

        Raises:
            ValueError: If a coefficient is not finite.
        """
        times = self.times(run.sde, run.t_end)
        times = times.flip(0) if up else times
        table = self.coefficients(run.sde, times)
        check_coefficients((table.from_x, *table.from_predictions, table.from_noise or ()), run.sde)
        run.plan(times)
        # While the network computes, no states are kept but this one and the predictions that later steps use. The loop
        # is no function of its own, as its caller would keep the first state.
        past: deque[Tensor] = deque(maxlen=table.kept)
        for step, t in enumerate(times[:-1]):
            x = run.visit(x, t)
            predicted = getattr(run.predict(x, t), self.prediction)
            if table.corrector and step and run.replace is None:  # it would undo replacements
                first, *others = table.corrector[step - 1]
                x = _added(add(x, predicted, first), past, others)
            known = [predicted, *past]
            past.appendleft(predicted)
            for stage in table.stages.get(step, ()):
                inner = _added(x * stage.from_x, known, stage.from_predictions)
                known.insert(0, getattr(run.predict(inner, stage.t), self.prediction))
                del inner
            x = _added(x * table.from_x[step], known, table.from_predictions[step])
            del predicted, known
            if table.from_noise is not None:
                x = add_(x, run.normal(step), table.from_noise[step])
        x = run.visit(x, times[-1])
        return run.predict(x, times[-1]).x0 if self.denoise and not up else x

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """Walk up the grid; see `Sampler.climb`. A subclass with noise must refuse."""
        return self.follow_up(x, run)

    def follow_up(self, x: Tensor, run: Walk) -> Tensor:
        """The method's steps from t_end to t_max.

        Raises:
            ValueError: If there is no step to take.
        """
        if self.steps == 1 and self.denoise:
            raise ValueError(NO_STEP_LEFT)
        return self.walk(x, run, up=True)

    def times(self, sde: SDE, t_end: float) -> Tensor:
        """The walk's times, from t_max down to t_end, [N + 1], float64."""
        return self.grid_on(sde).times(sde, self.transitions(self.steps - self.denoise) + 1, t_end)


def _added(x: Tensor, predictions: Iterable[Tensor], weights: Iterable[Number]) -> Tensor:
    """The sum of x and the weighted predictions, in place where the weights are numbers."""
    for predicted, weight in zip(predictions, weights, strict=False):
        x = add_(x, predicted, weight)
    return x
