"""Class labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count
from sde_diffusion.checks.reprs import shown
from sde_diffusion.conditions.base import Condition
from sde_diffusion.errors import UserError

_MOST_CLASSES = 100_000


class Label(Condition):
    """A class number, 0 ... n_classes - 1; n_classes is the null class, "no label".

    Args:
        n_classes: Number of classes, at least 1.
        names: Names of the classes 0, 1, ...; there may be fewer names than classes.

    Raises:
        ValueError: If n_classes is not positive, names is not a list of words, or there are more names than classes.

    References:
        Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", section 3.2 (the null class).
    """

    dtype = torch.int64
    each = "integer"

    def __init__(self, n_classes: int, names: Sequence[str] | None = None) -> None:
        self.n_classes = check_count("n_classes", n_classes)
        if not (names is None or (isinstance(names, Sequence) and all(isinstance(name, str) for name in names))):
            raise ValueError(f"names must be a list of words, one for each class; got {shown(names)}")
        self.names = None if names is None else list(names)
        if len(self.names or ()) > self.n_classes:
            raise ValueError(
                f"there must be at most {n_classes} names, one for each class; got {len(self.names or ())}"
            )
        self.null = self.n_classes

    @classmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """Integers [N] from 0 up are classes, if there are at most 100,000."""
        if any(part.dtype != torch.int64 or part.ndim != 1 for part in splits):
            return None
        n_classes = max(len(names or ()), *(int(part.max()) + 1 for part in splits))
        return cls(n_classes, names) if n_classes <= _MOST_CLASSES else None

    @property
    def what(self) -> str:
        """The number of classes."""
        return f"{self.n_classes} class{'es' * (self.n_classes > 1)}"

    def words(self, value: Tensor) -> str:
        """The class's name, or its number if it has none. See `Condition.words`."""
        names, number = self.names or [], int(value)
        return names[number] if 0 <= number < len(names) else super().words(value)

    def is_none(self, typed: Any) -> bool:
        """A class may be called none. See `Condition.is_none`."""
        return super().is_none(typed) and typed not in (self.names or ())

    def allowed(self, name: str) -> str:
        """See `Condition.allowed`."""
        return f"{name} must be integers in 0 ... {self.n_classes - 1} (or {self.n_classes}: no {name})"

    def takes(self, dtype: torch.dtype) -> bool:
        """Only integers are allowed."""
        return dtype != torch.bool and not dtype.is_floating_point and not dtype.is_complex

    def wrong(self, values: Tensor) -> str:
        """Numbers below 0 or above the null class are out of range."""
        low, high = (int(end) for end in values.aminmax())
        return str(low if low < 0 else high) if low < 0 or high > self.n_classes else ""

    def embedding(self, dim: int) -> nn.Module:
        """A table with a row for each class, and one for the null class."""
        return nn.Embedding(self.n_classes + 1, dim)

    @property
    def n_numbers(self) -> int:  # type: ignore[override]
        """One for each class."""
        return self.n_classes

    def numbers(self, values: Tensor) -> Tensor:
        """sqrt(n_classes) for the class, and 0 for all others."""
        classes = torch.arange(self.n_classes, device=values.device)
        return (values[:, None] == classes) * math.sqrt(self.n_classes)

    def zero_null(self, dim: int) -> nn.Module:
        """A table with a row for each class; the null class is 0."""
        return _ClassVectors(self.n_classes, dim)

    def in_turn(self, n: int) -> Tensor:
        """0, 1, ..., n_classes - 1, 0, 1, ..."""
        return torch.arange(n) % self.n_classes

    def read(self, name: str, typed: Any, n: int) -> Tensor:
        """Read a class by number or name; names have priority if they are numbers. See `Condition.read`."""
        if not isinstance(typed, int | str | float):
            return super().read(name, typed, n)
        if self.names and str(typed) in self.names:
            typed = self.names.index(str(typed))
        elif self.names and isinstance(typed, str):
            raise UserError(f"{name}={typed} is not a class; the classes are {', '.join(self.names)}")
        if type(typed) is not int or not 0 <= typed < self.n_classes:
            raise UserError(f"{name} must be one of 0 ... {self.n_classes - 1}; got {typed}")
        return torch.full((n,), typed)


class _ClassVectors(nn.Embedding):
    """A row for each class, and 0 for the number after the last."""

    def forward(self, label: Tensor) -> Tensor:
        found = super().forward(label.clamp(max=self.num_embeddings - 1))
        return torch.where((label < self.num_embeddings)[:, None], found, torch.zeros_like(found))


def numbered(names: Sequence[str]) -> str:
    """Names of classes with their numbers: "0 cat, 1 dog"."""
    return ", ".join(f"{number} {name}" for number, name in enumerate(names))
