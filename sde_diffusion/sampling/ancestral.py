"""DDPM, DDIM and all in between, on any path."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.sampling.base import Sampler, Walk, check_steps
from sde_diffusion.sde import SDE, Grid


class AncestralSampler(Sampler):
    r"""x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 q) eps + eta sigma_s sqrt(q) z,  q = 1 - e^(lambda_t - lambda_s).

    eta = 1 draws from the exact posterior q(x_s | x_t, x0): DDPM. eta = 0 is DDIM. The last step returns x0 itself,
    without noise (with `denoise`), so that `steps` network passes are spent: steps - 1 transitions and one prediction.
    Without `denoise` there are `steps` transitions, down to t_end. Weak order 1; deterministic order 1 at eta = 0.

    Args:
        steps: Number of network passes, at least 1.
        eta: Share of the posterior's noise, in [0, 1].
        grid: Spacing of the times; the path's default if not given.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1 or eta lies outside [0, 1].

    References:
        Ho et al. 2020, "Denoising Diffusion Probabilistic Models", algorithm 2; Song et al. 2021, "Denoising Diffusion
        Implicit Models", equation 12, here for any alpha and sigma.
    """

    def __init__(
        self,
        steps: int = 50,
        eta: float = 0.0,
        grid: Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(denoise, t_end)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1] (0: DDIM, 1: DDPM); got {eta}")
        self.steps = check_steps(steps)
        self.eta = float(eta)
        self.grid = grid

    def walk(self, x: Tensor, run: Walk) -> Tensor:
        """Walk down the grid; see `Sampler.walk`."""
        times = (self.grid or run.sde.default_grid()).times(run.sde, self.steps + (not self.denoise), run.t_end)
        from_x0, from_x, from_noise = self._coefficients(run.sde, times)
        for step, t in enumerate(times[:-1]):
            x0 = run.predict(x, t).x0
            x = torch.add(x0 * from_x0[step], x * from_x[step])
            if self.eta:
                x.add_(run.normal(step).mul_(from_noise[step]))
        return run.predict(x, times[-1]).x0 if self.denoise else x

    def _coefficients(self, sde: SDE, times: Tensor) -> tuple[list[float], list[float], list[float]]:
        """Coefficients of x0, x_t and z for every step, worked out in float64 at once."""
        t, s = times[:-1], times[1:]
        fresh = -torch.expm1(sde.log_snr(t) - sde.log_snr(s))
        kept = sde.sigma(s) * (1 - self.eta**2 * fresh).sqrt() / sde.sigma(t)
        return (
            (sde.alpha(s) - sde.alpha(t) * kept).tolist(),
            kept.tolist(),
            (self.eta * sde.sigma(s) * fresh.sqrt()).tolist(),
        )
