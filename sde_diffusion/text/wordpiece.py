"""Cut texts into the pieces of words that BERT's models take."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

_MOST_LETTERS = 100


class WordPiece:
    """The uncased WordPiece tokenizer of BERT: the longest known piece first.

    Args:
        path: The vocabulary, one piece on each line; pieces that continue a word begin with ##.

    References:
        Devlin et al. 2019, "BERT", section 3; Schuster & Nakajima 2012.
    """

    def __init__(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        self._ids = {piece: number for number, piece in enumerate(lines)}
        self.padding = self._ids["[PAD]"]

    def of(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """The numbers of the pieces of each text, between those for its beginning and its end, padded to `length`."""
        begin, end = self._ids["[CLS]"], self._ids["[SEP]"]
        found = [[begin, *self._pieces(text)[: length - 2], end] for text in texts]
        return [row + [self.padding] * (length - len(row)) for row in found]

    def _pieces(self, text: str) -> list[int]:
        return [piece for word in _words(text) for piece in self._pieces_of(word)]

    def _pieces_of(self, word: str) -> list[int]:
        found, start = list[int](), 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self._ids), None)
            if end is None or len(word) > _MOST_LETTERS:
                return [self._ids["[UNK]"]]
            found.append(self._ids[mark + word[start:end]])
            start = end
        return found


def _words(text: str) -> list[str]:
    """Words in lower case without accents; each punctuation mark and each Chinese character is one."""
    plain = unicodedata.normalize("NFD", text.lower())
    spaced = []
    for c in plain:
        category = unicodedata.category(c)
        if category == "Mn" or (category[0] == "C" and c not in "\t\n\r") or c == "\ufffd":
            continue
        alone = category[0] == "P" or c in "$+<=>^`|~" or 0x4E00 <= ord(c) <= 0x9FFF or 0x3400 <= ord(c) <= 0x4DBF
        spaced.append(f" {c} " if alone else c)
    return "".join(spaced).split()
