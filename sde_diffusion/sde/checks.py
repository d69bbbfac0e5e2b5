"""What a path must be."""

from __future__ import annotations

import torch
from torch import nn

from sde_diffusion.sde.base import SDE


def check_sde(sde: object) -> None:
    """Check that an argument is a path whose scales are finite between its ends.

    Raises:
        TypeError: If it is not a path, or a class instead of an instance.
        ValueError: If log alpha or log sigma is NaN or infinite within (t_min, t_max), or log-SNR does not decrease.
    """
    if not isinstance(sde, SDE):
        if isinstance(sde, type) and issubclass(sde, SDE):
            raise TypeError(f"sde must be a path, not its class: give {sde.__name__}(), with parentheses")
        raise TypeError(f"sde must be a path, such as VPSDE(); got {sde!r}")
    if isinstance(sde, nn.Module):  # its parameters may be on another device, or have no values yet
        return
    t = torch.linspace(sde.t_min, sde.t_max, 65, dtype=torch.float64, device="cpu")[1:-1]
    with torch.no_grad():
        scales = {"log_alpha": sde.log_alpha(t), "log_sigma": sde.log_sigma(t)}
    for name, values in scales.items():
        if not bool((finite := values.isfinite()).all()):
            place = int((~finite).nonzero()[0])
            raise ValueError(
                f"{name} of {sde} is {values[place]:g} at t={t[place]:.4g}: it must be finite between t_min and t_max"
            )
    rising = (scales["log_alpha"] - scales["log_sigma"]).diff() >= 0
    if bool(rising.any()):
        place = int(rising.nonzero()[0])
        raise ValueError(
            f"the log-SNR of {sde} does not decrease from t={t[place]:.4g} to t={t[place + 1]:.4g}: alpha / sigma must "
            "fall from t_min to t_max"
        )
