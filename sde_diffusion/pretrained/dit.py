"""Diffusion transformers as diffusers and their authors store them, as a `DiT`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.nn.dit import position_embedding
from sde_diffusion.pretrained.description import Settings
from sde_diffusion.pretrained.names import Table, Weights, inside, module

NUMBER = r"(\d+)"
EMBEDDING = "transformer_blocks.0.norm1.emb"
DIFFUSERS: Table = {
    "input": module("pos_embed.proj"),
    r"conditioning\.input": module(f"{EMBEDDING}.timestep_embedder.linear_1"),
    r"conditioning\.output": module(f"{EMBEDDING}.timestep_embedder.linear_2"),
    r"conditioning\.embeddings\.label": module(f"{EMBEDDING}.class_embedder.embedding_table"),
    **inside(
        rf"blocks\.{NUMBER}",
        "transformer_blocks.{0}",
        {
            "modulation": module("norm1.linear"),
            r"attention\.qkv": module("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            r"attention\.output": module("attn1.to_out.0"),
            r"mlp\.input": module("ff.net.0.proj"),
            r"mlp\.output": module("ff.net.2"),
        },
    ),
    "modulation": module("proj_out_1"),
    "output": module("proj_out_2"),
}
AUTHORS: Table = {
    "input": module("x_embedder.proj"),
    r"conditioning\.input": module("t_embedder.mlp.0"),
    r"conditioning\.output": module("t_embedder.mlp.2"),
    r"conditioning\.embeddings\.label": module("y_embedder.embedding_table"),
    **inside(
        rf"blocks\.{NUMBER}",
        "blocks.{0}",
        {
            "modulation": module(r"adaLN_modulation.1"),
            r"attention\.qkv": module("attn.qkv"),
            r"attention\.output": module("attn.proj"),
            r"mlp\.input": module("mlp.fc1"),
            r"mlp\.output": module("mlp.fc2"),
        },
    ),
    "modulation": module("final_layer.adaLN_modulation.1"),
    "output": module("final_layer.linear"),
}
"""Our modules and theirs."""

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published sizes S, B, L and XL by width, which no weight shows."""

STANDARD: Settings = {
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
}
DEFAULTS: Settings = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def settings_of(given: Mapping[str, Any], path: object) -> Settings:
    """The settings of a `DiT` from diffusers' configuration; layer norms have eps 1e-6, as the authors' do.

    Raises:
        UserError: If it is a network that ours has no options for.
    """
    config = {**DEFAULTS, **given}
    problems = [f"{name}={config[name]}" for name, allowed in STANDARD.items() if config[name] not in allowed]
    channels, outputs = config["in_channels"], config["out_channels"] or config["in_channels"]
    if outputs not in (channels, 2 * channels):
        problems.append(f"out_channels={outputs} for in_channels={channels}")
    if problems:
        raise UserError(f"{path} describes a transformer that this program does not have: {'; '.join(problems)}")
    return {
        "_target_": "sde_diffusion.nn.DiT",
        "shape": [channels, config["sample_size"], config["sample_size"]],
        "n_classes": config["num_embeds_ada_norm"],
        "patch": config["patch_size"],
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "depth": config["num_layers"],
        "heads": config["num_attention_heads"],
        "dropout": config["dropout"],
        "embedding": {
            "_target_": "sde_diffusion.nn.TimestepEmbedding",
            "dim": 256,
            "cos_first": True,
            "endpoint": True,
        },
        "learned_variance": outputs == 2 * channels,
    }


def without_copies(weights: Mapping[str, Tensor], path: object) -> Weights:
    """diffusers' weights with the embedding of the first block only, and without the fixed sines and cosines.

    Raises:
        UserError: If a block has another embedding than the first: these networks have one for all.
    """
    found = {}
    for key, value in weights.items():
        copy = re.fullmatch(r"transformer_blocks\.\d+\.norm1\.emb\.(.*)", key)
        first = f"{EMBEDDING}.{copy[1]}" if copy else key
        if first != key and first in weights and not torch.equal(weights[first], value):
            raise UserError(f"{path}: {key} is not {first}, and this network has one embedding for all blocks")
        if first == key or first not in weights:
            found[key] = value
    return without_positions(found, "pos_embed.pos_embed", "pos_embed.proj.weight", path)


def without_positions(weights: Mapping[str, Tensor], name: str, of: str, path: object) -> Weights:
    """Weights without the fixed sines and cosines of the positions.

    Raises:
        UserError: If they are others.
    """
    given = weights.get(name)
    if given is not None and of in weights:
        side = math.isqrt(given.shape[-2])
        fixed = position_embedding([side, side], len(weights[of]))
        if given.shape != fixed.shape or not torch.allclose(given.float(), fixed, atol=1e-3):
            raise UserError(f"{path}: {name} is not the fixed sines and cosines of a square grid")
    return {key: value for key, value in weights.items() if key != name}


def authors_settings(weights: Mapping[str, Tensor], path: object) -> Settings:
    """The settings of a `DiT` from the shapes of the authors' weights.

    Raises:
        UserError: If they are not those of such a network, or of a width that was not published.
    """
    try:
        kernel, grid = weights["x_embedder.proj.weight"], weights["pos_embed"].shape[-2]
        rows, outputs = len(weights["y_embedder.embedding_table.weight"]), len(weights["final_layer.linear.bias"])
        ratio = len(weights["blocks.0.mlp.fc1.bias"]) // len(kernel)
    except KeyError as error:
        raise UserError(f"{path} lacks {error} of a diffusion transformer") from None
    width, channels, patch = kernel.shape[0], kernel.shape[1], kernel.shape[-1]
    if width not in HEADS:
        raise UserError(
            f"{path}: its width is {width}, and the number of heads is known for the published widths only: "
            f"{', '.join(map(str, HEADS))}"
        )
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    return {
        "_target_": "sde_diffusion.nn.DiT",
        "shape": [channels, *[math.isqrt(grid) * patch] * 2],
        "n_classes": rows - 1,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": HEADS[width],
        "mlp_ratio": ratio,
        "embedding": "timestep_cos",
        "learned_variance": outputs == 2 * channels * patch**2,
    }
