"""What latent variables stand for: their information, traversals and interpolations, in standardised coordinates.

A draw of a hierarchy is a function of independent standard normal numbers e_t = (z_t - mean_t) / std_t, with the mean
and the standard deviation of p(z_t) given the latent variables above; if there is one, with p(z) = N(0, I), e is z
itself. So one number of e can be changed while all others are kept, and what is below follows as in the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import check_batch, check_count
from sde_diffusion.denoiser import repeated
from sde_diffusion.variational.chain import Autoencoder, PosteriorSample


def encoded(model: Autoencoder, x: Tensor) -> PosteriorSample:
    """The latent variables at the mean of q, from z_T down (or up) with each given the means of those before."""
    check_batch("x", x)
    return model.infer(x, [x.new_zeros(len(x), *dims) for dims in model.latent_shapes])


def reconstruct(model: Autoencoder, x: Tensor) -> Tensor:
    """The mean of p(x | z) with z at the mean of q, [B, *shape]."""
    return model.decode([latent.z for latent in encoded(model, x).latents])


def coordinates(found: PosteriorSample) -> list[Tensor] | None:
    """The coordinates e of each latent variable, [B, *dims], z_1 first: standard normal by the model.

    None if one has no such coordinates, as codes of a codebook.
    """
    each = [latent.p.standardised(latent.z) for latent in found.latents]
    known = [e for e in each if e is not None]
    return known if len(known) == len(each) else None


def information(found: PosteriorSample) -> list[Tensor]:
    """KL divergence by dimension (or place of codes) of each latent variable, mean over the batch, in nats; [*dims]."""
    return [latent.q.kl_terms(latent.p).mean(0) for latent in found.latents]


def most_informative(amounts: Sequence[Tensor], n: int) -> list[tuple[int, int]]:
    """The n dimensions with the largest amounts, largest first: (latent variable, counted from 0; number within it)."""
    sizes = [amount.numel() for amount in amounts]
    places = [(t, number) for t, size in enumerate(sizes) for number in range(size)]
    order = torch.cat([amount.flatten() for amount in amounts]).argsort(descending=True, stable=True)
    return [places[place] for place in order[:n].tolist()]


def traverse(model: Autoencoder, e: Sequence[Tensor], places: Sequence[tuple[int, int]], values: Tensor) -> Tensor:
    """Decode with one number of e replaced, for each place and each value.

    Args:
        model: The model.
        e: Coordinates of one item, [1, *dims] for each latent variable.
        places: Latent variable, counted from 0, and number within it, of each coordinate to replace.
        values: The values, [n], in standard deviations of the prior.

    Returns:
        [places, n, *shape].
    """
    copies = [repeated(one, len(places) * len(values)) for one in e]
    for row, (t, number) in enumerate(places):
        rows = slice(row * len(values), (row + 1) * len(values))
        copies[t].flatten(1)[rows, number] = values.to(copies[t])
    return model.decode(model.generate(copies)).reshape(len(places), len(values), *model.shape)


def interpolate(model: Autoencoder, first: Sequence[Tensor], last: Sequence[Tensor], n: int) -> Tensor:
    """Decode on the way from some items to others, with spherical interpolation of e.

    Nearly all of a standard normal distribution in d dimensions is at a distance of about sqrt(d) from 0. A straight
    line between two of its points leads through much shorter vectors, for which the model was hardly trained; a great
    circle does not.

    Args:
        model: The model.
        first: Coordinates of the items at the beginning, [B, *dims] for each latent variable.
        last: Those of the items at the end.
        n: Number of steps, the ends included; at least 2.

    Returns:
        [B, n, *shape].

    References:
        White 2016, "Sampling Generative Networks", section 2.1.
    """
    n, ends = check_count("n", n, least=2), zip(first, last, strict=True)
    way = [_great_circle(a.flatten(1), b.flatten(1), n).reshape(-1, *a.shape[1:]) for a, b in ends]
    return model.decode(model.generate(way)).reshape(len(first[0]), n, *model.shape)


def _great_circle(a: Tensor, b: Tensor, n: int) -> Tensor:
    """From vectors [B, d] to others, [B, n, d]: directions on a great circle, and lengths on a straight line."""
    share = torch.linspace(0, 1, n, dtype=a.dtype, device=a.device)[None, :, None]
    lengths = [v.norm(dim=1, keepdim=True) for v in (a, b)]
    ways = [v / length.clamp(min=1e-12) for v, length in zip((a, b), lengths, strict=True)]
    # Half the angle by atan2 keeps its digits where the cosine is near 1 or -1.
    angle = 2 * torch.atan2((ways[0] - ways[1]).norm(dim=1), (ways[0] + ways[1]).norm(dim=1))[:, None, None]
    near = angle < 1e-4  # there, and where a vector is 0, a straight line
    sine = torch.where(near, 1.0, angle.sin())
    weights = [torch.where(near, part, (part * angle).sin() / sine) for part in (1 - share, share)]
    direction = weights[0] * ways[0][:, None] + weights[1] * ways[1][:, None]
    way: Tensor = direction * ((1 - share) * lengths[0][:, None] + share * lengths[1][:, None])
    return way
