"""The calibration report of `sde_diffusion.restore`: the rank of the truth among the draws, by several statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.guidance import Operator
from sde_diffusion.metrics import Coverage, RankHistogram, coverage, rank_histogram
from sde_diffusion.modality import Modality, pictures

LEVELS = (0.5, 0.8, 0.95)
FALSE_ALARMS = 0.01
"""Probability that draws which are calibrated fail any of the tests."""
FEW = "too few items for a test, which takes 10 or more (items=)"
"""What the report says of fewer."""

_COMPONENTS, _FITTED = 3, 50  # principal components whose projections are ranked, and those of the fitted Gaussian

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Numbers of the draws, [N, n] or [N, n, *], and of the truth, [N] or [N, *], by name."""


@dataclass(frozen=True)
class Calibration:
    """Ranks and coverages of the truth.

    Attributes:
        ranks: The rank histogram of each statistic.
        covered: The coverages at `LEVELS` of each.
    """

    ranks: Mapping[str, RankHistogram]
    covered: Mapping[str, list[Coverage]]

    @property
    def failed(self) -> list[str]:
        """The statistics whose ranks are not uniform; of calibrated draws there are any in one of a hundred runs."""
        return [name for name, found in self.ranks.items() if not found.is_uniform]

    @property
    def _tested(self) -> list[str]:
        """The statistics with enough items for a test."""
        return [name for name, found in self.ranks.items() if found.p_value is not None]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        each = {
            name: {**asdict(found), "coverage": [asdict(one) for one in self.covered[name]]}
            for name, found in self.ranks.items()
        }
        return {"failed": self.failed, "false_alarms": FALSE_ALARMS, "statistics": each}

    def in_words(self) -> list[str]:
        """For the log."""
        if not (tested := self._tested):
            return [f"  calibration: {FEW}"]
        each = [
            f"{name} (chi-squared {found.chi_squared:.0f}, expected {found.dof}, allowed {found.threshold:.0f})"
            for name, found in self.ranks.items()
            if name in self.failed and found.threshold is not None
        ]
        allowed = f"in {len(tested)} statistics; false alarms: 1 of {round(1 / FALSE_ALARMS)} runs"
        if not each:
            lines = [f"  calibration: no test fails ({allowed})"]
        else:
            lines = [f"  calibration: the truth's rank among the draws is not uniform ({allowed}):"]
            lines += [f"    {one}" for one in each]
        shown = [f"{one.found:.2f} of {one.level:g}" for one in self.covered["values"] if one.found is not None]
        few = [one for one in self.covered["values"] if one.found is None]
        needs = f" (for {few[0].level:.0%} it takes n={round(2 / (1 - few[0].level)) - 1} draws)" if few else ""
        return [*lines, f"    the truth lies in central intervals of the draws: {', '.join(shown) or 'none'}{needs}"]

    def picture(self) -> Image.Image:
        """Histograms of ranks, each with the band of three standard deviations about equal counts; and coverages."""
        columns = min(4, len(self.ranks) + 1)
        rows = -(-(len(self.ranks) + 1) // columns)
        drawing, axes = pictures.figure((2.7 * columns + 0.3, 2.4 * rows + 0.3), (rows, columns))
        panels = [panel for row in axes for panel in row]
        for panel, (name, found) in zip(panels, self.ranks.items(), strict=False):
            _draw_ranks(panel, name, found)
        _draw_coverage(panels[len(self.ranks)], self.covered)
        for panel in panels[len(self.ranks) + 1 :]:
            panel.set_axis_off()
        words = "rank of the truth among the draws; grey: equal counts, 3 standard deviations"
        drawing.suptitle(words if self._tested else f"{words}\n{FEW}: such counts show little", fontsize=9)
        return pictures.render(drawing)


def calibration(
    operator: Operator,
    x: Tensor,
    y: Tensor,
    truth: Tensor,
    others: Tensor,
    modality: Modality,
    where: Tensor,
    noise: float,
) -> Calibration:
    """The report on draws, the truth of which is known.

    Args:
        operator: A.
        x: The draws, [N, n, *dims].
        y: The measurements, [N, *out].
        truth: [N, *dims].
        others: Other data, of the training split, for principal components and a Gaussian density, [M, *dims].
        modality: The kind of data; draws are compared as they are stored.
        where: Which numbers the measurement leaves open, bool [*dims].
        noise: Standard deviation of the measurement's noise.
    """
    draws = modality.as_data(x.flatten(0, 1)).reshape(x.shape)
    found = _statistics(operator, draws, y, modality.as_data(truth), others, where, noise)
    each = FALSE_ALARMS / len(found)
    return Calibration(
        {name: rank_histogram(some, own, each) for name, (some, own) in found.items()},
        {name: coverage(some, own, LEVELS) for name, (some, own) in found.items()},
    )


def _statistics(
    operator: Operator, draws: Tensor, y: Tensor, truth: Tensor, others: Tensor, where: Tensor, noise: float
) -> Statistics:
    """What is ranked. Each statistic is computed from an item, its measurement and `others`."""
    every = torch.cat([truth.unsqueeze(1), draws], 1)  # the truth first
    hole, own = every[:, :, where], others[:, where]
    found: dict[str, Tensor] = {"values": hole}
    if hole.shape[2] > 1:
        found["mean"] = hole.mean(2)
        _, _, axes = torch.linalg.svd(own - own.mean(0), full_matrices=False)
        for number, axis in enumerate(axes[:_COMPONENTS]):
            found[f"component {number + 1}"] = hole @ axis
    found["density"] = _log_density(every, others)
    if noise:
        rows = [operator(one) - measured for one, measured in zip(every, y, strict=True)]
        found["residual"] = torch.stack(rows).flatten(2).norm(dim=2)
    return {name: (values[:, 1:], values[:, 0]) for name, values in found.items()}


def _log_density(x: Tensor, others: Tensor) -> Tensor:
    """Log-density of items [N, n, *dims] under a Gaussian fitted to data [M, *dims], up to a constant.

    Its covariance has the data's principal components, at most one for ten items, and one variance for all others.
    """
    mean = others.flatten(1).mean(0)
    _, scales, axes = torch.linalg.svd(others.flatten(1) - mean, full_matrices=False)
    variances = scales.square() / max(1, len(others) - 1)
    kept = min(_FITTED, len(variances), max(1, len(others) // 10))
    rest = float(variances[kept:].sum()) / max(1, mean.numel() - kept) + 1e-4
    centred = x.flatten(2) - mean
    projected = centred @ axes[:kept].T
    inside = (projected.square() / (variances[:kept] + 1e-4)).sum(2)
    outside = (centred.square().sum(2) - projected.square().sum(2)).clamp(min=0) / rest
    density: Tensor = -0.5 * (inside + outside)
    return density


def _draw_ranks(panel: Any, name: str, found: RankHistogram) -> None:
    counts, error = np.asarray(found.counts), np.asarray(found.std_errors)
    places, equal = np.arange(len(counts)), counts.sum() / len(counts)
    panel.bar(places, counts, width=0.9, color="tab:blue" if found.is_uniform else "tab:red", alpha=0.75)
    edges = np.arange(len(counts) + 1) - 0.5
    low, high = (np.append(equal + sign * 3 * error, (equal + sign * 3 * error)[-1]) for sign in (-1, 1))
    panel.fill_between(edges, low, high, step="post", color="0.4", alpha=0.3, linewidth=0)
    panel.axhline(equal, color="0.3", linewidth=0.8)
    test = "" if found.threshold is None else f": {found.chi_squared:.0f}, allowed {found.threshold:.0f}"
    panel.set_title(f"{name}{test}", fontsize=9, color="black" if found.is_uniform else "tab:red")
    panel.set_xlabel("draws below the truth", fontsize=8)
    panel.set_ylim(bottom=0)
    panel.tick_params(labelsize=7)


def _draw_coverage(panel: Any, covered: Mapping[str, list[Coverage]]) -> None:
    panel.plot([0, 1], [0, 1], color="0.3", linewidth=0.8)
    for number, (name, coverages) in enumerate(covered.items()):
        known = [one for one in coverages if one.found is not None]
        shift = 0.006 * (number - len(covered) / 2)
        panel.errorbar(
            [one.level + shift for one in known],
            [one.found for one in known],
            [3 * (one.std_error or 0) for one in known],
            fmt="o",
            markersize=3,
            linewidth=1,
            label=name,
        )
    panel.set_title("coverage of central intervals", fontsize=9)
    panel.set_xlabel("nominal", fontsize=8)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.02)
    panel.legend(fontsize=6, loc="upper left")
    panel.tick_params(labelsize=7)
