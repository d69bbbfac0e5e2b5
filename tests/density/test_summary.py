"""Figures of items' scores, with items that no solver brought to the prior."""

import json
import math

import pytest
import torch

from sde_diffusion import VPSDE, GaussianDecoder, GaussianDenoiser, GaussianPrior, LevelDecoder
from sde_diffusion.commands.outliers import compare
from sde_diffusion.density.scoring import SCORES, Scoring
from sde_diffusion.density.summary import mean_and_error, plus_minus, quoted, summary
from sde_diffusion.modality.levels import from_levels


def scores(n):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, generator=generator, dtype=torch.float64) for name in SCORES}


def lost(levels, n):
    """Scores of items that no solver brought to the prior."""
    x = torch.zeros(n, 5) if levels is None else from_levels(torch.arange(n)[:, None].expand(n, 5), levels)
    sde = VPSDE()
    scoring = Scoring(
        levels=levels,
        decoder=GaussianDecoder() if levels is None else LevelDecoder(levels),
        bound={"steps": None, "draws": 4},
    )
    denoiser = GaussianDenoiser(sde, torch.zeros(5), 0.5)
    return scoring.impossible(denoiser, x, range(n), GaussianPrior.standard(sde), rows=n)


@pytest.mark.parametrize(("levels", "unit"), [(17, math.log(2)), (None, 1.0)])
def test_impossible_items_are_counted_and_left_out(levels, unit):
    some, gone = scores(30), lost(levels, 4)
    report = summary({name: torch.cat([some[name], gone[name]]) for name in some}, 5, levels)
    key = "nats_per_dim" if levels is None else "bits_per_dim"
    values = -some["log_prob"] / (5 * unit)
    assert (report["n"], report["impossible"]) == (30, 4)
    assert report[key] == pytest.approx(float(values.mean()))
    assert report["std_error"] == pytest.approx(float(values.std()) / 30**0.5)
    # The bound is there for all of them.
    assert report["elbo"][key] == pytest.approx(float(-torch.cat([some["elbo"], gone["elbo"]]).mean()) / (5 * unit))
    json.dumps(report, allow_nan=False)
    # To distinguish data, they count as less likely than anything else.
    found = compare(some["log_prob"], gone["log_prob"])
    assert (found["auroc"], found["auroc_typicality"], found["below"]) == (1, 1, 1)


def test_of_one_item_and_of_none():
    one = summary({name: values[:1] for name, values in scores(1).items()}, 5, 17)
    assert one["std_error"] is None
    none = summary(lost(17, 3), 5, 17)
    assert (none["bits_per_dim"], none["n"], none["impossible"], none["nfe"]["max"]) == (None, 0, 3, None)
    for report in (one, none):
        json.dumps(report, allow_nan=False)
    assert mean_and_error(torch.tensor([2.0])) == (2.0, None)
    assert [plus_minus(*pair) for pair in ((None, None), (2.0, None), (2.0, 0.25))] == [
        "nothing",
        "2.0000",
        "2.0000 ± 0.2500",
    ]


@pytest.mark.parametrize("levels", [None, 17])
def test_a_flow_without_a_value_for_some_items_is_not_quoted_beside_a_bound(levels):
    scores = {
        "log_prob": torch.tensor([-1.0, -math.inf, -1.2]),
        "elbo": torch.tensor([-2.0, -9.0, -2.1]),
        "nfe": torch.ones(3),
    }
    assert quoted(summary(scores, 4, levels), levels)["by"] == "elbo"
    alone = {name: values for name, values in scores.items() if name != "elbo"}
    assert "without 1" in quoted(summary(alone, 4, levels), levels)["because"]
