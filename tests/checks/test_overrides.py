"""What the library prints can be pasted: a shell and then Hydra read the value back, whatever it is."""

import shlex
import subprocess

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sde_diffusion.checks.overrides import command_line, setting
from sde_diffusion.commands import app, configurations

NAMES = [
    "üñí",
    "a b=ü",
    "a,b",
    "[x]",
    "{x}",
    "it's",
    'say "hi"',
    "$HOME",
    "a\\b",
    "a\\",
    "\\'",
    "${seed}",
    "~x",
    "7",
    "1e-3",
]
NAMES += ["null", "True", "nan", "on", "", "#x", "!x", "`x`", "a;b", "a&b", "%d", "a:b", "(x)", "*", "x\\${y}", "日本"]


def read_back(text: str) -> object:
    (override,) = OverridesParser.create().parse_overrides(shlex.split(text))
    assert override.key_or_group == "ckpt"
    return OmegaConf.create({"seed": 0, "ckpt": override.value()}).ckpt


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    value = read_back(setting("ckpt", f"/runs/{name}/last.ckpt"))
    assert (value, type(value)) == (f"/runs/{name}/last.ckpt", str)
    value = read_back(setting("ckpt", name))
    assert (value, type(value)) == (name, str)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" '\"\\${},[]"), max_size=12))
def test_any_text(text):
    assert read_back(setting("ckpt", text)) == text


@pytest.mark.parametrize("value", [None, True, 3, -2.5, 1e-30, 10**20])
def test_values_that_are_no_text(value):
    found = read_back(setting("ckpt", value))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_real_shell(name):
    """sh, not only Python's idea of it."""
    echoed = subprocess.run(
        ["sh", "-c", f"printf %s {setting('ckpt', name)}"], capture_output=True, text=True, check=True
    )
    assert echoed.stdout == shlex.split(setting("ckpt", name))[0]


def test_plain_values_stay_plain():
    line = command_line("sde_diffusion.sample", ckpt="outputs/train/2026-01-02_03-04-05/last.ckpt", n=64)
    assert line.endswith("-m sde_diffusion.sample ckpt=outputs/train/2026-01-02_03-04-05/last.ckpt n=64")
    assert setting("ckpt", "a b=ü") == "\"ckpt='a b=ü'\""


def test_what_the_command_line_gives():
    """As parsed by Hydra: a group's choice, its keys, additions, and not longer names."""
    words = ["sampler=pc", "++trainer.max_steps=3", "+sampler.n_steps=2", "~logger"]
    configurations.register_resolvers()
    with hydra.initialize_config_dir(str(configurations.config_folder()), version_base="1.3"):
        HydraConfig.instance().set_config(hydra.compose("train", overrides=words, return_hydra_config=True))
    GlobalHydra.instance().clear()
    for key in ("sampler", "sampler.n_steps", "trainer", "trainer.max_steps", "logger"):
        assert app.is_overridden(key)
    for key in ("sample", "trainer.max", "trainer.max_steps.x", "network"):
        assert not app.is_overridden(key)
    assert app.override_hint("sampler") == " (given: sampler=pc +sampler.n_steps=2)"
    assert app.override_hint("trainer") == " (given: trainer.max_steps=3)"
    assert app.override_hint("network") == ""
