"""How well images fit texts: a model of two towers, and its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_count, check_sizes
from sde_diffusion.text import HashedWords

_LARGEST = 100.0  # of the inverse temperature, as in CLIP


class TwoTower(nn.Module):
    """A small model that maps images and texts to vectors of one space, after CLIP; trained by `loss`.

    Images go through three convolutions that halve their size, texts through a bag of hashed words; both through a
    linear map, and are then normalised.

    Args:
        shape: Shape of one image, [C, H, W].
        dim: Size of the vectors.
        width: Channels of the first convolution.

    References:
        Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """

    def __init__(self, shape: Sequence[int], dim: int = 64, width: int = 32) -> None:
        super().__init__()
        channels, height, columns = check_sizes("shape", shape, "[C, H, W]", least=3, most=3)
        dim, width = check_count("dim", dim), check_count("width", width)
        widths = [channels, width, 2 * width, 2 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        size = widths[-1] * math.ceil(height / 8) * math.ceil(columns / 8)
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, dim))
        self.words = HashedWords(dim).trainable()
        self.text = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def towers(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised vectors of images [N, C, H, W] on [-1, 1] and of texts, bytes [M, length]: [N, dim], [M, dim]."""
        return F.normalize(self.image(x), dim=1), F.normalize(self.text(self.words(text).pooled), dim=1)

    def loss(self, x: Tensor, text: Tensor, meaning: Tensor) -> Tensor:
        """Symmetric cross-entropy of N pairs, in which all pairs with the same meaning fit each other.

        Args:
            x: Images, [N, C, H, W].
            text: Their texts, bytes [N, length].
            meaning: A number for what each text means, [N].
        """
        images, texts = self.towers(x, text)
        logits = self.log_scale.exp().clamp(max=_LARGEST) * images @ texts.T
        fits = (meaning[:, None] == meaning).to(logits.dtype)
        target = fits / fits.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def score(self, x: Tensor, text: Tensor) -> Tensor:
        """2.5 max(cos, 0) of each of N images and its text, [N].

        References:
            Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", section 3.
        """
        images, texts = self.towers(x, text)
        return 2.5 * (images * texts).sum(1).clamp(min=0)
