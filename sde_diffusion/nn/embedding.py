"""Embed the noise level and the conditions into one vector, which modulates the blocks of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_choice
from sde_diffusion.conditions import Condition, Conditions
from sde_diffusion.nn.features import check_dim, features

PLACES = ("hidden", "features", "output")
"""Where the embeddings of conditions are added: after the first linear layer, before it, or after the second."""


class BaseConditioning(nn.Module):
    """The base class of what makes one vector of the noise level and the conditions.

    Args:
        conditions: The conditions by name.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.

    Attributes:
        conditions: See the argument.
        input: The first layer of the noise level; set by subclasses.
        embeddings: The embedding of each condition, by name; set by subclasses.
    """

    input: nn.Module
    embeddings: nn.ModuleDict

    def __init__(self, conditions: Mapping[str, Condition] | None, n_classes: int) -> None:
        super().__init__()
        self.conditions = Conditions(conditions, n_classes)

    @property
    def shapes_beside(self) -> list[tuple[int, ...]]:
        """The shapes of the values of conditions that a network takes beside x."""
        return [kind.shape for kind in self.conditions.values() if kind.beside_x]

    def beside(self, x: Tensor, **conditions: Tensor | None) -> list[Tensor]:
        """The values that a network takes beside x, [B, *shape] each, of x's type; 0 in place of null values.

        Args:
            x: [B, *].
            **conditions: See `Conditioning.forward`.
        """
        found = []
        for name, kind in self.conditions.items():
            if not kind.beside_x:
                continue
            value = conditions.get(name)
            if value is None:
                value = kind.nulls(1, x.device)
            value = torch.where(value.isnan(), 0.0, value).to(x.dtype)
            found.append(value.expand(len(x), *value.shape[1:]))
        return found

    @property
    def has_tokens(self) -> bool:
        """Whether a condition, such as a text, has tokens."""
        return any(kind.has_tokens for kind in self.conditions.values())

    def tokens(self, batch: int, **conditions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens of all conditions that have some, [batch, n, dim], and which of them there are, bool [batch, n].

        Args:
            batch: Number of samples.
            **conditions: See `Conditioning.forward`.
        """
        found, masks = [], []
        for name, kind in self.conditions.items():
            if not kind.has_tokens:
                continue
            value = conditions.get(name)
            if value is None:
                value = kind.nulls(1, self.input.weight.device)  # type: ignore[arg-type]
            tokens, mask = self.embeddings[name].tokens(value)  # type: ignore[operator]
            found.append(tokens.expand(batch, *tokens.shape[1:]))
            masks.append(mask.expand(batch, mask.shape[1]))
        return torch.cat(found, 1), torch.cat(masks, 1)

    def _given(self, label: Tensor | None, conditions: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The conditions that are not None.

        Raises:
            ValueError: If the network was built without one of them.
        """
        given = {name: value for name, value in {"label": label, **conditions}.items() if value is not None}
        if unknown := ", ".join(name for name in given if name not in self.conditions):
            known = ", ".join(self.conditions) or "none"
            raise ValueError(
                f"this network was built without the condition {unknown} (it has {known}); set n_classes or "
                "conditions, or pass None"
            )
        return given


class Conditioning(BaseConditioning):
    """One vector for each sample from c_noise and the conditions: SiLU(W_2 SiLU(W_1 f(c) + e)), e = sum_k e_k(value_k).

    With place="features" it is SiLU(W_2 SiLU(W_1 (f(c) + e))) (EDM), with "output" SiLU(W_2 SiLU(W_1 f(c)) + e) (DiT,
    ADM).

    Args:
        dim: Size of the vector; even, at least 4.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        embedding: The features f of c_noise: a name in `features.EMBEDDINGS`, or a module that maps [N] to
            [N, feature_dim].
        conditions: The conditions by name, each with an embedding e_k.
        feature_dim: Number of features of c_noise; even, at least 4; None: dim.
        place: Where the embeddings of the conditions are added: "hidden", "features" or "output".
        learned_null: Whether the null value of a condition has a learned embedding; if not, it is 0.

    Raises:
        ValueError: If embedding or place is unknown, the features are of another width, n_classes is negative, a size
            is odd or below 4, or a name cannot be that of a condition.
        TypeError: If a value of `conditions` is not a `Condition`.
    """

    input: nn.Linear

    def __init__(
        self,
        dim: int,
        n_classes: int = 0,
        embedding: str | nn.Module = "positional",
        conditions: Mapping[str, Condition] | None = None,
        feature_dim: int | None = None,
        place: str = "hidden",
        learned_null: bool = True,
    ) -> None:
        dim = check_dim(dim)
        feature_dim = dim if feature_dim is None else check_dim(feature_dim, "feature_dim")
        super().__init__(conditions, n_classes)
        self.place = check_choice("condition_place", place, PLACES)
        self.features = features(embedding, feature_dim)
        self.input = nn.Linear(feature_dim, dim)
        self.output = nn.Linear(dim, dim)
        learned_null = check_bool("learned_null", learned_null)
        self.embeddings = self.conditions.embeddings(feature_dim if place == "features" else dim, learned_null)

    def forward(self, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Return [N, dim], with N = B, or N = 1 where no argument varies over the batch.

        Args:
            c_noise: [] or [B], any real number.
            label: [B], int64 in 0 ... n_classes, where n_classes is the null class; None: the null class for all.
            **conditions: Values of the other conditions, [B, *shape] each; None: the null value for all.

        Raises:
            ValueError: If a condition is given that the network was built without.
        """
        given = self._given(label, conditions)
        h = self.features(c_noise.reshape(-1)).to(self.input.weight.dtype)
        h = self.input(self._with(given, h) if self.place == "features" else h)
        h = self.output(F.silu(self._with(given, h) if self.place == "hidden" else h))
        return F.silu(self._with(given, h) if self.place == "output" else h)

    def _with(self, given: Mapping[str, Tensor], h: Tensor) -> Tensor:
        """h, with the embeddings of all conditions added."""
        for name, embedding in self.embeddings.items():
            value = given.get(name)
            h = h + embedding(self.conditions[name].nulls(1, h.device) if value is None else value)
        return h
