r"""Linear multistep samplers: one walk for DDPM, DDIM, DPM-Solver++, UniPC and DEIS.

Each step is a linear combination, with coefficients worked out in float64 for all steps at once,

    x_s = a x_t + b_0 m(t) + b_1 m(t_-1) + ... + c z,

where m is a belief (x0, or eps) kept from this step and the ones before, and z fresh noise. A corrector first replaces
x_t, once m(t) is known, by another such combination. A method is its table of coefficients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.sampling.base import Sampler, Walk, check_steps
from sde_diffusion.sde import SDE, Grid


@dataclass
class Coefficients:
    """What a linear multistep method does in each of N steps.

    Attributes:
        from_x: a, [N].
        from_beliefs: b, one list for each step, the newest belief first.
        from_noise: c, [N]; None for a deterministic method.
        corrector: For each step but the first, (a, b) of the state before that step's predecessor and of the beliefs,
            this step's own first; None without a corrector.
    """

    from_x: list[float]
    from_beliefs: list[list[float]]
    from_noise: list[float] | None = None
    corrector: list[tuple[float, list[float]]] | None = None


class MultistepSampler(Sampler):
    """A linear multistep method: `coefficients` of each step, from the times of the walk.

    With `denoise`, `steps` network passes are spent: steps - 1 steps down to t_end and the belief x0 there. Without it
    there are `steps` steps.

    Args:
        steps: Number of network passes, at least 1.
        grid: Spacing of the times; the path's default if not given.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1.
    """

    belief = "x0"
    """Which spelling of the prediction the method combines: x0 or eps."""

    def __init__(self, steps: int, grid: Grid | None = None, denoise: bool = True, t_end: float | None = None) -> None:
        super().__init__(denoise, t_end)
        self.steps = check_steps(steps)
        self.grid = grid

    @abstractmethod
    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """The method's coefficients.

        Args:
            sde: The path.
            times: Times of the walk, [N + 1], float64, decreasing.

        Returns:
            The coefficients of the N steps.
        """

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk down the grid; see `Sampler.walk`."""
        grid = self.grid or run.sde.default_grid()
        times = grid.times(run.sde, self.steps + (not self.denoise), run.t_end)
        table = self.coefficients(run.sde, times)
        beliefs: deque[Tensor] = deque(maxlen=max(map(len, table.from_beliefs), default=1))
        before = x
        for step, t in enumerate(times[:-1]):
            belief = getattr(run.predict(x, t), self.belief)
            if table.corrector is not None and step:
                a, b = table.corrector[step - 1]
                x = _combine(before, a, [belief, *beliefs], b)
            beliefs.appendleft(belief)
            before = x
            x = _combine(x, table.from_x[step], beliefs, table.from_beliefs[step])
            if table.from_noise is not None:
                x.add_(run.normal(step), alpha=table.from_noise[step])
        return run.predict(x, times[-1]).x0 if self.denoise else x


def _combine(x: Tensor, a: float, beliefs: Sequence[Tensor], b: list[float]) -> Tensor:
    out = x * a
    for belief, weight in zip(beliefs, b, strict=False):
        out.add_(belief, alpha=weight)
    return out
