"""Estimators of the divergence on given Jacobians: means, variances by their closed forms, exactness, streams."""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.density import ExactTrace, Hutchinson, HutchPlusPlus
from sde_diffusion.density.trace import PROBE_DRAWS, TRACES
from sde_diffusion.sampling import Noise

D, MANY = 6, 40_000
JACOBIAN = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TRACE = float(JACOBIAN.diagonal().sum())
SYMMETRIC = 0.5 * (JACOBIAN + JACOBIAN.T)


def products(jacobian: Tensor):
    """Jacobian's transpose [D, D] or [B, D, D] times vectors [K, B or 1, *dims], which keep their shape."""
    return lambda v: torch.einsum("...ij,k...i->k...j", jacobian, v.flatten(2)).reshape(v.shape)


def estimates(trace, jacobian: Tensor = JACOBIAN, n: int = MANY) -> Tensor:
    """An estimate for each of n seeds, [n, columns]."""
    noise = Noise(range(n), (jacobian.shape[-1],), dtype=torch.float64)
    return trace.divergence(products(jacobian.expand(n, -1, -1)), trace.vectors(noise))


@pytest.mark.parametrize("chunk", [1, 4, 6, 64])
def test_exact(chunk):
    """Every sample its own Jacobian, in one, two and six parts."""
    jacobians = torch.randn(5, D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    trace = ExactTrace(chunk)
    vectors = trace.vectors(Noise(range(5), (1, 2, 3), dtype=torch.float64))
    out = trace.divergence(lambda v: products(jacobians)(v.expand(-1, 5, -1, -1, -1)), vectors)
    expected = torch.stack([torch.linalg.eigvals(j).real.sum() for j in jacobians])
    torch.testing.assert_close(out, expected.unsqueeze(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "trace",
    [Hutchinson(), Hutchinson(3), Hutchinson(gaussian=True), HutchPlusPlus(3), HutchPlusPlus(6), HutchPlusPlus(9)],
    ids=["signs", "three", "gaussian", "hutch++", "hutch++ 6", "hutch++ 9"],
)
def test_means(trace):
    """Within 4.5 standard errors of the trace: a false alarm once in 150 000 times each. The columns are independent,
    and their means' errors shrink as they should.
    """
    columns = estimates(trace)
    mean = columns.mean(1)
    assert abs(float(mean.mean()) - TRACE) < 4.5 * float(mean.std()) / MANY**0.5
    if columns.shape[1] > 1:
        off = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
        assert off.abs().max() < 4.5 / MANY**0.5


def test_variances_are_the_closed_forms():
    """Normal probes: 2 |S|_F^2, S the Jacobian's symmetric part; signs: less twice the diagonal's square sum."""
    full = 2 * float(SYMMETRIC.square().sum())
    signs = full - 2 * float(JACOBIAN.diagonal().square().sum())
    assert float(estimates(Hutchinson(gaussian=True)).var()) == pytest.approx(full, rel=0.05)
    assert float(estimates(Hutchinson()).var()) == pytest.approx(signs, rel=0.05)


def test_signs_are_exact_on_a_diagonal():
    diagonal = torch.diag(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(
        estimates(Hutchinson(2), diagonal, 7), torch.full((7, 2), 2.5).double(), rtol=1e-14, atol=0
    )


def decaying(values) -> Tensor:
    """A matrix, not symmetric, with these singular values and a trace that is not small."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=generator)).Q for _ in range(2))
    values = torch.as_tensor(values, dtype=torch.float64)
    return (left[:, : len(values)] * values) @ (left[:, : len(values)] + 0.3 * right[:, : len(values)]).T


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_hutch_plus_plus_is_exact_for_low_rank(rank):
    low = decaying(range(1, rank + 1))
    exact = estimates(HutchPlusPlus(3 * rank), low, 50)
    torch.testing.assert_close(exact, low.diagonal().sum().expand(50, 1), rtol=1e-9, atol=1e-9)
    if rank > 1:  # and not with fewer
        assert estimates(HutchPlusPlus(3 * rank - 3), low, 50).std() > 1e-3


def test_hutch_plus_plus_varies_less_where_few_directions_count():
    """As many products as 12 Hutchinson probes."""
    quickly = decaying([4.0**-k for k in range(12)])
    assert (
        estimates(HutchPlusPlus(12), quickly, 4000).var()
        < 0.01 * estimates(Hutchinson(12), quickly, 4000).mean(1).var()
    )


def test_hutch_plus_plus_of_nothing():
    """A Jacobian of zero gives zero, not a number that is none."""
    assert estimates(HutchPlusPlus(3), torch.zeros(4, 4).double(), 5).tolist() == [[0.0]] * 5


@pytest.mark.parametrize("name", ["hutchinson", "gaussian", "hutch++"])
def test_probes_are_functions_of_the_seed_alone_and_of_no_other_noise(name):
    trace = TRACES[name](3)
    noise = Noise(range(2000), (2, 3), dtype=torch.float64)
    vectors = trace.vectors(noise)
    alone = trace.vectors(Noise([17], (2, 3), dtype=torch.float64))
    assert torch.equal(alone[:, 0], vectors[:, 17])
    assert not torch.equal(vectors[:, 17], vectors[:, 18])
    # Walks count their draws from 0: the latent and some steps.
    flat = vectors.flatten(1)
    for draw in (0, 1, 2, 1000):
        walk = noise.normal(draw).flatten()
        correlation = (flat @ walk) / (flat.norm(dim=1) * walk.norm())
        assert correlation.abs().max() < 4.5 / len(walk) ** 0.5
    assert PROBE_DRAWS > 1e9  # more steps than any walk has


def test_the_names():
    assert set(TRACES) == {"hutchinson", "gaussian", "hutch++", "exact"}
    noise = Noise(range(100), (3,), dtype=torch.float64)
    assert set(TRACES["hutchinson"](2).vectors(noise).unique().tolist()) == {-1.0, 1.0}
    assert len(TRACES["gaussian"](2).vectors(noise).unique()) == 600
    assert TRACES["hutch++"](6).share == 2


def test_what_is_refused():
    for make in (Hutchinson, HutchPlusPlus, *(TRACES[name] for name in ("hutchinson", "gaussian", "hutch++"))):
        for probes in (0, -3, 1.5, math.nan, math.inf):
            with pytest.raises(ValueError, match="probes must be an integer of at least 1"):
                make(probes)
    with pytest.raises(ValueError, match="multiple of 3; got 4"):
        HutchPlusPlus(4)
    with pytest.raises(ValueError, match="needs at least 3 dimensions; got 2"):
        HutchPlusPlus(9).vectors(Noise([0], (2,)))
    with pytest.raises(ValueError, match="chunk must be an integer of at least 1"):
        ExactTrace(0)
