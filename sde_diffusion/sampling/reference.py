"""Data with noise, from which a walk may begin: SDEdit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_batch
from sde_diffusion.checks.reprs import shown
from sde_diffusion.sampling.noise import Noise, as_seeds
from sde_diffusion.sde import SDE, check_sde, float64, value_of


def noised(sde: SDE, x0: Tensor, t: float, seeds: Sequence[int] | None = None) -> Tensor:
    """Draw x_t = alpha_t x0 + sigma_t z: the state at which a sampler may begin, to make variations of x0.

        t = start_time(sde, 0.5, denoiser.sigma_data)
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


def start_time(sde: SDE, strength: float, sigma_data: float | None = None) -> float:
    """The time at which noise has a share `strength` of the variance of x_t, from which an edit of data begins.

        strength = sigma_t^2 / (alpha_t^2 sigma_data^2 + sigma_t^2),   sigma_t / alpha_t = sigma_data sqrt(strength /
        (1 - strength))

    It is a noise level: it does not depend on the path, the grid or the number of steps. For Gaussian data of this
    standard deviation, the reverse SDE leaves 1 - strength of the difference of x0 from the data's mean, and the
    probability flow sqrt(1 - strength); see `noised`.

    Args:
        sde: The path.
        strength: In (0, 1]. Above the noise level at the path's t_max, and with 1, the walk begins at t_max.
        sigma_data: Standard deviation of the data, positive, such as that of the denoiser; None: 1.

    Returns:
        t, in (0, t_max].

    Raises:
        TypeError: If sde is not a path.
        ValueError: If strength or sigma_data is out of its range.
    """
    check_sde(sde)
    strength = as_number("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1] (1: nothing of the data is left); got {shown(strength)}")
    sigma_data = as_positive("sigma_data", 1.0 if sigma_data is None else sigma_data)
    if sigma_data == math.inf:
        raise ValueError("sigma_data must be finite; got inf")
    if strength == 1:
        return sde.t_max
    log_snr = math.log1p(-strength) - math.log(strength) - 2 * math.log(sigma_data)
    with sde.on_cpu():
        return min(value_of(sde.time(log_snr)), sde.t_max)
