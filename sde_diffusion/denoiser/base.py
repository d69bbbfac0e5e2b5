r"""A belief about the data: what every spelling of a prediction has in common.

Given x_t = alpha x_0 + sigma eps, a belief x0 = E[x_0 | x_t] fixes all the others:

    eps      = (x_t - alpha x0) / sigma        noise
    score    = -eps / sigma                    grad log q_t(x_t)          (Tweedie's formula)
    velocity = alpha' x0 + sigma' eps          dx/dt of the probability flow

(Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO", appendix; Lipman et al. 2023, equation 15.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_floats
from sde_diffusion.denoiser.conditions import check_names, keyword_names
from sde_diffusion.sde import SDE, Time, expand, float64


class Prediction:
    """What a denoiser believes at (x_t, t), in the form x0 = skip x_t + scale output.

    Every spelling is one multiply-add of x_t and output, with coefficients worked out in float64: nothing is lost by
    going through x0 where sigma is small, nor through eps where alpha is small.

    Args:
        sde: The path.
        x_t: State, [B, *].
        t: Time, [] or [B].
        output: What was computed: a network's raw output or a closed form's ingredient, [B, *].
        skip: Coefficient of x_t, [] or [B], float64; 0 if not given.
        scale: Coefficient of output, likewise; 1 if not given.

    Example:
        >>> import torch
        >>> from sde_diffusion import VPSDE
        >>> x = torch.ones(2, 3)
        >>> prediction = Prediction(VPSDE(), x, 0.5, output=torch.zeros(2, 3))  # the belief x0 = 0
        >>> bool((prediction.score == -x / VPSDE().sigma(0.5) ** 2).all())
        True
    """

    def __init__(
        self,
        sde: SDE,
        x_t: Tensor,
        t: Time,
        output: Tensor,
        skip: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        self.sde = sde
        self.x_t = x_t
        self.t = t
        self.output = output
        self.skip = float64(skip)
        self.scale = float64(scale)

    @property
    def x0(self) -> Tensor:
        """Expected data E[x_0 | x_t], [B, *]."""
        return self._combine(self.skip, self.scale)

    @property
    def eps(self) -> Tensor:
        """Expected noise (x_t - alpha x0) / sigma, [B, *]."""
        return self._combine(*self._eps_coefficients())

    @property
    def score(self) -> Tensor:
        """Score grad log q_t(x_t) = -eps / sigma, [B, *]."""
        skip, scale = self._eps_coefficients()
        sigma = self.sde.sigma(self.t)
        return self._combine(-skip / sigma, -scale / sigma)

    @property
    def velocity(self) -> Tensor:
        """Velocity of the probability flow alpha' x0 + sigma' eps, [B, *]."""
        skip, scale = self._eps_coefficients()
        alpha_rate, sigma_rate = self.sde.alpha_rate(self.t), self.sde.sigma_rate(self.t)
        return self._combine(alpha_rate * self.skip + sigma_rate * skip, alpha_rate * self.scale + sigma_rate * scale)

    def _eps_coefficients(self) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.sde.alpha(self.t), self.sde.sigma(self.t)
        return (1 - alpha * self.skip) / sigma, -alpha * self.scale / sigma

    def _combine(self, skip: Tensor, scale: Tensor) -> Tensor:
        # One time for all samples: numbers, and no needless pass, unless a learned path is to have gradients.
        one = skip.ndim == 0 and skip.device.type == "cpu" and not torch.compiler.is_compiling()
        if one and not (skip.requires_grad or scale.requires_grad):
            if not skip.item():
                return self.output if scale.item() == 1 else self.output * scale.item()
            return torch.add(self.x_t * skip.item(), self.output, alpha=scale.item())
        return expand(skip, self.x_t) * self.x_t + expand(scale, self.x_t) * self.output


class Denoiser(nn.Module, ABC):
    """A belief about x_0 given x_t: `denoiser(x_t, t, **conditions)` -> `Prediction`.

    A denoiser that wraps denoisers (guidance, ensembles) is a denoiser again: it answers for its own `conditions`, and
    in `check_conditions` asks those that it wraps.

    Attributes:
        sde: The path on which it denoises.
        sigma_data: Root mean square of the data as it sees them, or None if it does not know.
    """

    sde: SDE
    sigma_data: float | None = None

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
