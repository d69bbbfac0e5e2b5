"""The type that a network computes in, its memory format, and its inputs: what changes and what does not."""

import math

import pytest
import torch
from torch import nn

from sde_diffusion import VESDE, VPSDE, NetworkDenoiser
from sde_diffusion.denoiser.noise_conditioning import LogNoiseLevel, TableStep
from sde_diffusion.nn import UNet
from sde_diffusion.nn.features import GaussianFourierEmbedding

SDE = VPSDE()
T = torch.tensor([0.1, 0.6])


def network() -> UNet:
    torch.manual_seed(0)
    found = UNet([3, 8, 8], channels=32, channel_mult=(1, 1), blocks=1, attention=(1,), embedding_dim=32)
    for weight in found.parameters():  # also the last layers, which start at 0
        nn.init.normal_(weight, std=0.1)
    return found


def test_channels_last_changes_only_the_memory_and_norms_keep_it():
    x, plain = torch.randn(2, 3, 8, 8), NetworkDenoiser(SDE, network())
    last = NetworkDenoiser(SDE, network(), channels_last=True)
    formats = {}
    for name, part in last.network.named_modules():
        if isinstance(part, nn.Conv2d | nn.GroupNorm):

            def look(part, inputs, output, name=name):
                formats[name] = output.is_contiguous(memory_format=torch.channels_last)

            part.register_forward_hook(look)
    torch.testing.assert_close(last(x, T).x0, plain(x, T).x0, rtol=1e-4, atol=1e-5)
    four = [name for name, part in last.network.named_modules() if isinstance(part, nn.Conv2d | nn.GroupNorm)]
    assert {name for name in four if not formats[name]} == set()
    assert len(formats) == len(four) > 8


def test_the_network_computes_in_bfloat16_and_its_weights_stay_in_float32():
    x, plain = torch.randn(2, 3, 8, 8), NetworkDenoiser(SDE, network())
    half = NetworkDenoiser(SDE, network(), compute_dtype="bfloat16")
    types = set()
    for part in half.network.modules():
        if isinstance(part, nn.Conv2d | nn.GroupNorm | nn.Linear):
            part.register_forward_hook(lambda part, inputs, output: types.add(output.dtype))
    exact, found = plain(x, T).x0, half(x, T).x0
    assert found.dtype == torch.float32
    assert types == {torch.bfloat16}
    assert 0 < float((found - exact).detach().abs().max() / exact.detach().abs().max()) < 2.0**-4
    exact.square().sum().backward()
    found.square().sum().backward()
    for own, other in zip(half.parameters(), plain.parameters(), strict=True):
        assert own.dtype == own.grad.dtype == torch.float32
        angle = torch.nn.functional.cosine_similarity(own.grad.flatten(), other.grad.flatten(), dim=0)
        assert angle > 0.98 or other.grad.norm() < 1e-3
    with pytest.raises(
        ValueError, match="compute_dtype must be bfloat16, float16, float32, float64 or None; got 'int8'"
    ):
        NetworkDenoiser(SDE, network(), compute_dtype="int8")


class Scale(nn.Module):
    """A network whose output tells its input."""

    def forward(self, x, t):
        return x


@pytest.mark.parametrize(("name", "scale"), [("none", 1.0), ("unit", None)])
def test_the_input_scale(name, scale):
    sde, x, t = VESDE(), torch.full((1, 2), 3.0), torch.tensor(0.4, dtype=torch.float64)
    belief = NetworkDenoiser(sde, Scale(), "x0", sigma_data=0.5, input_scale=name)(x, t)
    scale = 1 / math.sqrt(0.25 + float(sde.sigma(t)) ** 2) if scale is None else scale
    torch.testing.assert_close(belief.x0, x * scale)


def test_steps_of_a_table_are_told_exactly_and_between_them_in_log_snr():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas_bar = (1 - betas).cumprod(0)
    step = TableStep(alphas_bar.tolist())
    t = SDE.time(torch.logit(alphas_bar[:990]))
    torch.testing.assert_close(step(SDE, t), torch.arange(990, dtype=torch.float64), rtol=0, atol=1e-6)
    middle = SDE.time((torch.logit(alphas_bar[3:4]) + torch.logit(alphas_bar[4:5])) / 2)
    assert float(step(SDE, middle)) == pytest.approx(3.5, abs=1e-6)
    assert step(SDE, torch.tensor(0.0)) == 0
    assert step(VPSDE(beta_max=30.0), torch.tensor(1.0)) == 999
    with pytest.raises(ValueError, match="falling numbers between 0 and 1"):
        TableStep([0.5, 0.6])


def test_random_frequencies_stay_in_float32_where_the_network_computes_in_bfloat16():
    """A phase of hundreds of radians has no digits left in bfloat16: the features would be others."""
    torch.manual_seed(0)
    features = {"embedding": "gaussian_fourier", "embedding_dim": 32}
    small = UNet([3, 8, 8], channels=8, channel_mult=[1], blocks=1, attention=(), **features)
    seen = []
    small.conditioning.features.register_forward_hook(lambda part, inputs, output: seen.append(output))
    settings = {"noise_conditioning": LogNoiseLevel(), "input_scale": "none"}
    for dtype in (None, "bfloat16"):
        NetworkDenoiser(VESDE(), small, compute_dtype=dtype, **settings)(torch.randn(2, 3, 8, 8), T)
    assert isinstance(small.conditioning.features, GaussianFourierEmbedding)
    torch.testing.assert_close(*seen)


class Theirs(nn.Module):
    """A network that embeds its time by a linear layer."""

    def __init__(self):
        super().__init__()
        self.time, self.space = nn.Linear(1, 4), nn.Linear(4, 4)

    def forward(self, x, t):
        return self.space(x) + self.time(t[:, None])


def test_a_network_that_casts_nothing_computes_in_bfloat16_too():
    torch.manual_seed(0)
    theirs, x = Theirs(), torch.randn(2, 4)
    exact, found = (
        NetworkDenoiser(SDE, theirs)(x, T).x0,
        NetworkDenoiser(SDE, theirs, compute_dtype="bfloat16")(x, T).x0,
    )
    torch.testing.assert_close(found, exact, rtol=0.03, atol=0.03)
