"""Arguments of latent variable models that cannot work are refused when the model is made."""

from __future__ import annotations

import pytest
from torch import nn

from sde_diffusion.errors import UserError
from sde_diffusion.training import BetaELBO, ImportanceWeighted, QuantizedELBO
from sde_diffusion.variational import (
    Categorical,
    ConvHierarchy,
    ConvVAE,
    ConvVQVAE,
    Gaussian,
    HierarchicalVAE,
    VectorQuantizer,
)


def test_a_convolutional_hierarchy_has_no_bottom_up_inference():
    with pytest.raises(ValueError, match="inference must be one of ladder, residual, direct"):
        ConvHierarchy([1, 8, 8], Categorical(17), [0, 1, 1], 2, channels=4, inference="bottom_up")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"std": 0.0}, "std must be positive"),
        ({"std": -1.0}, "std must be positive"),
        ({"std": float("nan")}, "std must be positive"),
        ({"learned": 2}, "learned must be true or false"),
    ],
)
def test_a_gaussian_needs_a_positive_standard_deviation(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Gaussian(**wrong)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_numbers_of_quantisers_are_not_negative(value):
    with pytest.raises(ValueError, match="restart must be a finite number of at least 0"):
        VectorQuantizer(4, 2, restart=value)
    with pytest.raises(ValueError, match="commitment must be a finite number of at least 0"):
        QuantizedELBO(value)


@pytest.mark.parametrize("name", ["posterior", "prior", "down", "up"])
def test_a_hierarchy_has_one_network_of_each_kind_for_each_latent_variable(name):
    parts = {kind: [nn.Identity(), nn.Identity()] for kind in ("posterior", "prior", "down", "up")}
    rest = {"decoder": nn.Identity(), "observation": Gaussian(), "shape": [2], "latent_shapes": [[2], [2]]}
    HierarchicalVAE(**parts, **rest)
    with pytest.raises(ValueError, match=f"{name} must have 2 networks, for 2 latent variables and .*; got 1"):
        HierarchicalVAE(**{**parts, name: [nn.Identity()]}, **rest)
    with pytest.raises(ValueError, match="up must have 0 networks, for 2 latent variables and inference=bottom_up"):
        HierarchicalVAE(**parts, **rest, inference="bottom_up")


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (ConvVAE, "MLPVAE, model/autoencoder=mlp"),
        (ConvVQVAE, "an autoencoder with continuous latents, model=vae"),
    ],
)
def test_convolutions_are_for_images(kind, other):
    with pytest.raises(ValueError, match=rf"convolutions are for images .* the data are \[2\]: use {other}"):
        kind([2], Gaussian())


@pytest.mark.parametrize("objective", [BetaELBO(), ImportanceWeighted(4, "standard")])
def test_codes_need_a_commitment_term(objective):
    with pytest.raises(UserError, match=f"{type(objective).__name__} has no commitment term.*: use objective=vq"):
        objective.check(ConvVQVAE([1, 8, 8], Categorical(17), codebook_size=4, latent_channels=2, channels=[4]))
