"""Scores by a model's own lower bound, for models without a denoiser of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import as_typed, overrides, resolved
from sde_diffusion.commands.scored_data import ScoredData
from sde_diffusion.commands.scorer import Scorer
from sde_diffusion.density.dequantisation import in_bins
from sde_diffusion.density.scoring import elbo_scores
from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

_FLOW = ("method", "rtol", "atol", "steps", "max_nfe", "grid", "trace", "probes", "prior", "elbo")
"""Keys of the flow and the bounds of a denoiser."""


def check_bound(cfg: DictConfig, model: GenerativeModel) -> None:
    """Check that a model without a flow has a bound, and that no setting is for a flow.

    Raises:
        UserError: If it has none, or one is.
    """
    contains = f"{cfg.ckpt} contains a {type(model).__name__}"
    if not model.defines("bound"):
        raise UserError(f"{contains} ({model.summary()['model']}), which has neither a flow nor a bound on log p")
    if typed := [as_typed(one) for one in overrides() if str(one.key_or_group).split(".")[0] in _FLOW]:
        raise UserError(f"{contains}, which has no flow of the data: leave {' '.join(typed)} out")


class BoundScorer(Scorer):
    """A model's own lower bound: the evidence lower bound, its terms, and the importance weighted bound."""

    settings = ("target_se", "draws", "importance", "bound")
    more: Mapping[str, Any] = {}

    def __init__(self, cfg: DictConfig, model: GenerativeModel, device: torch.device, data: ScoredData) -> None:
        self.model, self.levels, self.importance = model, data.levels, int(cfg.importance)
        self.dtype = next(model.parameters()).dtype
        self.filled = self.levels if model.bounds_density else None
        self.options = {
            "draws": int(cfg.draws),
            "importance": self.importance,
            **(resolved(cfg.bound) or {}),
        }
        self.ordered = [("elbo", "iwae")] if self.importance > 1 else []
        self.equal = (
            "" if model.random_latents else "the encoder's codes are not random, so that all draws are the same"
        )
        self.convention, self.columns = self._words()
        x, conditions = data.batch(data.splits[0], torch.tensor([0]), device)
        once: dict[str, Any] = {**self.options, "draws": 1, "importance": 1, **conditions}
        try:  # settings that the bound does not take, before anything is computed
            model.bound(x.to(self.dtype), seeds=[0], **{"rows": 1, **once})
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        self.plan = {"importance": self.importance}

    def __call__(self, x: Tensor, seeds: Sequence[int], rows: int, **conditions: Any) -> dict[str, Tensor]:
        """See `Scorer`."""
        x, bins = in_bins(x, self.filled, seeds)
        found = self.model.bound(x.to(self.dtype), seeds=seeds, **{"rows": rows, **self.options}, **conditions)
        scores = elbo_scores(found, bins)
        if self.importance > 1:  # files share no memory
            missing = torch.full_like(found.log_prob, torch.nan)
            scores |= {"iwae": found.log_prob + bins, "iwae_error": scores["elbo_error"], "elbo_error": missing}
        scores["nfe"] = torch.full_like(found.log_prob, found.nfe)
        return {name: value.double().cpu() for name, value in scores.items()}

    def impossible(self, x: Tensor, seeds: Sequence[int], rows: int, **conditions: Any) -> dict[str, Tensor]:
        """See `Scorer`: no such case is known."""
        return self(x, seeds, rows, **conditions)

    def passes(self) -> list[str]:
        """See `Scorer`."""
        k, draws = self.importance, self.options["draws"]
        times = f", {draws} times {k}" if draws > 1 and k > 1 else ""
        return [f"draws of the latent variables of an item: {k * draws:,}{times}"]

    def _words(self) -> tuple[str, str]:
        if self.levels is None:
            of = "the log-density of continuous data on [-1, 1], in nats; no bins, hence no bits per dimension"
        elif self.filled is None:
            of = f"the log-probability log P(x) of data on {self.levels} levels, without noise in bins"
        else:
            of = (
                f"the log-probability log P(x) of data on {self.levels} levels, by the density of the data plus "
                "uniform noise over their bins, and the log of the bins' size"
            )
        which = "ELBO" if self.importance == 1 else f"ELBO and IWAE-{self.importance}"
        ordered = "" if self.importance == 1 else f"; on average ELBO <= IWAE-{self.importance} <= log p"
        columns = (
            "elbo is a lower bound on the log-probability (of continuous data the log-density on [-1, 1]), in nats: "
            "more is more likely, in every column. elbo = the sum of the elbo_ columns beside elbo_error: the "
            "reconstruction, and minus the KL divergence of each latent variable. iwae is the bound with importance "
            "weights. elbo_error and iwae_error are standard errors; nan where there is none. nfe counts network "
            "passes."
        )
        bounds = "a lower bound" if self.importance == 1 else "lower bounds"
        return f"{which}: {bounds} on {of}{ordered}", columns
