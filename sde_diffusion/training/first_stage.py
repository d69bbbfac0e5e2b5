"""First stages of latent diffusion from checkpoints of autoencoders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.config import to_containers
from sde_diffusion.errors import UserError
from sde_diffusion.training.generative import GenerativeModel
from sde_diffusion.training.variational import build_autoencoder
from sde_diffusion.variational import Autoencoder, FirstStage

log = logging.getLogger(__name__)

MISSING = (
    "latent diffusion needs a trained first stage: train one with experiment=first_stage, then give "
    "first_stage.ckpt=PATH"
)
_PARTS = ("autoencoder", "observation", "shape", "levels")


def from_checkpoint(
    ckpt: str | Path | None, data: Mapping[str, Any] | None = None, where: str = "first_stage.ckpt"
) -> FirstStage:
    """The first stage in a checkpoint of a `VariationalModel`.

    Args:
        ckpt: The checkpoint.
        data: Description of the data that it is to encode (`DataModule.describe()`); None: not checked.
        where: Key that names the checkpoint, for messages.

    Raises:
        UserError: If there is none, it cannot be loaded, is of another kind of model, or was trained on data of another
            shape, with other levels or units.
    """
    if ckpt is None:
        raise UserError(MISSING)
    try:
        model = GenerativeModel.load_from_checkpoint(ckpt)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    autoencoder, settings, what = getattr(model, "autoencoder", None), model.hparams, f"{where}={ckpt}"
    if not isinstance(autoencoder, Autoencoder):
        raise UserError(
            f"{what} contains a {type(model).__name__}, which is no autoencoder: train one with experiment=first_stage"
        )
    _check_data(what, model.data, data or {})
    if not isinstance(settings.get("autoencoder"), Mapping):
        raise UserError(f"{what} is of a model made from objects in Python, and does not say how to rebuild it")
    own = {"autoencoder": settings["autoencoder"], "observation": settings.get("observation")}
    own |= {"shape": model.data["shape"], "levels": model.data.get("levels")}
    return _with_description(autoencoder, own, what)


def from_description(description: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> FirstStage:
    """The first stage of a `FirstStage.description`, without its weights.

    Args:
        description: The description.
        data: See `from_checkpoint`.

    Raises:
        UserError: If it is not one, or of other data.
    """
    if lacking := [name for name in _PARTS if name not in description]:
        raise UserError(f"first_stage lacks {', '.join(lacking)}: give the path of a checkpoint")
    found = {name: description[name] for name in _PARTS}
    _check_data("the first stage", found, data or {})
    return _with_description(build_autoencoder(**found), found, "first_stage")


def _with_description(autoencoder: Autoencoder, description: Mapping[str, Any], what: str) -> FirstStage:
    try:
        found = FirstStage(autoencoder)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    found.description = to_containers({**description, "latent_shape": found.latent_shape})
    return found


def _check_data(what: str, own: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Check that a first stage's data and those that it is to encode have the same shape, levels and units.

    Raises:
        UserError: If they do not.
    """
    if not own or not data:
        return
    its = own.get("name", "data")
    if list(own["shape"]) != list(data["shape"]):
        raise UserError(
            f"{what} was trained on {its} {list(own['shape'])}, data are {list(data['shape'])}: train one on these data"
        )
    for name in ("levels", "units"):
        if name in own and own[name] != data.get(name):
            raise UserError(
                f"{what} was trained on {its} with {name} {own[name]}, those of the data are {data.get(name)}: train "
                "one on these data"
            )
    if "name" in own and own["name"] != data.get("name"):
        log.warning("%s was trained on %s, but the data are %s", what, its, data.get("name"))
