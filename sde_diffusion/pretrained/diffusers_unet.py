"""The `UNet2DModel` of diffusers, of the DDPM and NCSN++ families, as a `UNet`, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sde_diffusion.errors import UserError
from sde_diffusion.nn.layers import group_norm
from sde_diffusion.pretrained.description import Settings
from sde_diffusion.pretrained.names import Table, inside, module

OLD_NAMES = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
    (r"^time_proj\.W$", "time_proj.weight"),
    (r"^downsample_blocks\.", "down_blocks."),
    (r"^upsample_blocks\.", "up_blocks."),
    (r"^mid\.", "mid_block."),
)
"""Names of earlier versions, and today's."""

BLOCK: Table = {
    "norm_in": module("norm1"),
    "conv_in": module("conv1"),
    "modulation": module("time_emb_proj"),
    "norm_out": module("norm2"),
    "conv_out": module("conv2"),
    "skip": module("conv_shortcut"),
}
ATTENTION: Table = {
    "norm": module("group_norm"),
    "qkv": module("to_q", "to_k", "to_v", linear=True),
    "output": module("to_out.0", linear=True),
}
NUMBER = r"(\d+)"
PLACES: Table = {
    "input": module("conv_in"),
    r"conditioning\.features": module("time_proj"),
    r"conditioning\.input": module("time_embedding.linear_1"),
    r"conditioning\.output": module("time_embedding.linear_2"),
    r"conditioning\.embeddings\.label": module("class_embedding"),
    **inside(rf"encoder\.{NUMBER}\.{NUMBER}", "down_blocks.{0}.resnets.{1}", BLOCK),
    **inside(rf"encoder\.{NUMBER}\.{NUMBER}\.attention", "down_blocks.{0}.attentions.{1}", ATTENTION),
    rf"down\.{NUMBER}\.conv": module("down_blocks.{0}.downsamplers.0.conv"),
    **inside(rf"down\.{NUMBER}", "down_blocks.{0}.resnet_down", BLOCK),
    rf"pyramid\.{NUMBER}\.conv": module("down_blocks.{0}.skip_conv"),
    **inside(rf"middle\.{NUMBER}", "mid_block.resnets.{0}", BLOCK),
    **inside(r"middle\.0\.attention", "mid_block.attentions.0", ATTENTION),
    **inside(rf"decoder\.{NUMBER}\.{NUMBER}", "up_blocks.{0}.resnets.{1}", BLOCK),
    rf"up\.{NUMBER}\.conv": module("up_blocks.{0}.upsamplers.0.conv"),
    **inside(rf"up\.{NUMBER}", "up_blocks.{0}.resnet_up", BLOCK),
    rf"skip_outputs\.{NUMBER}\.norm": module("up_blocks.{0}.skip_norm"),
    rf"skip_outputs\.{NUMBER}\.output": module("up_blocks.{0}.skip_conv"),
    "norm": module("conv_norm_out"),
    "output": module("conv_out"),
}
DECODER_ATTENTION = rf"decoder\.{NUMBER}\.{NUMBER}\.attention"
TABLES: dict[str, Table] = {
    "all": {**PLACES, **inside(DECODER_ATTENTION, "up_blocks.{0}.attentions.{1}", ATTENTION)},
    "last": {**PLACES, **inside(DECODER_ATTENTION, "up_blocks.{0}.attentions.0", ATTENTION)},
}
"""Our modules and diffusers', by where the decoder attends: after all blocks (DDPM) or the last (NCSN++)."""

DEFAULTS: Settings = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "attn_norm_num_groups": None,
    "time_embedding_dim": None,
}
"""diffusers' defaults: files of configurations leave out what is younger than they are."""

STANDARD: Settings = {
    "mid_block_type": ("UNetMidBlock2D",),
    "class_embed_type": (None,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "attn_norm_num_groups": (None,),
    "freq_shift": (0, 1),
}
"""Settings that must have one of these values."""

FAMILIES = {"positional": "", "fourier": "Skip"}
"""The kind of time embedding, and the word in the names of blocks that goes with it: DDPM and NCSN++."""


def settings_of(given: Mapping[str, Any], path: object) -> Settings:
    """The settings of a `UNet` from diffusers' configuration of a `UNet2DModel`.

    Raises:
        UserError: If it is a network that ours has no options for; the message says which.
    """
    config = {**DEFAULTS, **given}
    problems = [f"{name}={config[name]}" for name, allowed in STANDARD.items() if config[name] not in allowed]
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    family = FAMILIES.get(config["time_embedding_type"])
    if family is None:
        problems.append(f"time_embedding_type={config['time_embedding_type']}")
    attends = [kind.startswith("Attn") for kind in down]
    names = [f"{'Attn' * one}{family}DownBlock2D" for one in attends]
    mirrored = [name.replace("Down", "Up") for name in reversed(names)]
    if down != names or up != mirrored:
        problems.append(f"down_block_types={down} with up_block_types={up}")
    if bool(config["add_attention"]) != any(attends):
        problems.append(
            f"add_attention={config['add_attention']} where {'some' if any(attends) else 'no'} blocks attend"
        )
    widths = list(config["block_out_channels"])
    if len(widths) != len(down):
        problems.append(f"block_out_channels={widths} for {len(down)} blocks")
    outputs = config["out_channels"] // config["in_channels"]
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        problems.append(f"out_channels={config['out_channels']} for in_channels={config['in_channels']}")
    size: Any = config.get("sample_size")
    if size is None:
        problems.append("no sample_size")
    skips = family == "Skip"
    groups = None if skips else config["norm_num_groups"]
    scale = config["mid_block_scale_factor"]
    if abs(scale - (math.sqrt(2) if skips else 1)) > 1e-6:
        problems.append(f"mid_block_scale_factor={scale}")
    if skips and config["norm_num_groups"] not in (None, 32):
        problems.append(f"norm_num_groups={config['norm_num_groups']}")
    if skips:
        ends = [widths[0], widths[-1]] if config["norm_num_groups"] == 32 else []
        problems += other_groups([*ends, *(width for width, one in zip(widths, attends, strict=False) if one)])
    if not skips and config["center_input_sample"]:
        problems.append("center_input_sample=True")
    if problems:
        raise UserError(
            f"{path} describes a network that this program does not have: {'; '.join(problems)}. Use diffusers' own as "
            "a module (x, t): NetworkDenoiser(sde, Wrapper(unet), ...), see docs/pretrained.md"
        )
    base = math.gcd(*widths)
    sides = [size, size] if isinstance(size, int) else list(size)
    return {
        "_target_": "sde_diffusion.nn.UNet",
        "shape": [config["in_channels"], *sides],
        "n_classes": config["num_class_embeds"] or 0,
        "channels": base,
        "channel_mult": [width // base for width in widths],
        "stem_channels": widths[0],
        "blocks": config["layers_per_block"],
        "attention": [resolution for resolution, one in enumerate(attends) if one],
        "head_channels": config["attention_head_dim"],
        "dropout": config["dropout"],
        "embedding_dim": config["time_embedding_dim"] or 4 * widths[0],
        "condition_place": "output",
        "learned_null": False,
        "modulation": "shift",
        "norm_eps": config["norm_eps"],
        "norm_groups": groups,
        "learned_variance": outputs == 2,
        **(_ncsnpp(config, widths) if skips else _ddpm(config, widths)),
    }


def other_groups(widths: Iterable[int]) -> list[str]:
    """What differs at widths where diffusers' NCSN++ has norms of 32 groups, at any width; ours may have others."""
    groups = {width: group_norm(width).num_groups for width in widths}
    return [f"norms of 32 groups at {width} channels, not {count}" for width, count in groups.items() if count != 32]


def _ddpm(config: Mapping[str, Any], widths: list[int]) -> Settings:
    return {
        "embedding": {
            "_target_": "sde_diffusion.nn.TimestepEmbedding",
            "dim": widths[0],
            "cos_first": bool(config["flip_sin_to_cos"]),
            "endpoint": config["freq_shift"] == 1,
        },
        "feature_dim": widths[0],
        "rescale": False,
        "resampling": "convolution" if config["downsample_padding"] == 0 else "symmetric_convolution",
        "decoder_attention": "all",
    }


def _ncsnpp(config: Mapping[str, Any], widths: list[int]) -> Settings:
    return {
        "embedding": "gaussian_fourier",
        "feature_dim": 2 * widths[0],
        "resample_skip": True,
        "resample_filter": [1, 3, 3, 1],
        "encoder_type": "skip",
        "decoder_type": "skip",
        "decoder_attention": "last",
        "unit_range": not config["center_input_sample"],
    }


def table_for(settings: Mapping[str, Any]) -> Table:
    """The names for a network of these settings."""
    return TABLES[settings.get("decoder_attention", "last")]
