"""Train the small classifiers whose features the metrics use, and write them as safetensors.

    python -m benchmarks.train_classifiers --data digits
    python -m benchmarks.train_classifiers --data mnist --root DIR
    python -m benchmarks.train_classifiers --data cifar10 --root DIR

The network is trained on the library's training split with shifts of a few pixels and added noise, so that its features
are smooth, and that of CIFAR-10 with mirrored images too, and with batch norms, which are then folded into the
convolutions. The accuracy that is printed, and stored in the header of the file, is that of the stored weights
on the test split.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from sde_diffusion.data.digits import Digits
from sde_diffusion.data.idx import IdxImages
from sde_diffusion.data.module import DataModule
from sde_diffusion.data.parquet import ParquetImages
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.features import WEIGHTS, Classifier
from sde_diffusion.storage.files import writing


@dataclass(frozen=True)
class Recipe:
    """The architecture and the training of a classifier."""

    widths: tuple[int, ...]
    num_features: int
    epochs: int
    shift: int  # largest shift in pixels, in either direction
    noise: float  # largest standard deviation of the added noise; with more the features would not respond to noise
    colour: bool = False  # photographs: mirrored too, and continued at their borders by reflection; with batch norms
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05


RECIPES = {
    "digits": Recipe(widths=(32, 64), num_features=64, epochs=80, shift=1, noise=0.1),
    "mnist": Recipe(widths=(16, 32, 64, 64), num_features=128, epochs=12, shift=2, noise=0.1),
    "cifar10": Recipe(
        widths=(32, 64, 128, 128),
        num_features=128,
        epochs=10,
        shift=3,
        noise=0.1,
        colour=True,
        lr=4e-3,
    ),
}

SOURCES: dict[str, Callable[[str], DataModule]] = {
    "digits": lambda root: Digits(),
    "mnist": lambda root: IdxImages(root=root),
    "cifar10": lambda root: ParquetImages(root=root),
}


def labelled(data: DataModule, split: str) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] on [-1, 1] and labels [N] of one split."""
    label = data.split(split).label
    assert label is not None
    return data.tensor(split), label


def augment(x: Tensor, recipe: Recipe) -> Tensor:
    """Shift the batch, mirror half of the photographs, and add noise of a random standard deviation per image."""
    dy, dx = torch.randint(0, 2 * recipe.shift + 1, (2,)).tolist()
    height, width = x.shape[-2:]
    border = {"mode": "reflect"} if recipe.colour else {"mode": "constant", "value": -1.0}
    x = F.pad(x, (recipe.shift,) * 4, **border)[..., dy : dy + height, dx : dx + width]
    if recipe.colour:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
    return x + recipe.noise * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


def with_batch_norms(trunk: nn.Sequential) -> nn.Sequential:
    """A trunk with a batch norm after each convolution."""
    layers = [(one, nn.BatchNorm2d(one.out_channels)) if isinstance(one, nn.Conv2d) else (one,) for one in trunk]
    return nn.Sequential(*chain.from_iterable(layers))


def folded(trunk: nn.Sequential) -> nn.Sequential:
    """The same function as a trunk with batch norms in evaluation mode, without them."""
    layers: list[nn.Module] = []
    for one in trunk.eval():
        if isinstance(one, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], one)  # type: ignore[type-var]
        else:
            layers.append(one)
    return nn.Sequential(*layers)


def train(x: Tensor, label: Tensor, classes: int, recipe: Recipe, seed: int) -> Classifier:
    """Fit a classifier to images x [N, C, H, W] on [-1, 1] with labels [N] from 0 to classes - 1."""
    torch.manual_seed(seed)
    model = Classifier(tuple(x.shape[1:]), recipe.widths, recipe.num_features, classes)
    if recipe.colour:
        model.trunk = with_batch_norms(model.trunk)
    model.to(memory_format=torch.channels_last)  # convolutions of few channels are up to twice as fast on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = len(x) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.epochs * steps)
    for epoch in range(recipe.epochs):
        total = 0.0
        for index in torch.randperm(len(x))[: steps * recipe.batch].split(recipe.batch):
            images = augment(x[index], recipe).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.colour):  # which `logits` would turn off
                scores = model.head(F.silu(model.hidden(model.trunk(images))))
            loss = F.cross_entropy(scores.float(), label[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / steps:.4f}", flush=True)
    model.trunk = folded(model.trunk)
    return model


@torch.no_grad()
def accuracy(model: Classifier, x: Tensor, label: Tensor) -> float:
    """Share of images [N, C, H, W] whose most probable class is their label [N]."""
    predicted = torch.cat([model.logits(part).argmax(1) for part in x.split(1000)])
    return (predicted == label).double().mean().item()


def save(model: Classifier, path: Path, recipe: Recipe, facts: dict[str, str]) -> None:
    """Write the weights in half precision, atomically."""
    architecture = {
        "shape": model.shape,
        "widths": recipe.widths,
        "num_features": recipe.num_features,
        "classes": model.head.out_features,
    }
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    with writing(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, {"architecture": json.dumps(architecture), **facts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(RECIPES), default="digits")
    parser.add_argument("--root", help="folder of the idx files of mnist, or of the parquet files of cifar10")
    parser.add_argument("--out", type=Path, help="file to write; the package's own weights by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data != "digits" and args.root is None:
        parser.error(f"--data {args.data} needs --root, the folder of its files")
    data = SOURCES[args.data](args.root)
    path = args.out or WEIGHTS / f"{args.data}.safetensors"

    recipe, begin, start = RECIPES[args.data], time.perf_counter(), time.process_time()
    x, label = labelled(data, "train")
    model = train(x, label, data.n_classes, recipe, args.seed)
    seconds, used = time.perf_counter() - begin, time.process_time() - start

    model.half().float()  # rounded to the precision of the file
    x_test, label_test = labelled(data, "test")
    measured = accuracy(model, x_test, label_test)
    root = "" if args.root is None else " --root DIR"
    facts = {
        "command": f"python -m benchmarks.train_classifiers --data {args.data}{root} --seed {args.seed}",
        "trained_on": f"{args.data} train split, {len(x)} images",
        "tested_on": f"{args.data} test split, {len(x_test)} images",
        "test_accuracy": f"{measured:.4f}",
        "parameters": str(sum(p.numel() for p in model.parameters())),
    }
    save(model, path, recipe, facts)
    print(f"{path}: test accuracy {measured:.4f} ({len(x_test)} images), trained in {seconds:.0f} s ({used:.0f} CPU s)")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
