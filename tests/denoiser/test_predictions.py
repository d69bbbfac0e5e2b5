"""Predictions: from what a network should output by the papers, back to the x0, eps, score and velocity behind it."""

import math

import mpmath as mp
import pytest
import torch
from reference_paths import PATHS, scales

from sde_diffusion.denoiser import PARAMETERIZATIONS, NetworkDenoiser, Prediction
from sde_diffusion.sde import SDE, RectifiedFlow

SIGMA_DATA = 0.7
PREDICTIONS = ["eps", "x0", "velocity", "v", "score", "edm"]


class Answer(torch.nn.Module):
    """A network that answers what it was told to, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise, **conditions):
        self.asked, self.c_noise, self.conditions = x, c_noise, conditions
        return self.answer


def textbook_output(prediction, x0, eps, s):
    """What a perfect network outputs for this pair, by the definition of each prediction."""
    alpha, sigma = s["alpha"], s["sigma"]
    x_t = alpha * x0 + sigma * eps
    if prediction == "eps":  # Ho et al. 2020, equation 14
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":  # Salimans & Ho 2022, section 4
        return alpha * eps - sigma * x0
    if prediction == "score":  # of the kernel, -(x_t - alpha x0) / sigma^2 (Vincent 2011), times sigma
        return sigma * (alpha * x0 - x_t) / sigma**2
    if prediction == "velocity":  # Lipman et al. 2023: d x_t / dt at fixed ends, over its root mean square
        rms = (s["alpha_rate"] ** 2 * SIGMA_DATA**2 + s["sigma_rate"] ** 2).sqrt()
        return (s["alpha_rate"] * x0 + s["sigma_rate"] * eps) / rms
    # Karras et al. 2022, equation 8 and table 1, for the state x_t / alpha at noise level sigma / alpha.
    state, level = x_t / alpha, sigma / alpha
    c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
    c_out = level * SIGMA_DATA / (SIGMA_DATA**2 + level**2).sqrt()
    return (x0 - c_skip * state) / c_out


@pytest.mark.parametrize(
    ("path", "prediction"), [(p, q) for p in PATHS for q in PREDICTIONS if q != "v" or p in ("vp", "cosine")]
)
def test_a_perfect_output_gives_back_the_pair(path, prediction):
    """To 1e-10 of each quantity's own scale; what x_t's last digit loses is x_t 1e-16 / sigma in eps, / alpha in x0."""
    s = scales(path)
    generator = torch.Generator().manual_seed(5)
    x0, eps = (torch.randn(len(s["t"]), 6, generator=generator, dtype=torch.float64) for _ in range(2))
    x_t = s["alpha"] * x0 + s["sigma"] * eps
    network = Answer(textbook_output(prediction, x0, eps, s))
    belief = NetworkDenoiser(PATHS[path][0], network, prediction, SIGMA_DATA)(x_t, s["t"])
    torch.testing.assert_close(belief.x0, x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(belief.eps, eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(belief.score * s["sigma"], -eps, rtol=1e-10, atol=1e-10)
    speed = (s["alpha_rate"] ** 2 + s["sigma_rate"] ** 2).sqrt()
    velocity = s["alpha_rate"] * x0 + s["sigma_rate"] * eps
    torch.testing.assert_close(belief.velocity / speed, velocity / speed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spatial", [(3,), (2, 4, 4)])
def test_a_belief_in_four_spellings_for_any_shape(path, spatial):
    """Prediction alone, one number for the time: x0 = 0 means eps = x / sigma, score = -x / sigma^2 (a Gaussian)."""
    sde, _, _, times = PATHS[path]
    s = {key: value.reshape(-1)[0].item() for key, value in scales(path, times[2:3]).items()}
    x = torch.randn(2, *spatial, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    belief = Prediction(sde, x, times[2], output=torch.zeros_like(x))
    torch.testing.assert_close(belief.x0, torch.zeros_like(x), rtol=0, atol=0)
    torch.testing.assert_close(belief.eps, x / s["sigma"], rtol=1e-12, atol=0)
    torch.testing.assert_close(belief.score, -x / s["sigma"] ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(belief.velocity, x * s["sigma_rate"] / s["sigma"], rtol=1e-12, atol=0)


def test_edm_on_its_own_path_is_table_1():
    """The network's input, its noise number and the belief with the four scalars as printed."""
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=torch.float64)
    data = 0.5
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / (data**2 + sigma**2) ** 0.5
    c_in = 1 / (sigma**2 + data**2) ** 0.5
    c_noise = torch.tensor([math.log(v) / 4 for v in sigma.tolist()], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    x, output = (torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    network = Answer(output)
    belief = NetworkDenoiser(PATHS["edm"][0], network, "edm", data)(x, sigma, label=torch.arange(4))

    def image(v):
        return v[:, None, None, None]

    torch.testing.assert_close(network.asked, image(c_in) * x, rtol=1e-13, atol=0)
    torch.testing.assert_close(network.c_noise, c_noise, rtol=1e-13, atol=1e-15)
    assert network.conditions["label"].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(belief.x0, image(c_skip) * x + image(c_out) * output, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
def test_noise_numbers(path):
    """log(sigma / alpha) / 4 by the definition of the path, and 999 t / t_max."""
    sde, alpha, sigma, times = PATHS[path]
    s, network = scales(path), Answer(torch.zeros(4, 1, dtype=torch.float64))
    NetworkDenoiser(sde, network, "x0")(torch.zeros(4, 1, dtype=torch.float64), s["t"])
    expected = [float(mp.log(sigma(mp.mpf(t)) / alpha(mp.mpf(t))) / 4) for t in times]
    assert network.c_noise.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    denoiser = NetworkDenoiser(sde, network, "x0", noise_conditioning="step")
    denoiser(torch.zeros(4, 1, dtype=torch.float64), s["t"])
    assert network.c_noise.tolist() == pytest.approx([999 / sde.t_max * t for t in times], rel=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_inputs_of_unit_variance(path):
    """c_in x_t over 40,000 data points of standard deviation sigma_data: variance 1 within 4.7 standard errors, which
    some path and time exceeds by chance once in 15,000 seeds (24 comparisons)."""
    sde, _, _, times = PATHS[path]
    generator = torch.Generator().manual_seed(7)
    sign = torch.randint(2, (40_000, 1), generator=generator).double() * 2 - 1  # two points: no Gaussian assumed
    for t in times:
        noise = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
        network = Answer(noise)
        NetworkDenoiser(sde, network, "x0", SIGMA_DATA)(sde.perturb(SIGMA_DATA * sign, t, noise), t)
        square = network.asked.square()
        error = square.std().item() / 200
        assert abs(square.mean().item() - 1) < 4.7 * error + 1e-9


@pytest.mark.parametrize("path", ["vp", "rectified", "ve", "edm"])
def test_float32_states_lose_nothing_at_the_smallest_times(path):
    """A network's eps comes back to 1e-6 from eps- and score-prediction in float32, x0 from x0-prediction; going
    through x_t - alpha x0 would cost 1e-7 / sigma, which is 6e-3 for rectified flow at t = 1e-5."""
    sde = PATHS[path][0]
    t = max(sde.t_min, 1e-5)
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(64, 3, generator=generator) for _ in range(2))
    x_t = sde.perturb(x0, t, eps)
    sigma = float(PATHS[path][2](mp.mpf(t)))
    for prediction, output in (("eps", eps), ("score", -eps)):
        belief = NetworkDenoiser(sde, Answer(output), prediction)(x_t, t)
        assert belief.eps.dtype == torch.float32
        assert (belief.eps - eps).abs().max() < 1e-6
        torch.testing.assert_close(belief.score * sigma, -eps, rtol=1e-6, atol=1e-6)
        assert (belief.x0 - x0).abs().max() < 1e-6
    assert bool((NetworkDenoiser(sde, Answer(x0), "x0")(x_t, t).x0 == x0).all())


@pytest.mark.parametrize("prediction", ["velocity", "x0", "edm"])
def test_zero_terminal_snr(prediction):
    """Rectified flow at t = 1, where x_1 = eps: the belief about x_0 is the network's, and all spellings are finite."""
    generator = torch.Generator().manual_seed(4)
    x0, eps = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    output = {
        "velocity": (eps - x0) / math.sqrt(1 + SIGMA_DATA**2),
        "x0": x0,
        "edm": x0 / SIGMA_DATA,  # table 1 as sigma grows: c_skip x -> 0, c_out -> sigma_data
    }[prediction]
    network = Answer(output)
    sde = RectifiedFlow(t_max=1.0)
    belief = NetworkDenoiser(sde, network, prediction, SIGMA_DATA)(eps, 1.0)
    torch.testing.assert_close(belief.x0, x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(belief.eps, eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(belief.score, -eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(belief.velocity, eps - x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.asked, eps, rtol=1e-15, atol=0)
    assert network.c_noise.shape == (3,)
    told = network.c_noise[0].item()
    NetworkDenoiser(sde, network, prediction)(eps, 1 - 1e-15)
    assert network.c_noise[0].item() < told < math.inf  # a number, and more noise than at any time before


def test_half_precision_states_keep_the_step_number():
    """999 t = 700.3 in bfloat16 is 700 or 704: the network is told the number in float32."""
    network = Answer(torch.zeros(1, 2, dtype=torch.bfloat16))
    belief = NetworkDenoiser(PATHS["vp"][0], network, "eps", noise_conditioning="step")(
        torch.ones(1, 2, dtype=torch.bfloat16), 0.701
    )
    assert network.c_noise.item() == pytest.approx(700.299, rel=1e-7)
    assert network.asked.dtype == belief.x0.dtype == torch.bfloat16


@pytest.mark.parametrize("path", ["subvp", "ve", "edm", "rectified"])
def test_v_off_the_variance_preserving_paths_is_refused(path):
    with pytest.raises(ValueError, match=r"'v' is defined on variance-preserving paths only.*'velocity'"):
        NetworkDenoiser(PATHS[path][0], torch.nn.Identity(), "v")


def test_bad_arguments_are_refused_with_what_is_allowed():
    sde: SDE = PATHS["vp"][0]
    with pytest.raises(ValueError, match="prediction must be one of eps, x0, velocity, v, score, edm; got 'noise'"):
        NetworkDenoiser(sde, torch.nn.Identity(), "noise")
    with pytest.raises(ValueError, match="noise_conditioning must be one of log_sigma, step, time; got 'sigma'"):
        NetworkDenoiser(sde, torch.nn.Identity(), noise_conditioning="sigma")
    for bad in (0.0, -0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"must be positive, finite; got"):
            NetworkDenoiser(sde, torch.nn.Identity(), sigma_data=bad)
    with pytest.raises(ValueError, match="step number is to be divided"):
        NetworkDenoiser(sde, Answer(torch.zeros(1, 2)), "eps")(torch.zeros(1, 2), 500)
    assert list(PARAMETERIZATIONS) == PREDICTIONS
