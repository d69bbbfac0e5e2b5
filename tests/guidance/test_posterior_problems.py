"""The problems of benchmarks.posteriors: exact draws have no distance and uniform ranks, biased ones are noticed."""

import pytest
import torch

from benchmarks.posterior_problems import Distances, Problem, rank_statistics

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
