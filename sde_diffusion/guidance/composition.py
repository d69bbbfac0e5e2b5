"""Compositions: products and quotients of models."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_number
from sde_diffusion.checks.hints import Rule
from sde_diffusion.checks.reprs import shown
from sde_diffusion.denoiser import Denoiser, check_denoiser
from sde_diffusion.denoiser.conditions import check_names
from sde_diffusion.guidance.combination import Combination, check_same
from sde_diffusion.sde import Time

Weights = Annotated[Sequence[float], Rule("a list of numbers that sum to 1, such as [1, 1, -1]", lambda weights: True)]


class Composition(Combination):
    """score = sum_i w_i score_i with sum_i w_i = 1: towards the product of the distributions p_i^(w_i).

    For example, the weights 1, 1, -1 of p(x | a), p(x | b) and p(x) give p(x | a and b), if a and b are independent
    given x. The weights must sum to 1: where there is nothing but noise, each score is that of the noise, and so must
    be their sum.

    The sum is the score of the product at t = 0 only, so that no sampler of steps alone draws from the product: for
    Gaussians of the same mean the probability flow gives the standard deviation prod_i s_i^(w_i), where the product has
    (sum_i w_i / s_i^2)^(-1/2). The Langevin steps of a `PredictorCorrector` bring samples to the product as their
    number grows.

    Args:
        denoisers: The denoisers, or a single one for all weights, which is evaluated once for all conditions.
        weights: w_i, which sum to 1; they may be negative.
        conditions: For each denoiser, values of conditions that are fixed, such as [{"label": 3}, {"label": 5}, {}]. A
            condition that is fixed for one is not given to those that do not list it, or list it as None. The other
            conditions, those of a call, are given to all denoisers that take them. None: no fixed values.

    Raises:
        TypeError: If one is not a denoiser.
        ValueError: If the denoisers have different paths or shapes, the weights are not as many finite numbers, or do
            not sum to 1, or a fixed condition is not one of its denoiser's.

    References:
        Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models"; Du et al. 2023, "Reduce,
        Reuse, Recycle" (why the Langevin steps are needed).
    """

    def __init__(
        self,
        denoisers: Denoiser | Sequence[Denoiser],
        weights: Weights,
        conditions: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.weights = [as_number(f"weights[{i}]", w) for i, w in enumerate(_as_list("weights", weights))]
        single = isinstance(denoisers, nn.Module)  # perhaps a compiled one
        several: list[Any] = [denoisers] * len(self.weights) if single else _as_list("denoisers", denoisers)
        self.fixed = [dict(one) for one in _as_list("conditions", conditions or [{}] * len(several), Mapping)]
        if not several or not len(several) == len(self.weights) == len(self.fixed):
            counts = f"{len(self.weights)} weights" + ("" if single else f" for {len(several)} denoisers")
            counts += f", and conditions for {len(self.fixed)}" if conditions else ""
            raise ValueError(f"weights must have a number for each denoiser, such as [1, 1, -1]; got {counts}")
        for i, denoiser in enumerate(several):
            check_denoiser(denoiser, f"denoisers[{i}]")
        check_same({f"denoisers[{i}]": one for i, one in enumerate(several)}, "only scores at equal noise add up")
        total = math.fsum(self.weights)
        if not math.isfinite(total):
            raise ValueError(f"weights must be finite; got {shown(self.weights)}")
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"weights must sum to 1, and {shown(self.weights)} sum to {total:g}: add the unconditional model "
                f"with weight {1 - total:g}"
            )
        for i, (denoiser, own) in enumerate(zip(several, self.fixed, strict=True)):
            check_names(own, denoiser.conditions, f"denoisers[{i}]")
        self._names = {name for own in self.fixed for name in own}
        self._experts: list[Denoiser] = several
        self.denoisers = nn.ModuleList(dict.fromkeys(several))
        self.sde, self.sigma_data = several[0].sde, several[0].sigma_data
        self.shape = next((one.shape for one in several if one.shape is not None), None)
        self.set_costs()

    @property
    def conditions(self) -> Collection[str] | None:
        """Those that are not fixed for some denoiser."""
        names: dict[str, None] = {}
        for denoiser in self._experts:
            if denoiser.conditions is None:
                return None
            names.update(dict.fromkeys(name for name in denoiser.conditions if name not in self._names))
        return list(names)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Any]:
        """See `Denoiser.check_conditions`; calls those of all denoisers, with their fixed values too."""
        known = check_names(conditions, self.conditions, type(self).__name__)
        found: dict[str, Any] = {}
        for denoiser, own in zip(self._experts, self.fixed, strict=True):
            shared = self._taken(known, denoiser)
            checked = denoiser.check_conditions({**shared, **own}, batch, device, wait)
            found.update({name: value for name, value in checked.items() if name in shared})
        return found

    @property
    def experts(self) -> Sequence[Denoiser]:
        """The denoisers, one for each weight."""
        return self._experts

    def weights_at(self, t: Time | None) -> Sequence[float | Tensor]:
        """The constructor's."""
        return self.weights

    def conditions_of(self, term: int, conditions: Mapping[str, Any], x_t: Tensor) -> dict[str, Any]:
        """The fixed ones, and those of the call that the denoiser takes."""
        own = self.fixed[term]
        every = {**self._taken(conditions, self._experts[term]), **own}
        return {name: value for name, value in every.items() if value is not None}

    def _taken(self, given: Mapping[str, Any], denoiser: Denoiser) -> dict[str, Any]:
        """The conditions of a call that a denoiser is given."""
        takes = denoiser.conditions
        return {k: v for k, v in given.items() if (takes is None or k in takes) and k not in self._names}

    def extra_repr(self) -> str:
        """The arguments other than the denoisers."""
        return f"weights={shown(self.weights)}, conditions={shown(self.fixed)}"


def _as_list(name: str, value: Any, each: type = object) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, each) for one in value):
        raise ValueError(f"{name} must be a list with an entry for each denoiser; got {shown(value)}")
    return list(value)
