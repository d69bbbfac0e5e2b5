"""A hierarchical or a flat VAE, in equal CPU time? `python -m benchmarks.hierarchy --root DIR --out DIR`

On MNIST it trains the VAE of `experiment=vae_mnist` and the hierarchical one of `experiment=hvae_mnist`, SECONDS each,
with the learning rate and the batch size of its preset; they have about as many parameters. It measures the evidence
lower bound on log p(x) of each on test items, its parts, and the difference item by item.

Times are CPU seconds of this process on one thread, so that other load on the machine matters little. Results: a table,
DIR/hierarchy.json, and the models, which are not trained again if they are there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from benchmarks.training import trained, training_of
from sde_diffusion.commands.configurations import config_folder, register_resolvers
from sde_diffusion.commands.train import build_model
from sde_diffusion.density import Bound
from sde_diffusion.storage import record
from sde_diffusion.storage.files import writing
from sde_diffusion.variational import bound

PRESETS = ("vae_mnist", "hvae_mnist")

Value = tuple[float, float]
"""A mean over test items, and its standard error."""


def mean_of(values: Tensor, scale: float = 1.0) -> Value:
    """Of values [N], times a scale."""
    values = scale * values.double()
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def parts_of(found: Bound, bits: float) -> dict[str, Value]:
    """The bound and its parts: KL divergences in nats, the rest in bits per dimension, `bits` of which are a nat."""
    kl = {f"KL of z_{level}, nats": mean_of(values) for level, values in enumerate(found.kl, 1)}
    reconstruction, whole = mean_of(found.reconstruction, -bits), mean_of(found.log_prob, -bits)
    return {"-log p(x given z), bits/dim": reconstruction, **kl, "bound, bits/dim": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of MNIST's files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=90.0, help="CPU seconds of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of training")
    parser.add_argument("--items", type=int, default=10000, help="test items whose bound is computed")
    parser.add_argument("--draws", type=int, default=1, help="draws of the latent variables for each")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    register_resolvers()
    bounds: dict[str, Tensor] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in PRESETS:
        overrides = [f"experiment={name}", f"data.root={args.root}", f"seed={args.seed}"]
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("train", overrides)
        torch.manual_seed(args.seed)
        data, new = build_model(cfg)
        path = args.out / f"{name}.ckpt"
        model = trained(lambda new=new: new, data, args.seconds, path)
        test = data.split("test")
        x = test.tensor(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: args.items])
        found = bound(model.autoencoder, x, args.draws)
        bits = 1 / (x[0].numel() * math.log(2))
        bounds[name] = bits * found.log_prob
        steps, seconds = training_of(path)
        about = {"parameters": sum(p.numel() for p in model.parameters()), "steps": steps, "CPU seconds": seconds}
        results[name] = {**about, **parts_of(found, bits)}
    results["gain of the hierarchy"] = {"bound, bits/dim": mean_of(bounds["hvae_mnist"] - bounds["vae_mnist"])}
    for name, rows in results.items():
        print(name)
        for what, value in rows.items():
            shown = f"{value:10,.0f}" if not isinstance(value, tuple) else f"{value[0]:10.4f} ± {value[1]:.4f}"
            print(f"  {what:30s}{shown}")
    about = {"results": results, "settings": {**vars(args), "root": "", "out": ""}, **record.provenance()}
    with writing(args.out / "hierarchy.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
