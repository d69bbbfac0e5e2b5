"""Training without conditions, for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sde_diffusion.checks import as_fraction
from sde_diffusion.checks.reprs import shown
from sde_diffusion.conditions import Conditions


class ConditionDropout:
    """Replaces the conditions of randomly chosen samples by their null values.

    One draw for each sample drops all conditions together. With independent draws, all k conditions would be dropped
    together with probability p^k only, and the unconditional model would hardly be trained. The conditions in
    `separate` are drawn independently.

    Args:
        conditions: Conditions of the model.
        probability: Probability of dropping a sample's conditions, in [0, 1].
        separate: Probabilities for conditions that are dropped independently of the others, by name, in [0, 1]; 0:
            never.

    Raises:
        ValueError: If a probability is out of range, or a name is not one of the conditions.

    References:
        Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1.
    """

    def __init__(self, conditions: Conditions, probability: float, separate: Mapping[str, float] | None = None) -> None:
        self.conditions, self.probability = conditions, as_fraction("label_dropout", probability)
        if separate is not None and not isinstance(separate, Mapping):
            raise ValueError(
                "condition_dropout must map names of conditions to probabilities, such as {label: 0.2}; got "
                f"{shown(separate)}"
            )
        if unknown := [name for name in separate or {} if name not in conditions]:
            known = ", ".join(conditions) or "none"
            raise ValueError(f"condition_dropout names {', '.join(unknown)}, and the conditions are {known}")
        self.separate = {name: as_fraction(f"condition_dropout.{name}", p) for name, p in (separate or {}).items()}

    @property
    def together(self) -> list[str]:
        """The conditions that are dropped together."""
        return [name for name in self.conditions if name not in self.separate]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace values of a batch, [B, *shape] each, by null values; drawn with torch's global generator."""
        found = dict(values)
        draws = [(self.together, self.probability), *(([name], p) for name, p in self.separate.items())]
        for names, probability in draws:
            if probability and (names := [name for name in names if name in found]):
                value = found[names[0]]
                dropped = torch.rand(len(value), device=value.device) < probability
                for name in names:
                    nulls = self.conditions[name].nulls(len(value), value.device)
                    found[name] = torch.where(dropped.reshape(-1, *(1,) * (nulls.ndim - 1)), nulls, found[name])
        return found

    @property
    def dropped(self) -> list[str]:
        """The conditions that are sometimes dropped."""
        return [name for name in self.conditions if self.separate.get(name, self.probability)]

    def untrained(self, without: Collection[str]) -> str:
        """Why the model was not trained with all conditions except these, as a message; "" if it was."""
        for name in without:
            if not self.separate.get(name, self.probability):
                return f"this model was never trained without {name}"
        present = [name for name in self.together if name not in without]
        if present and len(present) < len(self.together):
            lacking = ", ".join(name for name in self.together if name in without)
            return (
                f"this model was trained with all of {', '.join(self.together)} or with none, and {lacking} is missing"
            )
        return ""
