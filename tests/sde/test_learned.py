"""A path with parameters: gradients of all that follows from it, against closed forms and finite differences."""

import copy
import math

import pytest
import torch
from torch import nn

from sde_diffusion.denoiser import Denoiser, GaussianDenoiser, NetworkDenoiser, Prediction
from sde_diffusion.density import elbo, log_likelihood
from sde_diffusion.guidance import ClassifierFreeGuidance
from sde_diffusion.nn import MLP
from sde_diffusion.sampling import (
    AncestralSampler,
    AnnealedLangevin,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    ODESampler,
    PredictorCorrector,
    SDESampler,
    UniPC,
)
from sde_diffusion.sde import BandLogSNR, KarrasRho, LearnedSDE, UniformLogSNR, UniformTime, float64
from sde_diffusion.training import (
    DenoisingScoreMatching,
    ELBOWeighting,
    ImportanceTimes,
    LogNormalTimes,
    UniformTimes,
)

X = torch.tensor([[0.3, -0.7], [1.1, 0.2], [-0.4, 0.9]], dtype=torch.float64)
NOISE = torch.tensor([[0.5, 1.2], [-0.3, 0.8], [1.4, -0.6]], dtype=torch.float64)
T = torch.tensor([0.15, 0.5, 0.9], dtype=torch.float64)
S = torch.tensor([0.1, 0.3, 0.85], dtype=torch.float64)


class Bent(LearnedSDE):
    """VDM's path, gamma = -lambda = low + (high - low) (t + bend t (1 - t)), on which alpha^2 = sigmoid(-gamma)."""

    def __init__(self, low: float = -4.0, high: float = 5.0, bend: float = 0.3) -> None:
        super().__init__()
        self.ends = nn.Parameter(torch.tensor([low, high], dtype=torch.float64))
        self.bend = nn.Parameter(torch.tensor(bend, dtype=torch.float64))

    def gamma(self, t):
        return self.ends[0] + (self.ends[1] - self.ends[0]) * (t + self.bend * t * (1 - t))

    def log_alpha(self, t):
        return -0.5 * nn.functional.softplus(self.gamma(t))

    def log_sigma(self, t):
        return -0.5 * nn.functional.softplus(-self.gamma(t))


class Quick(Bent):
    """The same with its inverse in closed form, in place of bisection."""

    def time(self, log_snr):
        share = (-float64(log_snr) - self.ends[0]) / (self.ends[1] - self.ends[0])
        b = 1 + self.bend
        return 2 * share / (b + (b * b - 4 * self.bend * share).sqrt())


def by_gradient(value, path):
    """d (sum of value) / d (low, high, bend)."""
    ends, bend = torch.autograd.grad(
        value.sum(), (path.ends, path.bend), allow_unused=True, materialize_grads=True, retain_graph=True
    )
    return torch.cat([ends, bend.reshape(1)])


def by_differences(function, step=1e-5, kind=Quick):
    """The same by central differences of a function of the path."""
    found = []
    for index in range(3):
        values = []
        for sign in (1, -1):
            place = [-4.0, 5.0, 0.3]
            place[index] += sign * step
            with torch.no_grad():
                values.append(function(kind(*place)).sum())
        found.append((values[0] - values[1]) / (2 * step))
    return torch.stack(found)


METHODS = {
    **{
        name: lambda path, name=name: getattr(path, name)(T)
        for name in (
            "alpha",
            "sigma",
            "log_alpha",
            "log_sigma",
            "log_snr",
            "alpha_rate",
            "sigma_rate",
            "log_snr_rate",
            "log_alpha_rate",
            "log_sigma_rate",
            "diffusion",
        )
    },
    "one time": lambda path: path.diffusion(0.4) + path.log_snr_rate(0.4),
    "time": lambda path: path.time(torch.tensor([2.0, 0.0, -3.0], dtype=torch.float64)),
    "time of its own log-SNR": lambda path: path.time(0.9 * path.log_snr(T)),
    "rate at a time that moves": lambda path: path.log_snr_rate(path.time(float64(1.0))),
    "drift": lambda path: path.drift(X, T),
    "perturb": lambda path: path.perturb(X, T, NOISE),
    "transition": lambda path: torch.stack(path.transition(S, T)),
    "posterior_coefficients": lambda path: torch.stack(path.posterior_coefficients(S, T)),
    "posterior": lambda path: path.posterior(X, NOISE, 0.2, 0.7)[0] + path.posterior(X, NOISE, 0.2, 0.7)[1],
    "prior_log_prob": lambda path: path.prior_log_prob(X),
    **{
        f"times of {type(grid).__name__}": lambda path, grid=grid: grid.times(path, 6, 0.02)
        for grid in (UniformTime(), UniformLogSNR(), KarrasRho(), BandLogSNR())
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_all_that_a_path_offers(name):
    for kind in (Bent, Quick):
        path, expected = kind(), by_differences(METHODS[name], kind=kind)
        value = METHODS[name](path)
        found = by_gradient(value, path) if value.requires_grad else torch.zeros(3)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=2e-7, abs=1e-8)
        assert (name == "times of UniformTime") == (not expected.any())


def test_rates_against_their_closed_forms():
    """With gamma' = (high - low) (1 + bend (1 - 2 t)): -sigmoid(gamma) gamma' / 2 and sigmoid(-gamma) gamma' / 2."""
    path = Bent()
    gamma, slope = path.gamma(T), (path.ends[1] - path.ends[0]) * (1 + path.bend * (1 - 2 * T))
    for found, closed in (
        (path.log_alpha_rate(T), -0.5 * torch.sigmoid(gamma) * slope),
        (path.log_sigma_rate(T), 0.5 * torch.sigmoid(-gamma) * slope),
        (path.diffusion(T), (torch.sigmoid(gamma) * slope).sqrt()),
    ):
        assert found.tolist() == pytest.approx(closed.tolist(), rel=1e-12)
        assert by_gradient(found, path).tolist() == pytest.approx(by_gradient(closed, path).tolist(), rel=1e-10)


def gaussian(path):
    return GaussianDenoiser(path, torch.tensor([0.2, -0.1], dtype=torch.float64), torch.tensor([0.6, 0.3]))


SAMPLERS = {
    "DDIM": AncestralSampler(4),
    "DDPM": AncestralSampler(4, eta=1.0),
    "DPM-Solver++, on uniform log-SNR": DPMSolver(4),
    "DPM-Solver++, singlestep": DPMSolver(5, order=2, singlestep=True, grid=UniformTime()),
    "UniPC": UniPC(4, grid=UniformTime()),
    "DEIS": DEISSampler(4),
    "Heun": HeunSampler(3),
    "Heun with churn": HeunSampler(3, churn=1.0, grid=UniformTime()),
    "predictor and corrector": PredictorCorrector(steps=4),
    "annealed corrector": PredictorCorrector("euler_maruyama", "annealed_langevin", steps=20, denoise=False),
    "published corrector": PredictorCorrector("ancestral", "langevin", steps=4),
    "Langevin": AnnealedLangevin(levels=4, step_size=1e-4, denoise=False),
    "flow in steps": ODESampler("rk4", steps=4, grid=KarrasRho()),
    "flow to a tolerance": ODESampler("adams", rtol=1e-7, atol=1e-7),
    "SDE": SDESampler("euler", steps=6),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_has_a_gradient_in_the_schedule(name):
    def draw(path, **more):
        return SAMPLERS[name](gaussian(path), (3, 2), seeds=[1, 2, 3], dtype=torch.float64, **more).x

    path = Quick()
    drawn = draw(path, create_graph=True)
    assert not draw(path).requires_grad
    assert torch.allclose(drawn, draw(path), rtol=1e-12, atol=1e-12)
    # An adaptive solver's own steps follow the path in leaps of its tolerance.
    rel, abs_ = (1e-3, 1e-5) if "tolerance" in name else (1e-6, 1e-7)
    assert by_gradient(drawn, path).tolist() == pytest.approx(by_differences(draw).tolist(), rel=rel, abs=abs_)


@pytest.mark.parametrize("times", [UniformTimes(), ImportanceTimes(), LogNormalTimes(stratified=True)])
def test_the_objective_has_a_gradient_in_the_schedule(times):
    """Pathwise, through times and weights; and on Gaussian data it is that of the closed form."""
    objective = DenoisingScoreMatching(ELBOWeighting(), times)

    def loss(path):
        torch.manual_seed(0)
        return objective(gaussian(path), X, **objective.draw(gaussian(path), X))

    path = Quick()
    found = by_gradient(loss(path), path)
    assert found.tolist() == pytest.approx(by_differences(loss).tolist(), rel=1e-6, abs=1e-7)


def test_likelihood_and_bound_have_gradients_in_the_schedule():
    """The bound's continuous diffusion term depends on the ends alone, whatever lies between: its gradient too."""

    def density(path, **more):
        exact = {"trace": "exact", "method": "rk4", "steps": 6}
        return log_likelihood(gaussian(path), X, **exact, **more).log_prob

    path = Quick()
    found = by_gradient(density(path, create_graph=True), path)
    assert found.tolist() == pytest.approx(by_differences(density).tolist(), rel=1e-5, abs=1e-6)
    for steps, grid in ((None, UniformTime()), (5, UniformTime())):

        def bound(path, steps=steps, grid=grid, **more):
            return elbo(gaussian(path), X, steps=steps, draws=4, grid=grid, **more).log_prob

        value = bound(path, create_graph=True)
        assert value.tolist() == pytest.approx(bound(path).tolist(), rel=1e-12)
        found = by_gradient(value, path)
        assert found.tolist() == pytest.approx(by_differences(bound).tolist(), rel=1e-6, abs=1e-6)
        assert abs(found[2]) > 1e-3  # with draws uniform in t, whose spread the bend decides
    on_log_snr = elbo(gaussian(path), X, steps=None, draws=4, create_graph=True).log_prob
    assert abs(by_gradient(on_log_snr, path)[2]) < 1e-9


def test_a_denoiser_owns_its_path():
    path = Bent()
    denoiser = NetworkDenoiser(path, MLP([2], width=8, depth=1))
    assert {"sde.ends", "sde.bend"} <= denoiser.state_dict().keys()
    assert any(parameter is path.ends for parameter in denoiser.parameters())
    other = copy.deepcopy(denoiser)
    assert other.sde != path
    assert len({path, other.sde, Bent()}) == 3
    with torch.no_grad():
        other.sde.bend.add_(0.1)
    assert float(other.sde.log_snr(0.5).detach()) != float(path.log_snr(0.5).detach())
    denoiser.load_state_dict(other.state_dict())
    assert torch.equal(path.bend, other.sde.bend)
    denoiser.half()  # float64 to stay: a schedule in half precision has no digits for its differences
    assert path.bend.dtype == path.log_snr(0.5).dtype == torch.float64
    assert "sde.bend" in gaussian(path).state_dict()


class Cubic(Bent):
    """Of one vector of parameters, which, unlike a number, cannot be multiplied with a tensor on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([-4.0, 9.0, 1.0], dtype=torch.float64))

    def gamma(self, t):
        return torch.stack([torch.ones_like(t), t, t**3], -1) @ self.weights


def test_answers_lie_on_the_device_of_the_times():
    """Where the path's parameters are on another: here the meta device, without values; test_gpu compares values."""
    path, x, s, t = Cubic(), *(value.to("meta") for value in (X, S, T))
    answers = {name: getattr(path, name)(t) for name in ("alpha", "sigma_rate", "log_snr_rate", "diffusion")}
    answers |= {"drift": path.drift(x, t), "perturb": path.perturb(x, t, x), "transition": path.transition(s, t)[1]}
    assert {name: answer.device.type for name, answer in answers.items()} == dict.fromkeys(answers, "meta")
    assert path.diffusion(T).device.type == path.diffusion(0.4).device.type == "cpu"


def test_an_optimizer_moves_the_path_that_samplers_then_walk():
    path, objective = Bent(), DenoisingScoreMatching(times=LogNormalTimes(stratified=True))
    denoiser = NetworkDenoiser(path, MLP([2], width=8, depth=1))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2, fused=True)
    before = AncestralSampler(3)(denoiser, (2, 2)).x
    for _ in range(2):  # the last layer is zero at first
        objective(denoiser, X.float()).mean().backward()
        assert all(math.isfinite(float(p.grad.norm())) and float(p.grad.norm()) > 0 for p in path.parameters())
        optimizer.step()
    assert not torch.equal(before, AncestralSampler(3)(denoiser, (2, 2)).x)
    with torch.inference_mode():
        assert AncestralSampler(3)(denoiser, (2, 2)).x.isfinite().all()


def test_paths_without_parameters_give_plain_numbers():
    """What keeps walks free of tensors' overhead, and a walk with a graph equal to one without."""
    from sde_diffusion.sde import VPSDE, numbers

    denoiser = GaussianDenoiser(VPSDE(), torch.zeros(2), 0.5)
    latent = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    given = {"shape": (2, 2), "latent": latent, "dtype": torch.float64}
    drawn = DPMSolver(5)(denoiser, **given, create_graph=True).x
    assert torch.equal(drawn, DPMSolver(5)(denoiser, **given).x)
    assert torch.autograd.grad(drawn.sum(), latent)[0].abs().min() > 0
    assert all(type(number) is float for number in numbers(VPSDE().alpha(T)))


def test_gradients_pass_through_an_interval_of_guidance():
    """At one time for all samples as at a time for each: the weight depends on the path's noise level."""

    def score(path):
        told = Told(GaussianDenoiser(path, X[0], 0.5), GaussianDenoiser(path, X[1], 0.8))
        return ClassifierFreeGuidance(told, 2.5, {"label": 0}, (0.3, 3.0))

    for t in (0.35, torch.full((3,), 0.35, dtype=torch.float64)):
        path = Quick()
        found = by_gradient(score(path)(X, t, label=1).score.square(), path)
        wanted = by_differences(lambda path, t=t: score(path)(X, t, label=1).score.square())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


class Told(Denoiser):
    """One of two beliefs, by label."""

    def __init__(self, *models):
        super().__init__()
        self.sde, self.models = models[0].sde, nn.ModuleList(models)

    def forward(self, x_t, t, label):
        first, second = (model(x_t, t) for model in self.models)
        return Prediction.lerp(first, second, label.double())
