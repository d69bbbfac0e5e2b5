"""The scoring of a data set, batch by batch: it shows how far it is, resumes, and makes do with the memory there is."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import plain
from sde_diffusion.commands.loading import denoiser_of
from sde_diffusion.commands.scored_data import ScoredData
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import GaussianPrior
from sde_diffusion.density.scoring import SCORES, Scoring
from sde_diffusion.density.summary import mean_and_error, per_dim, plus_minus
from sde_diffusion.errors import UserError
from sde_diffusion.progress import Bar, bar
from sde_diffusion.sampling.ode_methods import METHODS
from sde_diffusion.storage.memory import ran_out
from sde_diffusion.storage.parts import Parts

if TYPE_CHECKING:
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)


class ScoringRun:
    """Scores data batch by batch, with a progress bar, keeping finished batches in files."""

    def __init__(
        self,
        cfg: DictConfig,
        model: ScoreModel,
        device: torch.device,
        scoring: Scoring,
        prior: GaussianPrior,
        folder: Path,
    ) -> None:
        self.cfg, self.model, self.device = cfg, model, device
        self.denoiser = denoiser_of(cfg, model)
        self.scoring, self.prior = scoring, prior
        settings = {
            key: value
            for key, value in plain(cfg).items()
            if key not in ("ckpt", "out", "overwrite", "device", "batch_size")  # of which a resumed run needs less
        }
        moments = b"".join(moment.double().contiguous().numpy().tobytes() for moment in (prior.mean, prior.variance))
        self.plan = {
            "checkpoint": model.digest,
            "settings": settings,
            "scores": list(SCORES),
            "prior": hashlib.sha256(moments).hexdigest(),
        }
        self.folder = folder
        self.seconds, self.scored_now = 0.0, 0.0
        self.most = int(cfg.batch_size)  # rows at once, halved when memory runs out

    def score(self, data: ScoredData, split: str) -> dict[str, Tensor]:
        """Scores of each item of a split, in order, until the standard error is small enough."""
        cfg = self.cfg
        kept = Parts(
            self.folder / f"{data.role}-{split}",
            {**self.plan, "data": data.name, "split": split, "digest": data.parts[split].digest()},
            cfg.overwrite,
        )
        there = {int(part["start"]): part for part in kept.load()}
        items = data.items(split)
        n = len(items)
        known = sum(len(part["index"]) for part in there.values())
        if known:
            log.info("resuming after %d of %d items of %s %s, kept in %s", known, n, data.name, split, kept.folder)
        words = (data.name, split)
        log.info("%s %s: %d items, %d at once; %s", *words, n, min(n, cfg.batch_size), self._passes())
        parts: list[dict[str, Tensor]] = []
        with bar(f"{data.name} {split}", n, known) as shown, self._counting(shown):
            stop = 0
            while stop < n:
                start, part = stop, there.get(stop)
                if part is None:
                    stop = min(n, start + cfg.batch_size)
                    part = self._batch(data, split, start, items[start:stop])
                    kept.add(stop - start, part)
                stop = start + len(part["index"])
                self.seconds += float(part["seconds"])
                parts.append(part)
                found = torch.cat([p["log_prob"] for p in parts])
                mean, error = mean_and_error(per_dim(found[found.isfinite()], data.size, self.scoring.levels))
                unit = "bits/dim" if self.scoring.levels else "nats/dim"
                self._so_far = f"{plus_minus(mean, error)} {unit}"
                shown.update(completed=max(stop, known), text=self._so_far)
                reached = cfg.target_se is not None and error is not None and error <= cfg.target_se
                if reached and len(parts) > 1:
                    log.info("%s %s: target_se=%g reached with %d of %d items", *words, cfg.target_se, stop, n)
                    break
            else:
                if cfg.target_se is not None:
                    log.warning(
                        "%s %s: all %d items give a standard error of %s, more than target_se=%g",
                        *(*words, n, "nothing known" if error is None else f"{error:.4g}", cfg.target_se),
                    )
        scores = {name: torch.cat([part[name] for part in parts]) for name in ("index", *SCORES) if name in parts[0]}
        order = scores["index"].argsort()
        return {name: values[order] for name, values in scores.items()}

    def _passes(self) -> str:
        """How many network passes to expect, in words."""
        flow, bound = self.scoring.flow, self.scoring.bound
        if METHODS[flow["method"]].adaptive:
            usual = "50 to 150, with a network that is rough in time 300 to 1,500, and "
            words = f"{usual if flow['method'] == 'adams' else ''}at most {flow['max_nfe']:,} (max_nfe)"
        else:
            words = f"those of {flow['steps'] or 50} steps of {flow['method']}"
        times = f", {self.scoring.draws} times" if self.scoring.draws > 1 else ""
        also = "" if bound is None else f"; {bound['draws'] or bound['steps'] or 128} for each item's bound"
        return f"network passes of a batch: {words}{times}{also}"

    @contextmanager
    def _counting(self, shown: Bar) -> Iterator[None]:
        """Count the passes of the current batch, so that a long one shows that it goes on."""
        self._so_far, self._made = "", 0

        def count(denoiser: Denoiser, arguments: tuple[Any, ...]) -> None:
            self._made += denoiser.passes_at(arguments[1])
            shown.update(text=f"{self._so_far}{'; ' if self._so_far else ''}pass {self._made:,} of this batch")

        handle = self.denoiser.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def _batch(self, data: ScoredData, split: str, start: int, items: Tensor) -> dict[str, Tensor]:
        begin, self._made = time.perf_counter(), 0
        pieces = list(self._pieces(data, split, items))
        seconds = time.perf_counter() - begin
        self.scored_now += seconds
        part = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        part["index"] = items.double()
        return {**part, "start": torch.tensor(start), "seconds": torch.tensor(seconds, dtype=torch.float64)}

    def _pieces(self, data: ScoredData, split: str, items: Tensor) -> Iterator[dict[str, Tensor]]:
        """The scores of items, as many at once as memory allows."""
        while len(items):
            some = items[: self.most]
            x, conditions = data.batch(split, some, self.device)
            seeds = [self.cfg.seed + item for item in some.tolist()]
            try:
                with warnings.catch_warnings():
                    # Which scale the items are on is known here; some may well be far out.
                    warnings.filterwarnings("ignore", "x has a root mean square")
                    scores = self.scoring(self.denoiser, x, seeds, self.prior, **conditions)
                yield scores
            except UserError as error:
                if data.role == "own":
                    raise
                if len(some) > 1:  # one item must not spoil the others
                    for half in some.tensor_split(2):
                        yield from self._pieces(data, split, half)
                else:
                    log.warning("item %d of %s counts as impossible: %s", int(some), data.name, error)
                    yield self.scoring.impossible(self.denoiser, x, seeds, self.prior, **conditions)
            except (RuntimeError, MemoryError) as error:
                if len(some) < 2 or not ran_out(error):
                    raise
                if self.most == self.cfg.batch_size:
                    log.warning("ran out of memory with %d items at once: trying half as many", self.most)
                self.most = len(some) // 2
                continue
            except ValueError as error:
                raise UserError(str(error)) from error
            items = items[len(some) :]
