"""A network of your own, in a few lines of PyTorch, trains in a simple loop and then serves as any other does."""

import math

import pytest
import torch
from torch import nn

from sde_diffusion import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    AncestralSampler,
    AnnealedLangevin,
    DEISSampler,
    DPMSolver,
    GaussianDenoiser,
    HeunSampler,
    NetworkDenoiser,
    Objective,
    ODESampler,
    PredictorCorrector,
    SDESampler,
    UniPC,
    elbo,
    log_likelihood,
)
from sde_diffusion.denoiser import EDM, NOISE_CONDITIONINGS, Parameterization

SAMPLERS = {
    "ddim": AncestralSampler(8),
    "ddpm": AncestralSampler(8, eta=1.0),
    "dpm": DPMSolver(8),
    "unipc": UniPC(8),
    "deis": DEISSampler(8),
    "heun": HeunSampler(5),
    "pc": PredictorCorrector(steps=5),
    "langevin": AnnealedLangevin(levels=4, steps_per_level=2),
    "ode": ODESampler(rtol=1e-2, atol=1e-2),
    "ode rk4": ODESampler("rk4", steps=4),
    "sde": SDESampler(steps=8),
    "sde adaptive": SDESampler("euler", adaptive=True, rtol=0.5, atol=0.5),
}


class Plain(nn.Module):
    """What users write: nothing but t[:, None]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


class Optimal(nn.Module):
    """The best answer for data N(0.3, 0.4^2) on VP, of c_in x_t and t; float32 weights, and before them a counter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.mean, self.std = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.4))

    def forward(self, x, t):
        integral = (0.1 * t + 0.5 * 19.9 * t.square()).view(-1, *[1] * (x.ndim - 1))
        alpha, variance = (-0.5 * integral).exp(), -torch.expm1(-integral)
        x_t = x * (0.25 * alpha.square() + variance).sqrt()
        gain = alpha * self.std.square() / (alpha.square() * self.std.square() + variance)
        return self.mean + gain * (x_t - alpha * self.mean)


def optimal(dims):
    """A denoiser made of that network, and the closed form."""
    network = NetworkDenoiser(VPSDE(), Optimal(), "x0", noise_conditioning="time")
    return network, GaussianDenoiser(VPSDE(), torch.full(dims, 0.3), 0.4)


def ring(n, generator=None):
    angle = 2 * torch.pi * torch.rand(n, 1, generator=generator)
    return 0.8 * torch.cat([angle.cos(), angle.sin()], dim=1)


@pytest.fixture(scope="module")
def trained():
    """The loop of the README."""
    torch.manual_seed(0)
    denoiser, objective = NetworkDenoiser(VPSDE(), Plain()), Objective()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    for _ in range(1000):
        loss = objective(denoiser, ring(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoiser


def test_a_plain_loop_learns_the_data(trained):
    """Radii of 1,000 samples about 0.8, and all directions: means of the coordinates within 5 standard errors of 0,
    which a right model misses by chance once in 900,000 seeds; what training leaves is well within the rest."""
    x = DPMSolver(20)(trained, (1000, 2)).x
    assert x.norm(dim=1).mean().item() == pytest.approx(0.8, abs=0.03)
    assert x.norm(dim=1).std().item() < 0.15
    assert (x.mean(0).abs() < 0.05 + 5 * 0.57 / 1000**0.5).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "shape", [pytest.param((3, 2), id="vectors"), pytest.param((3, 1, 6, 5), id="images", marks=pytest.mark.slow)]
)
def test_every_sampler_walks_with_an_own_network_as_with_the_closed_form(name, shape):
    network, exact = optimal(shape[1:])
    for dtype in (torch.float32, torch.float64):
        found, wanted = (SAMPLERS[name](denoiser, shape, dtype=dtype).x for denoiser in (network, exact))
        assert found.dtype == dtype
        # By rounding, an adaptive solver may take other steps, each with an error of its tolerance of 0.5 or less.
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0.1 if name == "sde adaptive" else 1e-3)


@pytest.mark.parametrize("dims", [(2,), (1, 3, 2)], ids=["vectors", "images"])
def test_likelihood_and_bound_of_an_own_network(dims):
    network, exact = optimal(dims)
    x = torch.linspace(-0.8, 1.2, 3).view(3, *[1] * len(dims)).expand(3, *dims)
    density = torch.distributions.Normal(0.3, 0.4).log_prob(x).flatten(1).sum(1).double()
    alpha = math.exp(-0.25 * (0.1 + 20))
    prior = torch.distributions.Normal(0.3 * alpha, math.sqrt(1 - (1 - 0.4**2) * alpha**2))
    ends = {"trace": "exact", "prior": lambda z: prior.log_prob(z).flatten(1).sum(1)}
    found = log_likelihood(network, x, 1e-5, 1e-5, **ends).log_prob
    torch.testing.assert_close(found, density, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(elbo(network, x, 20).log_prob, elbo(exact, x, 20).log_prob, rtol=1e-3, atol=1e-3)


class Told(nn.Module):
    """Says what it was given; has weights of a type, or none."""

    def __init__(self, dtype=None, casts_inputs=False):
        super().__init__()
        self.casts_inputs = casts_inputs
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))  # before the weights, and not one of them
        if dtype is not None:
            self.weight = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x, t):
        self.x, self.t = x, t
        return x


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float64, torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((4,), 0.5)])
def test_times_and_types_that_the_network_is_given(state, own, t):
    network = Told(own)
    belief = NetworkDenoiser(VPSDE(), network, noise_conditioning="time")(torch.ones(4, 2, dtype=state), t)
    assert network.x.dtype == network.t.dtype == (own or state)
    assert network.t.tolist() == [0.5] * 4
    assert belief.x0.dtype == belief.score.dtype == state


def test_networks_that_cast_get_one_common_time_as_it_is():
    network = Told(torch.bfloat16, casts_inputs=True)
    NetworkDenoiser(VPSDE(), network)(torch.ones(4, 2, dtype=torch.float64), 0.5)
    assert network.t.shape == ()
    assert network.t.dtype == network.x.dtype == torch.float64


def test_autocast_reaches_an_own_network():
    denoiser = NetworkDenoiser(VPSDE(), Plain())
    full = denoiser(torch.ones(4, 2), 0.5).x0
    with torch.autocast("cpu", torch.bfloat16):
        half = denoiser(torch.ones(4, 2), 0.5).x0
    assert half.dtype == torch.float32
    assert not torch.allclose(half, full, rtol=1e-5)
    torch.testing.assert_close(half, full, rtol=0.02, atol=0.02)


def test_a_network_of_another_type_than_the_data_is_trained():
    """In float64 on data in float32: twenty steps lead where the same network in float32 goes."""
    trained = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(VPSDE(), Plain().to(dtype))
        start = torch.cat([p.detach().flatten() for p in denoiser.parameters()]).float()
        optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            Objective()(denoiser, ring(8)).mean().backward()
            optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in denoiser.parameters()]).float())
    assert (trained[0] - start).abs().max() > 0.01
    torch.testing.assert_close(*trained, rtol=1e-3, atol=1e-5)


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x, t):
        return self.change(x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "must return a tensor .* got tuple: let its forward return the tensor"),
        (lambda x: {"sample": x}, TypeError, "got dict"),
        (lambda x: torch.cat([x, x], 1), ValueError, r"of its input's shape \[3, 2\]; got \[3, 4\]"),
        (lambda x: x[:, :1], ValueError, r"got \[3, 1\]"),
    ],
)
def test_a_network_that_returns_something_else(change, error, message):
    denoiser = NetworkDenoiser(VPSDE(), Returns(change))
    for call in (lambda: denoiser(torch.ones(3, 2), 0.5), lambda: AncestralSampler(3)(denoiser, (3, 2))):
        with pytest.raises(error, match=message):
            call()


def test_what_is_no_network():
    class NoTime(nn.Module):
        def forward(self, x):
            return x

    for network, message in (
        (lambda x, t: x, "network must be a torch.nn.Module with forward"),
        (MLP, "got the class MLP"),
        (nn.Module(), "has none"),
        (nn.ModuleList(), "has none"),
        (NetworkDenoiser(VPSDE(), MLP([2])), "is a denoiser already"),
        (None, "got NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            NetworkDenoiser(VPSDE(), network)
    with pytest.raises(TypeError, match="that of NoTime takes no time"):
        NetworkDenoiser(VPSDE(), NoTime())(torch.ones(1, 2), 0.5)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE()])
def test_conditioning_by_the_time_itself_or_by_a_function(sde):
    x, t = torch.ones(3, 2, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    network = Told()
    NetworkDenoiser(sde, network, noise_conditioning="time")(x, t)
    assert torch.equal(network.t, t)
    NetworkDenoiser(sde, network, noise_conditioning=lambda sde, t: sde.sigma(t))(x, t)
    assert torch.equal(network.t, sde.sigma(t))
    for name, kind in NOISE_CONDITIONINGS.items():
        answers = []
        for given in (name, kind()):
            NetworkDenoiser(sde, network, noise_conditioning=given)(x, t)
            answers.append(network.t)
        assert torch.equal(*answers)


def test_a_prediction_of_ones_own():
    class Half(Parameterization):
        def coefficients(self, sde, t, sigma_data):
            return torch.zeros_like(t), torch.full_like(t, 0.5)

    x = torch.ones(3, 2)
    assert torch.equal(NetworkDenoiser(VPSDE(), Told(), Half())(x, 0.0).x0, 0.5 * Told()(x / 0.5, 0.0))
    named, given = (NetworkDenoiser(VPSDE(), Told(), prediction)(x, 0.5).x0 for prediction in ("edm", EDM()))
    assert torch.equal(named, given)
    with pytest.raises(ValueError, match=r"prediction must be one of eps, .*; got the class EDM"):
        NetworkDenoiser(VPSDE(), Told(), EDM)


def test_a_noise_embedding_of_ones_own():
    class Written(nn.Module):
        """The named embedding's features, 16 down to 0.001 radians per unit, or those of one noise level for all."""

        def __init__(self, constant=False):
            super().__init__()
            self.constant = constant

        def forward(self, c):
            c = torch.full_like(c, 0.2) if self.constant else c
            phase = c[:, None] * 16.0 * (0.001 / 16.0) ** (torch.arange(4) / 3)
            return 2**0.5 * torch.cat([phase.cos(), phase.sin()], 1)

    answers = []
    for embedding in ("positional", Written(), Written(constant=True)):
        torch.manual_seed(0)
        network = MLP([2], embedding=embedding, embedding_dim=8, width=8, depth=1)
        for weights in network.parameters():
            nn.init.normal_(weights, std=0.5)
        answers.append(network(torch.ones(3, 2), torch.tensor([-0.9, 0.2, 1.3])))
    named, written, constant = answers
    torch.testing.assert_close(written, named, rtol=0.02, atol=0.02)  # the named one rounds its frequencies
    torch.testing.assert_close(constant, written[1:2].expand(3, 2))
    assert (written[0] - written[2]).abs().min() > 0.02
    with pytest.raises(ValueError, match=r"embedding must map \[N\] to \[N, 16\].*it maps \[1\] to \[1, 8\]"):
        MLP([2], embedding=Written(), embedding_dim=16)
