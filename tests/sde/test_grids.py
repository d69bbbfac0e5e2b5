"""DDPM and NCSN as grids of times on the VP and VE paths; the continuous grids by the papers' own formulas."""

import mpmath as mp
import numpy as np
import pytest
import torch
from reference_paths import CASES

from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.sde import (
    EDMSDE,
    VESDE,
    VPSDE,
    BandLogSNR,
    BetaTable,
    CosineVPSDE,
    GeometricLevels,
    KarrasRho,
    NoiseTable,
    QuadraticTime,
    RectifiedFlow,
    SubVPSDE,
    UniformLogSNR,
    UniformTime,
)
from sde_diffusion.sde.truncated import TruncatedSDE

# DDPM as Ho et al. 2020 print it (section 2 and 4), index i - 1 for step i; alpha_bar_0 = 1.
BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)
PREVIOUS = np.append(1.0, ALPHA_BAR[:-1])
DDPM = VPSDE(t_max=1.004)


def steps() -> tuple[torch.Tensor, torch.Tensor]:
    """(s, t): the times of the steps i - 1 and i, i = 1 ... 1000."""
    t = BetaTable(1000).level_times(DDPM)
    return torch.cat([torch.zeros(1, dtype=torch.float64), t[:-1]]), t


def close(ours: torch.Tensor, textbook: np.ndarray, rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(ours.numpy(), textbook, rtol=rtol, atol=1e-15)


def test_ddpm_marginals_are_alpha_bar():
    _, t = steps()
    close(DDPM.alpha(t) ** 2, ALPHA_BAR, 1e-11)
    close(DDPM.sigma(t) ** 2, 1 - ALPHA_BAR, 1e-11)


def test_ddpm_forward_steps_are_the_betas():
    s, t = steps()
    scale, std = DDPM.transition(s, t)
    close(scale, np.sqrt(1 - BETA))
    close(std**2, BETA)


def test_ddpm_posterior_means_and_variances():
    """Equations 6 and 7, for every step; the first has variance zero."""
    s, t = steps()
    a, b, std = DDPM.posterior_coefficients(s, t)
    close(a, np.sqrt(PREVIOUS) * BETA / (1 - ALPHA_BAR))
    close(b, np.sqrt(1 - BETA) * (1 - PREVIOUS) / (1 - ALPHA_BAR))
    close(std**2, (1 - PREVIOUS) / (1 - ALPHA_BAR) * BETA)


def test_ddpm_simple_loss_and_reverse_mean():
    """Equations 14 and 11, at every step, with a network that both sides share."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(1000, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)

    class Network(torch.nn.Module):
        def forward(self, x, c_noise):
            return torch.tanh(x @ mixing)

    s, t = steps()
    prediction = NetworkDenoiser(DDPM, Network(), "eps", sigma_data=1.0)(DDPM.perturb(x0, t, eps), t)

    bar, beta, clean, noise = ALPHA_BAR[:, None], BETA[:, None], x0.numpy(), eps.numpy()
    x_t = np.sqrt(bar) * clean + np.sqrt(1 - bar) * noise
    predicted = np.tanh(x_t @ mixing.numpy())
    close(prediction.x_t, x_t)
    close((prediction.eps - eps).square().sum(1), ((predicted - noise) ** 2).sum(1))
    mean, _ = DDPM.posterior(prediction.x_t, prediction.x0, s, t)
    textbook = (x_t - beta / np.sqrt(1 - bar) * predicted) / np.sqrt(1 - beta)
    np.testing.assert_allclose(mean.numpy(), textbook, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n", [10, 1000])
def test_beta_table_as_a_grid_strides_over_the_levels(n):
    sde = VPSDE(t_max=1.004)
    times = BetaTable(1000).times(sde, n)
    levels = BetaTable(1000).level_times(sde).flip(0)
    index = np.rint(np.linspace(0, 999, n)).astype(int)
    assert times.tolist() == levels[index].tolist()


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_a_table_s_walk_from_an_earlier_time_or_to_a_later_one_stays_between_them(spacing):
    """Its levels are those of the table there, but for the first, where the walk begins."""
    table = NoiseTable(ALPHA_BAR.tolist(), spacing)
    levels = table.level_times(DDPM)
    times = table.times(TruncatedSDE(path=DDPM, t_min=DDPM.t_min, t_max=0.3), 10, 0.1)
    assert times[0] == 0.3
    assert (times[1:].diff() < 0).all()
    assert 0.1 <= float(times[-1]) < 0.13
    assert all(bool((levels == t).any()) for t in times[1:])
    with pytest.raises(ValueError, match=r"has 6 between t_end=0\.1 and t_max=0\.105: ask for fewer steps"):
        table.times(TruncatedSDE(path=DDPM, t_min=DDPM.t_min, t_max=0.105), 10, 0.1)


def test_beta_table_with_high_precision_products():
    table = BetaTable(50, 1e-3, 0.3)
    product, expected = mp.mpf(1), []
    for i in range(50):
        product *= 1 - (mp.mpf(1e-3) + (mp.mpf(0.3) - mp.mpf(1e-3)) * i / 49)
        expected.append(float(mp.log(product / (1 - product))))
    np.testing.assert_allclose(table.log_snr().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("sde", "levels"),
    [
        (VESDE(), GeometricLevels(10)),
        (VESDE(0.01, 50.0), GeometricLevels(232, 0.01, 50.0)),
        (VESDE(0.002, 378.0), GeometricLevels(7, 0.01, 1.0)),
        (EDMSDE(0.01, 50.0), GeometricLevels(10)),
        (EDMSDE(), GeometricLevels(13, 0.05, 80.0)),
    ],
)
def test_ncsn_levels_are_a_geometric_sequence(sde, levels):
    sigma = sde.sigma(levels.level_times(sde)).numpy()
    np.testing.assert_allclose(sigma, np.geomspace(levels.sigma_min, levels.sigma_max, levels.n), rtol=1e-12)


def test_karras_equation_5():
    sde, n, rho = EDMSDE(), 18, 7
    i = np.arange(n)
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(KarrasRho().times(sde, n).numpy(), sigma, rtol=1e-12)
    assert KarrasRho().times(sde, n)[1].item() == pytest.approx(57.586, abs=5e-4)  # EDM's printed second level


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), CosineVPSDE(), VESDE(), RectifiedFlow()])
def test_karras_spacing_of_the_noise_to_signal_ratio_on_any_path(sde):
    t = KarrasRho(5.0).times(sde, 12, t_end=1e-3)
    root = (sde.sigma(t) / sde.alpha(t)).numpy() ** (1 / 5)
    np.testing.assert_allclose(np.diff(root), (root[-1] - root[0]) / 11, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine", "ve", "edm", "rectified"])
def test_uniform_log_snr_is_uniform_by_the_definition_of_the_path(name):
    sde, reference, _ = CASES[name]
    t = UniformLogSNR().times(sde, 9, t_end=1e-3)
    lam = np.array([float(reference.log_snr(mp.mpf(v))) for v in t.tolist()])
    np.testing.assert_allclose(np.diff(lam), (lam[-1] - lam[0]) / 8, rtol=1e-10)


def test_uniform_and_quadratic_time():
    sde = VPSDE(t_min=1e-3)
    np.testing.assert_allclose(UniformTime().times(sde, 50).numpy(), np.linspace(1, 1e-3, 50), rtol=1e-14)
    expected = np.linspace(1, np.sqrt(1e-3), 50) ** 2
    np.testing.assert_allclose(QuadraticTime().times(sde, 50).numpy(), expected, rtol=1e-14)


GRIDS = [UniformTime(), QuadraticTime(), UniformLogSNR(), KarrasRho(), BandLogSNR(), BandLogSNR(0.002, 40.0)]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("name", ["vp", "subvp", "cosine", "ve", "edm", "rectified"])
def test_grids_start_and_end_on_the_exact_times_and_fall(grid, name):
    sde = CASES[name][0]
    for t_end in (max(sde.t_min, 1e-5), 0.1234567):
        for points in (2, 3, 1001):
            t = grid.times(sde, points, t_end=t_end)
            assert t.shape == (points,)
            assert (t[0].item(), t[-1].item()) == (sde.t_max, t_end)
            assert bool((t.diff() < 0).all())
    assert grid.times(sde, 1, t_end=0.1).tolist() == [sde.t_max]


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine", "ve", "edm", "rectified"])
def test_band_spacing_by_the_definition_of_the_path(name):
    """Uniform in log((r + low) / (1 + r / high)), r = sigma / alpha, and so in r far below the band, log r within it
    and 1 / r far above.
    """
    sde, reference, _ = CASES[name]
    low, high = 0.1, 3.0
    t = BandLogSNR(low, high).times(sde, 9, t_end=0.002)
    r = np.array([float(mp.exp(-reference.log_snr(mp.mpf(v)) / 2)) for v in t.tolist()])
    place = np.log((r + low) / (1 + r / high))
    np.testing.assert_allclose(np.diff(place), (place[-1] - place[0]) / 8, rtol=1e-9)


def test_band_is_linear_below_and_reciprocal_above():
    low = VESDE(1e-5, 1e-3)
    below = low.sigma(BandLogSNR(1.0, 10.0).times(low, 5))
    assert below.diff().max() / below.diff().min() == pytest.approx(1, abs=2e-3)
    high = EDMSDE(1e3, 1e5)
    above = 1 / high.sigma(BandLogSNR(0.1, 1.0).times(high, 5))
    assert above.diff().max() / above.diff().min() == pytest.approx(1, abs=2e-3)
    within = BandLogSNR(1e-5, 1e5).times(VESDE(1e-2, 1e2), 5)
    assert within.diff().max() / within.diff().min() == pytest.approx(1, abs=5e-3)


def test_band_is_the_same_walk_through_noise_on_paths_with_the_same_ends():
    u = torch.linspace(0, 1, 33, dtype=torch.float64)
    ends = torch.tensor([-7.0, 7.0], dtype=torch.float64)  # log-SNR
    walks = []
    for kind in (VPSDE, SubVPSDE, CosineVPSDE, EDMSDE, RectifiedFlow):
        t_max, t_end = kind().time(ends).tolist()
        sde = kind(t_max=t_max)
        walks.append(sde.log_snr(BandLogSNR().time(sde, u, t_end)))
    for walk in walks[1:]:
        torch.testing.assert_close(walk, walks[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("grid", [BandLogSNR(), BandLogSNR(0.03, 7.0), BandLogSNR(0.07, 1.1)], ids=repr)
@pytest.mark.parametrize(
    ("sde", "t_end"),
    [(RectifiedFlow(t_max=1.0), 1e-5), (RectifiedFlow(t_max=1.0), 0.0), (EDMSDE(), 0.0), (CosineVPSDE(-60.0), 0.0)],
)
def test_band_reaches_ends_without_signal_or_without_noise(sde, t_end, grid):
    """There log-SNR is infinite (or nearly so), and t is still a smooth function of u."""
    places = torch.tensor([0.0, 1e-6, 2e-6, 0.3, 1 - 2e-6, 1 - 1e-6, 1.0], dtype=torch.float64, requires_grad=True)
    t = grid.time(sde, places, t_end)
    (slope,) = torch.autograd.grad(t.sum(), places)
    assert (t[0].item(), t[-1].item()) == (t_end, sde.t_max)
    assert bool((t.diff() > 0).all())
    steps = t.detach().diff() / places.detach().diff()
    for first, second, step in ((0, 1, 0), (5, 6, -1)):
        assert slope[first].item() == pytest.approx(steps[step].item(), rel=2e-3)
        assert slope[second].item() == pytest.approx(steps[step].item(), rel=2e-3)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.1, 1.0), (2.0, 2.0), (3.0, 2.0), (float("nan"), 1.0)])
def test_band_refuses_what_is_none(low, high):
    with pytest.raises(ValueError, match=r"0 < low < high; got low="):
        BandLogSNR(low, high)
