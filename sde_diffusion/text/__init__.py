"""Texts as conditions: encoders of texts, and captions of images.

A text is stored as its UTF-8 bytes, followed by zeros: a tensor like those of other conditions, which loaders and
processes pass on, and which any encoder reads.
"""

from sde_diffusion.text.attributes import StrokeAttributes, ink, shear
from sde_diffusion.text.captions import Captions, ImageSplit, RenderedCaptions
from sde_diffusion.text.encoder import Encoded, TextEncoder
from sde_diffusion.text.hashed import HashedWords
from sde_diffusion.text.minilm import MiniLM
from sde_diffusion.text.utf8 import as_bytes, as_texts

__all__ = [
    "Captions",
    "Encoded",
    "HashedWords",
    "ImageSplit",
    "MiniLM",
    "RenderedCaptions",
    "StrokeAttributes",
    "TextEncoder",
    "as_bytes",
    "as_texts",
    "ink",
    "shear",
]
