"""Large pretrained extractors: Inception-v3 as in published FIDs, and DINOv2. Weights are read from local files.

Both need an optional library, and weights that are not part of this package; an error says what is missing.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.errors import UserError

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
DINOV2_URL = "https://huggingface.co/facebook/dinov2-large"
DINOV2_FOLDER = "dinov2-large"
_OTHERS = "The extractors 'pixels', 'digits', 'mnist' and 'cifar10' work now, with nothing to install."


def weights_folder() -> Path:
    """The folder of the weights of pretrained extractors: $SDE_WEIGHTS, or else ~/.cache/sde_diffusion/weights."""
    return Path(os.environ.get("SDE_WEIGHTS", "~/.cache/sde_diffusion/weights")).expanduser()


def _library(module: str, install: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    # A torchvision built for another torch raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"extractor {name!r} needs {module.partition('.')[0]}, which cannot be imported ({error}); install it with "
            f"{install}. {_OTHERS}"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _to_rgb(x: Tensor, name: str) -> Tensor:
    """Images [B, 1 or 3, H, W] as [B, 3, H, W]; grey images with three equal channels."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"extractor {name!r} takes images [B, 1 or 3, H, W] on [-1, 1]; got {tuple(x.shape)}")
    return x.expand(-1, 3, -1, -1)


class Inception(nn.Module):
    """Inception-v3 of the published FIDs: 2048 features of its last pooling layer, by torch-fidelity.

    Images are rounded to 8 bits, as in image files, and resized to 299 x 299 within the network, bilinearly and without
    antialiasing, as in TensorFlow 1; grey images are repeated to three channels.

    Args:
        download: Whether torch-fidelity may download the weights if there is no local file.

    Raises:
        UserError: If torch-fidelity or the weights are missing, or the file is of another kind.
    """

    num_features = 2048
    num_classes = 1008
    resize = "to 299 x 299, bilinear without antialiasing, within the network"

    def __init__(self, download: bool = False) -> None:
        super().__init__()
        module = _library(
            "torch_fidelity.feature_extractor_inceptionv3", "pip install 'sde_diffusion[fid]'", "inception"
        )
        path = weights_folder() / INCEPTION_FILE
        if not path.is_file() and not download:
            raise UserError(
                f"extractor 'inception' has no weights at {path}; get {INCEPTION_URL} (95 MB) and put it there, point "
                f"SDE_WEIGHTS to the folder that has it, or call load_extractor('inception', download=True). {_OTHERS}"
            )
        try:
            # torch.load reads only tensors from the file.
            self.network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path) if path.is_file() else None
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
            raise UserError(
                f"{path} does not hold Inception's weights ({_first_line(error)}); get {INCEPTION_URL}"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 2048] float32 of images [B, 1 or 3, H, W] on [-1, 1]."""
        # To the nearest of 256 grey levels: truncation, as in (255 * x).byte(), would change FIDs.
        levels = (_to_rgb(x, "inception").float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        with torch.autocast(x.device.type, enabled=False):
            (features,) = self.network(levels)
        return cast(Tensor, features).float()

    def head(self, features: Tensor) -> Tensor:
        """Class logits [B, 1008] without bias, as for published inception scores, from features [B, 2048]."""
        return F.linear(features, self.network.fc.weight)


class DinoV2(nn.Module):
    """DINOv2 ViT-L/14: 1024 features, the normalised class token. By transformers, from a local folder.

    Images are resized to 224 x 224 with antialiased bicubic interpolation and normalised as ImageNet's are.

    Raises:
        UserError: If transformers or the weights are missing, or the folder holds something else.

    References:
        Oquab et al. 2023, "DINOv2"; as features for distances: Stein et al. 2023, "Exposing flaws of generative model
        evaluation metrics and their unfair treatment of diffusion models".
    """

    num_features = 1024
    resize = "to 224 x 224, bicubic with antialiasing"
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        module = _library("transformers", "pip install 'sde_diffusion[dinov2]'", "dinov2")
        folder = weights_folder() / DINOV2_FOLDER
        needed = [folder / "config.json", folder / "model.safetensors"]
        if missing := [str(path) for path in needed if not path.is_file()]:
            raise UserError(
                f"extractor 'dinov2' has no weights: {' and '.join(missing)} not found; get these files (1.2 GB) from "
                f"{DINOV2_URL}, or point SDE_WEIGHTS to the folder that has {DINOV2_FOLDER}/. {_OTHERS}"
            )
        try:
            # Tensors only: pickled weights in the folder are ignored.
            self.network = module.Dinov2Model.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} does not hold DINOv2's weights ({_first_line(error)}); get them from {DINOV2_URL}"
            ) from error
        if self.network.config.hidden_size != self.num_features:
            raise UserError(
                f"{folder} is of width {self.network.config.hidden_size}, not of ViT-L/14: get {DINOV2_URL}"
            )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 1024] float32 of images [B, 1 or 3, H, W] on [-1, 1]."""
        x = _to_rgb(x, "dinov2").float() * 0.5 + 0.5
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            token: Tensor = self.network((x - self.mean) / self.std).pooler_output
        return token.float()


def load_pretrained(name: str, shape: Sequence[int] | None, download: bool) -> nn.Module:
    """`inception` or `dinov2`, in evaluation mode and frozen.

    Args:
        name: Name of the extractor.
        shape: Shape of one sample, to be checked, or None.
        download: See `Inception`.

    Returns:
        The extractor.

    Raises:
        UserError: If the shape is not that of images, or something is missing; see the classes.
    """
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise UserError(
            f"extractor {name!r} takes images of 1 or 3 channels; got samples of shape {tuple(shape)}: use 'pixels'"
        )
    if name == "dinov2" and download:
        raise UserError(f"extractor 'dinov2' is never downloaded; get its files from {DINOV2_URL}")
    model: nn.Module = Inception(download) if name == "inception" else DinoV2()
    return model.eval().requires_grad_(False)


NAMES = ("inception", "dinov2")
