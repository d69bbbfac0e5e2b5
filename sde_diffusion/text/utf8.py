"""Texts as tensors of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_bytes(texts: Sequence[str], length: int) -> Tensor:
    """Texts as their UTF-8 bytes, uint8 [N, length], each followed by zeros.

    Args:
        texts: N texts; a run of white space counts as one space, and none at the ends.
        length: Number of bytes of each row.

    Raises:
        ValueError: If a text is longer, or contains the character 0.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.uint8)
    for row, text in zip(rows, texts, strict=True):
        found = " ".join(text.split()).encode("utf-8", errors="replace")
        if len(found) > length:
            raise ValueError(f"a text may have at most {length} bytes; got {len(found)}: {text[:60]!r}...")
        if 0 in found:
            raise ValueError(f"a text must not contain the character 0; got {text[:60]!r}")
        row[: len(found)] = torch.frombuffer(bytearray(found), dtype=torch.uint8) if found else 0
    return rows


def as_texts(values: Tensor) -> list[str]:
    """The texts of bytes [N, length]; the inverse of `as_bytes`."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in values.cpu().numpy()]
