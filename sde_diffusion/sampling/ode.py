"""The probability flow, through torchdiffeq."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sampling.base import Sampler, Walk
from sde_diffusion.sampling.reverse import ReverseProcess
from sde_diffusion.sde import Grid

METHODS = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2")
"""torchdiffeq's adaptive methods."""


class ODESampler(Sampler):
    """Solve dx/dt = u(x, t), the probability flow, from t_max to t_end with an adaptive Runge-Kutta method.

    The error of a step is the worst over the samples of each sample's root mean square, so that no sample is let off
    because others are easy. The solver never looks beyond t_end.

    Args:
        method: dopri5, dopri8, bosh3, adaptive_heun or fehlberg2 of torchdiffeq.
        rtol: Relative tolerance, positive.
        atol: Absolute tolerance, positive.
        grid: Time change in which the solver steps; the path's default if not given.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If the method is unknown or a tolerance is not positive.

    References:
        Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3.
    """

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        grid: Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end)
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"rtol and atol must be positive; got rtol={rtol}, atol={atol}")
        self.method = method
        self.rtol = float(rtol)
        self.atol = float(atol)
        self.grid = grid

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Solve the flow; see `Sampler.walk`."""
        from torchdiffeq import odeint  # SciPy comes with it: half a second that `import sde_diffusion` need not cost

        process = ReverseProcess(run, x.shape, self.grid or run.sde.default_grid(), steps=1)
        span = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
        options = {"norm": worst_rms, "step_t": span[1:]}
        x = odeint(process.velocity, x, span, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        return run.predict(x, run.t_end).x0 if self.denoise else x


def worst_rms(error: Tensor) -> Tensor:
    """Largest over the batch of each sample's root mean square; error: [B, *]."""
    return error.flatten(1).square().mean(1).max().sqrt()
