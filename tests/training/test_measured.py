"""Models given a measurement of the data: against Gaussians, whose conditional denoiser is known."""

import pytest
import torch
from torch.nn import functional as F

from sde_diffusion import EDMSDE, MLP, Blur, Downsample, Grey, Mask, NetworkDenoiser, Objective, ScoreModel, UNet
from sde_diffusion.conditions import Picture
from sde_diffusion.data import Digits
from sde_diffusion.denoiser import GaussianMixtureDenoiser
from sde_diffusion.modality.levels import from_levels
from sde_diffusion.training import Measured

COVARIANCE = 0.25 * torch.tensor(
    [[1.0, 0.6, 0.3, 0.1], [0.6, 1.0, 0.6, 0.3], [0.3, 0.6, 1.0, 0.6], [0.1, 0.3, 0.6, 1.0]]
)


def exact(noise):
    """E[x_0 | x_t, y] of N(0, COVARIANCE), with y known up to noise."""
    prior = GaussianMixtureDenoiser(EDMSDE(), torch.zeros(1, 4), covariances=COVARIANCE[None])
    return prior.posterior(Downsample(2), noise)


@pytest.fixture(scope="module")
def trained():
    """A perceptron, trained for seconds on x_0 ~ N(0, COVARIANCE) given its means of pairs plus noise."""
    torch.manual_seed(0)
    measured = Measured(Downsample(2), noise=1.0)
    kinds = measured.conditions((4,))
    network = MLP((4,), width=64, depth=2, conditions=kinds)
    model = ScoreModel(NetworkDenoiser(EDMSDE(), network), Objective(), conditions=kinds, measured=measured)
    root, steps = torch.linalg.cholesky(COVARIANCE), 500
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        model.training_loss({"x": torch.randn(256, 4) @ root.T}).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("s", [0.02, 0.3, 0.9])
def test_a_trained_network_is_the_conditional_denoiser_at_every_noise(trained, s):
    draws = torch.Generator().manual_seed(1)
    x0 = torch.randn(2000, 4, generator=draws) @ torch.linalg.cholesky(COVARIANCE).T
    y = x0.unflatten(1, (2, 2)).mean(2) + s * torch.randn(2000, 2, generator=draws)
    given = trained.measured.given(y, s, ndim=2)
    for t in (0.3, 1.0, 4.0):
        x_t = x0 + t * torch.randn(2000, 4, generator=draws)
        wanted, of_another_noise = (exact(noise)(x_t, t, y=y).x0 for noise in (s, 0.9 if s < 0.5 else 0.3))
        error = (trained.denoiser(x_t, t, **given).x0 - wanted).square().mean().sqrt()
        # A network that is not told s fails this at s = 0.02 and 0.3.
        assert error < 0.4 * (of_another_noise - wanted).square().mean().sqrt()


def test_training_sees_small_pictures_as_data_sets_and_files_have_them():
    large, small = Digits().prepare(), Digits(shrink=2).prepare()
    x = large.tensor("test")
    y = Measured(Downsample(2)).exact(x, large.levels)
    assert torch.equal(y, small.tensor("test"))
    means = F.avg_pool2d(x, 2)  # independent of the kernel that both use
    assert torch.equal(y, from_levels(((means + 1) * 127.5).round().to(torch.uint8), 256))
    assert (small.levels, small.extractor, small.config["shrink"]) == (256, None, 2)


def test_noise_of_a_batch():
    x0 = torch.full((4000, 4), 0.5)
    found = Measured(Downsample(2), noise=0.4).draw(x0, None, torch.Generator().manual_seed(0))
    s = found["measurement_noise"]
    assert 0 <= s.min() < 0.01 < 0.39 < s.max() <= 0.4
    z = (found["measurement"] - 0.5) / s[:, None]
    assert abs(z.std() - 1) < 0.05  # 6 standard errors
    assert set(Measured(Downsample(2), noise=0).draw(x0, None)) == {"measurement"}
    with pytest.raises(ValueError, match=r"\[0, 0.4\], for which the model was trained; got 0.5"):
        Measured(Downsample(2), noise=0.4).check_noise(0.5)
    with pytest.raises(ValueError, match="conditions lack measurement, measurement_noise"):
        ScoreModel(
            NetworkDenoiser(EDMSDE(), MLP((4,), width=8)),
            Objective(),
            data={"shape": [4]},
            measured=Measured(Downsample(2)),
        )


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (Downsample(2), (3, 3, 4)),
        (Grey(), (1, 6, 8)),
        (Mask(torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0)) < 0.5), (3, 6, 8)),
    ],
)
@torch.no_grad()
def test_networks_see_the_picture_and_its_absence(operator, shape):
    dims = (3, 6, 8)
    measured = Measured(operator)
    kinds = measured.conditions(dims)
    assert kinds["measurement"].shape == shape
    unet = UNet(
        dims, channels=4, channel_mult=(1, 1), blocks=1, attention=(), embedding_dim=8, patch=2, conditions=kinds
    )
    for network in (unet, MLP(dims, width=8, depth=1, conditions=kinds)):
        torch.nn.init.normal_(network.output.weight)
        x, c = torch.randn(3, *dims, generator=torch.Generator().manual_seed(1)), torch.zeros(3)
        given = measured.draw(x.clamp(-1, 1), 256, torch.Generator().manual_seed(2))
        out, null = network(x, c, **given), network(x, c)
        assert not torch.allclose(out, null, atol=1e-3)
        assert torch.equal(null, network(x, c, **{name: kind.nulls(3) for name, kind in kinds.items()}))
        assert torch.allclose(network(x[:1], c[:1], **{name: v[:1] for name, v in given.items()}), out[:1], atol=5e-5)


def test_values_of_pictures():
    kind = Picture([1, 2, 2])
    missing = torch.full((2, 1, 2, 2), torch.nan)
    assert kind.is_null(kind.check("low", missing, 2)).all()
    assert kind.words(missing[0]) == "none"
    missing[1, 0, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"low must be finite numbers, \[1, 2, 2\] for each sample"):
        kind.check("low", missing, 2)
    with pytest.raises(ValueError, match="got uint8"):
        kind.check("low", torch.zeros(2, 1, 2, 2, dtype=torch.uint8), 2)


def test_only_pictures_are_rounded_to_grey_levels():
    """Means of blocks are pictures; sums are not, and keep their values beyond [-1, 1]."""
    x = from_levels(torch.randint(0, 17, (5, 1, 4, 4), generator=torch.Generator().manual_seed(0)), 17)
    means = Measured(Downsample(2)).exact(x, 17)
    assert torch.equal(means, from_levels((127.5 * (means.double() + 1)).round(), 256))
    assert float((means - Downsample(2)(x)).abs().max()) <= 1.001 / 255
    sums = Blur(torch.ones(3, 3))
    assert torch.equal(Measured(sums).exact(x, 17), sums(x))
    assert float(sums(x).abs().max()) > 1
