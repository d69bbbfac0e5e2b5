"""What latent variables stand for: their information, traversals and interpolations, in standardised coordinates.

A draw of a hierarchy is a function of independent standard normal numbers e_t = (z_t - mean_t) / std_t, with the mean
and the standard deviation of p(z_t) given the latent variables above; if there is one, with p(z) = N(0, I), e is z
itself. So one number of e can be changed while all others are kept, and what is below follows as in the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """KL divergence by dimension (or position of codes) of each latent variable, mean over the batch, in nats; [*dims].

    The expectations are over q: `found` must be a draw with noise, not at the means as by `encoded`.
    """
    return [latent.kl_terms().mean(0) for latent in found.latents]


def most_informative(amounts: Sequence[Tensor], n: int) -> list[tuple[int, int]]:
    """The n dimensions with the largest amounts, largest first: (latent variable, counted from 0; number within it)."""
    sizes = [amount.numel() for amount in amounts]
    dimensions = [(t, number) for t, size in enumerate(sizes) for number in range(size)]
    order = torch.cat([amount.flatten() for amount in amounts]).argsort(descending=True, stable=True)
    return [dimensions[index] for index in order[:n].tolist()]


def traverse(model: Autoencoder, e: Sequence[Tensor], dimensions: Sequence[tuple[int, int]], values: Tensor) -> Tensor:
    """Decode with one number of e replaced, for each of some dimensions and each value.

    Args:
        model: The model.
        e: Coordinates of one item, [1, *dims] for each latent variable.
        dimensions: Latent variable, counted from 0, and number within it, of each coordinate to replace.
        values: The values, [n], in standard deviations of the prior.

    Returns:
        [dimensions, n, *shape].
    """
    copies = [repeated(one, len(dimensions) * len(values)) for one in e]
    for row, (t, number) in enumerate(dimensions):
        rows = slice(row * len(values), (row + 1) * len(values))
        copies[t].flatten(1)[rows, number] = values.to(copies[t])
    return model.decode(model.generate(copies)).reshape(len(dimensions), len(values), *model.shape)


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
    """From vectors [B, d] to others, [B, n, d]: directions on a great circle, and lengths on a straight line.

    Between opposite vectors there are many great circles, of which one is taken. In one dimension there is none: the
    way is a straight line.
    """
    share = torch.linspace(0, 1, n, dtype=torch.float64, device=a.device)[None, :, None]
    if a.shape[1] == 1:
        return torch.lerp(a.double()[:, None], b.double()[:, None], share).to(a)
    vectors = torch.stack([a, b]).double()
    lengths = vectors.norm(dim=2, keepdim=True)
    first, last = vectors / lengths.clamp(min=1e-300)
    first = torch.where(lengths[0] > 0, first, last)  # from and to 0 on a straight line
    last = torch.where(lengths[1] > 0, last, first)
    cosine = (first * last).sum(1, keepdim=True)
    across = last - cosine * first
    sine = across.norm(dim=1, keepdim=True)
    axis = F.one_hot(first.abs().argmin(1), first.shape[1])  # the one that is the most orthogonal to the vector
    other = axis - (axis * first).sum(1, keepdim=True) * first
    across = torch.where(sine > 1e-9, across, other)
    across = across / across.norm(dim=1, keepdim=True)
    angle = share * torch.atan2(sine, cosine)[:, None]
    direction = angle.cos() * first[:, None] + angle.sin() * across[:, None]
    way: Tensor = direction * torch.lerp(lengths[0][:, None], lengths[1][:, None], share)
    return way.to(a)
