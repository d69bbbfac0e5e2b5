"""The problems of benchmarks.posteriors: exact draws have no distance and uniform ranks, biased ones are noticed."""

import pytest
import torch

from benchmarks import posteriors
from benchmarks.posterior_problems import Distances, Problem, rank_statistics, spread_ratio

WANTED = ("moment matching", "DPM-Solver++ 2M 20")
PROBLEM = Problem.random(3, 2, 2, 0.2, seed=0)


def exact(y, n, seed=0):
    """n exact draws for each y, [Y, n, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [PROBLEM.prior.condition(PROBLEM.operator, one, PROBLEM.noise).sample(n, generator) for one in y]
    )


def test_exact_draws_have_no_distance():
    """Errors of 4,000 draws: 0.016 in the mean, about 0.02 in the variance; limits at five times that."""
    _, y = PROBLEM.measure(4, seed=1)
    draws = exact(y, 4000, seed=100)
    found = Distances.of(draws, PROBLEM, y)
    assert found.mean < 0.08
    assert abs(found.covariance - 1) < 0.12
    assert found.sliced_wasserstein < 0.1
    assert found.weights < 0.05
    shifted = Distances.of(draws + 0.3, PROBLEM, y)
    assert shifted.mean > 0.3
    assert shifted.sliced_wasserstein > 0.3
    assert Distances.of(1.5 * draws, PROBLEM, y).covariance > 2
    # E ||x + d - mu||^2 = tr C + d^2; here tr C is estimated from the draws.
    trace = float(draws.var(1).sum(1).mean())
    assert spread_ratio(draws, y, PROBLEM) == pytest.approx(1, abs=0.06)
    assert spread_ratio(draws + 0.3, y, PROBLEM) == pytest.approx(1 + 3 * 0.3**2 / trace, abs=0.06)


def test_rows(monkeypatch):
    """Every column, of exact draws and of ones that are too wide; each is timed in each round."""
    turns = []

    def wide(y):
        turns.append(len(y))
        x, *counts = PROBLEM.draw(y)
        return 2 * x, *counts

    monkeypatch.setattr(posteriors, "ours", lambda problem: [("exact", "drawn", problem.draw), ("wide", "drawn", wide)])
    for other in ("azulas", "deepinvs"):
        monkeypatch.setattr(posteriors, other, lambda problem, walks: [])
    exact_row, wide_row = posteriors.rows(PROBLEM, measurements=2, draws=200, calibrated=60, rounds=3)
    assert turns == [128, 128, 128, 400, 60 * 19]
    assert exact_row.keys() == wide_row.keys()
    assert exact_row["spread"] == pytest.approx(1, abs=0.15)  # five standard errors of 1,140 draws
    assert wide_row["spread"] > 2
    assert wide_row["rank_likelihood"] > 60 > exact_row["rank_likelihood"]
    assert wide_row["seconds"] > 0
    assert posteriors.table([exact_row, wide_row]).count("| wide |") == 1


def test_a_row_of_ours(monkeypatch):
    """Moment matching in 20 steps is nearly exact; draws of the prior have a spread of 4.9, and 147 for the ranks."""
    ours = posteriors.ours
    monkeypatch.setattr(posteriors, "ours", lambda problem: [one for one in ours(problem) if one[:2] == WANTED])
    for other in ("azulas", "deepinvs"):
        monkeypatch.setattr(posteriors, other, lambda problem, walks: [])
    (row,) = posteriors.rows(PROBLEM, measurements=2, draws=4, calibrated=40, rounds=0)
    assert (row["library"], row["passes"], row["gradients"]) == ("sde_diffusion", 20, 40)
    assert row["spread"] == pytest.approx(1, abs=0.3)
    assert row["rank_likelihood"] < 60


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (lambda x, y: x, ()),
        (lambda x, y: x + 0.5 * (x - x.mean(1, keepdim=True)), ("likelihood", "posterior")),
        (lambda x, y: x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))], ()),
        (lambda x, y: x.roll(1, 0), ("likelihood", "posterior")),  # draws from another measurement's posterior
    ],
    ids=["exact", "too wide", "in another order", "of another measurement"],
)
def test_ranks_of_exact_draws_are_uniform(change, noticed):
    """chi-squared with 19 degrees of freedom: above 60 once in 300,000 for each of the four statistics."""
    x0, y = PROBLEM.measure(300, seed=2)
    found = rank_statistics(change(exact(y, 19, seed=3), y), x0, y, PROBLEM)
    if not noticed:
        assert max(found.values()) < 60
    for name in noticed:
        assert found[name] > 60, found
