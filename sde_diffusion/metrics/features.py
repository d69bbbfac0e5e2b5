"""Feature extractors by name, for distances between sets of samples.

An extractor is a module with an int `num_features`; it maps samples on [-1, 1], [B, C, H, W] (`Pixels` also [B, D]), to
float32 features [B, num_features]. Classifiers also have `num_classes` and `head`, from features to logits; an
extractor that resizes images describes it in `resize`. The classifiers of this package are trained by `python -m
benchmarks.train_classifiers`, and their weights are safetensors: tensors and a text header, no code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.errors import UserError
from sde_diffusion.metrics.checks import num_features
from sde_diffusion.metrics.pretrained import NAMES as PRETRAINED
from sde_diffusion.metrics.pretrained import load_pretrained
from sde_diffusion.metrics.untrained import PrincipalComponents, RandomConvolutions, width_for
from sde_diffusion.storage.files import readable

WEIGHTS = Path(__file__).parent / "weights"
UNTRAINED = ("pca", "random_conv")


def _check_shape(x: Tensor, shape: Sequence[int], name: str) -> None:
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"extractor {name!r} takes samples of shape {tuple(shape)} on [-1, 1]; got {tuple(x.shape[1:])} ("
            "use the extractor of your data set, or 'pixels')"
        )


class Pixels(nn.Module):
    """The samples themselves, flattened to D features.

    Args:
        shape: Shape of one sample, [D] or [C, H, W].
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_features = math.prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Flatten.

        Args:
            x: [B, *shape].

        Returns:
            [B, D] float32.

        Raises:
            ValueError: If the samples have another shape.
        """
        _check_shape(x, self.shape, "pixels")
        return x.flatten(1).to(torch.float32, copy=True)  # metrics store it, and the caller may change x


class Classifier(nn.Module):
    """Small convolutional classifier whose last hidden layer gives the features.

    3x3 convolutions with SiLU, the first at full size and each further one at half the previous size, then a linear
    layer with SiLU (the features) and a linear head. There is no normalisation, so that the features depend on contrast
    and brightness; without dropout and batch statistics, training and evaluation mode are the same, and the features of
    a sample do not depend on its batch.

    Args:
        shape: Shape of the images, [C, H, W].
        widths: Number of channels of each convolution.
        num_features: Width of the feature layer.
        classes: Number of classes.
        name: Name for error messages.
    """

    recognises = "label"
    """The condition of the data whose classes it predicts."""

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        num_features: int,
        classes: int,
        name: str = "classifier",
    ) -> None:
        super().__init__()
        self.shape, self.num_features, self.num_classes, self.name = tuple(shape), num_features, classes, name
        channels, height, width = self.shape
        layers: list[nn.Module] = []
        for i, out in enumerate(widths):
            stride = 1 if i == 0 else 2
            layers += [nn.Conv2d(channels, out, 3, stride, padding=1), nn.SiLU()]
            channels, height, width = out, (height - 1) // stride + 1, (width - 1) // stride + 1
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(channels * height * width, num_features)
        self.head = nn.Linear(num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images.

        Args:
            x: [B, C, H, W] on [-1, 1], any float dtype.

        Returns:
            [B, num_features] float32, also under autocast.

        Raises:
            ValueError: If the images have another shape.
        """
        _check_shape(x, self.shape, self.name)
        with torch.autocast(x.device.type, enabled=False):
            return F.silu(self.hidden(self.trunk(x.to(self.hidden.weight.dtype)))).float()

    def logits(self, x: Tensor) -> Tensor:
        """Class logits.

        Args:
            x: [B, C, H, W] on [-1, 1].

        Returns:
            [B, classes] unnormalised log-probabilities.
        """
        scores: Tensor = self.head(self(x))
        return scores


def read_classifier(path: Path, name: str = "classifier") -> Classifier:
    """Read a classifier from a safetensors file; nothing in the file is executed.

    Args:
        path: File whose header has `architecture`, the JSON of `Classifier`'s arguments. Half-precision weights are
            widened to float32.
        name: Name for error messages.

    Returns:
        The classifier, in evaluation mode and frozen.

    Raises:
        UserError: If the file is missing, damaged or of another kind.
    """
    if not path.exists():
        raise UserError(f"no classifier weights at {path}; python -m benchmarks.train_classifiers makes them")
    readable(path)
    try:
        with safe_open(path, "pt") as file:
            architecture = json.loads(file.metadata()["architecture"])
            model = Classifier(**architecture, name=name)
            model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a classifier's file, or damaged: {error}") from error
    except Exception as error:  # its header may contain anything
        raise UserError(f"{path} is not a classifier written by benchmarks.train_classifiers: {error}") from error
    return model.eval().requires_grad_(False)


def extractor_names() -> list[str]:
    """Extractors that need no further installation: `pixels`, and those with weights in this package."""
    return ["pixels", *sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))]


def untrained_name(name: str, n: int) -> str:
    """`pca` or `random_conv` with the number of features for n samples, such as `pca16`; other names unchanged."""
    return f"{name}{width_for(n)}" if name in UNTRAINED else name


def load_extractor(
    name: str | nn.Module,
    shape: Sequence[int] | None = None,
    download: bool = False,
    data: Tensor | Callable[[], Tensor] | None = None,
) -> nn.Module:
    """A feature extractor by name, or your own.

    Args:
        name: A module of your own with an int `num_features`, which is returned as it is, or one of the names
            `pixels`, `digits` (1x8x8, 64 features), `mnist` (1x28x28, 128 features), `cifar10` (3x32x32, 128 features),
            `inception` (2048 features) and `dinov2` (1024), which need libraries and weights of their own, and `pca`,
            `pca32`, ... (principal
            components of the values) and `random_conv`, `random_conv32`, ... (principal components of a random
            network's features, for images), which are computed from `data`. The number is that of the features; by
            default it suits the number of data.
        shape: Shape of one sample. Required for `pixels`; for the others it is checked now rather than at the first
            batch.
        download: Whether `inception` may fetch its weights; see `pretrained`.
        data: [N, *shape], the training split or a few thousand items of it, or a function that returns them; only for
            `pca` and `random_conv`.

    Returns:
        Module from samples to float32 features [B, num_features], frozen.

    Raises:
        UserError: If the name is unknown, the shape does not fit, or the weights are missing or damaged.
        ValueError: If a module has no int `num_features`.
    """
    if isinstance(name, nn.Module):
        num_features(name)
        return name
    if name in PRETRAINED:
        return load_pretrained(name, shape, download)
    untrained = re.fullmatch(rf"({'|'.join(UNTRAINED)})(\d*)", name)
    if untrained:
        return _load_untrained(untrained[1], int(untrained[2] or 0), shape, data() if callable(data) else data)
    if name not in extractor_names():
        known = ", ".join([*extractor_names(), *UNTRAINED, *PRETRAINED])
        raise UserError(f"unknown feature extractor {name!r}; choose from {known}")
    if name == "pixels":
        if shape is None:
            raise UserError("extractor 'pixels' needs the shape of a sample: load_extractor('pixels', shape=(1, 8, 8))")
        return Pixels(shape)
    model = read_classifier(WEIGHTS / f"{name}.safetensors", name)
    if shape is not None:
        try:
            _check_shape(torch.empty(0, *shape), model.shape, name)
        except ValueError as error:
            raise UserError(str(error)) from error
    return model


def _load_untrained(kind: str, width: int, shape: Sequence[int] | None, data: Tensor | None) -> nn.Module:
    if data is None:
        raise UserError(f"extractor {kind!r} is made of data: load_extractor({kind!r}, data=...)")
    if shape is not None:
        _check_shape(data[:0], shape, kind)
    if kind == "random_conv" and data.ndim != 4:
        raise UserError(f"extractor 'random_conv' takes images; these are of shape {tuple(data.shape[1:])}: use 'pca'")
    base = RandomConvolutions(data.shape[1:]) if kind == "random_conv" else None
    return PrincipalComponents(data, width or width_for(len(data)), base).eval()
