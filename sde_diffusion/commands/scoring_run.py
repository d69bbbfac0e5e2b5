"""Scoring of a data set in batches."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.scored_data import ScoredData
from sde_diffusion.commands.scorer import Scorer
from sde_diffusion.density.scoring import SCORES
from sde_diffusion.density.summary import main_score, mean_and_error, per_dim, plus_minus
from sde_diffusion.errors import UserError
from sde_diffusion.storage.batches import Batches, in_batches
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.storage.progress import Bar, passes

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel

_FIRST = ("index", *SCORES, "iwae", "iwae_error", "chain_elbo")
"""Columns in the order of the table, before those that only some models have."""

log = logging.getLogger(__name__)


class ScoringRun:
    """Scores data in batches, with a progress bar, and stores finished batches in files."""

    def __init__(
        self,
        cfg: DictConfig,
        model: GenerativeModel,
        device: torch.device,
        scorer: Scorer,
        folder: Path,
    ) -> None:
        self.cfg, self.model, self.device = cfg, model, device
        self.scorer = scorer
        settings = {
            key: value
            for key, value in resolved(cfg).items()
            if key not in ("ckpt", "out", "overwrite", "device", "batch_size")  # these may change on resuming
        }
        self.plan = {
            "checkpoint": model.digest,
            "settings": settings,
            **({"guides": model.guides} if model.guides else {}),
            **scorer.plan,
        }
        self.folder = folder
        self.seconds, self.scored_now = 0.0, 0.0
        self.size = int(cfg.batch_size)  # items at once; reduced where memory runs out
        self.sizes: list[int] = []

    def score(self, data: ScoredData, split: str) -> dict[str, Tensor]:
        """Scores of the items of a split, in order; stops when the standard error is at most `target_se`."""
        cfg, name = self.cfg, f"{data.name} {split}"
        items = data.items(split)
        n = len(items)
        if not self.sizes:  # once for all splits
            for line in self.scorer.passes():
                log.info("%s", line)
        log.info("%s: %d items, %d at once", name, n, min(n, self.size))

        denoiser = self.model.denoiser

        def work(some: range, shown: Bar) -> dict[str, Tensor]:
            begin = time.perf_counter()
            try:
                with (
                    nullcontext() if denoiser is None else passes(shown, denoiser, lambda x_t, t: denoiser.passes_at(t))
                ):
                    part = self._batch(data, split, items[some.start : some.stop])
            except Exception as error:
                if ran_out(error):  # `in_batches` tries again with batches half as large
                    self.size = max(1, min(self.size, len(some)) // 2)
                raise
            seconds = time.perf_counter() - begin
            self.scored_now += seconds
            return {**part, "seconds": torch.tensor(seconds, dtype=torch.float64)}

        def enough(done: Batches, shown: Bar) -> bool:
            found = torch.cat(done.each(main_score(done.results[0])))
            mean, error = mean_and_error(per_dim(found[found.isfinite()], data.size, self.scorer.levels))
            shown.update(text=f"{plus_minus(mean, error)} {'bits' if self.scorer.levels else 'nats'}/dim")
            if cfg.target_se is None:
                return False
            small = error is not None and error <= cfg.target_se
            if small and len(done.results) > 1:
                log.info("%s: target_se=%g reached with %d of %d items", name, cfg.target_se, done.n, n)
                return True
            if done.n == n and not small:
                found_error = "unknown" if error is None else f"{error:.4g}"
                message = "%s: the standard error of all %d items is %s, above target_se=%g"
                log.warning(message, name, n, found_error, cfg.target_se)
            return False

        done = in_batches(
            name,
            n,
            self.size,
            work,
            self.folder / f"{data.role}-{split}",
            {**self.plan, "data": data.name, "split": split, "digest": data.parts[split].digest()},
            cfg.overwrite,
            enough=enough,
            # One item that cannot be scored costs all of its call.
            together=self.scorer.together if cfg.target_se is None and data.role == "own" else 1,
        )
        self.seconds += sum(map(float, done.each("seconds")))
        self.size = min(self.size, done.sizes[-1])
        self.sizes += [size for size in done.sizes if size not in self.sizes]
        there = set(done.results[0]) - {"seconds"}  # in files they lose their order
        first = [name for name in _FIRST if name in there]
        names = [*first, *sorted(there - set(first), key=lambda name: (len(name), name))]
        scores = {name: torch.cat(done.each(name)) for name in names}
        order = scores["index"].argsort()
        return {name: values[order] for name, values in scores.items()}

    def _batch(self, data: ScoredData, split: str, items: Tensor) -> dict[str, Tensor]:
        """Scores of some items. If the solver fails for one of them, the others are still scored."""
        x, conditions = data.batch(split, items, self.device)
        seeds = [self.cfg.seed + item for item in items.tolist()]
        try:
            with warnings.catch_warnings():
                # The items are scaled correctly here, though some may be far outside of [-1, 1].
                warnings.filterwarnings("ignore", "x has a root mean square")
                scores = self.scorer(x, seeds, self.size, **conditions)
        except UserError as error:
            if data.role == "own":
                raise
            if len(items) > 1:
                halves = [self._batch(data, split, half) for half in items.tensor_split(2)]
                return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
            log.warning("item %d of %s counts as impossible: %s", int(items), data.name, error)
            scores = self.scorer.impossible(x, seeds, self.size, **conditions)
        except ValueError as error:
            raise UserError(str(error)) from error
        return {**scores, "index": items.double()}
