"""The base class of encoders of texts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from sde_diffusion.config import settings_of
from sde_diffusion.text.utf8 import as_bytes


class Encoded(NamedTuple):
    """Encoded texts.

    Attributes:
        pooled: One vector for each text, [B, d].
        tokens: One vector for each word or part of a word, [B, n, d].
        mask: Which tokens are real, not padding, bool [B, n].
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


class TextEncoder(nn.Module, ABC):
    """Maps texts to vectors.

    A new encoder is a subclass that stores its constructor's arguments (numbers, text, lists) in attributes of the same
    names, sets `dim`, and defines `forward`. If it has weights to be trained with the network that is conditioned on
    the texts, they are made by `trainable`, not by the constructor: conditions only describe an encoder.

    Attributes:
        dim: Size d of the vectors.
    """

    dim: int

    @abstractmethod
    def forward(self, text: Tensor) -> Encoded:
        """Encode texts.

        Args:
            text: UTF-8 bytes, uint8 [B, length], each followed by zeros; see `as_bytes`.
        """

    def trainable(self) -> Self:
        """A copy with weights of its own, if it has any to be trained."""
        return copy.deepcopy(self)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts given as strings."""
        device = next((weight.device for weight in self.parameters()), None)
        longest = max((len(text.encode()) for text in texts), default=0)
        encoded: Encoded = self(as_bytes(texts, max(1, longest)).to(device))
        return encoded

    def describe(self) -> dict[str, Any]:
        """The class (by public path) and the constructor's arguments, in plain Python containers, for checkpoints."""
        return settings_of(self, TextEncoder)
