"""Numbers of parameters of the networks of conf/network, exactly, counted without memory for the weights."""

import pytest
import torch
from network_presets import network_of
from torch import nn

from sde_diffusion.conditions import Label
from sde_diffusion.training import Augmentation

AUGMENTED, CLASSES = Augmentation().conditions(), {"label": Label(10)}
CIFAR, FFHQ = [3, 32, 32], [3, 64, 64]
SIZE_64 = {"channel_mult": [1, 2, 2, 2], "attention": [2], "conditions": AUGMENTED}
IMAGENET_LABELS = {"conditions": {"label": Label(1000)}}
IMAGENET, LATENTS = IMAGENET_LABELS | {"learned_variance": True}, [4, 64, 64]
COUNTS = [
    ("ddpm", CIFAR, {}, 35_746_307),
    ("ddpm", CIFAR, {"decoder_attention": "last"}, 35_218_947),
    ("ddpmpp", CIFAR, {}, 61_804_419),
    ("ddpmpp", CIFAR, {"blocks": 8}, 106_632_579),
    ("ncsnpp", CIFAR, {"embedding": "timestep", "feature_dim": 128}, 62_693_251),
    ("ncsnpp", CIFAR, {}, 62_758_787),
    ("ncsnpp", CIFAR, {"blocks": 8}, 107_586_947),
    ("ncsnpp_256", [3, 256, 256], {}, 65_574_549 - 128),  # whose frequencies diffusers counts as parameters
    ("edm_ddpmpp", CIFAR, {}, 55_732_739),
    ("edm_ddpmpp", CIFAR, {"conditions": AUGMENTED}, 55_733_891),
    ("edm_ddpmpp", CIFAR, {"conditions": CLASSES | AUGMENTED}, 55_735_299),
    ("edm_ncsnpp", CIFAR, {}, 56_395_523),
    ("edm_ncsnpp", CIFAR, {"conditions": AUGMENTED}, 56_397_827),
    ("edm_ncsnpp", CIFAR, {"conditions": CLASSES | AUGMENTED}, 56_400_643),
    ("edm_ddpmpp", FFHQ, SIZE_64, 61_805_571),
    ("edm_ncsnpp", FFHQ, SIZE_64, 62_761_091),
    ("adm", FFHQ, IMAGENET_LABELS, 295_899_267),
    ("adm", FFHQ, IMAGENET, 295_904_454),
    ("edm2_xxs", LATENTS, IMAGENET_LABELS, 31_308_901),
    ("edm2_xs", LATENTS, IMAGENET_LABELS, 124_713_125),
    ("edm2_s", LATENTS, IMAGENET_LABELS, 280_212_709),
    ("edm2_m", LATENTS, IMAGENET_LABELS, 497_807_653),
    ("edm2_m", LATENTS, IMAGENET_LABELS | {"channels": 320}, 777_497_957),
    ("edm2_m", LATENTS, IMAGENET_LABELS | {"channels": 384}, 1_119_283_621),
    ("edm2_m", LATENTS, IMAGENET_LABELS | {"channels": 448}, 1_523_164_645),
    ("dit_s", [4, 32, 32], IMAGENET, 32_865_056),
    ("dit_b", [4, 32, 32], IMAGENET, 130_315_808),
    ("dit_l", [4, 32, 32], IMAGENET, 457_840_672),
    ("dit_xl", [4, 32, 32], IMAGENET, 674_834_720),
    ("mlp", [64], {}, 1_851_072),
    ("digits", [1, 8, 8], {}, 193_777),
    ("unet_small", [1, 28, 28], {}, 779_924),
    ("unet", CIFAR, {}, 60_576_771),
]


@pytest.mark.parametrize(("name", "shape", "changes", "count"), COUNTS)
def test_parameters_of_networks(name, shape, changes, count, monkeypatch):
    for method in ("xavier_uniform_", "kaiming_uniform_", "uniform_", "zeros_", "ones_", "normal_"):
        monkeypatch.setattr(nn.init, method, lambda weight, *arguments, **options: weight)
    with torch.device("meta"):
        network = network_of(name, shape=shape, **changes)
    assert sum(p.numel() for p in network.parameters()) == count
    assert all(p.requires_grad for p in network.parameters())
