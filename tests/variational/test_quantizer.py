"""Vector quantisation against k-means, and the gradients that pass through it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from sklearn.cluster import KMeans

from sde_diffusion.variational import VectorQuantizer, perplexity


def data(n: int = 400, dim: int = 3) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_without_memory_it_is_k_means():
    x = data()
    quantizer = VectorQuantizer(8, 3, decay=0.0, restart=0.0).double().train()
    quantizer.codebook.copy_(x[:8])
    quantizer.started.fill_(True)
    for _ in range(5):
        quantizer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged after five steps
        found = KMeans(8, init=x[:8].numpy(), n_init=1, max_iter=5, tol=0, algorithm="lloyd").fit(x.numpy())
    torch.testing.assert_close(quantizer.codebook, torch.from_numpy(found.cluster_centers_), atol=1e-12, rtol=0)


def test_gradients_pass_straight_through():
    x = data(10).requires_grad_()
    quantizer = VectorQuantizer(4, 3).double().eval()
    quantizer.codebook.copy_(data(4) + 1)
    upstream = data(10) * 2
    (quantizer(x).z * upstream).sum().backward()
    torch.testing.assert_close(x.grad, upstream)
    found = quantizer(x.detach())
    torch.testing.assert_close(found.z, quantizer.lookup(found.index))


def test_almost_all_codes_are_used():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(256, 4, decay=0.9).train()
    x = torch.randn(8192, 4)
    for start in range(0, 8192, 1024):
        quantizer(x[start : start + 1024])
    counts = torch.bincount(quantizer.eval()(x).index, minlength=256)
    assert int((counts > 0).sum()) > 0.9 * 256
    assert float(perplexity(counts)) > 0.6 * 256


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_leaves_no_trace(bad):
    torch.manual_seed(0)
    quantizer, x = VectorQuantizer(8, 3).train(), data().float()
    quantizer(torch.cat([x[:1] * bad, x[1:]]))
    for _ in range(3):
        quantizer(x)
    assert quantizer.codebook.isfinite().all()
    assert len(quantizer.index_of(x).unique()) == 8


@pytest.mark.parametrize("places", [[100.0], [300.0, -300.0]], ids=["together", "two groups"])
def test_codes_far_from_zero_are_told_apart(places):
    codes = torch.tensor(places).repeat(256 // len(places))[:, None] + 0.1 * data(256, 3).float()
    quantizer = VectorQuantizer(256, 3)
    quantizer.codebook.copy_(codes)
    assert torch.equal(quantizer.index_of(codes), torch.arange(256))
