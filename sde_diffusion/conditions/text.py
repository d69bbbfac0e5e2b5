"""Texts, such as captions of images."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_count, check_kind
from sde_diffusion.conditions.base import Array, Condition
from sde_diffusion.errors import UserError
from sde_diffusion.text import HashedWords, TextEncoder, as_bytes, as_texts


class Text(Condition):
    """A text, as its UTF-8 bytes followed by zeros, uint8 [length]; see `as_bytes`. The null value is the empty text.

    Values may also be given as strings. The library's networks embed what the encoder makes of a text, and a learned
    vector for the null value, the same in training and sampling. The U-Net also takes the encoder's tokens, by
    cross-attention, where `cross_attention` says so.

    Args:
        length: Maximum number of bytes of a text, at least 1.
        encoder: The encoder; None: `HashedWords()`.

    Raises:
        ValueError: If length is not positive.
        TypeError: If encoder is not an encoder.
    """

    dtype = torch.uint8
    each = "text"
    has_tokens = True
    groups = MappingProxyType({"encoder": "text"})

    def __init__(self, length: int = 96, encoder: TextEncoder | None = None) -> None:
        self.length = check_count("length", length)
        self.encoder = HashedWords() if encoder is None else encoder
        check_kind("encoder", self.encoder, TextEncoder)
        self.shape = (self.length,)
        self.null = torch.zeros(self.length, dtype=torch.uint8)

    @classmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """Bytes [N, length] are texts."""
        if any(part.dtype != torch.uint8 or part.ndim != 2 for part in splits):
            return None
        return cls(splits[0].shape[1])

    def describe(self) -> dict[str, Any]:
        """See `Condition.describe`."""
        return {**super().describe(), "encoder": self.encoder.describe()}

    @property
    def what(self) -> str:
        """See `Condition.what`."""
        return f"a text of up to {self.length} bytes"

    def words(self, value: Tensor) -> str:
        """The text itself, in quotes."""
        return repr(as_texts(value[None])[0]) if bool(value.any()) else "none"

    def allowed(self, name: str) -> str:
        """See `Condition.allowed`."""
        return f"{name} must be text of at most {self.length} bytes ('': no {name})"

    def takes(self, dtype: torch.dtype) -> bool:
        """Only bytes are allowed."""
        return dtype == torch.uint8

    def wrong(self, values: Tensor) -> str:
        """None is out of range: any bytes are a text."""
        return ""

    def check(self, name: str, value: Any, batch: int, device: torch.device | None = None, wait: bool = True) -> Tensor:
        """Strings are converted to bytes; see `Condition.check`."""
        several = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)
        if isinstance(value, str) or several:
            texts = [value] if isinstance(value, str) else list(value)
            try:
                value = as_bytes(texts, self.length)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return super().check(name, value, batch, device, wait)

    def read(self, name: str, typed: Any, n: int) -> Tensor:
        """Read a text, or a list of texts, which are taken in turn.

        Raises:
            UserError: Also if there are none, one is empty, or n is not a multiple of their number.
        """
        if isinstance(typed, bool | int | float):
            typed = str(typed)
        if isinstance(typed, list | tuple):
            texts = [str(one) for one in typed]
            if not texts:
                raise UserError(f"{name} holds no text: give at least one")
            if n % len(texts):
                raise UserError(
                    f"{name} has {len(texts)} texts, which are taken in turn, for n={n} samples: take n={len(texts)}, "
                    "or a multiple of it"
                )
            typed = texts * (n // len(texts))
        if typed == "" or (isinstance(typed, list | tuple) and "" in typed):
            raise UserError(f"{name} is empty: give words, or {name}=none for no {self.each}")
        return super().read(name, typed, n)

    def to_file(self, values: Tensor) -> Array:
        """The texts as strings, [n]."""
        return np.asarray(as_texts(values), dtype=str)

    def embedding(self, dim: int) -> nn.Module:
        """See `TextEmbedding`."""
        return TextEmbedding(self.encoder, dim)


class TextEmbedding(nn.Module):
    """A linear function of what an encoder makes of a text; for the null value, a learned vector and one learned token.

    Args:
        encoder: The encoder; the module has a copy of its own, with weights to be trained.
        dim: Size of the vector and of the tokens.
    """

    def __init__(self, encoder: TextEncoder, dim: int) -> None:
        super().__init__()
        self.encoder = encoder.trainable()
        self.pooled = nn.Linear(encoder.dim, dim)
        self.each = nn.Linear(encoder.dim, dim)
        self.null = nn.Parameter(torch.randn(dim))
        self.null_token = nn.Parameter(torch.randn(dim))

    def forward(self, text: Tensor) -> Tensor:
        """Map texts [N, length] to [N, dim]."""
        found: Tensor = self.pooled(self.encoder(text).pooled.to(self.pooled.weight.dtype))
        return torch.where((text == 0).all(1, keepdim=True), self.null.to(found), found)

    def tokens(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map texts [N, length] to tokens [N, n, dim], and which of them there are, bool [N, n]."""
        encoded = self.encoder(text)
        found: Tensor = self.each(encoded.tokens.to(self.each.weight.dtype))
        missing = (text == 0).all(1)
        first = torch.arange(found.shape[1], device=text.device) == 0
        found = torch.where(missing[:, None, None], self.null_token.to(found), found)
        return found, torch.where(missing[:, None], first, encoded.mask)
