"""Denoisers made of other programs' checkpoints, and written for them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from sde_diffusion.checks import check_choice
from sde_diffusion.config import build
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.pretrained import own
from sde_diffusion.pretrained.description import Description
from sde_diffusion.pretrained.diffusers_folder import write as write_diffusers
from sde_diffusion.pretrained.names import Location, Table, Weights, imported
from sde_diffusion.pretrained.sources import check_no_sde, read, recognises
from sde_diffusion.sde import Grid

if TYPE_CHECKING:
    from sde_diffusion.training import ScoreModel


class Pretrained(NetworkDenoiser):
    """A denoiser made of a checkpoint of another program: for samplers, likelihoods, guidance and restoration.

    `Pretrained.load(path)` makes one. Path, prediction, noise conditioning and input scale are those of the source:

    - diffusers, a folder with a `UNet2DModel` (DDPM and NCSN++ families) or a `DiTTransformer2DModel`, and a scheduler;
    - DiT, its authors' `.pt`;
    - score_sde_pytorch, a `.pth` of DDPM, DDPM++ or NCSN++, with the averaged weights;
    - a folder that `save` has written, and checkpoints of this program.

    Args:
        description: What it is made of; see `Description`.
        **settings: Arguments of `NetworkDenoiser` in place of the description's, such as compute_dtype="bfloat16".

    Attributes:
        description: The source, the settings, and the data's description.
        digest: SHA-256 of the files; "" if it was made of none.

    Raises:
        UserError: If the description is not that of a denoiser.
    """

    def __init__(self, description: Description, **settings: Any) -> None:
        whole = {**description.denoiser, **settings}
        super().__init__(**{key: build(value, f"denoiser.{key}") for key, value in whole.items() if key != "_target_"})
        self.description = description
        self.digest = ""

    @property
    def grid(self) -> Grid | None:
        """The grid of the source's own sampler, for samplers' argument `grid`; None if it has none."""
        found: Grid | None = build(self.description.grid, "grid")
        return found

    @classmethod
    def load(cls, path: str | Path, sde: str | None = None, **settings: Any) -> Self:
        """Read a checkpoint; no code in it is run.

        Args:
            path: The file or folder; see the class.
            sde: For score_sde_pytorch: "vp", "subvp", "ve", "vp_discrete" or "ve_discrete"; None: by the names of the
                folders, as its authors publish them. Not for others.
            **settings: See the class.

        Returns:
            The denoiser, in evaluation mode, with float32 weights on the CPU.

        Raises:
            UserError: If it is of no kind that is known, is damaged or contains code, or has weights missing, left over
                or of another shape than its configuration says.
        """
        file = Path(path)
        if not recognises(file):
            check_no_sde(sde, file)
            return cls._of_checkpoint(file, settings)
        found = read(file, sde)
        with torch.device("meta"):
            wanted = _network(found.description).state_dict()
        weights = imported(found.weights, wanted, found.table or _same(wanted), found.files[0])
        made = cls(found.description, **settings).eval()
        made.network.load_state_dict(weights)
        digests = hashlib.sha256()
        for each in found.files:
            with each.open("rb") as opened:
                digests.update(hashlib.file_digest(opened, "sha256").digest())
        made.digest = digests.hexdigest()
        return made

    @classmethod
    def _of_checkpoint(cls, path: Path, settings: dict[str, Any]) -> Self:
        from sde_diffusion.training.digested import load_with_digest

        model = load_with_digest(str(path), torch.device("cpu"))
        made = cls.of(model, **settings)
        made.digest = model.digest
        return made

    @classmethod
    def of(cls, model: Any, **settings: Any) -> Self:
        """The denoiser of a trained model, such as a `ScoreModel` of a checkpoint, with copies of its weights.

        Args:
            model: A model that walks on the data, made from configurations.
            **settings: See the class.

        Raises:
            UserError: If it is no such model.
        """
        described, denoiser = dict(model.hparams).get("denoiser") or {}, model.denoiser
        reasons = {
            "its denoiser was not made from a configuration": not described,
            f"its denoiser is a {type(denoiser).__name__}, not a network": not isinstance(denoiser, NetworkDenoiser),
            "its path is learned": getattr(getattr(denoiser, "sde", None), "learned", False),
            "it is a diffusion of latent variables": list(model.state_shape) != list(model.data.get("shape", ())),
        }
        if wrong := [reason for reason, holds in reasons.items() if holds]:
            raise UserError(f"this {type(model).__name__} is not written for other programs: {'; '.join(wrong)}")
        description = Description(
            "sde_diffusion",
            described,
            {key: value for key, value in model.data.items() if key not in ("config", "fingerprint")},
            model.conditions.describe(),
            bool(model.dropout.dropped),
        )
        made = cls(description, **settings).eval()
        made.network.load_state_dict(denoiser.network.state_dict())
        return made

    def save(self, folder: str | Path, format: str = "safetensors") -> None:
        """Write the denoiser for other programs.

        Args:
            folder: The folder, which is made; empty if there is one.
            format: "safetensors": `model.safetensors` and the settings as JSON, which `load` reads; "diffusers": a
                folder that diffusers loads as a `DDPMPipeline` or `ScoreSdeVePipeline`, for U-Nets that it has.

        Raises:
            ValueError: If the format is unknown.
            UserError: If the folder is not empty, or diffusers has no such network or schedule; the message says what
                differs.
        """
        check_choice("format", format, ("safetensors", "diffusers"))
        if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
            raise UserError(f"{folder} exists already, and is not an empty folder: choose another, or remove it")
        weights: Weights = {name: value.detach().cpu() for name, value in self.network.state_dict().items()}
        if format == "diffusers":
            write_diffusers(Path(folder), self.description, self, weights)
        else:
            own.write(Path(folder), self.description, weights)

    def model(self) -> ScoreModel:
        """The denoiser as a `ScoreModel`, for the commands, with the description of its data."""
        from sde_diffusion.training import DenoisingScoreMatching, ScoreModel

        about = self.description
        dropout = 0.1 if about.drops_conditions else 0.0  # any positive share says that the null values were trained
        model = ScoreModel(
            self, DenoisingScoreMatching(), data=about.data, conditions=about.conditions, label_dropout=dropout
        )
        model.digest = self.digest
        return model.eval()


def _network(description: Description) -> nn.Module:
    network = build(description.denoiser.get("network"), "denoiser.network")
    if not isinstance(network, nn.Module):
        raise UserError("the description has no network")
    return network


def _same(wanted: Weights) -> Table:
    """The table of weights that have our names; each key's module and parameter."""
    names = {key.rpartition(".")[0] for key in wanted}
    return {name.replace(".", r"\."): Location((name,)) for name in names}
