"""Grids for few network passes, found for a model: `python -m benchmarks.nfe_fid tune=true ckpt=PATH`.

For each sampler and number of passes, the grid on which the sampler comes nearest to its own solution in many passes,
from the same noise (`sampling.tune_grid`). No data are compared with, only conditions of the training split, if the
model has some, are used. What was found is written beside the checkpoint after each search; an interrupted command
goes on from there.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor

from benchmarks.drawn_points import Bench, Model
from sde_diffusion.commands import tuned_grids
from sde_diffusion.commands.app import resolved
from sde_diffusion.commands.conditions import for_items
from sde_diffusion.commands.tuned_grids import TUNED, TunedEntry, TunedWalk
from sde_diffusion.config import build
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.sampling import Sampler, tune_grid
from sde_diffusion.sde import TunedGrid
from sde_diffusion.storage import progress

log = logging.getLogger(__name__)

SUFFIX = "_tuned"
"""Added to a sampler's name for its row on the tuned grid."""


def add_rows(cfg: DictConfig) -> None:
    """Add the rows of the tuned grids to a configuration with `tune`.

    Raises:
        UserError: If there is nothing to tune for these settings.
    """
    if not cfg.tune:
        return
    if cfg.exact:
        raise UserError("exact=true has no model to find grids for: leave tune=true out")
    named, samplers = list(cfg.tuning.samplers), resolved(cfg.samplers)
    for name in named:
        if name not in samplers:
            raise UserError(
                f"tuning.samplers must be names of samplers: {', '.join(samplers)}; got {name}"
                f"{did_you_mean(name, samplers)}"
            )
    ours, theirs = range(cfg.tuning.seed, cfg.tuning.seed + cfg.tuning.n), [(s, s + cfg.n) for s in cfg.seeds]
    if any(first < ours.stop and ours.start < last for first, last in theirs):
        raise UserError(
            f"the samples that grids are found by must be others than those that are measured: tuning.seed="
            f"{cfg.tuning.seed} and seeds={list(cfg.seeds)} overlap"
        )
    with open_dict(cfg):
        for name in named:
            entry = samplers[name]
            cfg.samplers[name + SUFFIX] = {**entry, "sampler": {**entry["sampler"], "grid": TUNED}}


def tune(cfg: DictConfig, bench: Bench) -> None:
    """Find the grids that are not known yet; those that are stay as they are, unless `overwrite` is set.

    Raises:
        UserError: If a sampler cannot be tuned, or the file of grids is damaged or of another checkpoint.
    """
    wanted = [_Search(cfg, bench, model, name) for model in bench.models.values() for name in cfg.tuning.samplers]
    # Samplers that differ in their own grid only have the same tuned grid.
    searches = [one for i, one in enumerate(wanted) if all(one.differs(other) for other in wanted[:i])]
    missing = [(search, nfe) for search in searches for nfe in sorted(set(cfg.tuning.nfe)) if search.lacks(nfe)]
    if known := len(searches) * len(set(cfg.tuning.nfe)) - len(missing):
        log.info("%d grids are known already, and stay as they are (overwrite=true: find them again)", known)
    with progress.bar("finding grids", len(missing)) as shown:
        for search, nfe in missing:
            shown.update(name=f"finding a grid: {search.name}, {nfe} passes")
            search.find(nfe, shown)
            shown.update(advance=1)


class _Search:
    """The search for the grids of a sampler on a model."""

    def __init__(self, cfg: DictConfig, bench: Bench, model: Model, name: str) -> None:
        self.cfg, self.bench, self.model, self.name = cfg, bench, model, name
        self.key = (tuned_grids.identity(resolved(cfg.samplers[name].sampler)), resolved(cfg.guidance))
        self.walks: list[TunedWalk] = [] if cfg.overwrite else self._known(self._entries())
        self._target: Tensor | None = None
        self._conditions: dict[str, Tensor] = {}

    def _entries(self) -> list[TunedEntry]:
        return tuned_grids.read(self.model.ckpt, self.model.digest)

    def _known(self, entries: list[TunedEntry]) -> list[TunedWalk]:
        return next((one["walks"] for one in entries if (one["sampler"], one["guidance"]) == self.key), [])

    def differs(self, other: _Search) -> bool:
        """Whether it finds another grid than another search."""
        return (self.model.ckpt, self.key) != (other.model.ckpt, other.key)

    def lacks(self, nfe: int) -> bool:
        """Whether there is no grid for so many passes yet."""
        return all(walk["passes"] != nfe for walk in self.walks)

    def find(self, nfe: int, shown: progress.Bar) -> None:
        """Find the grid for so many passes, and write it beside the checkpoint.

        Raises:
            UserError: If the sampler has noise, or no times of a grid.
        """
        tuning, seeds = self.cfg.tuning, range(self.cfg.tuning.seed, self.cfg.tuning.seed + self.cfg.tuning.n)
        target, conditions = self._goal(seeds, shown)
        sampler = self._sampler(nfe)
        starts = [TunedGrid(tuned_grids.lists_of(self.walks))] if self.walks else []

        def report(walks: int, error: float) -> None:
            shown.update(text=f"walk {walks}, error {error:.3g}")

        try:
            found = tune_grid(
                sampler,
                self.model.denoiser,
                target,
                seeds,
                starts,
                batch_size=self.cfg.batch_size,
                callback=report,
                **conditions,
            )
        except ValueError as error:
            raise UserError(f"tuning.samplers: {self.name}, {nfe} passes: {error}") from error
        walk: TunedWalk = {
            "passes": nfe,
            "log_snr": found.log_snr,
            "error": found.error,
            "untuned_error": found.untuned,
            "target_passes": tuning.target,
            "seeds": [seeds[0], seeds[-1]],
            "split": "train",
        }
        self.walks = sorted([*self.walks, walk], key=lambda one: one["passes"])
        path = self._write()
        words = "%s, %d passes: error %.4g, on its own grid %.4g; %d walks; kept in %s"
        log.info(words, self.name, nfe, found.error, found.untuned, found.walks, path)

    def _write(self) -> Path:
        try:
            entries = self._entries()
        except UserError:
            if not self.cfg.overwrite:
                raise
            entries = []
        others = [one for one in entries if (one["sampler"], one["guidance"]) != self.key]
        mine: TunedEntry = {"sampler": self.key[0], "guidance": self.key[1], "walks": self.walks}
        return tuned_grids.write(self.model.ckpt, self.model.digest, [*others, mine])

    def _sampler(self, nfe: int) -> Sampler:
        entry = resolved(self.cfg.samplers[self.name])
        made: Sampler = build(self.bench.with_steps(entry, self.model, nfe), f"samplers.{self.name}.sampler")
        return made

    def _goal(self, seeds: range, shown: progress.Bar) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples in many passes, drawn once, and their conditions."""
        if self._target is None:
            shown.update(text=f"drawing the target, {self.cfg.tuning.target} passes")
            known = for_items(self.model.model, self.model.requested, self.bench.data.split("train"), len(seeds))
            self._conditions = {name: values.to(self.bench.device) for name, values in known.items()}
            sampler, parts = self._sampler(self.cfg.tuning.target), []
            for start in range(0, len(seeds), self.cfg.batch_size):
                some = slice(start, start + self.cfg.batch_size)
                own = {name: values[some] for name, values in self._conditions.items()}
                shape = (len(seeds[some]), *self.model.model.state_shape)
                parts.append(sampler(self.model.denoiser, shape, seeds[some], device=self.bench.device, **own).x)
            self._target = torch.cat(parts)
        return self._target, self._conditions
