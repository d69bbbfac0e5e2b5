"""What is asked for beliefs: denoisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_floats
from sde_diffusion.denoiser.conditions import check_names, keyword_names
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde import SDE, Time, float64


class Denoiser(nn.Module, ABC):
    """A belief about x_0 given x_t: `denoiser(x_t, t, **conditions)` -> `Prediction`.

    A denoiser that wraps denoisers (guidance, ensembles) is a denoiser again: it answers for its own `conditions`, and
    in `check_conditions` asks those that it wraps.

    Attributes:
        sde: The path on which it denoises.
        sigma_data: Root mean square of the data as it sees them, or None if it does not know.
        passes: Network passes that one call costs at most; a closed form counts as one. A denoiser that wraps denoisers
            says what they cost together.
    """

    sde: SDE
    sigma_data: float | None = None
    passes: int = 1

    @property
    def conditions(self) -> Collection[str] | None:
        """Names of the conditions it takes, None for any: unless a class says otherwise, the keywords of `forward`."""
        return keyword_names(type(self).forward, 3)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See that conditions are what the denoiser takes, once for all the passes of a call.

        Args:
            conditions: By name.
            batch: Number of samples B.
            device: Where they are wanted.
            wait: Whether values that lie on a GPU are looked at, for which the device must be waited for.

        Returns:
            The conditions as `forward` takes them, such as `label` given as one integer made int64 [B].

        Raises:
            TypeError: If the denoiser does not take one of them, or one is of another type.
            ValueError: If a value is out of its range or of another shape.
        """
        return check_names(conditions, self.conditions, type(self).__name__)

    def passes_at(self, t: Time) -> int:
        """Network passes that a call at t, [] or [B], costs: `passes`, unless a class knows where fewer will do."""
        return self.passes

    def __call__(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """`forward`, after a look at its arguments that does not wait for the device.

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
            **conditions: What the belief is conditioned on, such as `label`, int64 [B].

        Returns:
            The prediction.
        """


def check_times(t: Time, batch: int) -> Time:
    """See that t is one time, or one for each of `batch` samples.

    Raises:
        TypeError: If it is neither a number nor a tensor.
        ValueError: If it has another shape.
    """
    shape = () if isinstance(t, float) else (t if isinstance(t, Tensor) else float64(t)).shape
    if shape not in ((), (batch,), (1,)):
        raise ValueError(f"t must be [] or [{batch}], one time for each sample; got {list(shape)}")
    return t


def check_denoiser(denoiser: object) -> None:
    """See that an argument is a denoiser (or one that torch.compile wraps).

    Raises:
        TypeError: If it is not: what it is, and how to make one of it.
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
    raise TypeError(f"denoiser must be a Denoiser; got {what}: {how}")
