import math
import pathlib
from functools import partial

import numpy as np
import pytest
import torch

from sde_diffusion.conditions import Text
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.nn import MLP, DiT, EDM2UNet, UNet
from sde_diffusion.nn.octaves import Octaves
from sde_diffusion.sde import VESDE, VPSDE
from sde_diffusion.text import HashedWords

CONF = pathlib.Path(__file__).parents[2] / "conf" / "network"
TINY = {"channels": 8, "channel_mult": [1, 2, 2], "blocks": 1, "attention": [1], "head_channels": 8}
FILTERED = {"resample_filter": [1, 3, 3, 1], "encoder_type": "residual", "decoder_type": "skip", "modulation": "shift"}

CASES = {
    "mlp": lambda **k: MLP([2, 3, 5], width=16, depth=2, embedding_dim=8, **k),
    "unet": lambda **k: UNet([3, 9, 6], embedding_dim=8, **TINY, **k),
    "unet of squares": lambda **k: UNet([1, 7, 10], patch=2, embedding_dim=8, **TINY, **k),
    "unet of a signal": lambda **k: UNet([2, 13], patch=2, embedding_dim=8, **TINY, **k),
    "unet with filters": lambda **k: UNet([2, 8], embedding_dim=8, **TINY, **FILTERED, **k),
    "dit": lambda **k: DiT([3, 4, 6], patch=2, width=16, depth=2, heads=2, feature_dim=8, embedding="positional", **k),
    "edm2": lambda **k: EDM2UNet([2, 5, 6], channels=8, channel_mult=[1, 2], blocks=1, attention=[1], **k),
    "dit of a sequence": lambda **k: DiT(
        [6, 3], patch=1, width=16, depth=1, heads=2, feature_dim=8, embedding="positional", layout="channels_last", **k
    ),
    "unet of one level": lambda **k: UNet(
        [2, 5, 4], channels=6, channel_mult=[1], blocks=1, attention=[], embedding_dim=8, **k
    ),
}


def build(name, dtype=torch.float64, **kwargs):
    """Return a network whose weights are all random, so that nothing starts at zero."""
    network = CASES[name](**kwargs).to(dtype)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=dtype))
    return network


def inputs(network, batch=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, *network.shape, generator=generator, dtype=dtype)
    return x, torch.randn(batch, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_output_starts_at_zero_and_gradient_reaches_the_last_layer(name):
    torch.manual_seed(0)
    network = CASES[name]()
    x, c = inputs(network, dtype=torch.float32)
    out = network(x, c)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().mean().backward()
    last = network.output_gain if name == "edm2" else network.output.weight
    assert last.grad.abs().max() > 1e-4


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_sample_is_independent_of_its_batch_and_its_place(name, mode):
    network = getattr(build(name, n_classes=4), mode)()
    x, c = inputs(network)
    label = torch.tensor([0, 1, 2, 3, 4])
    out = network(x, c, label)
    alone = torch.cat([network(x[i : i + 1], c[i : i + 1], label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(out, alone, rtol=1e-11, atol=1e-11)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(network(x[order], c[order], label[order]), out[order], rtol=1e-11, atol=1e-11)
    # The Jacobian between samples is exactly zero, and that of a sample to itself reaches every input value.
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, c, label)[2].square().sum(), x)
    assert not gradient[[0, 1, 3, 4]].any()
    assert gradient[2].all()


@pytest.mark.parametrize("name", CASES)
def test_scalar_noise_number_equals_one_per_sample(name):
    for kwargs, label in [({}, None), ({"n_classes": 3}, torch.tensor([0, 2, 1, 3, 0]))]:
        network = build(name, **kwargs)
        x, _ = inputs(network)
        scalar = torch.tensor(0.4, dtype=torch.float64)
        torch.testing.assert_close(
            network(x, scalar, label), network(x, scalar.expand(5), label), rtol=1e-11, atol=1e-11
        )
        assert (network(x, scalar, label) - network(x, scalar + 0.01, label)).abs().max() > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_no_label_is_the_null_class(name):
    network = build(name, n_classes=3)
    x, c = inputs(network)
    free = network(x, c)
    torch.testing.assert_close(free, network(x, c, torch.full((5,), 3)), rtol=1e-11, atol=1e-11)
    for other in range(3):
        assert (free - network(x, c, torch.full((5,), other))).abs().max() > 1e-3
    with pytest.raises(ValueError, match="n_classes"):
        build(name)(x, c, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("name", ["mlp", "unet of squares"])
def test_gradients_agree_with_finite_differences(name):
    network = build(name, n_classes=2)
    x, c = inputs(network, batch=2)
    label = torch.tensor([0, 2])
    parameters = dict(network.named_parameters())
    chosen = ["conditioning.input.weight", "output.bias", "conditioning.embeddings.label.weight", "input.bias"]

    def function(x, c, *values):
        return torch.func.functional_call(network, dict(zip(chosen, values, strict=True)), (x, c, label))

    arguments = [x, c, *(parameters[k].detach() for k in chosen)]
    assert torch.autograd.gradcheck(function, [a.clone().requires_grad_() for a in arguments], fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_types_float32_and_bfloat16_follow_float64(name):
    network = build(name)
    x, c = inputs(network)
    exact = network(x, c)
    scale = exact.abs().max().item()
    network.float()
    low = network(x.float(), c.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=1e-4 * scale)
    assert network(x, c).dtype == torch.float64  # the type of x, whatever the weights are
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x.float(), c.float())
    assert mixed.dtype == torch.float32
    error = (mixed.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-4 < error < 0.05  # bfloat16 keeps 8 bits: 0.004 a rounding; below 1e-4 autocast would not have acted


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (5, 12), (1, 1), (13, 2)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_unet_sees_every_pixel_at_any_size(size, patch):
    # Attention at the coarsest level joins all pixels: each output must depend on each input, also at the borders.
    torch.manual_seed(0)
    kwargs = TINY | {"attention": [2]}
    network = UNet([1, *size], patch=patch, embedding_dim=8, **kwargs).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    c = torch.tensor(0.1, dtype=torch.float64)
    changed = [(0, 0), (size[0] - 1, size[1] - 1)]
    reference = network(x, c)
    for row, column in changed:
        moved = x.clone()
        moved[0, 0, row, column] += 1
        assert (network(moved, c) != reference).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_overfits_a_tiny_regression(name):
    # Eight random images at eight noise levels: 300 steps must explain 99% of the variance of noise-dependent targets.
    torch.manual_seed(0)
    network = (
        MLP([1, 6, 5], width=64, depth=2, embedding_dim=16)
        if name == "mlp"
        else UNet([1, 6, 5], channels=16, channel_mult=[1, 2], blocks=1, attention=[1], embedding_dim=16)
    )
    x, c = torch.randn(8, 1, 6, 5), torch.linspace(-2, 2, 8)
    target = x.flip(-1) * torch.sin(3 * c)[:, None, None, None] + torch.randn(8, 1, 6, 5)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(300):
        loss = (network(x, c) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * target.var().item()


def test_dropout_acts_in_training_alone():
    network = UNet([1, 4, 4], dropout=0.5, embedding_dim=8, **TINY)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2)
    x, c = inputs(network, dtype=torch.float32)
    assert not torch.equal(network(x, c), network(x, c))
    network.eval()
    assert torch.equal(network(x, c), network(x, c))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP([]), "shape"),
        (lambda: MLP([0, 3]), "positive"),
        (lambda: MLP([2], depth=0), "depth"),
        (lambda: UNet([28]), r"images \[C, height, width\] and signals .* vectors of shape \[28\]: network=mlp"),
        (
            lambda: UNet([3, 36, 28], resample_filter=[1, 3, 3, 1], channel_mult=[1, 1, 1, 1]),
            "multiple of 8; got 36x28: resize the data to 32x24 or 40x32",
        ),
        (lambda: UNet([3, 4, 4], modulation="shfit"), "did you mean shift"),
        (lambda: UNet([3, 4, 4], resampling="convolution", resample_skip=True), "take resample_skip=false or"),
        (lambda: DiT([3, 4, 4], layout="channels_last"), r"width\] = \[3, 4, 4\]: take layout=channels_first"),
        (lambda: UNet([3, 4, 4], resample_filter=[1, 2, 1]), "even number of positive numbers"),
        (lambda: UNet([1, 8, 8], channel_mult=[]), "channel_mult"),
        (
            lambda: UNet([3, 8, 8], channels=12, norm_groups=8),
            "norm_groups=8 must divide the channels of every norm, and one has 12: take norm_groups=4 or null",
        ),
        (lambda: UNet([1, 8, 8], patch=0), "patch"),
        (lambda: UNet([1, 8, 8], attention=[3]), r"resolutions in 0 \.\.\. 2; got \[3\]"),
        (lambda: UNet([1, 8, 8], dropout=1.0), r"\[0, 1\)"),
        (lambda: MLP([2], width=8)(torch.zeros(4, 3), torch.zeros(4)), r"\[B, 2\]; got \[4, 3\]"),
        (lambda: MLP([2], width=8)(torch.zeros(4, 2), torch.zeros(3)), r"c_noise must be \[\] or \[4\]"),
    ],
)
def test_bad_arguments_name_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_octaves_tell_levels_apart_that_the_values_do_not():
    """With k octaves, values that differ by a whole period of the coarsest differ in the plain value alone."""
    torch.manual_seed(0)
    network = MLP([4], width=16, depth=1, embedding_dim=8, octaves=3).double()
    torch.nn.init.normal_(network.output.weight)
    x, c = torch.randn(6, 4, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert network.input.weight.shape == (16, 4 * 7)
    with torch.no_grad():
        network.input.weight[:, :4] = 0  # the plain values
        assert torch.allclose(network(x, c), network(x + 2, c), atol=1e-9)
        assert not torch.allclose(network(x, c), network(x + 0.25, c), atol=1e-3)
        network.input.weight[:, :12] = 0  # and their sines of the two coarser octaves
        network.input.weight[:, 16:24] = 0  # and their cosines: what is left has period 1/2
        assert torch.allclose(network(x, c), network(x + 0.5, c), atol=1e-9)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_octaves_have_periods_of_whole_levels_and_are_expectations(levels):
    """Of periods 1, 2 and 4; with noise, they are what the features of noisy data are on average over more noise."""
    octaves, i = Octaves(3, levels), torch.arange(-1, levels + 1, dtype=torch.float64).unsqueeze(1)
    y = 2 * i / (levels - 1) - 1
    found = octaves(y, (y, torch.zeros(()))).unflatten(1, (7, 1))[:, 1:, 0]
    for j in range(3):
        turns = (2 * math.pi * i[:, 0] / 2**j) % (2 * math.pi)
        torch.testing.assert_close(found[:, 2 * j], turns.sin(), atol=1e-10, rtol=0)
        torch.testing.assert_close(found[:, 2 * j + 1], turns.cos(), atol=1e-10, rtol=0)
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(60))
    ratio = torch.tensor(0.6 / (levels - 1), dtype=torch.float64)
    y = torch.tensor([[0.137]], dtype=torch.float64)
    noisy = y + ratio * nodes.unsqueeze(1)
    averages = weights / weights.sum() @ octaves(noisy, (noisy, torch.zeros(())))
    torch.testing.assert_close(octaves(y, (y, ratio))[0], averages, atol=1e-10, rtol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()])
@pytest.mark.parametrize("kind", [MLP, partial(UNet, channels=8, channel_mult=[1], blocks=1, attention=[])])
def test_octaves_of_a_denoiser_are_those_of_the_noisy_data(sde, kind):
    """On any path, and at one time for all as at one for each."""
    network = kind([1, 4, 4], embedding_dim=8, octaves=2, levels=17)
    taken = []
    network.octaves.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[1]))
    denoiser = NetworkDenoiser(sde, network)
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    for t in (torch.tensor(0.4), torch.tensor([0.1, 0.4, 0.9])):
        denoiser(sde.perturb(x0, t, noise), t)
        y, ratio = taken.pop()
        torch.testing.assert_close(ratio, (-0.5 * sde.log_snr(t)).exp())
        torch.testing.assert_close(y, x0 + ratio.reshape(-1, 1, 1, 1) * noise)


def test_dropout_of_the_mlp_acts_in_training_alone():
    torch.manual_seed(0)
    network = MLP([4], width=64, depth=2, embedding_dim=8, dropout=0.5)
    for block in network.blocks:
        torch.nn.init.normal_(block.output.weight)
    torch.nn.init.normal_(network.output.weight)
    x, c = torch.randn(6, 4), torch.zeros(())
    assert not torch.equal(network(x, c), network(x, c))
    network.eval()
    assert torch.equal(network(x, c), network(x, c))


@pytest.mark.parametrize(("wrong", "words"), [({"dropout": 1.0}, "dropout"), ({"octaves": -1}, "octaves")])
def test_arguments_of_the_mlp(wrong, words):
    with pytest.raises(ValueError, match=words):
        MLP([4], **wrong)


def test_tokens_of_a_text_reach_a_transformer():
    """By cross-attention too, and the empty text is none."""
    torch.manual_seed(0)
    text = Text(16, HashedWords(dim=8, rows=64, subwords=False))
    network = DiT([1, 4, 4], patch=2, width=16, depth=1, heads=2, conditions={"text": text}, cross_attention=True)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    x, c = torch.randn(1, 1, 4, 4).expand(3, 1, 4, 4), torch.zeros(())
    values = network.check_conditions({"text": ["cat dog", "cat cat", ""]}, 3, x.device)
    first, second, none = network(x, c, **values)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(none, network(x, c)[2])
    weights = network.blocks[0].cross_attention.output.weight
    (gradient,) = torch.autograd.grad(network(x, c, **values).sum(), weights)
    assert gradient.abs().max() > 1e-3


def test_a_network_of_bfloat16_keeps_its_random_frequencies():
    network = UNet([1, 4, 4], embedding="gaussian_fourier", embedding_dim=8, **TINY)
    before = network.conditioning.features.weight.clone()
    assert torch.equal(network.to(torch.bfloat16).conditioning.features.weight, before)
    assert network.input.weight.dtype == torch.bfloat16
    assert network(torch.zeros(2, 1, 4, 4), torch.zeros(2)).dtype == torch.float32
