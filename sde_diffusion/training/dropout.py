"""Conditions that training leaves out at times."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from sde_diffusion.checks import as_number
from sde_diffusion.checks.reprs import shown
from sde_diffusion.conditions import Conditions


class ConditionDropout:
    """Which samples are trained without their conditions.

    One draw for each sample decides on all of them: were each left out by itself, all of k conditions would be left out
    in share^k of the samples alone, and the unconditional model would hardly be trained. Those with a share of their
    own are drawn by themselves.

    Args:
        conditions: Of the model.
        share: Of the samples trained without their conditions, in [0, 1].
        own: Shares of conditions that are drawn by themselves, by name, in [0, 1]; 0: never left out.

    Raises:
        ValueError: If a share is out of range, or a name is none of the conditions'.
    """

    def __init__(self, conditions: Conditions, share: float, own: Mapping[str, float] | None = None) -> None:
        self.conditions, self.share = conditions, _share("label_dropout", share)
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(
                f"condition_dropout must map conditions to shares, such as {{label: 0.2}}; got {shown(own)}"
            )
        if strange := [name for name in own or {} if name not in conditions]:
            raise ValueError(
                f"condition_dropout names {', '.join(strange)}, and the conditions are {', '.join(conditions) or 'none'}"
            )
        self.own = {name: _share(f"condition_dropout.{name}", share) for name, share in (own or {}).items()}

    @property
    def together(self) -> list[str]:
        """The conditions that one draw decides on."""
        return [name for name in self.conditions if name not in self.own]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch's values, [B, *shape] each, some samples' replaced by nulls; draws by torch's global generator."""
        found = dict(values)
        for names, share in ((self.together, self.share), *(([name], share) for name, share in self.own.items())):
            if share and (names := [name for name in names if name in found]):
                value = found[names[0]]
                dropped = torch.rand(len(value), device=value.device) < share
                for name in names:
                    nulls = self.conditions[name].nulls(len(value), value.device)
                    found[name] = torch.where(dropped.reshape(-1, *(1,) * (nulls.ndim - 1)), nulls, found[name])
        return found

    @property
    def left_out(self) -> list[str]:
        """The conditions that the model was trained without at times."""
        return [name for name in self.conditions if self.own.get(name, self.share)]

    def untrained(self, without: Collection[str]) -> str:
        """Why a model does not know what it is to be told all conditions but these, in words; "" where it does."""
        for name in without:
            if not self.own.get(name, self.share):
                return f"this model was never trained without {name}"
        told = [name for name in self.together if name not in without]
        if told and len(told) < len(self.together):
            lacking = ", ".join(name for name in self.together if name in without)
            return (
                f"this model was trained with all of {', '.join(self.together)} or with none, and {lacking} is missing"
            )
        return ""


def _share(name: str, value: float) -> float:
    share = as_number(name, value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in [0, 1]; got {value!r}")
    return share
