"""Scores by a denoiser of the data: the exact log-likelihood of the flow, and lower bounds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.checks.instances import as_instance
from sde_diffusion.commands.app import is_overridden, resolved
from sde_diffusion.commands.loading import denoiser_of
from sde_diffusion.commands.scored_data import ScoredData
from sde_diffusion.commands.scorer import Scorer
from sde_diffusion.config import build, build_around
from sde_diffusion.density import Decoder, GaussianDecoder, GaussianPrior, LevelDecoder, Prior, best_t_end
from sde_diffusion.density.dequantisation import in_bins
from sde_diffusion.density.scoring import COLUMNS, SCORES, Scoring
from sde_diffusion.density.trace import trace_of
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise
from sde_diffusion.sampling.ode_methods import ODESolver

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

log = logging.getLogger(__name__)

_PLACING_ITEMS = 200
"""Maximum number of validation items used to choose the time of the ELBO's decoder."""

_TOGETHER = 4
"""Batches in one call of the likelihood, so that the passes of difficult items are shared with items of later ones."""

_CHAIN_STEPS = 64
"""Steps of the chain whose importance weighted bound is computed, if elbo.steps does not say how many."""


class FlowScorer(Scorer):
    """The exact log-likelihood by the flow, the ELBO, and the importance weighted bound of a chain of its steps."""

    settings = (
        "target_se",
        "draws",
        "importance",
        "prior",
        "method",
        "rtol",
        "atol",
        "steps",
        "grid",
        "trace",
        "probes",
    )

    def __init__(self, cfg: DictConfig, model: GenerativeModel, device: torch.device, data: ScoredData) -> None:
        if cfg.bound is not None:
            raise UserError("bound= is for models without a flow: the settings of this model's bounds are elbo.KEY")
        if cfg.importance > 1 and cfg.elbo is None:
            raise UserError(f"importance={cfg.importance} takes the decoder of the ELBO: leave elbo=null out")
        self.model, self.importance = model, int(cfg.importance)
        self.denoiser = denoiser_of(model)
        flow = {key: build(resolved(cfg[key]), key) for key in ("rtol", "atol", "method", "steps", "max_nfe", "grid")}
        trace = build_around(resolved(cfg.trace), "trace", probes=cfg.probes)
        settings = {"draws": cfg.draws, "trace": trace, "probes": cfg.probes, "flow": flow}
        try:
            self.scoring = Scoring(levels=data.levels, **settings, **self._bound(cfg, device, data))
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        if cfg.compile and (count := len(trace_of(trace, cfg.probes).vectors(Noise([0], model.data["shape"])))) > 1:
            raise UserError(
                "compile=true needs a trace of one probe, such as trace=hutchinson probes=1: a compiled network has no "
                f"gradients of {count} vectors at once; or leave it out"
            )
        sde = self.denoiser.sde
        matched = data.matched_prior(sde)
        priors = {"standard": GaussianPrior.standard(sde), "matched": matched}
        self.prior: Prior = as_instance("prior", build_around(resolved(cfg.prior), "prior", sde=sde), priors, Prior)
        if self.importance > 1 and not isinstance(self.prior, GaussianPrior):
            raise UserError(
                f"importance={cfg.importance} needs a Gaussian prior, standard or matched; got {self.prior}"
            )
        self.levels, self.convention, self.columns = data.levels, self.scoring.convention, COLUMNS
        at = torch.randn(1, *model.data["shape"], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.plan = {"scores": list(SCORES), "prior": f"{float(self.prior(at)):.10g}"}  # it depends on the data too
        bound = self.scoring.bound
        self.chain = {}
        if bound is not None:
            self.chain = {**{k: bound[k] for k in ("grid", "t_end")}, "steps": bound["steps"] or _CHAIN_STEPS}
        self.more = {
            "terminal_kl": self.prior.kl_of(matched, data.size),
            "elbo_settings": None if bound is None else {**resolved(cfg.elbo), "t_end": bound["t_end"]},
        }
        if self.importance == 1 and ODESolver(flow["method"]).method.by_item:
            self.together = _TOGETHER
        self.ordered = []
        if self.importance > 1:
            steps = self.chain["steps"]
            self.more["chain_steps"] = steps
            self.columns += (
                f" iwae is the bound with importance={self.importance} of the chain of {steps} steps, chain_elbo the "
                "evidence lower bound of that chain, by the same draws."
            )
            self.ordered.append(("chain_elbo", "iwae"))
        if bound is not None and (self.levels is None or self.scoring.decoder.continuous):
            self.ordered += [("elbo", "log_prob"), *([("iwae", "log_prob")] if self.importance > 1 else [])]

    def __call__(self, x: Tensor, seeds: Sequence[int], rows: int, **conditions: Any) -> dict[str, Tensor]:
        """See `Scorer`."""
        found = self.scoring(self.denoiser, x, seeds, self.prior, rows, **conditions)
        return found | self._weighted(x, seeds, rows, conditions)

    def impossible(self, x: Tensor, seeds: Sequence[int], rows: int, **conditions: Any) -> dict[str, Tensor]:
        """See `Scorer`; the bounds are there."""
        found = self.scoring.impossible(self.denoiser, x, seeds, self.prior, rows, **conditions)
        return found | self._weighted(x, seeds, rows, conditions)

    def _weighted(self, x: Tensor, seeds: Sequence[int], rows: int, conditions: dict[str, Any]) -> dict[str, Tensor]:
        if self.importance == 1:
            return {}
        x, bins = self.scoring.for_bound(x, seeds)
        settings = {"prior": self.prior, "decoder": self.scoring.decoder, "rows": rows, **self.chain}
        found = self.model.bound(x, importance=self.importance, seeds=seeds, **settings, **conditions)
        scores = {"iwae": found.log_prob + bins, "chain_elbo": found.elbo + bins}
        return {name: value.double().cpu() for name, value in scores.items()}

    def passes(self) -> list[str]:
        """See `Scorer`."""
        flow, bound = self.scoring.flow, self.scoring.bound
        solver = ODESolver(flow["method"])
        count = f"those of {flow['steps'] or 50} steps of {solver.name}"
        if solver.method.adaptive:
            count = f"as many as rtol and atol need, at most {flow['max_nfe']:,} (max_nfe)"
        whole = "an item" if solver.method.by_item else "a batch"
        times = f", {self.scoring.draws} times" if self.scoring.draws > 1 else ""
        lines = [f"network passes of {whole} by the flow: {count}{times}"]
        if bound is not None:
            lines.append(f"network passes of an item by the ELBO: {bound['draws'] or bound['steps'] or 128}")
        if self.importance > 1:
            k, steps = self.importance, self.chain["steps"]
            lines.append(f"network passes of an item by IWAE-{k}: {k * steps:,}, {steps} steps {k} times")
        return lines

    def _bound(self, cfg: DictConfig, device: torch.device, data: ScoredData) -> dict[str, Any]:
        """The ELBO's decoder and arguments; the time of the decoder is chosen on the validation split."""
        if cfg.elbo is None:
            return {"bound": None}
        bound = resolved(cfg.elbo)
        bound["grid"] = build(bound["grid"], "elbo.grid")
        if bound["steps"] and bound["draws"] and bound["draws"] > bound["steps"]:
            if is_overridden("elbo.draws"):
                raise UserError(
                    f"elbo.draws={bound['draws']} is more than elbo.steps={bound['steps']}: leave elbo.draws out"
                )
            bound["draws"] = None  # one for each step
        levels = data.levels
        decoders: dict[str, Any] = dict.fromkeys(("frequencies", "uniform", "dequantised"), GaussianDecoder)
        if levels is not None:
            decoders |= {
                "frequencies": lambda: LevelDecoder.frequencies(levels, data.some("train")),
                "uniform": lambda: LevelDecoder(levels),
            }
        offered: dict[str, Any] = {} if levels is None else {"levels": levels}
        named = build_around(bound.pop("decoder"), "elbo.decoder", **offered)
        decoder: Decoder = as_instance("elbo.decoder", named, decoders, Decoder)
        if bound["t_end"] is None:
            items = data.some_items("val", _PLACING_ITEMS)
            x, conditions = data.batch("val", items, device)
            x, _ = in_bins(x, levels if decoder.continuous else None, items.tolist())
            candidates = decoder.candidate_t_ends(self.denoiser.sde)
            settings = {"steps": None, "draws": 32, "rows": cfg.batch_size, "grid": bound["grid"]}
            log.info("choosing the time of the ELBO's decoder by %d validation items", len(items))
            bound["t_end"] = best_t_end(self.denoiser, decoder, x, candidates, **settings, **conditions)
        return {"decoder": decoder, "bound": bound}
