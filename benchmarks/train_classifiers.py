"""Train the small classifiers whose features the metrics use, and write them as safetensors.

    python -m benchmarks.train_classifiers --data digits
    python -m benchmarks.train_classifiers --data mnist --root DIR

The network is trained on the library's training split with shifts of up to a pixel or two and added noise, so that its
features are smooth. The accuracy that is printed, and stored in the header of the file, is that of the stored weights
on the test split.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.data.digits import Digits
from sde_diffusion.data.idx import IdxImages
from sde_diffusion.data.module import DataModule
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
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05


RECIPES = {
    "digits": Recipe(widths=(32, 64), num_features=64, epochs=80, shift=1, noise=0.1),
    "mnist": Recipe(widths=(16, 32, 64, 64), num_features=128, epochs=12, shift=2, noise=0.1),
}


def labelled(data: DataModule, split: str) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] on [-1, 1] and labels [N] of one split."""
    label = data.split(split).label
    assert label is not None
    return data.tensor(split), label


def augment(x: Tensor, shift: int, noise: float) -> Tensor:
    """Shift the batch by up to `shift` pixels, filling with -1; add noise of a random standard deviation per image."""
    dy, dx = torch.randint(0, 2 * shift + 1, (2,)).tolist()
    height, width = x.shape[-2:]
    x = F.pad(x, (shift,) * 4, value=-1.0)[..., dy : dy + height, dx : dx + width]
    return x + noise * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


def train(x: Tensor, label: Tensor, classes: int, recipe: Recipe, seed: int) -> Classifier:
    """Fit a classifier to images x [N, C, H, W] on [-1, 1] with labels [N] from 0 to classes - 1."""
    torch.manual_seed(seed)
    model = Classifier(tuple(x.shape[1:]), recipe.widths, recipe.num_features, classes)
    model.to(memory_format=torch.channels_last)  # convolutions of few channels are up to twice as fast on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = len(x) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.epochs * steps)
    for epoch in range(recipe.epochs):
        total = 0.0
        for index in torch.randperm(len(x))[: steps * recipe.batch].split(recipe.batch):
            loss = F.cross_entropy(
                model.logits(augment(x[index], recipe.shift, recipe.noise)), label[index], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / steps:.4f}", flush=True)
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
    parser.add_argument("--root", type=Path, help="folder of the idx files; mnist only")
    parser.add_argument("--out", type=Path, help="file to write; the package's own weights by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data == "mnist" and args.root is None:
        parser.error("--data mnist needs --root, the folder of the original idx files")
    data: DataModule = Digits() if args.data == "digits" else IdxImages(root=str(args.root))
    path = args.out or WEIGHTS / f"{args.data}.safetensors"

    recipe, begin = RECIPES[args.data], time.perf_counter()
    x, label = labelled(data, "train")
    model = train(x, label, data.n_classes, recipe, args.seed)
    seconds = time.perf_counter() - begin

    model.half().float()  # rounded to the precision of the file
    x_test, label_test = labelled(data, "test")
    measured = accuracy(model, x_test, label_test)
    root = " --root DIR" if args.data == "mnist" else ""
    facts = {
        "command": f"python -m benchmarks.train_classifiers --data {args.data}{root} --seed {args.seed}",
        "trained_on": f"{args.data} train split, {len(x)} images",
        "tested_on": f"{args.data} test split, {len(x_test)} images",
        "test_accuracy": f"{measured:.4f}",
        "parameters": str(sum(p.numel() for p in model.parameters())),
    }
    save(model, path, recipe, facts)
    print(f"{path}: test accuracy {measured:.4f} ({len(x_test)} images), trained in {seconds:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
