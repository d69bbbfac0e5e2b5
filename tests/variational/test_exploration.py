"""Traversals and interpolations in standardised coordinates."""

from __future__ import annotations

import math

import torch

from sde_diffusion.variational import Gaussian, MLPHierarchy
from sde_diffusion.variational.exploration import coordinates, encoded, information, interpolate, traverse


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
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    from sde_diffusion.variational.exploration import _great_circle

    middle = _great_circle(a, b, 3)[0, 1]
    torch.testing.assert_close(middle, torch.full((2,), 3 / math.sqrt(2)))


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
