"""The classifier of noisy data: it learns the exact class posterior, and guides an unconditional model by it."""

import pytest
import torch
from torch.nn import functional as F

from sde_diffusion import (
    VESDE,
    VPSDE,
    AncestralSampler,
    ClassifierGuidance,
    GaussianMixtureDenoiser,
    UserError,
)
from sde_diffusion.conditions import Label
from sde_diffusion.nn import Encoder
from sde_diffusion.training import Classifier, GenerativeModel, UniformTimes

SDE = VPSDE()
MIXTURE = GaussianMixtureDenoiser(SDE, [[0.6, 0.0], [-0.3, 0.5], [-0.3, -0.5]], 0.15)
DATA = {"name": "points", "shape": [2], "levels": None}


def items(n, seed):
    """Points [n, 2] and their components."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    x = MIXTURE.means[label] + 0.15 * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return {"x": x.float(), "label": label}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    path = {"_target_": "sde_diffusion.sde.VPSDE"}
    made = Classifier(path, {"label": Label(3)}, DATA, network={"_target_": "sde_diffusion.nn.Encoder", "channels": 16})
    before = float(made.validation_losses(items(400, 1), torch.Generator().manual_seed(0))["correct"].mean())
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for step in range(300):
        optimizer.zero_grad()
        made.training_loss(items(256, 100 + step)).backward()
        optimizer.step()
    made.eval()
    made.before = before
    return made


def test_it_learns_the_exact_class_posterior(model):
    """Its cross-entropy at the same noise and times is within 0.02 nats of that of log p(k | x_t)."""
    batch, generator = items(4000, 1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = model.validation_losses(batch, generator)
    t = found["t"]
    noise = torch.randn(4000, 2, generator=_after(4000, generator))
    x_t = SDE.perturb(batch["x"].double(), t, noise.double())
    exact = MIXTURE.log_responsibility(x_t, t)
    best = F.cross_entropy(exact, batch["label"])
    assert float(best) < float(found["losses"].mean()) < float(best) + 0.02
    bayes = float((exact.argmax(1) == batch["label"]).double().mean())
    assert float(found["correct"].mean()) == pytest.approx(bayes, abs=0.015)
    assert model.before < 0.6 < bayes
    assert torch.equal(found["log_snr"], SDE.log_snr(t))


def _after(n, generator):
    """The generator of the validation's draws, after those of the times."""
    generator = torch.Generator().manual_seed(0)
    torch.randperm(n, generator=generator)
    return generator


def test_it_guides_an_unconditional_model(model):
    guided = ClassifierGuidance(MIXTURE, model.classifier, 1.0)
    out = AncestralSampler(30)(guided, (300, 2), seeds=range(300), label=torch.arange(300) % 3)
    nearest = torch.cdist(out.x.double(), MIXTURE.means).argmin(1)
    assert float((nearest == torch.arange(300) % 3).double().mean()) > 0.97  # 1/3 by chance
    assert out.nfe == AncestralSampler(30)(MIXTURE, (1, 2)).nfe
    with pytest.raises(ValueError, match=r"classifier must be of the same path as the .*, VESDE.*; it is of VPSDE"):
        ClassifierGuidance(GaussianMixtureDenoiser(VESDE(), MIXTURE.means, 0.15), model.classifier)
    with pytest.raises(ValueError, match=r"label must be integers in 0 ... 2"):
        AncestralSampler(2)(guided, (2, 2), label=4)


def test_a_checkpoint_rebuilds_it(model, tmp_path):
    from lightning.pytorch import Trainer

    from sde_diffusion.training.checkpoint_io import SealedCheckpointIO

    path = tmp_path / "classifier.ckpt"
    trainer = Trainer(logger=False, enable_checkpointing=False, plugins=[SealedCheckpointIO()], accelerator="cpu")
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)
    again = GenerativeModel.load_from_checkpoint(path)
    assert isinstance(again, Classifier)
    x = torch.randn(4, 2)
    assert torch.equal(again.classifier(x, 0.3), model.classifier(x, 0.3))
    assert again.classifier(x).shape == (4, 3)
    assert not again.training


@pytest.mark.parametrize(("shape", "patch"), [((2,), 1), ((1, 8, 8), 2), ((3, 7, 5), 1), ((3, 7, 5), 2), ((4, 6), 2)])
def test_an_encoder_takes_any_shape(shape, patch):
    """Each sample's outputs depend on that sample and its noise level alone."""
    torch.manual_seed(0)
    encoder = Encoder(shape, 5, patch=patch, channels=8, blocks=2)
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, c = torch.randn(3, *shape), torch.tensor([-1.0, 0.0, 1.0])
    every = encoder(x, c)
    assert every.shape == (3, 5)
    for i in range(3):
        torch.testing.assert_close(encoder(x[i : i + 1], c[i])[0], every[i], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(encoder(x, c[0])[1], every[1])
    with pytest.raises(ValueError, match="x must be"):
        encoder(x[:, :1].expand(3, 9, *shape[1:]), c)


def test_bad_arguments():
    with pytest.raises(ValueError, match="a classifier needs labels: give ckpt=MODEL"):
        Classifier(SDE, {}, DATA)
    with pytest.raises(UserError, match=r"network.channels must be"):
        Classifier(SDE, {"label": Label(3)}, DATA, network={"_target_": "sde_diffusion.nn.Encoder", "channels": "many"})
    with pytest.raises(ValueError, match="outputs must be"):
        Encoder([2], 0)
    with pytest.raises(TypeError, match="times must be a TimeSampling"):
        Classifier(SDE, {"label": Label(3)}, DATA, times=3)
    assert isinstance(Classifier(SDE, {"label": Label(3)}, DATA, times=UniformTimes()).times, UniformTimes)
