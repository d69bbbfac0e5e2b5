"""The base class of all denoisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_floats
from sde_diffusion.denoiser.conditions import check_names, keyword_names
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde import SDE, Time, float64


class Denoiser(nn.Module, ABC):
    """A belief about x_0 given x_t: `denoiser(x_t, t, **conditions)` -> `Prediction`.

    A denoiser may wrap other denoisers (guidance, ensembles). It then defines `conditions` itself, and its
    `check_conditions` calls theirs.

    Attributes:
        sde: The path.
        shape: Shape of one sample; None if it is unknown, or any.
        sigma_data: Root mean square of the data, on the scale of x_0; None if unknown.
        passes: Largest number of network passes that a call costs, including those of wrapped denoisers; a closed form
            counts as one.
        gradients: Largest number of vector-Jacobian products of the network that a call costs, including those of
            wrapped denoisers.
        per_sample: Whether it has settings for each sample of a batch, such as a scale [B].
    """

    sde: SDE
    gradients: int = 0
    per_sample: bool = False
    sigma_data: float | None = None
    passes: int = 1
    shape: tuple[int, ...] | None = None

    @property
    def conditions(self) -> Collection[str] | None:
        """Names of the conditions it takes, None for any: by default the keywords of `forward`."""
        return keyword_names(type(self).forward, 3)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """Check conditions, once for all passes of a sampler's call.

        Args:
            conditions: By name.
            batch: Number of samples B.
            device: The device on which they are needed.
            wait: Whether to check values on a GPU too, which waits for the device.

        Returns:
            The conditions as `forward` takes them, such as `label`, int64 [B], from a single integer.

        Raises:
            TypeError: If the denoiser does not take one of them, or one is of another type.
            ValueError: If a value is out of its range or of another shape.
        """
        return check_names(conditions, self.conditions, type(self).__name__)

    def passes_at(self, t: Time) -> int:
        """Network passes that a call at t, [] or [B], costs: `passes` unless overridden."""
        return self.passes

    def gradients_at(self, t: Time) -> int:
        """Vector-Jacobian products of the network that a call at t, [] or [B], costs: `gradients` unless overridden."""
        return self.gradients

    def __call__(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """`forward`, after a check of the arguments that does not wait for the device.

        Raises:
            TypeError: If x_t is not a tensor of floats, or a condition is not known.
            ValueError: If shapes do not fit, or a condition's value is out of range.
        """
        check_floats("x_t", x_t)
        t = check_times(t, len(x_t))
        if conditions:
            conditions = self.check_conditions(conditions, len(x_t), x_t.device, wait=False)
        prediction: Prediction = super().__call__(x_t, t, **conditions)
        return prediction

    @abstractmethod
    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """Predict at (x_t, t).

        Args:
            x_t: State, [B, *].
            t: Time, [] or [B].
            **conditions: Conditions, such as `label`, int64 [B].

        Returns:
            The prediction.
        """


def check_times(t: Time, batch: int) -> Time:
    """Check that t is one time, or one for each of `batch` samples.

    Raises:
        TypeError: If it is neither a number nor a tensor.
        ValueError: If it has another shape.
    """
    shape = () if isinstance(t, float) else (t if isinstance(t, Tensor) else float64(t)).shape
    if shape not in ((), (batch,), (1,)):
        raise ValueError(f"t must be [] or [{batch}], one time for each sample; got {list(shape)}")
    return t


def check_denoiser(denoiser: object, name: str = "denoiser") -> None:
    """Check that an argument is a denoiser, or one compiled by torch.compile.

    Args:
        denoiser: The argument.
        name: Its name.

    Raises:
        TypeError: If it is not; the message says how to make a denoiser of it.
    """
    if isinstance(getattr(denoiser, "_orig_mod", denoiser), Denoiser):
        return
    what = f"the class {denoiser.__name__}" if isinstance(denoiser, type) else type(denoiser).__name__
    if isinstance(denoiser, type) and issubclass(denoiser, Denoiser):
        how = "give an instance of it"
    elif isinstance(getattr(denoiser, "denoiser", None), Denoiser):
        how = "give its .denoiser"
    elif isinstance(denoiser, nn.Module):
        how = "a network is made one by NetworkDenoiser(sde, network)"
    else:
        how = "such as NetworkDenoiser(VPSDE(), network), or GaussianDenoiser"
    raise TypeError(f"{name} must be a Denoiser; got {what}: {how}")


@contextmanager
def in_eval_mode(denoiser: nn.Module, on: bool = True) -> Iterator[None]:
    """Turn off what differs in training, such as dropout, which draws from torch's global generator.

    Args:
        denoiser: A module whose submodules are set to evaluation mode; those in training mode return to it at the end.
        on: Whether to do so at all.
    """
    training = [module for module in denoiser.modules() if module.training] if on else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
