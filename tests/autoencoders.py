"""Small autoencoders of every kind, and checkpoints of some that have hardly been trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from sde_diffusion.data import DataModule
from sde_diffusion.training import VariationalModel
from sde_diffusion.training.checkpoint_io import SealedCheckpointIO
from sde_diffusion.variational import (
    MLPVAE,
    Autoencoder,
    Categorical,
    ConvHierarchy,
    ConvVAE,
    ConvVQVAE,
    MLPHierarchy,
    PatchHierarchy,
)

MLP: dict[str, Any] = {"_target_": "sde_diffusion.variational.MLPVAE", "latent_dim": 3, "width": 16}
CONVOLUTIONS: dict[str, Any] = {
    "_target_": "sde_diffusion.variational.ConvVAE",
    "latent_channels": 2,
    "channels": [4, 4],
}

MODELS: dict[str, Callable[[], Autoencoder]] = {
    "perceptron": lambda: MLPVAE([1, 8, 8], Categorical(17), latent_dim=2, width=8),
    "patches": lambda: MLPVAE([1, 8, 8], Categorical(17), latent_dim=2, width=8, patch=2),
    "convolutions": lambda: ConvVAE([1, 8, 8], Categorical(17), latent_channels=2, channels=[4], patch=2),
    "codes": lambda: ConvVQVAE([1, 8, 8], Categorical(17), codebook_size=4, latent_channels=2, channels=[4]),
    "hierarchy": lambda: MLPHierarchy([1, 8, 8], Categorical(17), [2, 2], width=8),
    "hierarchy of patches": lambda: MLPHierarchy([1, 8, 8], Categorical(17), [2, 2], width=8, patch=2),
    "patch hierarchy": lambda: PatchHierarchy([1, 8, 8], Categorical(17), [1, 2], width=8, patch_width=8),
    "convolutional hierarchy": lambda: ConvHierarchy([1, 8, 8], Categorical(17), [0, 1, 1], 2, channels=4),
}
"""Of digits."""


def autoencoder(path: Path, data: DataModule, latent: dict[str, Any], steps: int = 2) -> Path:
    """Train one for some steps, and write its checkpoint."""
    torch.manual_seed(0)
    model = VariationalModel(latent, data=data.prepare().describe(), lr=1e-2, warmup_steps=1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SealedCheckpointIO()],
        default_root_dir=path.parent,
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(path)
    return path
