"""AncestralSampler.invert: DDIM's steps walked up, against the exact flow; the way back; what a call owes."""

import pytest
import torch
from order_cases import slopes
from sampling_cases import MEAN, SIX, STD, Recording, gaussian, gaussian_flow, mixture

from sde_diffusion.sampling import AncestralSampler
from sde_diffusion.sde import VPSDE, BetaTable, RectifiedFlow, UniformLogSNR


def states(sde, t_end, n=16):
    """Gaussian data with the noise of t_end, [n, 3]."""
    z = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alpha, sigma = sde.alpha(t_end), sde.sigma(t_end)
    return alpha * MEAN + ((alpha * STD) ** 2 + sigma**2).sqrt() * z


def rms(x):
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("t_end", [None, 0.3])
@pytest.mark.parametrize("name", SIX)
def test_up_and_back(name, t_end):
    """Of first order: the latent against the exact flow's, and the way there and back against where it began."""
    sde = SIX[name]
    end = sde.t_min if t_end is None else t_end * sde.t_max
    x = states(sde, end)
    exact = gaussian_flow(sde, x, end, sde.t_max)
    up, round_trip = [], []
    for steps in (100, 200, 400):
        sampler = AncestralSampler(steps, denoise=False, t_end=end)
        latent = sampler.invert(gaussian(sde), x, dtype=torch.float64)
        assert latent.nfe == steps
        up.append(rms(latent.x - exact) / rms(exact))
        back = sampler(gaussian(sde), x.shape, latent=latent.x, dtype=torch.float64).x
        round_trip.append(rms(back - x) / rms(x))
    assert all(0.75 < slope < 1.25 for slope in slopes(up) + slopes(round_trip)), (up, round_trip)
    assert round_trip[-1] < 0.03
    assert up[-1] < 0.03


def test_images_and_data_come_back():
    """With the sampler's own denoising, in float32: of a mixture, at 1000 passes."""
    denoiser = mixture(SIX["vp"])
    x = denoiser.sample(64, torch.Generator().manual_seed(0)).float()
    sampler = AncestralSampler(1000, grid=UniformLogSNR())
    latent = sampler.invert(denoiser, x)
    assert latent.nfe == 999
    assert latent.x.dtype == torch.float32
    assert rms(sampler(denoiser, x.shape, latent=latent.x).x - x) < 0.02


def test_times_are_the_walks_in_the_other_order():
    """Each belief at the beginning of its step, by hand; for a list of times too; conditions at each pass."""
    for sde, grid, t_end in ((SIX["rectified"], None, 0.1), (VPSDE(t_max=1.004), BetaTable(1000), None)):
        denoiser = Recording(mixture(sde))
        sampler = AncestralSampler(7, grid=grid, denoise=False, t_end=t_end)
        sampler(denoiser, (3, 2), dtype=torch.float64)
        down = denoiser.times
        denoiser.calls.clear()
        x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        kept, seen = x.clone(), []
        out = sampler.invert(
            denoiser, x, callback=lambda *state, s=seen: s.append(state), dtype=torch.float64, trajectory=True, label=4
        )
        assert torch.equal(x, kept)
        assert denoiser.times[1:] == pytest.approx(down[:0:-1])
        assert denoiser.times[0] < down[-1]
        for k, t in enumerate([*denoiser.times[1:], down[0]]):
            at, before, given = denoiser.calls[k]
            belief = mixture(sde)(at, before)
            want = float(sde.alpha(t)) * belief.x0 + float(sde.sigma(t)) * belief.eps
            after = out.x if k == 6 else denoiser.calls[k + 1][0]
            assert (after - want).abs().max() < 1e-9
            assert given == {"label": 4}
            assert torch.equal(out.trajectory[k], belief.x0)
        assert [step for step, *_ in seen] == list(range(out.nfe)) == list(range(7))
        assert out.times == [t for _, t, *_ in seen] == denoiser.times


def test_a_callback_stops_at_the_state_there():
    denoiser = Recording(mixture(SIX["vp"]))
    out = AncestralSampler(20).invert(denoiser, torch.ones(2, 2), callback=lambda step, t, x, x0: step == 5)
    assert out.nfe == 6
    assert torch.equal(out.x, denoiser.calls[5][0])


def test_ends():
    """Up to pure noise on a path without signal there; from t_end = 0 not where sigma = 0, but on VE."""
    sde = RectifiedFlow(t_max=1.0)
    x = states(sde, sde.t_min)
    exact = (x - float(sde.alpha(sde.t_min)) * MEAN) / ((1 - sde.t_min) ** 2 * STD**2 + sde.t_min**2).sqrt()
    found = AncestralSampler(1000, denoise=False).invert(gaussian(sde), x, dtype=torch.float64).x
    assert rms(found - exact) < 0.02
    for path in (VPSDE(), RectifiedFlow()):
        with pytest.raises(ValueError, match="singular at an end"):
            AncestralSampler(10, t_end=0.0).invert(gaussian(path), x)
    assert AncestralSampler(10, t_end=0.0).invert(gaussian(SIX["ve"]), x).x.isfinite().all()


def test_what_is_refused():
    denoiser, x = mixture(SIX["vp"]), torch.zeros(2, 2)
    for sampler, message in (
        (AncestralSampler(10, eta=0.5), r"eta = 0, DDIM.*got eta=0\.5"),
        (AncestralSampler(1), "at least 2"),
        (AncestralSampler(10, t_end=2.0), "t_end"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.invert(denoiser, x)
    with pytest.raises(ValueError, match="float32 or float64"):
        AncestralSampler(10).invert(denoiser, x, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"x is not finite for 1 of 2 samples \(indices 1\)"):
        AncestralSampler(10).invert(denoiser, torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]))
