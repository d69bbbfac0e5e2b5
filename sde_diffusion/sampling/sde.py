"""The reverse SDE, through torchsde."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sampling.base import Sampler, Walk, check_steps
from sde_diffusion.sampling.reverse import ReverseProcess
from sde_diffusion.sde import Grid

METHODS = ("euler",)
"""torchsde's methods on offer."""


class SDESampler(Sampler):
    """Solve dx = [u - eta^2 g^2 score / 2] dt + eta g dw_bar with a method of torchsde, in uniform steps of a grid.

    With `denoise`, `steps` network passes are spent: steps - 1 Euler-Maruyama steps down to t_end and one prediction
    there. Without it there are `steps` steps. Strong and weak order 1 (the noise does not depend on the state).

    Args:
        method: euler (Euler-Maruyama).
        steps: Number of network passes, at least 2 with `denoise`.
        eta: Share of noise, at least 0; 1 is the reverse SDE, 0 the probability flow by Euler's method.
        grid: Spacing of the times; the path's default if not given.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If the method is unknown, steps < 1 (2 with `denoise`), or eta < 0.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", equation 6 and appendix D.
    """

    def __init__(
        self,
        method: str = "euler",
        steps: int = 1000,
        eta: float = 1.0,
        grid: Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end)
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        if not eta >= 0:
            raise ValueError(f"eta must not be negative (1: reverse SDE, 0: probability flow); got {eta}")
        self.method = method
        self.steps = check_steps(steps)
        if denoise and self.steps < 2:
            raise ValueError("with denoise=True one step goes to the last prediction: steps must be at least 2")
        self.eta = float(eta)
        self.grid = grid

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the reverse SDE; see `Sampler.walk`."""
        import torchsde

        from sde_diffusion.sampling.brownian import StepBrownian

        steps = self.steps - self.denoise
        process = ReverseProcess(run, x.shape, self.grid or run.sde.default_grid(), steps, self.eta)
        span = torch.tensor([0.0, float(steps)], dtype=torch.float64)
        brownian = StepBrownian(run.normal, x.flatten(1))
        y = torchsde.sdeint(process, x.flatten(1), span, bm=brownian, method=self.method, dt=1.0)[-1]
        x = y.view(x.shape)
        return run.predict(x, run.t_end).x0 if self.denoise else x
