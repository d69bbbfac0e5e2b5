"""Models that are trained given a measurement of what they draw, such as a smaller picture of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_number, check_kind
from sde_diffusion.conditions import Condition, Measurement, Picture
from sde_diffusion.guidance import Operator
from sde_diffusion.modality.levels import from_levels, to_levels

PICTURE, NOISE = "measurement", "measurement_noise"
"""Names of the two conditions."""

_MOST = 2.0  # maximum standard deviation of the noise: the width of the data's range


class Measured(nn.Module):
    """What a model is trained with to draw x_0 given y = A(x_0) + s n: y and s, drawn anew in each training step.

    s is uniform on [0, noise], and n standard normal, for each sample. The model has two conditions: `measurement`, a
    `Picture`, and `measurement_noise`, s, left out if noise is 0. With a varying s, the model also works for
    measurements that are not exactly A(x_0), such as the samples of another model: noise hides the difference
    (conditioning augmentation). It then estimates E[x_0 | x_t, y, s].

    If the data have levels and y is a picture, A(x_0) is rounded to 256 levels, as pictures in files are; it is one if
    it has as many axes, and if data of ones are measured as ones. If y has other axes, as the known pixels of a mask,
    the network sees A^T y.

    Args:
        operator: A.
        noise: The largest s, on the scale of [-1, 1]; from 0 to 2.

    Raises:
        TypeError: If operator is not an operator.
        ValueError: If noise is out of range.

    References:
        Saharia et al. 2021, "Image Super-Resolution via Iterative Refinement"; Ho et al. 2022, "Cascaded Diffusion
        Models for High Fidelity Image Generation", section 3 (conditioning augmentation).
    """

    def __init__(self, operator: Operator, noise: float = 0.5) -> None:
        super().__init__()
        check_kind("operator", operator, Operator)
        self.operator = operator
        self.noise = as_number("noise", noise)
        self._own_units: bool | None = None  # known when first measured
        if not 0 <= self.noise <= _MOST:
            raise ValueError(f"noise must be a standard deviation on [-1, 1], from 0 to {_MOST:g}; got {noise}")

    def conditions(self, dims: Sequence[int]) -> dict[str, Condition]:
        """The conditions of a model of data of shape *dims, by name.

        Raises:
            ValueError: If such data cannot be measured.
        """
        out = self.operator.output_shape(dims)
        found: dict[str, Condition] = {PICTURE: Picture(out if len(out) == len(dims) else dims)}
        if self.noise:
            found[NOISE] = Measurement([], self.noise / 2, self.noise / 12**0.5)
        return found

    def exact(self, x0: Tensor, levels: int | None) -> Tensor:
        """A(x_0), [B, *out], rounded as in training.

        Args:
            x0: Data, [B, *dims].
            levels: The number of levels of the data, if they have levels.
        """
        y: Tensor = self.operator(x0)
        if levels is None or y.ndim != x0.ndim or not self._keeps_units(x0[:1]):
            return y
        return from_levels(to_levels(y, 256), 256).to(y)

    def _keeps_units(self, like: Tensor) -> bool:
        if self._own_units is None:
            with torch.no_grad():
                self._own_units = bool(((self.operator(torch.ones_like(like)) - 1).abs() < 1e-3).all())
        return self._own_units

    def draw(self, x0: Tensor, levels: int | None, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The conditions of data, with s and n drawn at random, [B, *] each.

        Args:
            x0: Data, [B, *dims].
            levels: See `exact`.
            generator: A generator on the CPU; None: torch's global generator, on the data's device.
        """
        y, place = self.exact(x0, levels), x0.device if generator is None else None
        s = self.noise * torch.rand(len(y), generator=generator, device=place).to(y)
        n = torch.randn(y.shape, generator=generator, device=place).to(y)
        return self.given(y + s.reshape(-1, *(1,) * (y.ndim - 1)) * n, s, x0.ndim)

    def given(self, y: Tensor, noise: float | Tensor, ndim: int) -> dict[str, Tensor]:
        """The conditions for measurements.

        Args:
            y: A(x_0) + s n, [B, *out].
            noise: s, [] or [B].
            ndim: Number of dimensions of the data [B, *dims].
        """
        s = torch.as_tensor(noise, dtype=torch.float32, device=y.device).expand(len(y))
        picture = y if y.ndim == ndim else self.operator.adjoint(y)
        return {PICTURE: picture, **({NOISE: s} if self.noise else {})}

    def check_noise(self, noise: float) -> float:
        """Check that the model is trained for a measurement's noise s, and return it.

        Raises:
            ValueError: If s is out of range.
        """
        if not 0 <= as_number("noise", noise) <= self.noise:
            raise ValueError(f"noise must lie in [0, {self.noise:g}], for which the model was trained; got {noise:g}")
        return noise

    def summary(self) -> str:
        """What the model is given, for the log of a run."""
        return f"{self.operator}, with noise from 0 to {self.noise:g}, which the model is told"

    def extra_repr(self) -> str:
        """The largest noise."""
        return f"noise={self.noise:g}"
