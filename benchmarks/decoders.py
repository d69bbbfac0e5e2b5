"""Which decoder can replace a model's own? `python -m benchmarks.decoders --ckpt T2I --out DIR`

For a latent model of MNIST or the digits that was trained with texts (see `experiment=text_to_image`), it trains,
SECONDS each, with the settings of `experiment=first_stage`,

- a new decoder for the encoder of the model's first stage, from another seed: the latent variables are the same;
- a new first stage, encoder and decoder, from another seed: those of the same shape, but its own.

The generator is not trained again. Its latent variables, and those of test items, standardised, are decoded by its own
decoder and by each of these. The table has the root mean square error of reconstructions of test items on [-1, 1], the
share of them with the right digit, and the measurements of `benchmarks.text` for pictures of all 60 meanings. A decoder
to which these latent variables mean nothing should have at least the error of the mean image. Which digit it shows for
which should be by chance: one of ten is right on average, with a standard deviation of about one. The errors of the
mean image, and of the new first stage with its own encoder, stand below the table.

Times are CPU seconds of this process on one thread. Results: the table, DIR/decoders.json, a picture of the same latent
variables by each decoder, and the models, which are not trained again if they are there.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.text import MEANINGS, Judges, draw, models_of, on_levels
from benchmarks.training import trained
from sde_diffusion import UserError
from sde_diffusion.commands.configurations import config_folder, register_resolvers
from sde_diffusion.data import DataModule
from sde_diffusion.modality import pictures
from sde_diffusion.modality.images import to_uint8
from sde_diffusion.storage import record
from sde_diffusion.storage.files import writing
from sde_diffusion.training import LatentModel, VariationalModel
from sde_diffusion.variational import FirstStage

OWN, SAME, OTHER = "its own", "new, same encoder", "new, another encoder"


def first_stages(args: argparse.Namespace, model: LatentModel, data: DataModule) -> dict[str, FirstStage]:
    """The model's own first stage, one with a new decoder, and a new one."""
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", ["experiment=first_stage"])
    own, objective = model.first_stage.description, OmegaConf.to_container(cfg.objective)
    settings: dict[str, Any] = {"lr": cfg.model.lr, "warmup_steps": cfg.model.warmup_steps, "seed": args.seed}
    assert own is not None

    def new(encoder: dict[str, Any] | None) -> VariationalModel:
        torch.manual_seed(args.seed)
        parts = {"autoencoder": own["autoencoder"], "observation": own["observation"], "objective": objective}
        found = VariationalModel(**parts, **settings, data=data.describe())
        if encoder is not None:
            found.autoencoder.encoder.load_state_dict(encoder)
            found.autoencoder.encoder.requires_grad_(False)
        return found

    stages = {OWN: model.first_stage}
    encoder = model.first_stage.autoencoder.encoder.state_dict()
    data.batch_size = int(cfg.data.batch_size)
    for name, file, given in ((SAME, "new_decoder", encoder), (OTHER, "new_first_stage", None)):
        again = trained(lambda given=given: new(given), data, args.seconds, args.out / f"{file}.ckpt")
        stages[name] = FirstStage(again.autoencoder)
        rows = torch.linspace(0, len(data.split("train")) - 1, 10_000).long()
        stages[name].fit_statistics(data.split("train").tensor(some) for some in torch.split(rows, 500))
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a latent model that was trained with texts")
    parser.add_argument("--root", help="folder of the data, if they have moved since training")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of each training")
    parser.add_argument("--seed", type=int, default=1, help="of the new weights; that of the presets is 0")
    parser.add_argument("--scale", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--n", type=int, default=360, help="pictures; 60 meanings in turn")
    parser.add_argument("--steps", type=int, default=12, help="steps of DPM-Solver++")
    parser.add_argument("--towers", type=int, default=700, help="training steps of the two-tower model")
    parser.add_argument("--items", type=int, default=1000, help="test items to reconstruct")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        measure(args)
    except UserError as error:
        sys.exit(f"error: {error}")


def measure(args: argparse.Namespace) -> None:
    """Write the table, the picture and `decoders.json`."""
    (model,), data, length = models_of([args.ckpt], args.root)
    if not isinstance(model, LatentModel):
        raise UserError(f"--ckpt must be a latent model, with a decoder to replace; got a {type(model).__name__}")
    stages = first_stages(args, model, data)
    judges, test = Judges(data, length, args.towers), data.split("test")
    meaning, x = torch.arange(args.n) % MEANINGS, test.tensor(torch.arange(args.items))
    text = judges.texts(meaning, "training", 3)
    (drawn,) = draw(model, text, args.scale, args.steps).latents
    assert test.label is not None
    panels, table = {}, {}
    with torch.no_grad():
        encoded = model.first_stage.standardise(model.first_stage.encode(x).mean)
        for name, stage in stages.items():
            again, made = stage.decode(encoded), on_levels(stage.decode(drawn), data)
            right = judges.extractor.logits(again).argmax(1) == test.label[: args.items]
            table[name] = {
                "error": float((again - x).square().mean().sqrt()),
                "digit again": float(right.double().mean()),
                **judges.row(made, meaning, text),
            }
            panels[name] = pictures.image_grid(to_uint8(made[:MEANINGS:2]), min_side=300, columns=6)
        stage = stages[OTHER]
        whole = stage.decode(stage.standardise(stage.encode(x).mean))  # it is no worse than the model's own
    errors = {"the new first stage as a whole": whole, "the mean image": data.tensor("train").mean(0)}
    others = {name: float((y - x).square().mean().sqrt()) for name, y in errors.items()}
    pictures.save(pictures.side_by_side(panels, title=24, gap=16, size=14), args.out / "decoders.png")
    for number, (name, row) in enumerate(table.items()):
        if not number:
            print("| decoder |", " | ".join(row), "|")
            print("|---" * (len(row) + 1) + "|")
        print(f"| {name} |", " | ".join(f"{value:.3g}" for value in row.values()), "|")
    print("\n".join(f"error of {name}: {value:.3g}" for name, value in others.items()))
    about = {"rows": table, "errors": others, "settings": {**vars(args), "ckpt": "", "root": "", "out": ""}}
    with writing(args.out / "decoders.json") as temporary:
        temporary.write_text(json.dumps({**about, **record.provenance()}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
