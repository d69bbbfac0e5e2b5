"""DEIS: Adams-Bashforth steps in the noise-to-signal ratio, on the noise prediction."""

from __future__ import annotations

from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.sampling.exponential import lagrange_weights, looking_back
from sde_diffusion.sampling.multistep import Coefficients, MultistepSampler
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import SDE, Grid, Number, numbers


class DEISSampler(MultistepSampler):
    r"""x_s = (alpha_s / alpha_t) x_t + alpha_s int_{r_t}^{r_s} P(r) dr,   r = sigma / alpha.

    In y = x / alpha the probability flow is dy/dr = eps; P is the polynomial of degree order - 1 through the last
    `order` noise predictions, for any spacing of the grid (with equal spacing in r the coefficients are those of iPNDM,
    55, -59, 37, -9 over 24). Order 1 is DDIM. One network pass a step.

    The first steps have fewer predictions to use and are of lower order. The error of the first, of second order,
    remains, so that the global order is min(order, 2). In walks from the prior this error is scaled by alpha at the end
    of the first step. On the default grids of VP, sub-VP, VE and EDM, and on grids uniform in log-SNR on all paths,
    that is tiny, and `order` is observed down to errors of 1e-8. On the default grids of the cosine and the rectified
    path orders 3 and 4 become order 2 at errors below about 1e-4.

    The defaults were the best in few passes (benchmarks/README.md).

    Args:
        steps: Number of network passes, at least 1.
        order: Number of predictions to use, 1 to 4.
        grid: See `Sampler`.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1 or order is not 1, 2, 3 or 4.

    References:
        Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", equation 15 (rho-AB);
        Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models", equation 12 (iPNDM is its pseudo-free form).
    """

    always_shown = ("steps", "order")
    prediction = "eps"

    def __init__(
        self,
        steps: int = 10,
        order: int = 4,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(steps, grid, denoise, t_end)
        self.order = check_count("order of DEIS", order, most=4)

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """Adams-Bashforth weights on the grid's own spacing in r; see `MultistepSampler.coefficients`."""
        r = (-0.5 * sde.log_snr(times)).exp()
        alpha = sde.alpha(times)
        predictions: list[list[Number]] = []
        for steps, nodes in looking_back(r, self.order):
            weights = lagrange_weights(nodes, (r[1:] - r[:-1])[steps], rate=0.0)
            predictions += numbers(alpha[1:][steps].unsqueeze(1) * weights)
        return Coefficients(from_x=numbers(alpha[1:] / alpha[:-1]), from_predictions=predictions)

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """The mirrored steps; see `Sampler.climb` and `_Upwards`."""
        return _Upwards(self.steps, self.order, self.grid, self.denoise).follow_up(x, run)


class _Upwards(DEISSampler):
    """x_s = (sigma_s / sigma_t) x_t + sigma_s int P(q) dq from q_t to q_s,  q = alpha / sigma, P through the x0.

    In z = x / sigma the probability flow is dz/dq = x0, the counterpart of dy/dr = eps. Walking up, r grows most in the
    last steps, and a polynomial in r would extrapolate far beyond its nodes; q shrinks to 0, as r does walking down.
    """

    prediction = "x0"

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """Adams-Bashforth weights on the grid's own spacing in q."""
        q, sigma = (0.5 * sde.log_snr(times)).exp(), sde.sigma(times)
        predictions: list[list[Number]] = []
        for steps, nodes in looking_back(q, self.order):
            weights = lagrange_weights(nodes, (q[1:] - q[:-1])[steps], rate=0.0)
            predictions += numbers(sigma[1:][steps].unsqueeze(1) * weights)
        return Coefficients(from_x=numbers(sigma[1:] / sigma[:-1]), from_predictions=predictions)
