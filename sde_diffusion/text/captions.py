"""Captions of images, and sentences rendered from what is known of them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sde_diffusion.checks import as_fraction, check_choice, check_count
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.config import settings_of
from sde_diffusion.errors import UserError
from sde_diffusion.text.attributes import StrokeAttributes
from sde_diffusion.text.wording import DIGITS, WORDINGS


@dataclass(frozen=True)
class ImageSplit:
    """The images of a split, for which captions are wanted.

    Attributes:
        n: Their number N.
        batches: Returns them in order, [B, C, H, W] on [-1, 1] each.
        labels: Their classes, [N], if they have labels.
        files: Their files, with slashes, relative to `root`, if they are files.
        root: The folder of the files.
        handwriting: Whether they show handwritten digits.
    """

    n: int
    batches: Callable[[], Iterable[Tensor]]
    labels: Tensor | None = None
    files: Sequence[str] | None = None
    root: str | None = None
    handwriting: bool = False


class Captions(ShowsArguments, ABC):
    """A source of captions: one text for each image of a data set.

    A new one is a subclass that stores its constructor's arguments (numbers, text, lists) in attributes of the same
    names, and defines `of`.
    """

    mention_sides: ClassVar[bool] = False
    """Whether the captions tell left from right, so that they are wrong for mirrored images."""

    @abstractmethod
    def of(self, splits: Mapping[str, ImageSplit], names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """The captions of each split.

        Args:
            splits: The images by split, beginning with the training images.
            names: Names of the classes, if they have names.

        Raises:
            UserError: If there is not one caption for each image.
        """

    def own_files(self) -> tuple[str, ...]:
        """Files of the captions' own that may lie beside the images, relative to their folder."""
        return ()

    def describe(self) -> dict[str, Any]:
        """The class (by public path) and the constructor's arguments, in plain Python containers."""
        return settings_of(self, Captions)


class RenderedCaptions(Captions):
    """Sentences on handwriting, such as "a bold seven leaning left", from its class, thickness and slant.

    Thickness and slant are closed-form attributes of the image; see `StrokeAttributes`. Each image gets one sentence
    and one synonym for each word at random: a pure function of (seed, split, number of the image).

    Args:
        words: "training", or "unseen": other sentences, and other words for thickness and slant, to test a model that
            was trained on the first.
        partial: Share of the captions that leave out thickness or slant, in [0, 1].
        seed: Seed of the choices, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    mention_sides = True

    def __init__(self, words: str = "training", partial: float = 0.2, seed: int = 0) -> None:
        check_choice("words", words, tuple(WORDINGS))
        self.words, self.partial = words, as_fraction("partial", partial)
        self.seed = check_count("seed", seed, least=0)

    def of(self, splits: Mapping[str, ImageSplit], names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """See `Captions.of`.

        Raises:
            UserError: If the images are not handwritten digits, or have no labels; or, without names, if labels are
                not 0 to 9.
        """
        train, describes = splits["train"], "captions=rendered describes handwritten digits, and"
        if not train.handwriting:
            raise UserError(f"{describes} these data are not known to be: take captions=table, or labels")
        labels: dict[str, Tensor] = {}
        for name, split in splits.items():
            if split.labels is None:
                raise UserError(
                    f"{describes} it renders labels, which the {name} split does not have: take captions=table"
                )
            labels[name] = split.labels
        largest = max(int(values.max()) for values in labels.values())
        if names is None and largest >= len(DIGITS):
            raise UserError(f"{describes} these data have labels up to {largest}: name the classes, or take labels")
        borders, found = StrokeAttributes.of(train.batches(), labels["train"]), {}
        for number, (name, split) in enumerate(splits.items()):
            thickness, slant, start = [], [], 0
            for x in split.batches():
                thickness += borders.thickness(x, labels[name][start : start + len(x)]).tolist()
                slant += borders.slant(x).tolist()
                start += len(x)
            classes = labels[name].tolist()
            found[name] = self.sentences(classes, thickness, slant, names, number)
        return found

    def sentences(
        self,
        classes: Sequence[int],
        thickness: Sequence[int],
        slant: Sequence[int],
        names: Sequence[str] | None = None,
        stream: int = 0,
    ) -> list[str]:
        """Captions for N meanings.

        Args:
            classes: The class of each.
            thickness: 0 (thin) or 1 (bold).
            slant: 0 (left), 1 (upright) or 2 (right).
            names: Names of the classes; None: digits, "seven" or "7" at random.
            stream: Distinguishes several sequences of captions of the same seed.
        """
        wording, n = WORDINGS[self.words], len(classes)
        draws = np.random.default_rng((self.seed, stream)).random((n, 5))
        found = []
        for k, bold, side, u in zip(classes, thickness, slant, draws, strict=True):
            partial = bool(wording.partial) and u[0] < self.partial
            what = (DIGITS[k] if u[1] < 0.5 else str(k)) if names is None else names[k]
            words = {
                "what": what,
                "thickness": _pick(wording.thickness[bold], u[2]),
                "slant": _pick(wording.slant[side], u[3]),
            }
            sentence = _pick(wording.partial if partial else wording.sentences, u[4]).format(**words)
            found.append(re.sub(r"\ba (?=[aeiou8])(?!one\b)", "an ", sentence))
        return found


def _pick(words: Sequence[str], u: float) -> str:
    return words[int(u * len(words))]
