"""Small checkpoints as other programs write them, with the outputs of those programs' own code.

`layouts.json` has, by case, the names and shapes of the weights in their order, the configurations, and outputs that
diffusers 0.42, score_sde_pytorch and DiT's authors' code computed in float32 with the weights that `drawn` makes: x0 at
level i of the table with its alpha_bar, or at sigma on [0, 1] for NCSN++; for score_sde_pytorch the score at t.
"""

import json
import pathlib
import re

import torch
from safetensors.torch import save_file

from sde_diffusion.nn.dit import position_embedding

CASES = json.loads((pathlib.Path(__file__).parent / "layouts.json").read_text())
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def drawn(shapes):
    """Weights by name, drawn in this order; copies of DiT's embedding are equal."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        first = re.sub(r"transformer_blocks\.\d+\.norm1\.emb", "transformer_blocks.0.norm1.emb", name)
        fourier = name.endswith(("time_proj.weight", "all_modules.0.W"))
        std = 16 if fourier else torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.3
        value = std * torch.randn(shape, generator=generator)
        found[name] = found[first].clone() if first != name else value
    return found


def inputs_of(shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def folder_of(name, root, old_names=False, changes=None, config=None, scheduler=None):
    """A folder of diffusers; with old names as a .bin."""
    case = CASES[name]
    part = root / ("transformer" if name == "dit" else "unet")
    for home in (part, root / "scheduler"):
        home.mkdir(parents=True, exist_ok=True)
    (part / "config.json").write_text(json.dumps({**case["config"], **(config or {})}))
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({**case["scheduler"], **(scheduler or {})}))
    weights = {**drawn(case["keys"]), **(changes or {})}
    weights = {key: value for key, value in weights.items() if value is not None}
    if old_names:
        for new, old in OLD.items():
            weights = {key.replace(f".{new}.", f".{old}."): value for key, value in weights.items()}
        torch.save(weights, part / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, part / "diffusion_pytorch_model.safetensors")
    return root


def score_sde_file(name, root, lost=0):
    """A checkpoint of score_sde_pytorch, whose averaged weights alone are the right ones."""
    case = CASES[name]
    weights = drawn(case["keys"])
    trained = [key for key in weights if key != "sigmas" and key not in case["frozen"]]
    listed = [weights[key] for key in trained]
    model = {key: torch.zeros_like(value) if key in trained else value for key, value in weights.items()}
    levels = torch.linspace(torch.tensor(50.0).log(), torch.tensor(0.01).log(), 1000, dtype=torch.float64).exp()
    model = {f"module.{key}": value for key, value in {**model, "sigmas": levels}.items()}
    path = root / case["where"]
    path.parent.mkdir(parents=True, exist_ok=True)
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": listed[lost:]}
    torch.save({"model": model, "ema": ema, "optimizer": {}, "step": 3}, path)
    return path


def authors_dit_file(root):
    weights = drawn(CASES["authors_dit"]["keys"])
    torch.save({**weights, "pos_embed": position_embedding([4, 4], 384)}, root / "DiT-S-2.pt")
    return root / "DiT-S-2.pt"
