"""Attention by fused kernels, and by the formula for the derivatives that these lack."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.autograd import forward_ad
from torch.nn import functional as F

from sde_diffusion.nn import UNet, attention
from sde_diffusion.nn.attention import SelfAttention, attend

FUSED = 1
"""torch's number of the fused kernel; 0 is the formula, which stores the matrix."""


def network(**changes):
    torch.manual_seed(0)
    small = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "embedding_dim": 8, "head_channels": 8}
    made = UNet(**{"shape": [2, 8, 8], **small, **changes})
    with torch.no_grad():
        for weights in made.parameters():
            weights.add_(0.2 * torch.randn_like(weights))
    return made.eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_is_fused_and_keeps_the_order_of_memory(memory_format, monkeypatch):
    choices = []

    def watched(q, k, v, attn_mask=None):
        choices.append(torch._fused_sdp_choice(q, k, v, attn_mask))
        return original(q, k, v, attn_mask=attn_mask)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    made = network().to(memory_format=memory_format)
    x = torch.randn(2, 2, 8, 8).to(memory_format=memory_format)
    seen = []
    for module in made.modules():
        if isinstance(module, torch.nn.GroupNorm | SelfAttention):
            module.register_forward_hook(lambda m, i, out: seen.append(out))
    made(x, torch.zeros(2)).sum().backward()
    assert choices == [FUSED] * len(choices)
    assert len(choices) == 3
    assert all(each.is_contiguous(memory_format=memory_format) for each in seen)


def test_all_derivatives_are_those_of_the_formula():
    torch.manual_seed(0)
    q, v, weights = torch.randn(3, 2, 3, 6, 5, dtype=torch.float64)
    k = 0.5 * q

    def formula(q, k, v):
        return torch.softmax(q @ k.mT / 5**0.5, -1) @ v

    def derivatives(function):
        def inputs():
            q_, v_ = q.clone().requires_grad_(), v.clone().requires_grad_()
            return q_, 0.5 * q_, v_  # the second depends on the first

        own = inputs()
        out = function(*own)
        first = torch.autograd.grad((out * weights).sum(), own, create_graph=True)
        second = torch.autograd.grad(sum((each.sin() * weights).sum() for each in first), own[::2])
        forward = torch.func.jvp(function, (q, k, v), (v, q, k))[1]
        with forward_ad.dual_level():
            dual = function(*(forward_ad.make_dual(*pair) for pair in ((q, v), (k, q), (v, k))))
            tangent = forward_ad.unpack_dual(dual).tangent
        reverse = torch.func.grad(lambda q: (function(q, k, v) * weights).sum())(q)
        own = inputs()
        batched = torch.autograd.grad(function(*own), own[0], torch.stack([weights, q]), is_grads_batched=True)
        return [out, *first, *second, forward, tangent, reverse, *batched]

    for actual, expected in zip(derivatives(attend), derivatives(formula), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_a_network_with_attention_has_second_and_forward_derivatives():
    made, c = network().double(), torch.zeros(2, dtype=torch.float64)
    x, v = torch.randn(2, 2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def slope(x):
        x = x.requires_grad_()
        (found,) = torch.autograd.grad(made(x, c).square().sum(), x, create_graph=True)
        return found

    x = x.requires_grad_()
    (second,) = torch.autograd.grad((slope(x) * v).sum(), x)
    eps = 1e-5
    expected = (slope((x + eps * v).detach()) - slope((x - eps * v).detach())) / (2 * eps)
    torch.testing.assert_close(second, expected.detach(), rtol=1e-6, atol=1e-7)
    _, tangent = torch.func.jvp(lambda x: made(x, c), (x.detach(),), (v,))
    with torch.no_grad():
        difference = (made(x + eps * v, c) - made(x - eps * v, c)) / (2 * eps)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_compiled_network_is_one_graph():
    torch._dynamo.reset()
    counters.clear()
    options = {
        "resample_filter": [1, 3, 3, 1],
        "encoder_type": "residual",
        "decoder_type": "skip",
        "modulation": "shift",
    }
    made = network(**options)
    x, c = torch.randn(2, 2, 8, 8), torch.zeros(2)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c), made(x, c), rtol=1e-4, atol=1e-5)
    compiled(x, c).sum().backward()
