"""Latent or pixel diffusion, in equal CPU time? `python -m benchmarks.latent --root DIR --out DIR`

On MNIST it trains an autoencoder and a diffusion model of its latent variables, SECONDS each, and a diffusion model of
the pixels for as long as both together, with the same loss, noise levels (relative to the standard deviation of what is
diffused), batch size, optimizer and moving average. It measures

- the bound on log p(x) of the latent model and its parts, on test items, with N(0, I), the flow's density and the
  evidence lower bound as log p of the latent variables;
- the Fréchet distance to the test split of samples, of training items, and of their reconstructions;
- CPU time for each sample.

Times are CPU seconds of this process on one thread, so that other load on the machine matters little; those of training
include measuring shift and scale. Results: a table, DIR/latent.json, pictures of the samples, and the models, which are
not trained again if they are there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training import trained
from sde_diffusion.data import IdxImages
from sde_diffusion.metrics import FrechetDistance, interval, load_extractor
from sde_diffusion.modality import pictures
from sde_diffusion.modality.images import to_uint8
from sde_diffusion.sampling import DPMSolver
from sde_diffusion.storage import record
from sde_diffusion.storage.files import writing
from sde_diffusion.training import LatentModel, ScoreModel, VariationalModel
from sde_diffusion.variational import bound

LATENTS, STEPS, BATCH = 2, 12, 32
OPTIMIZER: dict[str, Any] = {"lr": 2e-3, "warmup_steps": 100}
AUTOENCODER = {
    "_target_": "sde_diffusion.variational.ConvVAE",
    "latent_channels": LATENTS,
    "patch": 2,
    "channels": [24, 48],
}
UNET: dict[str, Any] = {"_target_": "sde_diffusion.nn.UNet", "embedding_dim": 64, "blocks": 1, "dropout": 0.0}
LATENT_UNET = {**UNET, "shape": [LATENTS, 7, 7], "channels": 32, "channel_mult": [1, 2], "attention": [1]}
PIXEL_UNET = {  # network=unet_small
    **UNET,
    "shape": [1, 28, 28],
    "patch": 2,
    "channels": 16,
    "channel_mult": [1, 2, 4],
    "attention": [2],
}


def denoiser(network: dict[str, Any], std: float) -> dict[str, Any]:
    """A denoiser of data of a standard deviation, and its objective."""
    weighting = {"_target_": "sde_diffusion.training.EDMWeighting", "sigma_data": std}
    levels = {"mean": math.log(std), "std": 1.2, "stratified": True}
    return {
        "denoiser": {
            "_target_": "sde_diffusion.denoiser.NetworkDenoiser",
            "sde": {"_target_": "sde_diffusion.sde.VPSDE"},
            "network": network,
            "sigma_data": std,
        },
        "objective": {
            "_target_": "sde_diffusion.training.DenoisingScoreMatching",
            "weighting": weighting,
            "times": {"_target_": "sde_diffusion.training.LogNormalTimes", **levels},
        },
    }


Row = tuple[str, float, float]
"""What is measured, its value, and its standard error."""


def chain(model: LatentModel, x: Tensor) -> list[Row]:
    """The bound on log p(x) and its parts, bits per dimension: with N(0, I) and with the diffusion model of z."""
    stage = model.first_stage
    with torch.no_grad():
        entropy = stage.encode(x).entropy().double()
    flow, lower = (model.bound(x, density=name) for name in ("flow", "elbo"))
    normal = bound(stage.autoencoder, x)  # with the same draws of z
    values = {
        "-log p(x | z)": -flow.reconstruction,
        "-H(q(z | x))": -entropy,
        "-log N(z; 0, I)": normal.kl[0] + entropy,
        "-log p(z) by the flow": flow.kl[0] + entropy,
        "-log p(z) by the ELBO": lower.kl[0] + entropy,
        "bound with N(0, I)": -normal.log_prob,
        "bound with the flow": -flow.log_prob,
        "bound with the ELBO": -lower.log_prob,
        "gain over N(0, I)": flow.log_prob - normal.log_prob,
    }
    scaled = {name: value / (x[0].numel() * math.log(2)) for name, value in values.items()}
    return [(f"{name}, bits/dim", float(v.mean()), float(v.std()) / len(v) ** 0.5) for name, v in scaled.items()]


def distance(name: str, metric: FrechetDistance, samples: Tensor) -> Row:
    """Fréchet distance of samples to the data that the metric has been given."""
    metric.reset()
    metric.update(samples.clamp(-1, 1), real=False)
    found = interval(metric)["frechet_distance"]
    return f"Fréchet distance, {name}", found.value, (found.high - found.low) / 3.92


def drawn(name: str, model: ScoreModel, n: int, folder: Path) -> tuple[Tensor, Row]:
    """Samples, of which some are drawn into a picture, and the CPU time of each."""
    begin, found = time.process_time(), []
    for seeds in torch.arange(n).split(100):
        drawn = model.draw_samples(DPMSolver(STEPS), model.denoiser, (len(seeds), 1, 28, 28), seeds=seeds.tolist())
        assert drawn is not None
        found.append(drawn.x)
    milliseconds = 1e3 * (time.process_time() - begin) / n
    x = torch.cat(found)
    pictures.save(pictures.image_grid(to_uint8(x[:64])), folder / f"{name}.png")
    return x, (f"CPU ms a sample, {name}", milliseconds, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of MNIST's files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of each of the two stages")
    parser.add_argument("--beta", type=float, default=0.05, help="weight of the autoencoder's KL divergence")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of training")
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--items", type=int, default=300, help="test items whose bound is computed")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = IdxImages(str(args.root), batch_size=BATCH, seed=args.seed)
    common: dict[str, Any] = {**OPTIMIZER, "seed": args.seed, "data": data.prepare().describe()}

    def autoencoder() -> VariationalModel:
        objective = {"_target_": "sde_diffusion.training.BetaELBO", "beta": args.beta}
        return VariationalModel(AUTOENCODER, objective=objective, **common)

    first = args.out / "first_stage.ckpt"
    torch.manual_seed(args.seed)
    pixel = trained(
        lambda: ScoreModel(**denoiser(PIXEL_UNET, data.std), **common), data, 2 * args.seconds, args.out / "pixel.ckpt"
    )
    trained(autoencoder, data, args.seconds, first)
    latent = trained(
        lambda: LatentModel(**denoiser(LATENT_UNET, 1.0), first_stage=first, **common),
        data,
        args.seconds,
        args.out / "latent.ckpt",
    )

    test, train = data.split("test"), data.split("train")
    some = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: args.items]
    rows = chain(latent, test.tensor(some))
    metric = FrechetDistance(load_extractor("mnist", data.shape), reset_real_features=False, keep_features=True)
    for x in test.tensor().split(500):
        metric.update(x, real=True)
    x = train.tensor(torch.arange(args.n))
    rows.append(distance("training items", metric, x))
    with torch.no_grad():
        again = latent.first_stage.decode(latent.first_stage.standardise(latent.first_stage.encode(x).mean))
    rows.append(distance("their reconstructions", metric, again))
    for name, model in (("latent", latent), ("pixel", pixel)):
        samples, cost = drawn(name, model, args.n, args.out)
        rows += [distance(f"samples, {name}", metric, samples), cost]
    lines = [f"{name:44s}{value:9.3f}" + (f" ± {error:.3f}" if error else "") for name, value, error in rows]
    print("\n".join(lines))
    about = {"rows": rows, "settings": {**vars(args), "root": "", "out": ""}, **record.provenance()}
    with writing(args.out / "latent.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
