"""Does the picture show what the text says? `python -m benchmarks.text --ckpt PATH [PATH ...]`

For models of MNIST or the digits that were trained with `captions=rendered` (see `experiment=text_to_image`), it draws
pictures of all 60 meanings (digit, thickness, slant), told in the words of training and in words that they never saw,
at several guidance scales. It measures

- the shares of pictures with the right digit (by the classifier whose features `evaluate` uses), the right thickness
  and the right slant (closed-form attributes, with borders from the training split);
- the score of a two-tower model, 2.5 max(cos, 0) as in CLIPScore, trained here on real pairs. It scores each picture
  with a text of the meaning that was asked for, in words of training, also where the generator was told others;
- the Fréchet distance to the test split.

Real test pictures with their own captions, and with shuffled ones, stand beside them. One thread, for comparable times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import DPMSolver, UserError
from sde_diffusion.config import build
from sde_diffusion.data import DataModule, from_levels, to_levels
from sde_diffusion.metrics import FrechetDistance, TwoTower, load_extractor
from sde_diffusion.sampling import Samples
from sde_diffusion.text import RenderedCaptions, StrokeAttributes, as_bytes
from sde_diffusion.training import GenerativeModel
from sde_diffusion.training.guided_denoiser import guided_denoiser

MEANINGS = 60


class Judges:
    """The measurements of pictures of handwritten digits.

    Args:
        data: The data, with labels.
        length: Number of bytes of a text.
        steps: Training steps of the two-tower model.
    """

    def __init__(self, data: DataModule, length: int, steps: int) -> None:
        self.data, self.length = data, length
        x, self.labels = data.tensor("train"), data.split("train").label
        assert self.labels is not None
        self.borders = StrokeAttributes.of(torch.split(x, 1000), self.labels)
        self.extractor = load_extractor(data.extractor or "digits", data.shape)
        torch.manual_seed(0)
        self.towers = TwoTower(data.shape)
        optimizer = torch.optim.AdamW(self.towers.parameters(), 1e-3)
        meaning = self.meaning(x, self.labels)
        text = self.texts(meaning, "training", 1)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            loss = self.towers.loss(x[rows], text[rows], meaning[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.towers.eval()

    def meaning(self, x: Tensor, labels: Tensor) -> Tensor:
        """What captions say of pictures: 6 digit + 3 thickness + slant, [N]."""
        return 6 * labels + 3 * self.borders.thickness(x, labels) + self.borders.slant(x)

    def texts(self, meaning: Tensor, words: str, seed: int) -> Tensor:
        """Captions that say all of it, bytes [N, length]."""
        rendered = RenderedCaptions(words, partial=0.0, seed=seed)
        parts = (meaning // 6, meaning // 3 % 2, meaning % 3)
        return as_bytes(rendered.sentences(*(part.tolist() for part in parts)), self.length)

    def row(self, x: Tensor, meaning: Tensor, text: Tensor) -> dict[str, float]:
        """The measurements of pictures [N, C, H, W] that are to mean what `meaning` [N] says."""
        digit = meaning // 6
        with torch.no_grad():
            score = self.towers.score(x, text)
        distance = FrechetDistance(self.extractor)
        distance.update(self.data.tensor("test"), real=True)
        distance.update(x, real=False)
        right = {
            "digit": self.extractor.logits(x).argmax(1) == digit,
            "thickness": self.borders.thickness(x, digit) == meaning // 3 % 2,
            "slant": self.borders.slant(x) == meaning % 3,
        }
        shares = {name: float(found.double().mean()) for name, found in right.items()}
        return {**shares, "two-tower": float(score.mean()), "Fréchet": float(distance.compute())}


def models_of(paths: Sequence[str], root: str | None) -> tuple[list[GenerativeModel], DataModule, int]:
    """The models of checkpoints, the data of the first without captions, and the number of bytes of a text."""
    models = [GenerativeModel.load_from_checkpoint(path).eval() for path in paths]
    kind = models[0].conditions.get("text")
    if any(model.conditions.get("text") is None or not model.dropout.dropped for model in models):
        raise UserError("--ckpt must be models that were trained with texts, some of them dropped: captions=rendered")
    assert kind is not None
    settings: dict[str, Any] = {**models[0].data["config"], "captions": None}
    return models, build(settings | ({"root": root} if root else {})).prepare(), kind.shape[0]


def draw(model: GenerativeModel, text: Tensor, scale: float, steps: int) -> Samples:
    """Pictures of texts, by DPM-Solver++ with guidance."""
    guided = guided_denoiser(model, {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": scale})
    with torch.no_grad():
        parts = [
            model.draw_samples(
                DPMSolver(steps), guided, (len(rows), *model.data["shape"]), seeds=rows.tolist(), text=text[rows]
            )
            for rows in torch.split(torch.arange(len(text)), 200)
        ]
    latents = [torch.cat([part.latents[0] for part in parts])] if parts[0].latents else []
    return replace(parts[0], x=torch.cat([part.x for part in parts]), latents=latents)


def on_levels(x: Tensor, data: DataModule) -> Tensor:
    """Pictures as they are in files."""
    return from_levels(to_levels(x, data.levels or 256), data.levels or 256)


def rows_of(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """The rows of the table, with their names."""
    models, data, length = models_of(args.ckpt, args.root)
    judges = Judges(data, length, args.towers)
    label = data.split("test").label
    x = data.tensor("test")[: args.real]
    meaning = judges.meaning(x, label[: args.real])
    yield "real pictures", judges.row(x, meaning, judges.texts(meaning, "training", 2))
    shuffled = meaning[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    yield "real pictures, shuffled texts", judges.row(x, shuffled, judges.texts(shuffled, "training", 2))
    meaning = torch.arange(args.n) % MEANINGS
    told = judges.texts(meaning, "training", 3)
    for path, model in zip(args.ckpt, models, strict=True):
        for words in ("training", "unseen"):
            text = judges.texts(meaning, words, 3)
            for scale in args.scales:
                start = time.process_time()
                x = on_levels(draw(model, text, scale, args.steps).x, data)
                seconds = (time.process_time() - start) / args.n
                name = f"{path}, {words} words, scale {scale:g}"
                yield name, {**judges.row(x, meaning, told), "ms each": 1000 * seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", nargs="+", required=True)
    parser.add_argument("--root", help="folder of the data, if they have moved since training")
    parser.add_argument("--scales", nargs="+", type=float, default=[1, 2, 4])
    parser.add_argument("--n", type=int, default=600, help="pictures for each setting; 60 meanings in turn")
    parser.add_argument("--steps", type=int, default=12, help="steps of DPM-Solver++")
    parser.add_argument("--towers", type=int, default=1500, help="training steps of the two-tower model")
    parser.add_argument("--real", type=int, default=2000, help="real test pictures to measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for number, (name, row) in enumerate(rows_of(args)):
            if not number:
                print("| pictures |", " | ".join([*row, "ms each"]), "|")
                print("|---" * (len(row) + 2) + "|")
            print(f"| {name} |", " | ".join(f"{value:.3g}" for value in row.values()), "|", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
