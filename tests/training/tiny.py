"""A model and a run that train in a moment."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from sde_diffusion.data import Ring
from sde_diffusion.training import ScoreModel

MLP = {"_target_": "sde_diffusion.nn.MLP", "shape": [2], "width": 16, "depth": 1, "embedding_dim": 8}
UNET = {
    "_target_": "sde_diffusion.nn.UNet",
    "shape": [1, 8, 8],
    "channels": 8,
    "channel_mult": [1],
    "blocks": 1,
    "attention": [],
    "dropout": 0.3,
    "embedding_dim": 8,
}
OBJECTIVE = {
    "_target_": "sde_diffusion.training.DenoisingScoreMatching",
    "weighting": {"_target_": "sde_diffusion.training.EDMWeighting"},
    "times": {"_target_": "sde_diffusion.training.LogNormalTimes", "stratified": True},
}


def make_model(network: dict[str, Any] | None = None, **options: Any) -> ScoreModel:
    torch.manual_seed(0)
    denoiser = {
        "_target_": "sde_diffusion.denoiser.NetworkDenoiser",
        "sde": {"_target_": "sde_diffusion.sde.VPSDE"},
        "network": network or MLP,
    }
    settings = {"denoiser": denoiser, "objective": OBJECTIVE, "lr": 1e-2, "warmup_steps": 3, "schedule": "constant"}
    return ScoreModel(**{**settings, **options})


def make_vdm(**options: Any) -> ScoreModel:
    """A variational diffusion model that learns its ends, its schedule and the distribution of its times."""
    path = {"_target_": "sde_diffusion.sde.LearnedVPSDE", "schedule": "knots"}
    denoiser = {"_target_": "sde_diffusion.denoiser.NetworkDenoiser", "sde": path, "network": MLP}
    return make_model(denoiser=denoiser, objective={"_target_": "sde_diffusion.training.DiffusionELBO"}, **options)


def ring(**options: Any) -> Ring:
    """128 points in epochs of 8 batches of 16, and 40 to validate on."""
    sizes = {"n_train": 128, "n_val": 40, "n_test": 8, "batch_size": 16, "min_batches_per_epoch": 1}
    return Ring(**{**sizes, **options})


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 20,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**settings, **options})


def tensors(node: Any) -> list[torch.Tensor]:
    """All tensors of nested containers, in order of the keys."""
    if isinstance(node, torch.Tensor):
        return [node]
    if isinstance(node, dict):
        return [tensor for key in sorted(node, key=str) for tensor in tensors(node[key])]
    if isinstance(node, list | tuple):
        return [tensor for value in node for tensor in tensors(value)]
    return []


def same(a: Any, b: Any) -> bool:
    """Whether two nested containers have the same tensors, bit for bit."""
    mine, theirs = tensors(a), tensors(b)
    return len(mine) == len(theirs) > 0 and all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
