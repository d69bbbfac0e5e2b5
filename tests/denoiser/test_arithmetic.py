"""Beliefs are combined and moved as the spellings of one belief, without losing digits, whatever computed them."""

import itertools
import math

import pytest
import torch
from reference_paths import PATHS, scales

from sde_diffusion import MLP, VPSDE, GaussianDenoiser, NetworkDenoiser, Prediction
from sde_diffusion.denoiser import PARAMETERIZATIONS

SPELLINGS = ("x0", "eps", "score", "velocity")
SHAPE = (4, 3)


def beliefs(sde, t, dtype=torch.float64):
    """Of networks of two parameterizations and of closed forms, two each, at one state."""
    generator = torch.Generator().manual_seed(0)
    x = (float(sde.alpha(t.max())) + sde.sigma(t)[:, None]) * torch.randn(
        SHAPE, generator=generator, dtype=torch.float64
    )
    x = x.to(dtype)
    found = []
    for name in ("edm", "eps"):
        skip, scale = PARAMETERIZATIONS[name]().coefficients(sde, t, 0.5)
        outputs = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(2))
        found += [Prediction(sde, x, t, output, skip, scale) for output in outputs]
    return found + [GaussianDenoiser(sde, [mean] * 3, std)(x, t) for mean, std in ((0.3, 0.5), (-0.4, 0.7))]


@pytest.mark.parametrize("path", PATHS)
def test_combinations_of_any_two_kinds_keep_all_digits(path):
    """In float32 each spelling is as near to the combination in float64 as one rounding of its terms allows."""
    sde, *_, times = PATHS[path]
    t = torch.tensor(times, dtype=torch.float64)
    weights = torch.tensor([0.3, -0.5, 3.0, 1.0], dtype=torch.float64)
    exact, single = beliefs(sde, t), beliefs(sde, t, torch.float32)
    for a, b in itertools.product(range(6), range(0, 6, 2)):
        for w in (3.0, weights):
            rough = Prediction.lerp(single[a], single[b], w)
            column = torch.as_tensor(w, dtype=torch.float64).reshape(-1, 1)
            for name in SPELLINGS:
                one, two = (getattr(exact[i], name) for i in (a, b))
                want, found = (1 - column) * one + column * two, getattr(rough, name)
                assert found.dtype == torch.float32
                # What rounding the float32 state alone does to each belief, and that of the combination.
                size = sum(abs(v - getattr(single[i], name).double()) for i, v in ((a, one), (b, two)))
                allowed = (1 + column.abs()) * size + 3e-7 * ((1 - column).abs() * one.abs() + column.abs() * two.abs())
                assert bool(((found.double() - want).abs() <= allowed + 1e-30).all()), (path, a, b, name)


@pytest.mark.parametrize("w", [0, 1, 0.0, 1.0, torch.tensor(0.0), torch.tensor([1.0, 0.0, 1.0, 1.0])])
def test_the_ends_are_the_beliefs_themselves(w):
    for a, b in itertools.permutations(beliefs(VPSDE(), torch.full((4,), 0.3, dtype=torch.float64), torch.float32), 2):
        found = Prediction.lerp(a, b, w)
        first = (torch.as_tensor(w) == 0).expand(4).reshape(4, 1)
        for name in SPELLINGS:
            assert torch.equal(getattr(found, name), torch.where(first, getattr(a, name), getattr(b, name)))


def test_weights_that_are_none():
    a, b, *_ = beliefs(VPSDE(), torch.full((4,), 0.3, dtype=torch.float64))
    for w, message in (("1", "w must be a number; got"), (torch.ones(3), r"w must be a number or \[4\].*got \[3\]")):
        with pytest.raises(ValueError, match=message):
            Prediction.lerp(a, b, w)


@pytest.mark.parametrize("path", PATHS)
def test_a_shift_is_one_of_every_spelling(path):
    """Against the definitions of the path: eps = (x - alpha x0) / sigma, score = -eps / sigma, velocity."""
    sde, *_, times = PATHS[path]
    c = scales(path)
    delta = torch.tensor([[0.1, -2.0, 1e-3]], dtype=torch.float64) * c["sigma"].square() / (c["alpha"] + c["sigma"])
    for belief in beliefs(sde, torch.tensor(times, dtype=torch.float64)):
        moved = belief.shifted(delta)
        changes = {
            "x0": delta,
            "eps": -c["alpha"] / c["sigma"] * delta,
            "score": c["alpha"] / c["sigma"] ** 2 * delta,
            "velocity": (c["alpha_rate"] - c["alpha"] * c["sigma_rate"] / c["sigma"]) * delta,
        }
        for name, change in changes.items():
            torch.testing.assert_close(getattr(moved, name), getattr(belief, name) + change, rtol=1e-9, atol=1e-12)
        assert moved.shifted(-delta).x0.sub(belief.x0).abs().max() < 1e-12


def test_parts_of_a_batch_and_beliefs_without_a_graph():
    x = torch.randn(*SHAPE, requires_grad=True)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9])
    denoiser = NetworkDenoiser(VPSDE(), MLP([3], width=8, depth=1, embedding_dim=8))
    for time in (0.4, t):
        belief = denoiser(x, time)
        first, second = belief.chunk(2)
        for name in SPELLINGS:
            parts = torch.cat([getattr(first, name), getattr(second, name)])
            assert torch.equal(parts, getattr(belief, name))
            assert parts.requires_grad
            assert not getattr(belief.detach(), name).requires_grad
    assert torch.equal(second.x_t, x[2:])
    assert math.isclose(float(denoiser(x, t).chunk(2)[1].t[0]), 0.5, rel_tol=1e-6)
