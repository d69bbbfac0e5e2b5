"""Words and parts of words, hashed into a table that is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import check_bool, check_count
from sde_diffusion.text.encoder import Encoded, TextEncoder

_PRIME = 2**31 - 1
_BASE = 257
_LONGEST = 4096
"""Number of letters of a word whose order counts; those after it are only added up."""


class HashedWords(TextEncoder):
    """A vector for each word, learned with the generator; no download.

    A word, in lower case, is a maximal sequence of letters, digits and bytes of other alphabets. Its vector is

        w = e(word) + mean_i e(three letters around i) + mean_i e(five letters around i),

    over the letters i of the word, where letters beyond its ends count as one blank. The e are rows of one table, at
    hashes of the letters. So words that share letters share part of their vectors: after "left", "leftwards" is not
    entirely unknown. Rows begin at 0: letters that were never seen contribute a zero vector. Tokens are the words in
    order, and `pooled` is their sum.

    It is computed from bytes by tensor operations alone, on any device. The table is made by `trainable`.

    Args:
        dim: Size of the vectors, at least 1.
        rows: Number of rows of the table, at least 1; where two words have the same row, they are one.
        subwords: Whether to add the vectors of parts of the word.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information"; Weinberger et al. 2009, "Feature
        Hashing for Large Scale Multitask Learning".
    """

    letters: Tensor
    powers: Tensor
    table: nn.Parameter | None

    def __init__(self, dim: int = 64, rows: int = 4096, subwords: bool = True) -> None:
        super().__init__()
        self.dim, self.rows = check_count("dim", dim), check_count("rows", rows)
        self.subwords = check_bool("subwords", subwords)
        self.register_parameter("table", None)
        letters = [ord(chr(b).lower()) if b > 127 or chr(b).isalnum() else 0 for b in range(128)]
        self.register_buffer("letters", torch.tensor([*letters, *range(128, 256)]), persistent=False)
        powers = [1]
        while len(powers) < _LONGEST:
            powers.append(powers[-1] * _BASE % _PRIME)
        self.register_buffer("powers", torch.tensor(powers), persistent=False)

    def trainable(self) -> HashedWords:
        """A copy with a table of its own."""
        made = type(self)(self.dim, self.rows, self.subwords)
        made.table = nn.Parameter(torch.zeros(self.rows, self.dim))
        return made

    def forward(self, text: Tensor) -> Encoded:
        """See `TextEncoder.forward`."""
        length = text.shape[1]
        letters = self.letters[text.long()]
        inside = letters > 0
        begins = inside & (_shifted(letters, 1) == 0)
        number = begins.cumsum(1) - 1
        places = torch.arange(length, device=text.device)
        place = torch.where(inside, places - torch.where(begins, places, 0).cummax(1).values, 0)
        weights = self.powers[place.clamp(max=_LONGEST - 1)]
        words = torch.arange((length + 1) // 2, device=text.device)
        member = inside[:, None] & (number[:, None] == words[:, None])
        mask = member.any(2)

        codes = letters * weights % _PRIME
        vectors = self._rows((member * codes[:, None]).sum(2), 0)
        if self.subwords:
            share = member.to(vectors.dtype)
            share = share / share.sum(2, keepdim=True).clamp(min=1)
            vectors = vectors + share @ self._parts(letters)
        vectors = torch.where(mask[..., None], vectors, 0.0)
        return Encoded(vectors.sum(1), vectors, mask)

    def _parts(self, letters: Tensor) -> Tensor:
        """The vectors of the three and the five letters around each letter, [B, length, d]."""
        before, after = _shifted(letters, 1), _shifted(letters, -1)
        three = (before * _BASE + letters) * _BASE + after
        further = torch.where(before > 0, _shifted(letters, 2), 0)
        beyond = torch.where(after > 0, _shifted(letters, -2), 0)
        five = (further * _BASE**3 + three) * _BASE + beyond
        return self._rows(three, 1) + self._rows(five, 2)

    def _rows(self, codes: Tensor, kind: int) -> Tensor:
        if self.table is None:
            raise ValueError("HashedWords has no table yet: use HashedWords().trainable()")
        mixed = (codes + kind * 7_919) % _PRIME * 48_271 % _PRIME  # Lehmer's generator
        return F.embedding(mixed % self.rows, self.table)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"dim={self.dim}, rows={self.rows}, subwords={self.subwords}"


def _shifted(values: Tensor, by: int) -> Tensor:
    """Column i holds column i - by, and 0 where there is none."""
    return F.pad(values, (by, 0))[:, : values.shape[1]] if by > 0 else F.pad(values, (0, -by))[:, -by:]
