"""What every sampler owes its caller: seeds, batches, latents, callbacks, conditions, types, messages."""

import math

import numpy as np
import pytest
import torch
from sampling_cases import SIX, Recording, gaussian, mixture
from torch import nn

from sde_diffusion import MLP, VPSDE, NetworkDenoiser, elbo, log_likelihood
from sde_diffusion.commands.sampling_run import sample_in_batches
from sde_diffusion.sampling import AncestralSampler, Noise, ODESampler, SDESampler

SAMPLERS = {
    "ode": ODESampler(rtol=1e-7, atol=1e-7),
    "sde": SDESampler(steps=20),
    "ddim": AncestralSampler(12),
    "ddpm": AncestralSampler(12, eta=1.0, denoise=False),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_seed_alone(name):
    sampler, denoiser = SAMPLERS[name], mixture(SIX["vp"])
    seeds = [3, -8, 10**12, *range(100, 105)]
    together = sampler(denoiser, (8, 2), seeds=seeds, dtype=torch.float64).x
    for size in (1, 3):
        run = sample_in_batches(sampler, denoiser, (2,), seeds, size, in_memory=["x"], dtype=torch.float64)
        assert (torch.cat(run.finished.each("x")) - together).abs().max() < 1e-5
    backwards = sampler(denoiser, (8, 2), seeds=seeds[::-1], dtype=torch.float64).x
    assert (backwards.flip(0) - together).abs().max() < 1e-5
    assert together.unique(dim=0).shape == together.shape
    assert (sampler(denoiser, (3, 2)).x - sampler(denoiser, (3, 2), seeds=range(3)).x).abs().max() == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_prior_and_the_latent(name):
    """Left to itself a walk begins at sigma(t_max) times draw 0; a latent takes its place and is not written to."""
    sampler, sde = SAMPLERS[name], SIX["ve"]
    denoiser = Recording(mixture(sde))
    free = sampler(denoiser, (4, 2), seeds=[5, 6, 7, 8], dtype=torch.float64)
    start = denoiser.calls[0][0]
    assert (start - 50 * Noise([5, 6, 7, 8], (2,), dtype=torch.float64).normal(0)).abs().max() < 1e-10
    kept = start.clone()
    given = sampler(denoiser, (4, 2), seeds=[5, 6, 7, 8], latent=start, dtype=torch.float64)
    assert torch.equal(given.x, free.x)
    assert torch.equal(start, kept)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callback_sees_each_pass_and_may_stop(name):
    sampler, denoiser = SAMPLERS[name], Recording(mixture(SIX["vp"]))
    seen = []
    out = sampler(denoiser, (2, 2), callback=lambda *state: seen.append(state), dtype=torch.float64)
    assert [step for step, *_ in seen] == list(range(out.nfe))
    assert [t for _, t, *_ in seen] == denoiser.times
    for (_, t, x, x0), (asked, _, _) in zip(seen[:5], denoiser.calls, strict=False):
        assert torch.equal(x, asked)
        assert torch.equal(x0, mixture(SIX["vp"])(x, t).x0)
    denoiser.calls.clear()
    stopped = sampler(denoiser, (2, 2), callback=lambda step, t, x, x0: step == 3, dtype=torch.float64)
    assert stopped.nfe == len(denoiser.calls) == 4
    assert torch.equal(stopped.x, seen[3][3])


@pytest.mark.parametrize("name", SAMPLERS)
def test_conditions_reach_the_denoiser_at_each_pass(name):
    denoiser = Recording(mixture(SIX["vp"]))
    label = torch.tensor([4, 1])
    SAMPLERS[name](denoiser, (2, 2), label=label, strength=0.5)
    assert all(given["label"] is label and given["strength"] == 0.5 for _, _, given in denoiser.calls)
    labels = torch.arange(5)
    denoiser.calls.clear()
    sample_in_batches(SAMPLERS["ddim"], denoiser, (2,), range(5), 2, {"label": labels})
    assert torch.cat([given["label"] for _, _, given in denoiser.calls[::12]]).equal(labels)


@pytest.mark.parametrize("name", SAMPLERS)
def test_types(name):
    """float32 and float64 walk alike; the state has the type asked for at every pass; no graph is built."""
    denoiser = Recording(gaussian(SIX["cosine"]))
    low, high = (SAMPLERS[name](denoiser, (3, 3), dtype=dtype).x for dtype in (torch.float32, torch.float64))
    assert (low.dtype, high.dtype) == (torch.float32, torch.float64)
    assert {x.dtype for x, _, _ in denoiser.calls} == {torch.float32, torch.float64}
    assert not low.requires_grad
    assert (low - high).abs().max() < 2e-3  # the noise itself differs by up to 4e-4


def test_what_is_refused():
    sampler, denoiser = SAMPLERS["ddim"], mixture(SIX["vp"])
    for shape, options, message in (
        ((), {}, r"\(B, \*dims\)"),
        ((0, 2), {}, "B >= 1"),
        ((3, 2), {"seeds": [1, 2]}, "one seed for each sample is needed: 3 samples, 2 seeds"),
        ((2, 2), {"seeds": [1, 0.5]}, "integer"),
        ((3, 2), {"latent": torch.zeros(3, 3)}, r"\(3, 2\); got \(3, 3\)"),
        (7, {}, r"shape must be \(B, \*dims\)"),
        ((2.5, 2), {}, r"shape must be \(B, \*dims\)"),
        ((2, -2), {}, "positive integers"),
        ((2, True), {}, "positive integers"),
        ((2, 2), {"seeds": 7}, "seeds must be one integer for each sample, such as range"),
        ((2, 2), {"seeds": [1.0, 2.0]}, "one integer for each sample"),
        ((2, 2), {"seeds": [True, False]}, "one integer for each sample"),
        ((2, 2), {"seeds": "12"}, "one integer for each sample"),
        ((2, 2), {"seeds": torch.zeros(2)}, "one integer for each sample"),
        ((2, 2), {"seeds": torch.zeros(2, 2, dtype=torch.int64)}, "one integer for each sample"),
        (
            (2, 2),
            {"latent": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])},
            "latent .* 1 of 2 samples .indices 1",
        ),
        ((2, 2), {"dtype": torch.float16}, "float32 or float64 of torch"),
        ((2, 2), {"dtype": "float32"}, "float32 or float64 of torch"),
        ((2, 2), {"device": "gpu"}, "device='gpu' is not one that is here"),
        ((2, 2), {"device": "meta"}, "the denoiser lies on cpu, and device='meta'"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(denoiser, shape, **options)
    for t_end in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="t_end"):
            AncestralSampler(5, t_end=t_end)(denoiser, (2, 2))
    with pytest.raises(ValueError, match="batch_size"):
        sample_in_batches(sampler, denoiser, (2,), [1], 0)
    for options, message in (
        ({"latent": torch.zeros(2, 2, dtype=torch.int64)}, "latent holds int64.*from_levels"),
        ({"latent": [[0.0, 0.0], [0.0, 0.0]]}, "latent must be a torch tensor"),
        ({"callback": 3}, "callback must be a function"),
    ):
        with pytest.raises(TypeError, match=message):
            sampler(denoiser, (2, 2), **options)


def test_seeds_and_sizes_of_any_kind():
    """Lists, arrays and tensors of integers are alike, as are the sizes and counts of NumPy and torch."""
    denoiser, seeds = mixture(SIX["vp"]), [5, 2**40, -3]
    expected = AncestralSampler(5)(denoiser, (3, 2), seeds=seeds).x
    for given in (tuple(seeds), np.array(seeds), torch.tensor(seeds), [np.int64(seed) for seed in seeds]):
        assert torch.equal(AncestralSampler(5)(denoiser, (3, 2), seeds=given).x, expected)
    for steps in (np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), 5.0, np.float32(5)):
        sampler = AncestralSampler(steps)
        assert type(sampler.steps) is int
        for shape in (torch.Size([3, 2]), np.array([3, 2]), (np.int32(3), torch.tensor(2))):
            assert torch.equal(sampler(denoiser, shape, seeds=seeds).x, expected)
    for steps in (True, np.bool_(True), "5", 5.5, np.float64(5.5), torch.tensor([5]), None, math.inf, 0, -1):
        with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
            AncestralSampler(steps)


def test_dropout_is_off_and_training_mode_comes_back():
    torch.manual_seed(0)
    network = MLP([2], width=16, depth=1, dropout=0.5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    denoiser, x = NetworkDenoiser(VPSDE(), network), torch.randn(3, 2)
    calls = {
        "sample": lambda: AncestralSampler(steps=5)(denoiser, (3, 2)).x,
        "likelihood": lambda: log_likelihood(denoiser, x, method="rk4", steps=4).log_prob,
        "bound": lambda: elbo(denoiser, x, draws=4).log_prob,
    }
    wanted = {name: call() for name, call in calls.items() if not denoiser.eval().training}
    denoiser.train()
    network.dropout_of_its_own = nn.Dropout().eval()
    for name, call in calls.items():
        torch.testing.assert_close(call(), wanted[name], rtol=0, atol=0)
        assert denoiser.training
        assert network.training
        assert not network.dropout_of_its_own.training
