"""Vector quantisation: latent variables that are codes of a codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_fraction, as_number, check_count
from sde_diffusion.distributed import gathered, process_count, summed

_LEAST = 1e-5


@dataclass(frozen=True)
class Quantized:
    """The result of a quantisation.

    Attributes:
        z: The nearest codes, [B, dim, *]; the gradient with respect to them is passed on to the input as it is.
        index: Their numbers, int64 [B, *].
    """

    z: Tensor
    index: Tensor


class VectorQuantizer(nn.Module):
    """Replaces vectors by the nearest of K codes, which follow the vectors by moving averages.

    In training, n <- decay n + (1 - decay) count and m <- decay m + (1 - decay) sum of the vectors of each code, which
    is m / n: with decay 0 and a batch of all data this is a step of k-means. The codes begin at vectors of the
    first batch, and one that is used less than `restart` times a batch (by its average n) is placed at a random vector
    of the batch. With several processes the batch is that of all of them, and the codes are the same in each.

    Args:
        codebook_size: K, at least 2.
        dim: Number of channels of a vector, at least 1.
        decay: Of the moving averages, in [0, 1).
        restart: Average use below which a code is placed anew, at least 0; 0: never.

    Raises:
        ValueError: If a value is out of its range.

    References:
        van den Oord et al. 2017, "Neural Discrete Representation Learning", appendix A.1.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, codebook_size: int, dim: int, decay: float = 0.99, restart: float = 1.0) -> None:
        super().__init__()
        self.codebook_size, self.dim = check_count("codebook_size", codebook_size, least=2), check_count("dim", dim)
        self.decay, self.restart = as_fraction("decay", decay), as_number("restart", restart)
        if self.decay == 1:
            raise ValueError("decay must be less than 1, or the codes never move")
        if not 0 <= self.restart < math.inf:
            raise ValueError(f"restart must be a finite number of at least 0; got {restart}")
        self.register_buffer("codebook", torch.zeros(self.codebook_size, self.dim))
        self.register_buffer("counts", torch.zeros(self.codebook_size))
        self.register_buffer("sums", torch.zeros(self.codebook_size, self.dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Tensor) -> Quantized:
        """Quantise vectors [B, dim, *]; in training, also move the codes."""
        z = z.to(torch.promote_types(z.dtype, self.codebook.dtype))
        if self.training:
            vectors = self._vectors(z.detach())
            finite = vectors.isfinite().all(1)  # one NaN would stay in the codebook
            vectors = torch.where(finite[:, None], vectors, 0.0)
            self._begin(vectors)
        index = self.index_of(z)
        chosen = self.lookup(index)
        if self.training:
            self._follow(vectors, index.flatten(), finite)
        return Quantized(z + (chosen - z).detach(), index)

    def index_of(self, z: Tensor) -> Tensor:
        """Number of the code nearest to each vector, [B, dim, *] -> int64 [B, *]."""
        # In float64, as the products of large numbers, by which distances are found, lose the digits of small ones.
        distances = torch.cdist(self._vectors(z).double(), self.codebook.double())
        return distances.argmin(1).reshape(len(z), *z.shape[2:])

    def lookup(self, index: Tensor) -> Tensor:
        """The codes with these numbers, [B, *] -> [B, dim, *]."""
        return self.codebook[index].movedim(-1, 1)

    def _vectors(self, z: Tensor) -> Tensor:
        return z.movedim(1, -1).reshape(-1, self.dim)

    def _begin(self, vectors: Tensor) -> None:
        fresh = self._some(
            vectors, self.codebook_size
        )  # in each step, as asking whether it is the first waits for a GPU
        self.codebook.copy_(torch.where(self.started, self.codebook, fresh))
        self.sums.copy_(torch.where(self.started, self.sums, fresh))
        self.counts.copy_(torch.where(self.started, self.counts, 1.0))
        self.started.fill_(True)

    def _follow(self, vectors: Tensor, index: Tensor, finite: Tensor) -> None:
        counts = summed(torch.zeros_like(self.counts).index_add_(0, index, finite.to(self.counts)))
        sums = summed(torch.zeros_like(self.sums).index_add_(0, index, vectors.to(self.sums)))
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        used = self.counts > _LEAST
        self.codebook.copy_(
            torch.where(used[:, None], self.sums / self.counts.clamp(min=_LEAST)[:, None], self.codebook)
        )
        dead = self.counts < self.restart
        fresh = self._some(vectors, self.codebook_size)
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.sums.copy_(torch.where(dead[:, None], fresh * max(self.restart, 1.0), self.sums))
        self.counts.copy_(torch.where(dead, max(self.restart, 1.0), self.counts))

    def _some(self, vectors: Tensor, n: int) -> Tensor:
        """Random vectors, n of them, with torch's global generator; the same one twice only if there are fewer.

        Each process chooses its share among its own, so that all have the same, though their generators differ.
        """
        share = -(-n // process_count())
        order = torch.randperm(len(vectors), device=vectors.device)
        return gathered(vectors[order.repeat(-(-share // len(vectors)))[:share]].to(self.codebook))[:n]


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the frequencies that counts have: between 1 and the number of counts, []."""
    entropy: Tensor = torch.special.entr(counts / counts.sum()).sum()
    return entropy.exp()
