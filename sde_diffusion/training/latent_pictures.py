"""Pictures of what the latent variables of an autoencoder stand for."""

from __future__ import annotations

import torch
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.modality import Modality
from sde_diffusion.variational import Autoencoder, latent_noise
from sde_diffusion.variational.exploration import (
    coordinates,
    encoded,
    information,
    interpolate,
    most_informative,
    traverse,
)

_TRAVERSED, _PAIRS, _STEPS, _REACH = 10, 8, 9, 2.5
"""Dimensions, pairs of items, steps of each, and the end of traversals in standard deviations."""


def latent_pictures(model: Autoencoder, modality: Modality, x: Tensor) -> dict[str, Image]:
    """Reconstructions beside the data, traversals of the dimensions with most information, and interpolations.

    Traversals start at the first item, with one number of the standardised latent variables replaced. For the way of
    the interpolations see `variational.exploration.interpolate`.

    Args:
        model: The model.
        modality: The kind of its data, which draws them.
        x: Data, [B, *shape].

    Returns:
        Pictures by name; of latent variables that have no standardised coordinates, such as codes, reconstructions
        alone.
    """
    found = encoded(model, x)
    decoded = model.decode([latent.z for latent in found.latents])
    drawn = {"reconstructions": modality.beside(decoded, x, names=("reconstructions", "data"))}
    e = coordinates(found)
    if e is None:
        return drawn
    noise = latent_noise(model, range(len(x)), x.device, x.dtype)
    amounts = information(model.infer(x, [stream.normal(0) for stream in noise]))
    places = most_informative(amounts, _TRAVERSED)
    names = [f"z_{t + 1}[{i}]: {float(amounts[t].flatten()[i]):.2f} nats" for t, i in places]
    values = torch.linspace(-_REACH, _REACH, _STEPS)
    moved = traverse(model, [one[:1] for one in e], places, values)
    drawn["traversals"] = modality.draw_rows(moved, names, [f"{value:+.1f}" for value in values.tolist()])
    if pairs := min(_PAIRS, len(x) // 2):
        between = interpolate(model, [v[:pairs] for v in e], [v[pairs : 2 * pairs] for v in e], _STEPS)
        ways = torch.cat([x[:pairs, None], between, x[pairs : 2 * pairs, None]], 1)
        shares = [f"{100 * step / (_STEPS - 1):g}%" for step in range(_STEPS)]
        rows = [f"{pair + 1}" for pair in range(pairs)]
        drawn["interpolations"] = modality.draw_rows(ways, rows, ["data", *shares, "data"])
    return drawn
