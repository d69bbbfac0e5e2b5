"""The conditions of a model or a data set, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count
from sde_diffusion.checks.reprs import shown
from sde_diffusion.conditions.base import Condition
from sde_diffusion.conditions.label import Label
from sde_diffusion.conditions.measurement import Measurement
from sde_diffusion.conditions.text import Text
from sde_diffusion.config import build

KINDS: tuple[type[Condition], ...] = (Label, Measurement, Text)
"""The kinds of conditions of this package, in the order in which data are matched with them."""

_OF_NETWORKS = {"self", "denoiser", "x", "x_t", "x0", "t", "c_noise", "n", "noise", "conditions", "noisy_data"}
_OF_SAMPLERS = {"t_start", "shape", "seed", "seeds", "generator", "latent", "callback", "device", "dtype", "trajectory"}
_OF_SOLVERS = {"method", "steps", "rtol", "atol", "max_nfe", "create_graph", "rows", "grid", "coordinate", "options"}
_OF_LIKELIHOODS = {"prior", "probes", "trace", "draws", "decoder", "t_end"}
_OF_FILES = {"images", "points", "signals", "labels", "class_names"}
_RESERVED = frozenset(_OF_NETWORKS | _OF_SAMPLERS | _OF_SOLVERS | _OF_LIKELIHOODS | _OF_FILES)
"""Names that cannot be those of conditions: arguments of calls, and arrays in files of samples."""


def kind_by_values(splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Condition | None:
    """The condition of a data set's values: integers [N] are classes, floats measurements, bytes texts; see `of`."""
    return next((found for kind in KINDS if (found := kind.of(splits, names)) is not None), None)


class Conditions(Mapping[str, Condition]):
    """Conditions by name.

    Args:
        kinds: The conditions, or their descriptions as returned by `describe`.
        n_classes: Short for {"label": Label(n_classes)}; 0: no labels.

    Raises:
        TypeError: If a value is not a condition.
        ValueError: If a name is not an identifier, or has another meaning in calls.
        UserError: If a description is invalid.
    """

    def __init__(self, kinds: Mapping[str, Any] | None = None, n_classes: int = 0) -> None:
        n_classes = check_count("n_classes", n_classes, least=0, also=" (0: no labels)")
        if kinds is not None and not isinstance(kinds, Mapping):
            raise TypeError(f"conditions must map names to kinds, such as {{'label': Label(10)}}; got {shown(kinds)}")
        self._kinds: dict[str, Condition] = {}
        for name, kind in {**({"label": Label(n_classes)} if n_classes else {}), **(kinds or {})}.items():
            reserved = name in _RESERVED or hasattr(nn.ModuleDict, str(name))
            if not isinstance(name, str) or not name.isidentifier() or reserved:
                raise ValueError(f"conditions: {name!r} cannot be the name of a condition: choose another")
            found = build(dict(kind), f"conditions.{name}") if isinstance(kind, Mapping) else kind
            if not isinstance(found, Condition):
                raise TypeError(f"conditions: {name} must be a kind of condition, such as Label(10); got {shown(kind)}")
            self._kinds[name] = found

    def __getitem__(self, name: str) -> Condition:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __repr__(self) -> str:
        return repr(self._kinds)

    def describe(self) -> dict[str, Any]:
        """Descriptions of the conditions by name, in plain Python containers, for checkpoints."""
        return {name: kind.describe() for name, kind in self.items()}

    def check(
        self, given: Mapping[str, Any], batch: int, device: torch.device | None = None, wait: bool = True
    ) -> dict[str, Tensor | None]:
        """Check the values of a batch, and return them as networks take them, or None. See `Condition.check`."""
        return {
            name: None if value is None else self[name].check(name, value, batch, device, wait)
            for name, value in given.items()
        }

    def embeddings(self, dim: int, learned_null: bool = True) -> nn.ModuleDict:
        """The embedding of each condition, by name; with learned_null=False, that of the null value is 0."""
        return nn.ModuleDict(
            {name: kind.embedding(dim) if learned_null else kind.zero_null(dim) for name, kind in self.items()}
        )
