"""Traversals and interpolations in standardised coordinates."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion.variational import Gaussian, MLPHierarchy
from sde_diffusion.variational.chain import LatentVariable, PosteriorSample
from sde_diffusion.variational.exploration import (
    _great_circle,
    coordinates,
    encoded,
    information,
    interpolate,
    traverse,
)
from sde_diffusion.variational.gaussian import DiagonalGaussian


def hierarchy() -> MLPHierarchy:
    torch.manual_seed(0)
    return MLPHierarchy([3], Gaussian(), [2, 2], width=8).eval()


X = torch.tensor([[0.7, -0.4, 0.2], [1.5, 2.0, -0.3]])


@torch.no_grad()
def test_an_interpolation_begins_and_ends_at_the_reconstructions_and_keeps_its_length():
    model = hierarchy()
    found = encoded(model, X)
    e = coordinates(found)
    way = interpolate(model, [one[:1] for one in e], [one[1:] for one in e], 5)
    ends = model.decode([latent.z for latent in found.latents])
    torch.testing.assert_close(way[0, [0, -1]], ends)
    middle = _great_circle(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]]), 3)[0, 1]
    torch.testing.assert_close(middle, torch.full((2,), 3 / math.sqrt(2)))


@pytest.mark.parametrize("change", [-1.0, -0.5, 0.0, 1.0, 2.0, "nearly opposite", "random"])
@pytest.mark.parametrize("dims", [2, 3, 64])
def test_ways_keep_lengths_and_ends(dims, change):
    """Lengths change linearly, steps are equally long in angle: also between opposite vectors, and from 0."""
    torch.manual_seed(0)
    a = torch.randn(20, dims)
    b = change * a if isinstance(change, float) else torch.randn(20, dims)
    b = 1e-4 * b - a if change == "nearly opposite" else b
    way = _great_circle(a, b, 5)
    torch.testing.assert_close(way[:, [0, -1]], torch.stack([a, b], 1), atol=1e-6, rtol=0)
    lengths = torch.lerp(a.norm(dim=1)[:, None], b.norm(dim=1)[:, None], torch.linspace(0, 1, 5))
    torch.testing.assert_close(way.norm(dim=2), lengths, atol=1e-6, rtol=1e-5)
    if change != 0:
        turns = torch.cosine_similarity(way[:, 1:].double(), way[:, :-1].double(), dim=2).clamp(max=1).acos()
        torch.testing.assert_close(turns, turns.mean(1, keepdim=True).expand(-1, 4), atol=1e-3, rtol=0)


def test_the_way_is_a_straight_line_in_one_dimension():
    ends = torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.4], [5.0]])
    expected = torch.tensor([[1.0, 0.2, -0.6, -1.4], [2.0, 3.0, 4.0, 5.0]])
    torch.testing.assert_close(_great_circle(*ends, 4)[..., 0], expected)


def test_information_without_a_closed_form_is_that_of_the_draws():
    """p of z_1 given a z_2 drawn after it, in closed form: within 4.5 standard errors, false alarms 1e-5 for each of 2.

    With z_1 ~ N(m, s^2), z_2 ~ N(c z_1, t^2) and p(z_1 | z_2) = N(b z_2, 1), E (z_1 - b z_2)^2 = (1 - b c)^2 (m^2 +
    s^2) + b^2 t^2.
    """
    torch.manual_seed(0)
    n, m, s, b, c, t = 40_000, torch.tensor([0.3, -1.0]), torch.tensor([0.5, 0.2]), 0.9, 0.8, 0.4
    q = DiagonalGaussian(m.expand(n, 2), s.log())
    z = q.draw(torch.randn(n, 2))
    above = c * z + t * torch.randn(n, 2)
    latent = LatentVariable(z, q, DiagonalGaussian(b * above, torch.zeros(2)), closed=False)
    (found,) = information(PosteriorSample([latent], torch.zeros(n)))
    square = (1 - b * c) ** 2 * (m**2 + s**2) + b**2 * t**2
    exact = 0.5 * square - 0.5 - s.log()
    assert float(((found - exact) / latent.kl_terms().std(0) * math.sqrt(n)).abs().max()) < 4.5


@torch.no_grad()
def test_a_traversal_passes_through_the_item_and_changes_one_coordinate():
    model = hierarchy()
    found = encoded(model, X[:1])
    e = coordinates(found)
    own = e[1][0, 1]
    moved = traverse(model, e, [(1, 1)], torch.stack([own, own + 1]))
    torch.testing.assert_close(moved[0, 0], model.decode([latent.z for latent in found.latents])[0])
    assert float((moved[0, 1] - moved[0, 0]).abs().max()) > 1e-4
    torch.testing.assert_close(torch.stack([one.sum() for one in information(found)]), found.kl()[:, 0])
