"""Configurations composed and looked at as commands do, in this process: what a person would be told."""

import contextlib
import io

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion.commands import app, schema

GIVEN = {
    "train": [],
    "sample": ["ckpt=PATH"],
    "evaluate": ["ckpt=PATH"],
    "likelihood": ["ckpt=PATH"],
    "nfe_fid": ["ckpt=PATH"],
    "sweep": ["file=grid"],
}
"""What each command needs to be given."""


def composed(command, overrides):
    """A command's configuration, as Hydra hands it over."""
    OmegaConf.register_new_resolver("run_folder", app.run_folder, replace=True)
    overrides = app.nulls(overrides)
    app.check_groups(overrides)
    with hydra.initialize_config_dir(str(app.config_folder()), version_base="1.3"):
        cfg = hydra.compose(command, overrides=overrides, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "/nowhere/run"
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg


def refusal(command, *overrides):
    """The message that these overrides end with, or None where the command would begin; other errors pass."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), app.telling():
            schema.check(command, composed(command, [*GIVEN[command], *overrides]))
    except SystemExit as end:
        if end.code != 1:
            raise
        return told.getvalue().removeprefix("error: ").rstrip("\n")
    return None


def keys_of(node, prefix=""):
    """The dotted names of all keys."""
    for key in node:
        yield f"{prefix}{key}"
        plain = not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key)
        if plain and isinstance(node[key], DictConfig):
            yield from keys_of(node[key], f"{prefix}{key}.")


POOL = [
    *("1", "2", "10", "0.5", "1e-3", "word", "-1", "0", "1.5", "10.0", ".inf", "inf", "nan", "-inf", "1e400"),
    *("[]", "[1]", "[0.5,0.9]", "[x,y]", "[[1]]", "{}", "{a:1}", "{_target_:os.system}", "null", "None", "''", '""'),
    *("true", "false", "yes", "100000000000000000000", "???", "${foo}", "${seed}", "'${'", "'a b'", "'3'", "ü", "a=b"),
    *("{_target_:sde_diffusion.sde.KarrasRho}", "{_target_:sde_diffusion.sde.VPSDE,beta_min:x}", "00:00:00:05", "auto"),
]
"""Values: plausible ones, ones at the borders, nonsense."""
