r"""Denoisers made of a raw network F and four scalars.

    x0 = c_skip(t) x_t + c_out(t) F(c_in(t) x_t, c_noise(t)),      c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2),

so that the network's inputs have unit variance on every path (Karras et al. 2022, section 5), unless another
`InputScale` is chosen. What F predicts is determined by (c_skip, c_out), a `Parameterization`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_number, check_bool
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.cuda_graphs import CUDAGraphs
from sde_diffusion.denoiser.input_scale import INPUT_SCALES, InputScale
from sde_diffusion.denoiser.noise_conditioning import NOISE_CONDITIONINGS
from sde_diffusion.denoiser.parameterization import PARAMETERIZATIONS, Parameterization
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.denoiser.raw_network import check_output, conditions_of, takes_time
from sde_diffusion.sde import SDE, Time, check_sde, expand, float64, on_device


class NetworkDenoiser(Denoiser):
    """A denoiser made of a raw network F: x0 = c_skip x_t + c_out F(c_in x_t, c_noise).

    The network is any module with `forward(x, t)`, or `forward(x, t, label, ...)` for a conditional one, that returns a
    tensor of x's shape. Its inputs are x [B, *] and t = c_noise [B], in the type of its own parameters (that of the
    state if it has none). Further arguments of its `forward` are the conditions. A network may also have

    - `casts_inputs = True`: it takes x in the state's type, and c_noise in float32 or wider, [] if all samples have the
      same time, and casts both itself (the library's networks do this, and embed a common time only once);
    - `takes_noisy_data = True`: it gets a further argument `noisy_data`, (x_t / alpha, sigma / alpha), the data with
      their noise on their own scale;
    - `condition_names`, in place of the arguments of `forward`, and `check_conditions`, as in `Denoiser`;
    - `training_condition_names`, further ones that are not listed in `conditions`, as only training sets them;
    - modules with `keeps_buffer_types = True`, whose buffers `compute_dtype` leaves as they are.

    Args:
        sde: The path.
        network: F(x, t, **conditions).
        prediction: What F predicts: "eps", "x0", "velocity", "v", "score" or "edm", or a `Parameterization`.
        sigma_data: Standard deviation of the data, scaled as the model takes them; positive.
        noise_conditioning: The network's second input c_noise: "log_sigma" (log(sigma/alpha)/4), "step"
            (999 t/t_max), "time" (t), or a function of (sde, t) that returns float64 of the shape of t, [] or [B].
        input_scale: The factor c_in of its first input: "unit" (as above), "none" (1) or an `InputScale`.
        compute_dtype: The type in which the network computes, such as "bfloat16", from weights that stay in their own;
            None: that of the weights, or autocast's. Unlike autocast, all of the network's activations have it.
        channels_last: Keep the network's weights and its inputs [B, C, H, W] with the channels last in memory, which
            convolutions in bfloat16 are faster with.

    Attributes:
        compiled: The compiled network; None: it is not, or only its blocks are. See `compile`.
        cuda_graphs: `CUDAGraphs` that record the network's passes of sampling on a GPU; None: they are not recorded.

    Raises:
        TypeError: If sde is not a path, or network is not a module with `forward(x, t)`.
        ValueError: If a name is unknown, the prediction is not defined on the path, sigma_data is not positive or not
            finite, or compute_dtype is not a type of floating-point numbers.

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
        input_scale: str | InputScale = "unit",
        compute_dtype: str | torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        check_sde(sde)
        if isinstance(network, Denoiser):
            raise TypeError(f"network must be a raw network, and {type(network).__name__} is a denoiser already")
        sigma_data = as_number("sigma_data (the data's standard deviation)", sigma_data)
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data (the data's standard deviation) must be positive, finite; got {sigma_data}")
        self.sde = sde
        self.network = network
        shape = getattr(network, "shape", None)
        self.shape = tuple(shape) if isinstance(shape, list | tuple) else None
        self.sigma_data = sigma_data
        self.parameterization: Parameterization = as_instance(
            "prediction", prediction, PARAMETERIZATIONS, Parameterization
        )
        self.parameterization.check(sde)
        self.noise_conditioning: Callable[[SDE, Tensor], Tensor] = as_instance(
            "noise_conditioning", noise_conditioning, NOISE_CONDITIONINGS, Callable, "a function of (sde, t)"
        )
        self.input_scale: InputScale = as_instance("input_scale", input_scale, INPUT_SCALES, InputScale)
        self.compute_dtype = _dtype(compute_dtype)
        self.channels_last = check_bool("channels_last", channels_last)
        if channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compiled: Callable[..., Any] | None = None
        self.cuda_graphs: CUDAGraphs | None = None
        self._conditions = conditions_of(network)
        self._training_conditions = tuple(getattr(network, "training_condition_names", ()))
        self._takes_time = takes_time(network)
        self._casts_inputs = bool(getattr(network, "casts_inputs", False))
        self._takes_noisy_data = bool(getattr(network, "takes_noisy_data", False))

    @property
    def conditions(self) -> Collection[str] | None:
        """Names of the network's conditions; None if it takes any."""
        return self._conditions

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; calls the network's `check_conditions` if it has one."""
        of_training = {name: conditions[name] for name in self._training_conditions if name in conditions}
        others = {name: value for name, value in conditions.items() if name not in of_training}
        known = super().check_conditions(others, batch, device, wait) | of_training
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
        c_in = self.input_scale(self.sde, t, self.sigma_data)
        x, c_noise = expand(c_in, x_t) * x_t, self.noise_conditioning(self.sde, t)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        own = None if self._casts_inputs else self._network_dtype()
        # c_noise stays in float32 if possible: half precision has no digits left for 999 t.
        c_noise = on_device(c_noise, x_t.device, own or torch.promote_types(x_t.dtype, torch.float32))
        if not self._casts_inputs:
            x, c_noise = x.to(own or x_t.dtype), c_noise.expand(len(x)).contiguous()
        if self._takes_noisy_data:
            alpha, sigma = self.sde.alpha(t).clamp(min=1e-12), self.sde.sigma(t)
            conditions = {**conditions, "noisy_data": (x_t / expand(alpha, x_t), sigma / alpha)}
        network = self._output if self.compiled is None else self.compiled
        if self.cuda_graphs is not None and not self.training:
            network = partial(self.cuda_graphs, network)
        output = network(x, c_noise, conditions)
        check_output(output, x_t)
        return Prediction(self.sde, x_t, t, output.to(x_t.dtype), skip, scale)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place by torch.compile: the network in one graph, or each of its `repeated_blocks` if it has some.

        Blocks of one kind are compiled once. Copies, also those that are pickled, are not compiled. Arguments are those
        of torch.compile.
        """
        blocks: Collection[nn.Module] = getattr(self.network, "repeated_blocks", ())
        for block in blocks:
            block.compile(*args, **kwargs)
        self.compiled = None if blocks else torch.compile(self._output, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "compiled": None}

    def _output(self, x: Tensor, c_noise: Tensor, conditions: Mapping[str, Any]) -> Any:
        """The network's output, in compute_dtype: with its weights and inputs in it, through which gradients pass."""
        dtype = self.compute_dtype
        if dtype is None:
            return self.network(x, c_noise, **conditions)
        named = chain(self.network.named_parameters(), _cast_buffers(self.network))
        weights = {name: value.to(dtype) for name, value in named if value.is_floating_point()}
        if not self._casts_inputs:
            x, c_noise = x.to(dtype), c_noise.to(dtype)
        return torch.func.functional_call(self.network, weights, (x, c_noise), dict(conditions))

    def extra_repr(self) -> str:
        """The constructor's arguments, without the network."""
        return (
            f"sde={self.sde}, prediction={_name(self.parameterization, PARAMETERIZATIONS)}, "
            f"sigma_data={self.sigma_data:g}, "
            f"noise_conditioning={_name(self.noise_conditioning, NOISE_CONDITIONINGS)}, "
            f"input_scale={_name(self.input_scale, INPUT_SCALES)}, compute_dtype={self.compute_dtype}, "
            f"channels_last={self.channels_last}"
        )

    def _network_dtype(self) -> torch.dtype | None:
        weights = chain(self.network.parameters(), self.network.buffers())
        return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def _cast_buffers(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers by name, without those of modules that keep their types, such as random frequencies."""
    for prefix, part in network.named_modules():
        if not getattr(part, "keeps_buffer_types", False):
            yield from part.named_buffers(prefix, recurse=False)


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    found: Any = getattr(torch, name, None) if isinstance(name, str) else name
    floating = isinstance(found, torch.dtype) and found.is_floating_point
    if name is not None and not floating:
        raise ValueError(f"compute_dtype must be bfloat16, float16, float32, float64 or None; got {name!r}")
    return found if floating else None


def _name(value: object, table: Mapping[str, type]) -> object:
    """The name of an object in a table, or the object itself."""
    return next((name for name, kind in table.items() if type(value) is kind), value)
