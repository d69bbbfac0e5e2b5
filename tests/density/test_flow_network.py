"""log_likelihood of networks, of which no closed form is known: what must hold whatever the flow."""

import math

import pytest
import torch
from density_cases import EACH_PATH, PATHS, Perceptron, draw, flat, gaussian, network
from torch import Tensor

from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.density import log_likelihood
from sde_diffusion.errors import UserError
from sde_diffusion.nn import MLP
from sde_diffusion.sampling import ODESampler
from sde_diffusion.sde import VPSDE

TIGHT = {"rtol": 1e-8, "atol": 1e-8, "trace": "exact"}


def points(n: int, *dims: int, seed: int = 0) -> Tensor:
    return 0.6 * torch.randn(n, *dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_the_density_integrates_to_one(name):
    """Over a grid of the plane, for a flow that is no closed form's; the density is not a Gaussian's."""
    denoiser = network(PATHS[name], 2, gain=0.8).double()
    side = torch.linspace(-3.5, 3.5, 71, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    t_end = {"vp": 0.1, "ve": 0.3, "rectified": 0.1}[name]
    log_prob = log_likelihood(denoiser, x, 1e-4, 1e-4, trace="exact", t_end=t_end).log_prob
    cell = float(side[1] - side[0]) ** 2
    density = log_prob.exp() * cell
    border = density.reshape(71, 71)
    assert border[0].sum() + border[-1].sum() + border[:, 0].sum() + border[:, -1].sum() < 1e-4
    assert float(density.sum()) == pytest.approx(1, abs=2e-3)
    mean = density @ x
    second = torch.einsum("n,ni,nj->ij", density, x - mean, x - mean)
    normal = torch.distributions.MultivariateNormal(mean, second).log_prob(x)
    assert (density * (log_prob - normal)).sum() > 0.01


@pytest.mark.parametrize("name", EACH_PATH)
def test_the_latent_goes_back_to_x(name):
    denoiser = network(PATHS[name], 2).double()
    x = points(5, 2)
    result = log_likelihood(denoiser, x, 1e-8, 1e-8)
    sampler = ODESampler("dopri5", 1e-8, 1e-8, denoise=False)
    back = sampler(denoiser, x.shape, latent=result.latent, dtype=torch.float64)
    assert (back.x - x).abs().max() < 1e-4
    assert (result.latent - x).abs().max() > 1


@pytest.mark.parametrize(("trace", "probes"), [("hutchinson", 1), ("hutchinson", 4), ("gaussian", 1)])
def test_one_pass_and_one_gradient_an_evaluation(trace, probes):
    """Several probes share one batched gradient; items that are at the end are no longer in the batch."""
    denoiser = network(PATHS["vp"], 2)
    gradients, items = [], []

    def count(module, inputs, output) -> None:
        items.append(len(output))
        output.register_hook(lambda gradient: gradients.append(1))

    denoiser.network.register_forward_hook(count)
    result = log_likelihood(denoiser, points(3, 2), trace=trace, probes=probes)
    assert denoiser.network.passes == int(result.passes.max()) == len(gradients)
    assert sum(items) == int(result.passes.sum())
    assert result.nfe == math.ceil(sum(items) / 3)
    fixed = log_likelihood(denoiser, points(3, 2), method="heun3", steps=7)
    assert fixed.nfe == 21


@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_a_sample_depends_on_its_seed_and_on_no_other_sample(method):
    denoiser = network(PATHS["cosine"], 3).double()
    x = points(5, 3)
    options = {"method": method, "steps": 12, "trace": "gaussian"}
    together = log_likelihood(denoiser, x, seed=10, **options)
    for i in (0, 3):
        alone = log_likelihood(denoiser, x[i : i + 1], seeds=[10 + i], **options)
        torch.testing.assert_close(alone.log_prob, together.log_prob[i : i + 1], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(alone.latent, together.latent[i : i + 1], rtol=1e-11, atol=1e-11)
    again = log_likelihood(denoiser, x, seeds=range(10, 15), **options)
    other = log_likelihood(denoiser, x, seed=11, **options)
    assert torch.equal(again.log_prob, together.log_prob)
    assert bool(((other.log_prob - together.log_prob).abs() > 1e-6).all())
    assert torch.equal(other.latent, together.latent)


def test_images_are_vectors_with_a_shape():
    inner = Perceptron((2, 2, 3))
    image = NetworkDenoiser(PATHS["vp"], inner)
    x = points(3, 2, 2, 3)
    for trace, probes in (("hutchinson", 2), ("exact", 1), ("hutch++", 3)):
        options = {"trace": trace, "probes": probes, "method": "rk4", "steps": 10}
        shaped = log_likelihood(image, x, **options)
        plain = log_likelihood(image, x.flatten(1), **options)
        torch.testing.assert_close(shaped.log_prob, plain.log_prob, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(shaped.latent.flatten(1), plain.latent, rtol=1e-9, atol=1e-9)
        assert shaped.latent.shape == x.shape


def test_conditions_reach_the_network():
    """A label shifts the hidden layer: the same as its bias shifted."""
    labelled, shifted = network(PATHS["vp"], 2), network(PATHS["vp"], 2)
    with torch.no_grad():
        shifted.network.first.bias += 0.5
    x = points(4, 2)
    given = log_likelihood(labelled, x, label=torch.full((4,), 0.5))
    torch.testing.assert_close(given.log_prob, log_likelihood(shifted, x).log_prob, rtol=0, atol=1e-3)
    assert (log_likelihood(labelled, x).log_prob - given.log_prob).abs().max() > 0.01


def test_an_item_does_not_depend_on_its_batch():
    """Nor on which items have left it: its value, probe, label and passes are those of the item alone."""
    denoiser = network(PATHS["vp"], 3).double()
    x = points(4, 3) * torch.tensor([1.0, 4.0, 0.1, 2.0]).double().unsqueeze(1)
    label = torch.tensor([0.0, 1.0, -2.0, 0.5]).double()
    together = log_likelihood(denoiser, x, seed=3, trace="gaussian", label=label)
    assert len(set(together.passes.tolist())) > 1
    for i in range(4):
        alone = log_likelihood(denoiser, x[i : i + 1], seeds=[3 + i], trace="gaussian", label=label[i : i + 1])
        torch.testing.assert_close(alone.log_prob, together.log_prob[i : i + 1], rtol=1e-9, atol=1e-9)
        assert alone.nfe == int(together.passes[i])
    denoiser.per_sample = True  # settings that cannot be told apart: all items stay
    same = log_likelihood(denoiser, x, seed=3, trace="gaussian", label=label)
    with pytest.raises(ValueError, match="rows must be at least 4"):
        log_likelihood(denoiser, x, rows=3, label=label)
    assert len(set(same.passes.tolist())) == 1
    torch.testing.assert_close(same.log_prob, together.log_prob, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["adams", "dopri5", "heun3"])
def test_more_items_than_rows(method):
    """No network pass has more; with adams the values and passes are those without a limit, with other methods those of
    the items `rows` at a time.
    """
    denoiser = network(PATHS["vp"], 3).double()
    sizes: list[int] = []
    denoiser.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    x = points(5, 3) * torch.tensor([1.0, 4.0, 0.1, 2.0, 0.5]).double().unsqueeze(1)
    label = torch.tensor([0.0, 1.0, -2.0, 0.5, 1.5]).double()
    options = {"trace": "gaussian", "probes": 2, "method": method, "steps": 8 if method == "heun3" else None}
    limited = log_likelihood(denoiser, x, seed=3, rows=2, label=label, **options)
    assert max(sizes) == 2
    groups = [range(5)] if method == "adams" else [range(2), range(2, 4), range(4, 5)]
    for items in groups:
        some = slice(items.start, items.stop)
        seeds = [3 + i for i in items]
        expected = log_likelihood(denoiser, x[some], seeds=seeds, label=label[some], **options)
        for name in ("log_prob", "prior", "latent", "std_error", "passes"):
            torch.testing.assert_close(
                getattr(limited, name)[some], getattr(expected, name), rtol=1e-9, atol=1e-9, msg=name
            )


def test_the_limit_of_passes_is_of_each_item():
    denoiser, x = network(PATHS["vp"], 3).double(), points(4, 3) * torch.tensor([4.0, 0.1, 0.2, 1.0]).unsqueeze(1)
    free = log_likelihood(denoiser, x)
    most = int(free.passes.max())
    for rows in (1, 2, 3, None):
        assert torch.equal(log_likelihood(denoiser, x, rows=rows, max_nfe=most).passes, free.passes)
        with pytest.raises(UserError, match=f"after max_nfe = {most - 1} network passes"):
            log_likelihood(denoiser, x, rows=rows, max_nfe=most - 1)


def test_a_condition_of_the_whole_batch_is_never_cut():
    """It has as many entries as items are on their way at once."""
    met = set()

    class Shared(Perceptron):
        def forward(self, x, c_noise, shared):
            met.add(len(shared))
            return super().forward(x, c_noise)

    for rows in (2, 3, None):
        log_likelihood(NetworkDenoiser(PATHS["vp"], Shared((3,))), points(5, 3), 1e-3, rows=rows, shared=torch.zeros(2))
    assert met == {2}


def test_a_broken_item_beyond_the_first_rows_is_named():
    denoiser, x = network(PATHS["vp"], 3).double(), points(4, 3).clamp(-1, 1)
    x[3, 0] = 6.0
    far = torch.tensor(4.0)
    denoiser.network.register_forward_hook(lambda _, inputs, output: output / (inputs[0].abs().amax(1, True) < far))
    with pytest.raises(UserError, match=r"not finite for 1 of 2 samples \(indices 3\)"):
        log_likelihood(denoiser, x, rows=2)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_a_float32_network_under_a_float64_state(name):
    """Its rounding does not keep the solver from its default tolerance, and it is as good as itself in float64."""
    single, double = network(PATHS[name], 2), network(PATHS[name], 2).double()
    x = points(16, 2)
    exact = log_likelihood(double, x, **TIGHT)
    default = log_likelihood(double, x, trace="exact")
    result = log_likelihood(single, x.float(), trace="exact")
    assert result.latent.dtype == torch.float64
    assert result.nfe <= default.nfe + 5
    assert (result.log_prob - exact.log_prob).abs().max() < 1e-5 + 1.5 * (default.log_prob - exact.log_prob).abs().max()


@pytest.mark.parametrize("trace", ["hutchinson", "hutch++", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(trace, dtype):
    """bfloat16 has two to three digits, of which the network's part of the answer keeps most."""
    denoiser = network(PATHS["cosine"], 3, gain=0.8)
    x = points(8, 3)
    options = {"trace": trace, "probes": 3, "method": "rk4", "steps": 15, "dtype": dtype}
    plain = log_likelihood(denoiser, x, **options)
    with torch.autocast("cpu", torch.bfloat16):
        half = log_likelihood(denoiser, x, **options)
    assert half.latent.dtype == dtype
    assert not torch.equal(half.log_prob, plain.log_prob)
    assert (half.log_prob - plain.log_prob).abs().max() < 0.1


def test_inference_mode_and_no_grad():
    """Lightning tests under inference mode: data, labels and the network's answers are made there."""
    denoiser = NetworkDenoiser(PATHS["vp"], MLP((2,), n_classes=3, width=8, depth=1))
    for p in denoiser.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    label = torch.tensor([0, 2, 1, 0])
    x = points(4, 2)
    loose = {"rtol": 1e-2, "atol": 1e-2}
    plain = log_likelihood(denoiser, x, **loose, label=label)
    with torch.no_grad():
        assert torch.equal(log_likelihood(denoiser, x, **loose, label=label).log_prob, plain.log_prob)
    with torch.inference_mode():
        result = log_likelihood(denoiser, x.clone(), **loose, label=label.clone(), prior=lambda x: -x.square().sum(1))
    torch.testing.assert_close(result.log_prob - result.prior, plain.log_prob - plain.prior)
    assert not result.log_prob.requires_grad
    assert not plain.log_prob.requires_grad
    assert all(p.grad is None for p in denoiser.parameters())


@pytest.mark.parametrize("method", ["adams", "dopri5", "rk4"])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_gradient_with_respect_to_x_is_the_score(name, method):
    """Of the exact marginal, by automatic differentiation of its log-density."""
    denoiser = (gaussian if method == "adams" else flat)(PATHS[name])
    x = draw(denoiser, 3, 0.1).requires_grad_()
    steps = {"steps": 60} if method == "rk4" else {"rtol": 1e-7, "atol": 1e-7}
    result = log_likelihood(
        denoiser,
        x,
        trace="exact",
        method=method,
        prior=lambda x: denoiser.log_prob(x, denoiser.sde.t_max),
        t_end=0.1,
        create_graph=True,
        **steps,
    )
    (score,) = torch.autograd.grad(result.log_prob.sum(), x)
    (expected,) = torch.autograd.grad(denoiser.log_prob(x, 0.1).sum(), x)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_the_gradient_with_respect_to_the_network(trace):
    """By finite differences of two weights and a bias."""
    denoiser = network(VPSDE(), 2).double()
    options = {"trace": trace, "method": "rk4", "steps": 15, "t_end": 0.02}
    x = points(3, 2)
    parameters = [denoiser.network.first.weight, denoiser.network.second.weight, denoiser.network.second.bias]
    total = log_likelihood(denoiser, x, create_graph=True, **options).log_prob.sum()
    gradients = torch.autograd.grad(total, parameters)
    for p, gradient in zip(parameters, gradients, strict=True):
        values = []
        for step in (1e-5, -2e-5):
            p.data.view(-1)[1] += step
            values.append(float(log_likelihood(denoiser, x, **options).log_prob.sum()))
        p.data.view(-1)[1] += 1e-5
        assert float(gradient.view(-1)[1]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_a_network_rough_in_time():
    """Told of 999 t by features of 16 radians a unit: the tolerance is loosened, and the error told is about the true
    one. The same weights told of log(sigma / alpha) / 4 meet it in a fifteenth of the passes.
    """
    torch.manual_seed(0)
    mlp = MLP((4,), width=32, depth=1, embedding_dim=32)
    for p in mlp.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    torch.nn.init.normal_(mlp.output.weight, std=0.1)
    x = points(20, 4)[:10]
    result = log_likelihood(NetworkDenoiser(VPSDE(), mlp, "eps", noise_conditioning="step"), x, max_nfe=5000)
    assert result.solver_error is not None
    assert 1e-5 < result.rtol <= 1e-2
    assert result.nfe < 3000
    rough = NetworkDenoiser(VPSDE(), mlp, "eps", noise_conditioning="step")
    fine = log_likelihood(rough, x, method="midpoint", steps=600)
    true = float((result.log_prob - fine.log_prob).square().mean().sqrt())
    assert true < 2 * float(result.solver_error.square().mean().sqrt())
    smooth = log_likelihood(NetworkDenoiser(VPSDE(), mlp, "eps"), x)
    assert (smooth.solver_error, smooth.rtol) == (None, 1e-5)
    assert smooth.nfe < 200


def test_a_rough_item_loosens_the_tolerance_of_no_other():
    """The label is the size of an oscillation in time."""
    denoiser = network(PATHS["vp"], 3).double()
    label, x = torch.tensor([0.0, 0.5, 0.0, 0.5]).double(), points(4, 3)

    def shaken(module, inputs, keywords, output):
        if keywords.get("label") is None:
            return output
        return output + (keywords["label"] * (1e5 * inputs[1]).sin()).unsqueeze(1)

    denoiser.network.register_forward_hook(shaken, with_kwargs=True)
    result = log_likelihood(denoiser, x, label=label, max_nfe=700)
    assert result.rtol > 1e-5
    error = result.solver_error
    assert (error > 0).tolist() == [False, True, False, True]
    alone = log_likelihood(denoiser, x[[0, 2]], seeds=[0, 2], label=label[[0, 2]])
    torch.testing.assert_close(result.log_prob[[0, 2]], alone.log_prob, rtol=1e-9, atol=1e-9)
    assert torch.equal(result.passes[[0, 2]], alone.passes)
