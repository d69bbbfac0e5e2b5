"""The networks that `benchmarks.throughput` compares: this library's with each switch for speed, and diffusers'."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from sde_diffusion import VPSDE, NetworkDenoiser
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.config import build
from sde_diffusion.denoiser import CUDAGraphs

DIFFUSERS = {"ddpm": ((128, 256, 256, 256), 2, 1)}
"""Presets that diffusers has too: channels, blocks, and the resolution with attention."""


def network_of(name: str, shape: list[int], **changes: Any) -> nn.Module:
    """The network of a preset."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = OmegaConf.to_container(compose(f"network/{name}").network)
    made: nn.Module = build({**settings, "shape": shape, "conditions": None, **changes}, "network")
    return made


class DiffusersUNet(nn.Module):
    """diffusers' network, which returns an object."""

    def __init__(self, name: str, shape: list[int]) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        channels, blocks, attention = DIFFUSERS[name]
        kinds = ["Attn" * (resolution == attention) for resolution in range(len(channels))]
        self.network = UNet2DModel(
            sample_size=shape[-1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=channels,
            layers_per_block=blocks,
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            dropout=0.1,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Its output."""
        out: Tensor = self.network(x, t).sample
        return out


@dataclass
class Variant:
    """A network with some of the switches for speed, and what was measured of it.

    Attributes:
        name: Its name in the table.
        denoiser: The denoiser made of it.
        autocast: Whether bfloat16 is chosen by autocast.
        times: Seconds of each phase, one for each repeat.
        memory: Peak bytes of a training step and of a step of sampling, on a GPU.
        first_steps: Seconds of the first training step and step of sampling together, in which a compiled network is
            compiled.
    """

    name: str
    denoiser: NetworkDenoiser
    autocast: bool = False
    times: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    first_steps: float = 0.0


def all_variants(args: argparse.Namespace, changes: dict[str, Any], device: torch.device) -> list[Variant]:
    """This library's network with each switch, and diffusers' at the end if there is one."""
    sde = VPSDE(t_min=1e-3)

    def ours(**switches: Any) -> NetworkDenoiser:
        network = network_of(args.network, args.shape, **changes)
        return NetworkDenoiser(sde, network, "eps", noise_conditioning="step", **switches).to(device)

    found = [
        Variant("ours, float32", ours()),
        Variant("ours, float32, channels last", ours(channels_last=True)),
        Variant("ours, autocast, channels last", ours(channels_last=True), autocast=True),
        Variant("ours, compute_dtype, channels last", ours(channels_last=True, compute_dtype="bfloat16")),
    ]
    if args.compile:
        found.append(Variant("ours, float32, compiled", ours()))
        found.append(Variant("ours, compute_dtype, compiled", ours(channels_last=True, compute_dtype="bfloat16")))
        for variant in found[-2:]:
            variant.denoiser.compile()
    if device.type == "cuda":
        found.append(Variant("ours, compute_dtype, CUDA graphs", ours(channels_last=True, compute_dtype="bfloat16")))
        found[-1].denoiser.cuda_graphs = CUDAGraphs()
    if args.network in DIFFUSERS and not changes:
        try:
            theirs = [DiffusersUNet(args.network, args.shape) for _ in range(2)]
        except ImportError:
            print("diffusers is not installed: its network is left out")
            return found
        last = NetworkDenoiser(sde, theirs[1], "eps", noise_conditioning="step", channels_last=True).to(device)
        found.append(Variant("diffusers, autocast, channels last", last, autocast=True))
        plain = NetworkDenoiser(sde, theirs[0], "eps", noise_conditioning="step").to(device)
        found.append(Variant("diffusers, float32", plain))
    return found
