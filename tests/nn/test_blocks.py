import math

import numpy as np
import pytest
import torch
from torch import nn

from sde_diffusion.nn.attention import SelfAttention
from sde_diffusion.nn.blocks import ResidualBlock
from sde_diffusion.nn.layers import group_norm
from sde_diffusion.nn.patching import patchify, unpatchify
from sde_diffusion.nn.resampling import double, halve


def randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


@pytest.mark.parametrize(("channels", "head_channels", "heads"), [(12, 4, 3), (10, 64, 1), (7, 3, 7)])
def test_attention_equals_a_loop_over_heads_and_queries(channels, head_channels, heads):
    layer = randomise(SelfAttention(channels, head_channels).double())
    assert layer.heads == heads
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    normed = layer.norm(x).detach().numpy().reshape(2, channels, 15)
    w_qkv, b_qkv = layer.qkv.weight.detach().numpy()[:, :, 0, 0], layer.qkv.bias.detach().numpy()
    w_out, b_out = layer.output.weight.detach().numpy()[:, :, 0, 0], layer.output.bias.detach().numpy()
    expected = np.empty((2, channels, 15))
    width = channels // heads
    for i in range(2):
        q, k, v = np.split(w_qkv @ normed[i] + b_qkv[:, None], 3)
        mixed = np.empty((channels, 15))
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            for pixel in range(15):
                weights = np.exp([q[rows, pixel] @ k[rows, other] / math.sqrt(width) for other in range(15)])
                mixed[rows, pixel] = v[rows] @ (weights / weights.sum())
        expected[i] = (x[i].numpy().reshape(channels, 15) + w_out @ mixed + b_out[:, None]) / math.sqrt(2)
    np.testing.assert_allclose(layer(x).detach().numpy().reshape(2, channels, 15), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(6,), (7,), (4, 6), (5, 7)])
def test_patches_are_of_neighbours_and_can_be_joined_again(size):
    x = torch.arange(2.0 * 3 * math.prod(size)).view(2, 3, *size)
    patches = patchify(x, 2)
    assert patches.shape == (2, 3 * 2 ** len(size), *[math.ceil(side / 2) for side in size])
    corner = x[0, 1][tuple(slice(0, 2) for _ in size)]
    per_channel = 2 ** len(size)
    assert patches[0, per_channel : 2 * per_channel].flatten(1)[:, 0].tolist() == corner.flatten().tolist()
    assert torch.equal(unpatchify(patches, 2, size), x)


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (1, 3), (28, 27)])
def test_halve_averages_and_double_repeats(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = halve(x).numpy()
    rows, columns = math.ceil(size[0] / 2), math.ceil(size[1] / 2)
    expected = np.array(
        [
            [x.numpy()[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean(axis=(2, 3)) for c in range(columns)]
            for r in range(rows)
        ]
    ).transpose(2, 3, 0, 1)
    np.testing.assert_allclose(small, expected, atol=1e-14)
    big = double(torch.from_numpy(small), size).numpy()
    np.testing.assert_array_equal(big, small.repeat(2, axis=2).repeat(2, axis=3)[:, :, : size[0], : size[1]])


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (7, 1), (16, 4), (36, 9), (64, 16), (256, 32)])
def test_group_norm_fits_any_channels_and_standardises_each_group(channels, groups):
    norm = group_norm(channels, affine=False).double()
    assert norm.num_groups == groups
    x = 3 + 2 * torch.randn(2, channels, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grouped = x.numpy().reshape(2, groups, -1)
    expected = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x).numpy().reshape(2, groups, -1), expected, atol=1e-12)


def test_block_starts_as_a_scaled_identity():
    block = ResidualBlock(8, 8, 4, attention=True).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x, torch.randn(2, 4).double()), x / 2)  # 1/√2 from the block, 1/√2 from attention


def test_modulation_is_an_affine_map_after_the_second_norm():
    # Setting (a, b) by hand must equal a group norm with affine weights (1 + a, b).
    block = randomise(ResidualBlock(8, 8, 4).double())
    a, b = torch.linspace(-1, 1, 8).double(), torch.linspace(0, 2, 8).double()
    with torch.no_grad():
        block.modulation.weight.zero_()
        block.modulation.bias.copy_(torch.cat([a, b]))
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    affine = group_norm(8).double()
    affine.load_state_dict({"weight": 1 + a, "bias": b})
    by_hand = nn.Sequential(block.norm_in, nn.SiLU(), block.conv_in, affine, nn.SiLU(), block.conv_out)
    torch.testing.assert_close(block(x, torch.zeros(1, 4).double()), (x + by_hand(x)) / math.sqrt(2))
