"""Captions as a condition of a data set's images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.data.split import Split
from sde_diffusion.errors import UserError
from sde_diffusion.text import Captions, ImageSplit, as_bytes

_LEAST, _STEP = 96, 32  # number of bytes of a text: at least this, and a multiple of that
_BATCH = 1000


def captioned(
    name: str,
    splits: Mapping[str, Split],
    captions: Captions,
    class_names: Sequence[str] | None = None,
    flip: bool = False,
    handwriting: bool = False,
    files: tuple[str, Mapping[str, Sequence[str]]] | None = None,
) -> dict[str, Split]:
    """The splits with a condition `text` in place of labels, which the texts describe.

    Args:
        name: Name of the data, for messages.
        splits: The splits by name, beginning with the training split.
        captions: The source of the texts.
        class_names: Names of the classes, if they have names.
        flip: Whether mirrored images are used too.
        handwriting: Whether the items are images of handwritten digits.
        files: The folder of the items' files, and their paths in it by split, if they are files.

    Raises:
        UserError: If there is not one caption for each image, or captions do not suit these data.
    """
    if len(splits["train"].x.shape) != 4:
        raise UserError(f"data.captions: captions describe images, and the items of {name} are not images")
    if flip and captions.mention_sides:
        raise UserError("data.flip=true mirrors images, and the captions say which way they lean: leave it out")
    root, paths = files or (None, {})
    pictured = {
        one: ImageSplit(len(split), partial(_batches, split), split.label, paths.get(one), root, handwriting)
        for one, split in splits.items()
    }
    texts = captions.of(pictured, class_names)
    for one, split in splits.items():
        if len(texts[one]) != len(split):
            raise UserError(
                f"{name}: there are {len(texts[one])} captions for the {len(split)} images of the {one} split"
            )
    longest = max(len(text.encode()) for some in texts.values() for text in some)
    length = max(_LEAST, -(-longest // _STEP) * _STEP)
    return {
        one: replace(split, label=None, others={**split.others, "text": as_bytes(texts[one], length)})
        for one, split in splits.items()
    }


def _batches(split: Split) -> Iterator[Tensor]:
    return (split.tensor(rows) for rows in torch.split(torch.arange(len(split)), _BATCH))
