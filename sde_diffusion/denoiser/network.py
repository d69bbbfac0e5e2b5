r"""Denoisers made of a raw network F and four scalars.

    x0 = c_skip(t) x_t + c_out(t) F(c_in(t) x_t, c_noise(t)),      c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2),

so that the network sees unit-variance inputs on every path (Karras et al. 2022, section 5). What F learns is a choice
of (c_skip, c_out): a `Parameterization`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_number
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.noise_conditioning import NOISE_CONDITIONINGS
from sde_diffusion.denoiser.parameterization import PARAMETERIZATIONS, Parameterization
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.denoiser.raw_network import check_output, conditions_of, takes_time
from sde_diffusion.sde import SDE, Time, check_sde, expand, float64, on_device


class NetworkDenoiser(Denoiser):
    """A raw network made a denoiser: x0 = c_skip x_t + c_out F(c_in x_t, c_noise).

    Any module with `forward(x, t)`, or `forward(x, t, label, ...)` for a conditional one, will do. It is given x [B, *]
    and t [B] in the type of its own parameters (that of the state if it has none), and returns a tensor of x's shape;
    what it is told as t, `noise_conditioning` says. The further keywords of its `forward` are the conditions. A network
    may also have

    - `casts_inputs = True`: it takes x in the state's type, and t as [] where that is one for all samples and in
      float32 or wider, and casts both itself (as the library's networks do, which embed a common time once);
    - `condition_names`, in place of the keywords of `forward`, and `check_conditions`, as in `Denoiser`.

    Args:
        sde: The path.
        network: F(x, t, **conditions).
        prediction: What F predicts: eps, x0, velocity, v, score or edm, or a `Parameterization`.
        sigma_data: Standard deviation of the data as the model sees it, positive.
        noise_conditioning: What F is told of the time: log_sigma (log(sigma/alpha)/4), step (999 t/t_max), time (t), or
            a function of (sde, t), float64 [] or [B].

    Raises:
        TypeError: If sde is not a path, or network not a module with `forward(x, t)`.
        ValueError: If a name is unknown, the prediction is not defined on the path, or sigma_data is not positive or
            not finite.

    References:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 7.
    """

    sigma_data: float

    def __init__(
        self,
        sde: SDE,
        network: nn.Module,
        prediction: str | Parameterization = "edm",
        sigma_data: float = 0.5,
        noise_conditioning: str | Callable[[SDE, Tensor], Tensor] = "log_sigma",
    ) -> None:
        super().__init__()
        check_sde(sde)
        if isinstance(network, Denoiser):
            raise TypeError(f"network must be a raw one, and {type(network).__name__} is a denoiser already")
        sigma_data = as_number("sigma_data (the data's standard deviation)", sigma_data)
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data (the data's standard deviation) must be positive, finite; got {sigma_data}")
        self.sde = sde
        self.network = network
        self.sigma_data = sigma_data
        self.parameterization: Parameterization = _named(
            *("prediction", prediction, PARAMETERIZATIONS, "a Parameterization"),
            lambda own: isinstance(own, Parameterization),
        )
        self.parameterization.check(sde)
        self.noise_conditioning: Callable[[SDE, Tensor], Tensor] = _named(
            *("noise_conditioning", noise_conditioning, NOISE_CONDITIONINGS, "a function of (sde, t)"),
            lambda own: callable(own) and not isinstance(own, type),
        )
        self._conditions = conditions_of(network)
        self._takes_time = takes_time(network)
        self._casts_inputs = bool(getattr(network, "casts_inputs", False))

    @property
    def conditions(self) -> Collection[str] | None:
        """Those of the network."""
        return self._conditions

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; asks the network, if it has a say."""
        known = super().check_conditions(conditions, batch, device, wait)
        check = getattr(self.network, "check_conditions", None)
        return known if check is None else check(known, batch, device, wait)

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t); see `Denoiser.forward`.

        Raises:
            TypeError: If the network does not take (x, t), or returns something other than a tensor.
            ValueError: If it returns one of another shape.
        """
        if not self._takes_time:
            raise TypeError(f"the network must have forward(x, t); that of {type(self.network).__name__} takes no time")
        t = float64(t)
        skip, scale = self.parameterization.coefficients(self.sde, t, self.sigma_data)
        c_in = ((self.sde.alpha(t) * self.sigma_data).square() + self.sde.sigma(t).square()).rsqrt()
        x, c_noise = expand(c_in, x_t) * x_t, self.noise_conditioning(self.sde, t)
        own = None if self._casts_inputs else self._network_dtype()
        # c_noise stays in float32 unless all of the network is in half precision, which has no digits left for 999 t.
        c_noise = on_device(c_noise, x_t.device, own or torch.promote_types(x_t.dtype, torch.float32))
        if not self._casts_inputs:
            x, c_noise = x.to(own or x_t.dtype), c_noise.expand(len(x)).contiguous()
        output = self.network(x, c_noise, **conditions)
        check_output(output, x_t)
        return Prediction(self.sde, x_t, t, output.to(x_t.dtype), skip, scale)

    def extra_repr(self) -> str:
        """What it was made of, beside the network."""
        return (
            f"sde={self.sde}, prediction={_name(self.parameterization, PARAMETERIZATIONS)}, "
            f"sigma_data={self.sigma_data:g}, noise_conditioning={_name(self.noise_conditioning, NOISE_CONDITIONINGS)}"
        )

    def _network_dtype(self) -> torch.dtype | None:
        weights = chain(self.network.parameters(), self.network.buffers())
        return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def _name(value: object, table: Mapping[str, type]) -> object:
    """The name of an object that a table has, or the object itself."""
    return next((name for name, kind in table.items() if type(value) is kind), value)


def _named(what: str, value: Any, table: Mapping[str, type], own: str, fits: Callable[[Any], bool]) -> Any:
    """The object that a name stands for, or the object that was given in place of a name, if it fits."""
    if isinstance(value, str) and value in table:
        return table[value]()
    if fits(value):
        return value
    raise ValueError(f"{what} must be one of {', '.join(table)}; got {value!r} (or give {own} of your own)")
