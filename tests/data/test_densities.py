"""Two-dimensional densities: normalisation, samples against the density, and independent forms."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sde_diffusion.data import Checkerboard, Moons, Pinwheel, Ring, SwissRoll

DENSITIES = [Ring, Checkerboard, Moons, pytest.param(SwissRoll, marks=pytest.mark.slow), Pinwheel]
# one false alarm in a hundred thousand for each of the five, were the seed not fixed
FALSE_ALARM = 1e-5


def _cells(half, fine):
    """Midpoints of fine x fine cells of [-half, half]², float64 [fine², 2], and the cells' area."""
    side = 2 * half / fine
    axis = (torch.arange(fine, dtype=torch.float64) + 0.5) * side - half
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1), side**2


# The midpoint rule is exact to rounding for smooth densities once cells are finer than about half a standard
# deviation, and for the board where the squares' edges fall between cells.
@pytest.mark.parametrize("cls", DENSITIES)
def test_density_integrates_to_one(cls):
    points, area = _cells(2.0, 480 if cls is Pinwheel else 240)
    total = cls().log_prob(points).exp().sum().item() * area
    # twisting makes the pinwheel's outermost arms thin
    assert total == pytest.approx(1, abs=1e-6 if cls is Pinwheel else 1e-9)


@pytest.mark.parametrize("cls", DENSITIES)
def test_samples_follow_the_density(cls):
    """χ² of 40,000 points in the cells of a 24 x 24 grid, with small cells merged."""
    density = cls(n_train=40_000, n_val=1, n_test=1)
    x = density.tensor("train").double()
    points, area = _cells(1.5, 240)
    fine = density.log_prob(points).exp().reshape(24, 10, 24, 10).sum((1, 3)) * area
    expected = 40_000 * np.append(fine.flatten(), max(0.0, 1 - fine.sum().item()))
    cell = ((x + 1.5) * 8).floor().long()
    inside = ((cell >= 0) & (cell < 24)).all(-1)
    index = torch.where(inside, cell[:, 0] * 24 + cell[:, 1], 576)
    observed = torch.bincount(index, minlength=577).double().numpy()
    small = expected < 10
    assert observed[expected < 1e-9].sum() == 0
    observed = np.append(observed[~small], observed[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    kept = expected > 0
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2.sf(statistic, kept.sum() - 1) > FALSE_ALARM


def test_ring_is_scipys_mixture():
    x = np.random.default_rng(0).normal(size=(50, 2))
    angles = 2 * np.pi * np.arange(5) / 5
    parts = [stats.multivariate_normal((0.5 * np.cos(a), 0.5 * np.sin(a)), 0.2**2).pdf(x) for a in angles]
    found = Ring(components=5, radius=0.5, noise=0.2).log_prob(torch.from_numpy(x))
    assert np.allclose(found, np.log(np.mean(parts, 0)), rtol=1e-13, atol=1e-13)


# Adaptive quadrature of each curve in its textbook form, against the fixed rule; far points too, where p underflows
# nothing but the integrand is far down its tail.
def _moon_integrand(theta, x, noise, moon):
    cx, cy = (math.cos(theta), math.sin(theta)) if moon == 0 else (1 - math.cos(theta), 0.5 - math.sin(theta))
    return stats.norm.pdf(x[0], 0.6 * (cx - 0.5), noise) * stats.norm.pdf(x[1], 0.6 * (cy - 0.25), noise)


def test_moons_against_adaptive_quadrature():
    density = Moons(noise=0.1)
    for x in ([0.0, 0.0], [0.3, 0.4], [-0.6, -0.1], [0.9, 0.2]):
        parts = [
            integrate.quad(_moon_integrand, 0, math.pi, (x, 0.1, moon), epsabs=1e-13, epsrel=1e-11, limit=200)[0]
            for moon in (0, 1)
        ]
        expected = math.log(sum(parts) / (2 * math.pi))
        assert density.log_prob(torch.tensor([x])).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert density.log_prob(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-9)


def test_swiss_roll_against_a_dense_sum():
    """A mixture over 200,001 equally spaced places on the spiral, by the trapezoid rule."""
    a = np.linspace(1.5 * np.pi, 4.5 * np.pi, 200_001)
    centres = np.stack((a * np.cos(a), a * np.sin(a)), -1) / 15
    weights = np.full(len(a), 1 / (len(a) - 1))
    weights[[0, -1]] /= 2
    for x in ([0.1, 0.3], [0.0, 0.0], *centres[[0, 60_123, 100_000, 100_300, -1]]):
        exponent = -0.5 * ((centres - x) ** 2).sum(-1) / 0.03**2
        top = exponent.max()
        expected = top + math.log((weights * np.exp(exponent - top)).sum()) - math.log(2 * math.pi * 0.03**2)
        found = SwissRoll().log_prob(torch.from_numpy(np.array([x])))
        assert found.item() == pytest.approx(expected, rel=1e-7)


def test_pinwheel_by_change_of_variables():
    """p(x) = p(w) / |det dx/dw| with autograd's Jacobian of the map written out for a single arm."""
    density = Pinwheel(arms=1, radial=0.2, tangential=0.3, twist=0.4)

    def forward(w):
        turn = 0.4 * torch.exp(torch.linalg.vector_norm(w))
        spin = torch.stack((turn.cos(), -turn.sin(), turn.sin(), turn.cos())).view(2, 2)
        return spin @ w / 2

    base = torch.distributions.Normal(
        torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.2, 0.3], dtype=torch.float64)
    )
    for w in torch.tensor([[1.0, 0.0], [0.7, 0.4], [1.4, -0.5]], dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(forward, w)
        expected = base.log_prob(w).sum() - jacobian.det().abs().log()
        assert density.log_prob(forward(w)[None]).item() == pytest.approx(expected.item(), rel=1e-12)


def test_checkerboard_squares():
    board = Checkerboard()
    inside = torch.tensor([[-0.9, -0.9], [-0.4, -0.4], [0.6, -0.3], [0.9, 0.9]])
    outside = torch.tensor([[-0.9, -0.4], [0.9, -0.9], [1.1, 1.1], [-1.1, 0.1]])
    assert board.log_prob(inside).tolist() == [math.log(0.5)] * 4
    assert board.log_prob(outside).tolist() == [-math.inf] * 4


@pytest.mark.parametrize("cls", DENSITIES)
def test_data_fill_the_models_range(cls):
    x = cls().tensor("train")
    assert (x.abs() <= 1).all(-1).float().mean() > 0.97
    assert x.abs().amax() < 1.6
    assert x.std(0).amin() > 0.2


def test_points_depend_on_their_seed_alone():
    one, two = Moons(n_train=10, n_val=5, n_test=5), Moons(n_train=10, n_val=50, n_test=5, seed=9, batch_size=3)
    assert torch.equal(one.tensor("train"), two.tensor("train"))
    assert torch.equal(one.tensor("test"), two.tensor("test"))
    assert not torch.equal(one.tensor("train"), Moons(n_train=10, n_val=5, n_test=5, split_seed=1).tensor("train"))
    assert not torch.equal(one.tensor("train")[:5], one.tensor("val"))


@pytest.mark.parametrize(
    ("cls", "wrong", "message"),
    [
        (Ring, {"noise": 0.0}, "noise must be positive; got 0.0"),
        (Ring, {"n_val": 0}, "n_val must be an integer of at least 1; got 0"),
        (Checkerboard, {"cells": 3}, "cells must be even and at least 2; got 3"),
        (Moons, {"noise": math.nan}, "noise must be positive; got nan"),
        (Pinwheel, {"arms": 0}, "arms must be an integer of at least 1; got 0"),
    ],
)
def test_arguments_out_of_range(cls, wrong, message):
    with pytest.raises(ValueError, match=message):
        cls(**wrong)
