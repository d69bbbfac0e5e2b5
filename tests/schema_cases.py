"""Configurations composed and checked as commands do, in this process: the message that a user would see."""

import contextlib
import csv
import functools
import io
import math
import random

import hydra
from conftest import TINY
from hydra.core.hydra_config import HydraConfig
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from sde_diffusion.commands import app, configurations, schema

GIVEN = {
    "train": [],
    "sample": ["ckpt=PATH"],
    "restore": ["ckpt=PATH", "operator=mask"],
    "evaluate": ["ckpt=PATH"],
    "likelihood": ["ckpt=PATH"],
    "nfe_fid": ["ckpt=PATH"],
    "guidance": ["ckpt=PATH"],
    "sweep": ["file=grid"],
}
"""The mandatory settings of each command."""


def composed(command, overrides):
    """A command's configuration, as composed by Hydra."""
    configurations.register_resolvers()
    overrides = configurations.nulls(overrides)
    configurations.check_groups(overrides)
    with hydra.initialize_config_dir(str(configurations.config_folder()), version_base="1.3"):
        cfg = hydra.compose(command, overrides=overrides, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "/nowhere/run"
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg


def refusal(command, *overrides):
    """The error message for these overrides, or None if the command would begin; other errors are not caught."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), app.reporting_errors():
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
    "1",
    "2",
    "10",
    "0.5",
    "1e-3",
    "word",
    "-1",
    "0",
    "1.5",
    "10.0",
    ".inf",
    "inf",
    "nan",
    "-inf",
    "1e400",
    "[]",
    "[1]",
    "[0.5,0.9]",
    "[x,y]",
    "[[1]]",
    "{}",
    "{a:1}",
    "{_target_:os.system}",
    "null",
    "None",
    "''",
    '""',
    "true",
    "false",
    "yes",
    "100000000000000000000",
    "???",
    "${foo}",
    "${seed}",
    "'${'",
    "'a b'",
    "'3'",
    "ü",
    "a=b",
    "{_target_:sde_diffusion.sde.KarrasRho}",
    "{_target_:sde_diffusion.sde.VPSDE,beta_min:x}",
    "00:00:00:05",
    "auto",
]
"""Values: plausible ones, ones at the borders, nonsense."""


CHOICES = (
    "vp",
    "ve",
    "edm",
    "rectified",
    "eps",
    "v",
    "moons",
    "ring",
    "digits",
    "ddim",
    "dpm",
    "unet_small",
    "none",
    "csv",
)


def words(command):
    """Keys and groups of a command."""
    cfg = composed(command, GIVEN[command])
    keys = sorted(key for key in keys_of(cfg) if key != "out")
    return keys, sorted(key for key in cfg if isinstance(cfg[key], DictConfig)) or keys


def override_lists(command):
    """Lists of up to four settings: keys of the command, choices of groups, deletions and additions."""
    keys, groups = (st.sampled_from(some) for some in words(command))
    values = st.sampled_from(POOL)
    changed = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++"]), keys, values)
    chosen = st.builds("{}={}".format, groups, st.sampled_from([*POOL, *CHOICES]))
    added = st.builds("+{}.{}={}".format, keys, st.sampled_from(["foo", "steps", "_target_"]), values)
    return st.lists(st.one_of(changed, changed, chosen, added, st.builds("~{}".format, keys)), min_size=1, max_size=4)


@functools.cache
def accepted_lists(n, seed=0):
    """n random lists of settings of `train` that the schema accepts."""
    source, found = random.Random(seed), []
    keys, groups = words("train")
    keys.remove("trainer.num_nodes")  # a run on ten machines waits for the others
    while len(found) < n:
        typed = []
        for _ in range(source.randint(1, 3)):
            kind = source.random()
            if kind < 0.2:
                typed.append(f"{source.choice(groups)}={source.choice(CHOICES)}")
            elif kind < 0.3:
                typed.append(f"~{source.choice(keys)}")
            else:
                typed.append(f"{source.choice(keys)}={source.choice(POOL)}")
        typed = [one for one in typed if "num_nodes" not in one]  # a run of ten waits for nine other machines
        alone = [one for one in typed if refusal("train", one) is None]
        if alone and refusal("train", *alone) is None:
            found.append(alone)
    return found


SHORT = ("trainer.max_steps=3", "trainer.val_check_interval=2", "callbacks.samples.n=2", "hydra.run.dir=run")


def trains_or_says_why(command, folder, typed):
    """A run of three steps with these settings ends well and with finite losses, or with one message."""
    short = [word for word in (*TINY, *SHORT) if refusal("train", *typed, word) is None or word.startswith("hydra")]
    done = command("train", *short, *typed, "++trainer.max_steps=3", cwd=folder)
    assert done.status in (0, 1), (typed, done)
    assert "Traceback" not in done.err + done.out, (typed, done.err)
    if done.status:
        assert done.err.count("error: ") == 1, (typed, done.err)
        return
    path = folder / "run" / "metrics.csv"
    if path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value), (typed, rows)
