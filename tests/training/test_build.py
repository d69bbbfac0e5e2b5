"""Building objects from configurations."""

from typing import Any

import pytest
import torch

from sde_diffusion.config import build
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import AncestralSampler
from sde_diffusion.sde import VESDE, VPSDE, GeometricLevels
from sde_diffusion.training import DiscreteTimes


def test_nested_configurations_are_built_from_the_inside() -> None:
    built = build(
        {
            "_target_": "sde_diffusion.training.DiscreteTimes",
            "levels": {"_target_": "sde_diffusion.sde.GeometricLevels", "n": 3},
            "stratified": True,
        }
    )
    assert type(built) is DiscreteTimes
    assert built.levels == GeometricLevels(3)
    assert built.stratified


def test_containers_without_a_target_stay_containers() -> None:
    sde = {"_target_": "sde_diffusion.sde.VESDE", "sigma_max": 30.0}
    assert build({"a": [1, sde, "x"], "b": {"c": (sde, None)}}) == {
        "a": [1, VESDE(sigma_max=30.0), "x"],
        "b": {"c": [VESDE(sigma_max=30.0), None]},
    }


def test_objects_pass_through() -> None:
    network = torch.nn.Identity()
    denoiser = build({"_target_": "sde_diffusion.NetworkDenoiser", "sde": VPSDE(), "network": network})
    assert type(denoiser) is NetworkDenoiser
    assert denoiser.network is network


def test_overrides_reach_the_outermost_call_alone() -> None:
    node = {"_target_": "sde_diffusion.sampling.AncestralSampler", "steps": 7, "grid": None}
    built = build(node, steps=9)
    assert type(built) is AncestralSampler
    assert built.steps == 9
    assert node["steps"] == 7


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "sde_diffusion.VPSDE", "beta_mim": 0.1, "x": 1},
            "beta_mim: VPSDE takes no beta_mim \\(did you mean beta_min\\?\\); it takes beta_min, beta_max",
        ),
        ({"_target_": "sde_diffusion.VPSDE", "beta_min": 3.0, "beta_max": 1.0}, "beta_min <= beta_max"),
        (
            {"_target_": "sde_diffusion.NetworkDenoiser", "sde": None},
            "sde must be of class SDE, .*; got sde=null|network must be given|_target_: CLASS",
        ),
        ({"_target_": "sde_diffusion.sde.base.SDE", "t_min": 0.0, "t_max": 1.0}, "abstract"),
        ({"_target_": "sde_diffusion.VPSDEE"}, "not a class of sde_diffusion"),
        ({"_target_": "sde_diffusion.nowhere.VPSDE"}, "not a class of sde_diffusion"),
        ({"_target_": "sde_diffusion.sde.base.float64"}, "not a class of sde_diffusion"),
        ({"_target_": "sde_diffusion.sde.base.Tensor"}, "not a class of sde_diffusion"),
        # Building these would write files or call a server before anybody looked at their type.
        ({"_target_": "sde_diffusion.training.loggers.WandbLogger", "folder": "."}, "not a class of sde_diffusion"),
        ({"_target_": "sde_diffusion.training.loggers.CSVLogger", "folder": "."}, "not a class of sde_diffusion"),
        ({"_target_": "sde_diffusion.training.ScoreModel"}, "not a class of sde_diffusion"),
    ],
)
def test_mistakes_are_named(node: dict[str, Any], message: str) -> None:
    for nested in (node, {"_target_": "sde_diffusion.NetworkDenoiser", "sde": node, "network": None}, [node]):
        with pytest.raises(UserError, match=message):
            build(nested)
