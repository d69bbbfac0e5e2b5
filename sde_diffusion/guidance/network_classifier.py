"""Classifiers of noisy data made of a raw network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_number, check_count
from sde_diffusion.denoiser import LogSigma
from sde_diffusion.sde import SDE, Time, check_sde, expand, float64, on_device


class NetworkClassifier(nn.Module):
    """`classifier(x_t, t)` -> logits [B, n_classes]: F(c_in x_t, c_noise).

    The inputs are those of a `NetworkDenoiser`: x of unit variance on every path, by c_in = 1 / sqrt(alpha^2
    sigma_data^2 + sigma^2), and c_noise = log(sigma/alpha)/4.

    Args:
        sde: The path.
        network: F(x, c_noise) with outputs [B, n_classes], such as `sde_diffusion.nn.Encoder`.
        n_classes: Number of classes, at least 1.
        sigma_data: Standard deviation of the data, scaled as the model takes them; positive.

    Raises:
        TypeError: If sde is not a path, or network not a module.
        ValueError: If n_classes or sigma_data is not positive.
    """

    def __init__(self, sde: SDE, network: nn.Module, n_classes: int, sigma_data: float = 0.5) -> None:
        super().__init__()
        check_sde(sde)
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a module, such as sde_diffusion.nn.Encoder; got {type(network).__name__}")
        self.sde, self.network, self.n_classes = sde, network, check_count("n_classes", n_classes)
        self.sigma_data = as_number("sigma_data", sigma_data)
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data (the data's standard deviation) must be positive, finite; got {sigma_data}")
        self.noise_conditioning = LogSigma()

    def forward(self, x_t: Tensor, t: Time | None = None) -> Tensor:
        """Logits of the classes given noisy data, [B, n_classes].

        Args:
            x_t: State, [B, *].
            t: Time, [] or [B]; None: the end of the path, for data without noise.
        """
        t = float64(self.sde.t_min if t is None else t)
        c_in = ((self.sde.alpha(t) * self.sigma_data).square() + self.sde.sigma(t).square()).rsqrt()
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        c_noise = on_device(self.noise_conditioning(self.sde, t), x_t.device, dtype)
        logits: Tensor = self.network(expand(c_in, x_t) * x_t, c_noise)
        return logits
