"""Every function of every path against the papers' definitions at 50 digits."""

import mpmath as mp
import pytest
import torch
from reference_paths import CASES, SIX, Reference

from sde_diffusion.sde import SDE, RectifiedFlow

RTOL = 1e-12


def quantities(sde: SDE, reference: Reference):
    """Name, what the package says at t (float64, shape of t), what the definition says."""
    return {
        "alpha": (sde.alpha, reference.alpha),
        "sigma": (sde.sigma, reference.sigma),
        "log_snr": (sde.log_snr, reference.log_snr),
        "f": (lambda t: sde.drift(torch.ones(t.numel(), 1, dtype=torch.float64), t).reshape(t.shape), reference.f),
        "g2": (lambda t: sde.diffusion(t) ** 2, reference.g2),
        "alpha_rate": (sde.alpha_rate, lambda t: mp.diff(reference.alpha, t)),
        "sigma_rate": (sde.sigma_rate, lambda t: mp.diff(reference.sigma, t)),
        "log_snr_rate": (sde.log_snr_rate, lambda t: mp.diff(reference.log_snr, t)),
    }


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_is_its_definition_to_1e_12(name):
    sde, reference, times = CASES[name]
    batch = torch.tensor(times, dtype=torch.float64)
    for quantity, (ours, defined) in quantities(sde, reference).items():
        together = ours(batch)
        assert together.dtype == torch.float64
        assert together.shape == batch.shape
        for i, t in enumerate(times):
            expected = defined(mp.mpf(t))
            for value in (together[i].item(), ours(torch.tensor(t, dtype=torch.float64)).item()):
                assert abs(value - expected) <= RTOL * abs(expected), (quantity, t, value, mp.nstr(expected, 17))


def test_log_snr_keeps_its_digits_beside_the_zero_crossing():
    sde, reference, _ = CASES["vp"]
    crossing = mp.findroot(reference.log_snr, 0.26)
    for t in (float(crossing), float(crossing) * (1 + 1e-6), float(crossing) * (1 - 1e-3)):
        assert abs(sde.log_snr(t).item() - reference.log_snr(mp.mpf(t))) < 1e-14


@pytest.mark.parametrize("name", ["vp", "subvp", "edm", "rectified"])
def test_diffusion_at_time_zero_is_the_limit(name):
    sde, reference, _ = CASES[name]
    limit = reference.g2(mp.mpf("1e-30"))
    assert abs(sde.diffusion(0.0).item() ** 2 - limit) < 1e-14
    assert sde.diffusion(torch.tensor([0.0, 0.5])).isfinite().all()


def test_rectified_flow_at_the_end_of_time():
    sde = RectifiedFlow(t_max=1.0)
    assert sde.alpha(1.0).item() == 0
    assert sde.sigma(1.0).item() == 1
    assert sde.log_snr(1.0).item() == -torch.inf
    assert sde.alpha_rate(1.0).item() == -1


@pytest.mark.parametrize("name", SIX)
def test_the_equivalent_formulas_printed_in_the_papers(name):
    """Forms of the literature that the package does not use: they tie g, f and the marginals together."""
    sde, _, times = CASES[name]
    t = torch.tensor(times, dtype=torch.float64)
    g2 = sde.diffusion(t) ** 2
    if name == "vp":  # variance-preserving: g^2 = -2 f
        other = -2 * sde.log_alpha_rate(t)
    elif name == "subvp":  # Song et al. 2021, section 3.3: g^2 = beta (1 - exp(-2 int beta)) = beta (1 - alpha^4)
        other = (0.1 + 19.9 * t) * (1 - sde.alpha(t)) * (1 + sde.alpha(t)) * (1 + sde.alpha(t) ** 2)
    elif name == "cosine":  # alpha = cos, sigma = sin: g^2 = 2 a tan(phi)
        other = 2 * sde.sigma_rate(t) * sde.sigma(t) / sde.alpha(t) ** 2
    elif name == "ve":  # Song et al. 2021, appendix C, equation 31
        other = (0.01 * 5000**t) ** 2 * 2 * torch.log(torch.tensor(5000.0, dtype=torch.float64))
    elif name == "edm":  # Karras et al. 2022, equation 4 with s = 1: g = sqrt(2 sigma' sigma)
        other = 2 * t
    else:  # straight paths: g^2 = 2 t / (1 - t)
        other = 2 * t / (1 - t)
    # 1 - alpha cancels for sub-VP at t = 1e-6, where alpha = 1 - 5e-8: hence the looser bound.
    torch.testing.assert_close(g2, other, rtol=1e-8 if name == "subvp" else 1e-12, atol=0)


@pytest.mark.parametrize("name", SIX)
def test_log_snr_falls_all_along(name):
    sde, reference, _ = CASES[name]
    t = torch.linspace(max(sde.t_min, 1e-6), sde.t_max, 2000, dtype=torch.float64)
    assert bool((sde.log_snr(t).diff() < 0).all())
    slope = float(mp.diff(reference.log_snr, mp.mpf(t[1000].item())))
    assert abs(sde.log_snr_rate(t[1000]).item() / slope - 1) < 1e-12
