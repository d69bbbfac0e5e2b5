"""Data with noise, from which a walk may begin: SDEdit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sde_diffusion.checks import as_number, check_batch
from sde_diffusion.sampling.noise import Noise, as_seeds
from sde_diffusion.sde import SDE, check_sde, float64


def noised(sde: SDE, x0: Tensor, t: float, seeds: Sequence[int] | None = None) -> Tensor:
    """Draw x_t = alpha_t x0 + sigma_t z: the state at which a sampler may begin, to make variations of x0.

        x = sampler(denoiser, x0.shape, seeds, latent=noised(sde, x0, t, seeds), t_start=t).x

    The later t, the less of x0 is left. For data N(m, s^2) and r = sigma_t / alpha_t, v = s^2 + r^2, the probability
    flow leads to m + (x0 - m) s / sqrt(v) with standard deviation r s / sqrt(v), and the reverse SDE to m + (x0 - m)
    s^2 / v with variance s^4 r^2 / v^2 + s^2 r^2 / v. Corrector steps lead further away from x0.

    Args:
        sde: The path.
        x0: Data, [B, *dims].
        t: Time, in [0, t_max].
        seeds: One integer for each sample; range(B) by default. The noise of sample i depends on seeds[i] alone, and is
            not used by samplers with the same seeds.

    Returns:
        x_t, [B, *dims], of x0's type.

    Raises:
        TypeError: If sde is not a path, or x0 not a tensor of floats.
        ValueError: If x0 is not a finite batch, t lies outside the path, or there is not one seed for each sample.

    References:
        Meng et al. 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations".
    """
    check_sde(sde)
    check_batch("x0", x0)
    t = as_number("t", t)
    if not 0 <= t <= sde.t_max:
        raise ValueError(f"t must lie in [0, t_max = {sde.t_max:g}] of {sde}; got {t}")
    seeds = as_seeds(range(len(x0)) if seeds is None else seeds)
    if len(seeds) != len(x0):
        raise ValueError(f"one seed for each sample is needed: x0 has {len(x0)}, got {len(seeds)}")
    z = Noise(seeds, x0.shape[1:], x0.device).stream("noised").normal(0)
    with sde.on_cpu():
        return sde.perturb(x0, float64(t), z.to(x0.dtype))
