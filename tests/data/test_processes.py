"""Signals of random processes against their distributions."""

import numpy as np
import torch

from sde_diffusion.data.processes import OrnsteinUhlenbeck


def covariance(data):
    """Of all C L numbers of a signal, written down entry by entry."""
    lag = np.abs(np.subtract.outer(np.arange(data.length), np.arange(data.length)))
    return np.kron(np.eye(data.channels), data.scale**2 * np.exp(-lag / data.correlation))


def test_covariance():
    """Whitened by the closed form, the D (D + 1)/2 second moments are standard normal (D = 24, n = 20,000).

    The largest of 300 lies beyond 5 once in 6,000 times.
    """
    data = OrnsteinUhlenbeck(channels=2, length=12, scale=0.4, correlation=3.0, n_train=20_000, n_val=1, n_test=1)
    x = data.tensor("train").double().flatten(1).numpy()
    white = np.linalg.solve(np.linalg.cholesky(covariance(data)), x.T)
    moments = white @ white.T / len(x) - np.eye(len(white))
    z = moments * np.sqrt(len(x)) / np.sqrt(1 + np.eye(len(white)))
    assert np.abs(z).max() < 5
    assert np.abs(white.mean(1) * np.sqrt(len(x))).max() < 5
    assert data.modality.kind == "signals of shape [2, 12]"


def test_density():
    data = OrnsteinUhlenbeck(channels=2, length=7, scale=0.2, correlation=5.0)
    x = data.sample(6, torch.Generator().manual_seed(1))
    exact = torch.distributions.MultivariateNormal(torch.zeros(14, dtype=torch.float64), torch.tensor(covariance(data)))
    torch.testing.assert_close(data.log_prob(x), exact.log_prob(x.flatten(1)), rtol=1e-10, atol=1e-10)
