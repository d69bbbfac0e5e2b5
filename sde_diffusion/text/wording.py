"""The words of rendered captions: sentences and synonyms to train on, and others that are kept for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Wording:
    """Sentences with {what}, {thickness} and {slant}, and words for these.

    Attributes:
        sentences: Sentences that name all three.
        partial: Sentences that leave out thickness, slant or both.
        thickness: Words for thin and for bold.
        slant: Words for leaning left, upright and leaning right.
    """

    sentences: tuple[str, ...]
    partial: tuple[str, ...]
    thickness: tuple[tuple[str, ...], ...]
    slant: tuple[tuple[str, ...], ...]


def _sides(phrases: tuple[str, ...], side: str) -> tuple[str, ...]:
    return tuple(phrase.format(side=side) for phrase in phrases)


_LEANING = (
    "leaning {side}",
    "leaning to the {side}",
    "tilted {side}",
    "tilted to the {side}",
    "slanted {side}",
    "slanted to the {side}",
    "inclined to the {side}",
    "sloping to the {side}",
    "bent to the {side}",
    "tipped {side}",
)

TRAINING = Wording(
    sentences=(
        "a {thickness} {what} {slant}",
        "a {thickness} {what}, {slant}",
        "{thickness} {what} {slant}",
        "one {thickness} {what}, {slant}",
        "a {what}, {thickness} and {slant}",
        "{what}, {thickness}, {slant}",
        "the digit {what}, {slant} and {thickness}",
        "a {slant} {thickness} {what}",
        "{slant}, {thickness}: {what}",
        "a handwritten {what}, {thickness}, {slant}",
        "a handwritten {thickness} {what} {slant}",
        "an image of a {thickness} {what} {slant}",
        "a photo of a {thickness} {what}, {slant}",
        "a {what} in {thickness} strokes, {slant}",
        "a {what} {slant}, in {thickness} ink",
        "{what} in {thickness} lines, {slant}",
        "a {what} written with a {thickness} pen, {slant}",
        "this is a {thickness} {what} that is {slant}",
        "this {what} is {thickness} and {slant}",
        "the strokes of the {what} are {thickness}; it is {slant}",
        "draw a {thickness} {what} {slant}",
        "show me a {thickness} {what}, {slant}",
        "a {thickness}-stroked {what}, {slant}",
        "the number {what}, {thickness}, {slant}",
    ),
    partial=(
        "a {what}",
        "the digit {what}",
        "a {thickness} {what}",
        "a {what} in {thickness} strokes",
        "a {what} {slant}",
        "{what}, {slant}",
    ),
    thickness=(
        ("thin", "fine", "slim", "light", "skinny", "narrow", "delicate", "lean", "thinly drawn", "lightweight"),
        ("bold", "thick", "fat", "strong", "chunky", "hefty", "solid", "broad", "thickly drawn", "weighty"),
    ),
    slant=(
        _sides(_LEANING, "left"),
        ("upright", "straight", "straight up", "standing straight", "standing upright", "erect", "level", "not tilted"),
        _sides(_LEANING, "right"),
    ),
)

UNSEEN = Wording(
    sentences=(
        "there is a {thickness} {what}, {slant}",
        "somebody wrote a {thickness} {what} {slant}",
        "picture of a {what}: {thickness}, {slant}",
        "please give us one {what} which looks {thickness} and {slant}",
    ),
    partial=(),
    thickness=(("slender",), ("heavy",)),
    slant=(("slanting leftwards",), ("vertical",), ("slanting rightwards",)),
)
"""None of these sentences, and none of these words for thickness and slant, are in `TRAINING`."""

WORDINGS = {"training": TRAINING, "unseen": UNSEEN}
