"""A discriminator beside an autoencoder, against two optimizers written out by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import MODELS
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import make_trainer, same
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.data import Digits
from sde_diffusion.errors import UserError
from sde_diffusion.nn import PatchDiscriminator
from sde_diffusion.training import EMA, BetaELBO, ImportanceWeighted, PatchAdversary, VariationalModel
from sde_diffusion.variational import VAE, Categorical, ConvVAE

LATENT = {"_target_": "sde_diffusion.variational.ConvVAE", "latent_channels": 2, "channels": [4], "patch": 2}
ADVERSARY = {
    "_target_": "sde_diffusion.training.PatchAdversary",
    "channels": 4,
    "weight": 0.3,
    "start_step": 4,
    "warmup_steps": 3,
}


@pytest.mark.parametrize("layers", [1, 2])
def test_an_output_depends_on_the_stated_square(layers):
    field = 5 * 2**layers - 2
    size = 2 * field
    network = PatchDiscriminator([1, size, size], layers, 4).double().eval()
    for norm in [part for part in network.body if isinstance(part, torch.nn.GroupNorm)]:
        norm.forward = lambda x: x  # depends on the whole image
    x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    out = network(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == field


def test_images_smaller_than_the_square_are_refused():
    with pytest.raises(ValueError, match="layers=3 looks at 38x38 pixels, and the images have 28x28: take layers=2"):
        PatchAdversary([1, 28, 28], layers=3)
    with pytest.raises(ValueError, match=r"layers=2 looks at 18x18 pixels, and the images have 8x8: take layers=1"):
        PatchAdversary([1, 8, 8], layers=2)
    with pytest.raises(ValueError, match="is for images"):
        PatchAdversary([2])


def two_optimizers(model: ConvVAE, adversary: PatchAdversary, x: Tensor, noise: Tensor, steps: int) -> None:
    """The usual loop: each player has its optimizer, and gradients of its own loss alone."""
    discriminator, objective = adversary.discriminator, BetaELBO(0.01)
    ours, its = (torch.optim.AdamW(part.parameters(), lr=1e-2, weight_decay=0) for part in (model, discriminator))
    for step in range(steps):
        discriminator.requires_grad_(False)
        found = model.infer(x, [noise])
        loss, made = objective.loss(found, x).mean(), model.observation.mean(model.outputs([found.latents[0].z]))
        deceiving, last = -discriminator(made).mean(), model.decoder.output.weight
        lengths = []
        for part in (-found.log_prob.mean() / 64, deceiving):
            ours.zero_grad()
            part.backward(retain_graph=True)
            lengths.append(float(last.grad.square().sum().sqrt()))
        adaptive = min(lengths[0] / (lengths[1] + 1e-4), 10.0)
        ours.zero_grad()
        (loss + min(1, step / 3) * 0.3 * adaptive * deceiving).backward()
        discriminator.requires_grad_(True)
        its.zero_grad()
        hinge = F.relu(1 - discriminator(x)).mean() + F.relu(1 + discriminator(made.detach())).mean()
        (hinge / 2).backward()
        ours.step()
        its.step()


def test_one_optimizer_step_is_that_of_two_optimizers():
    torch.manual_seed(0)
    model = ConvVAE([1, 8, 8], Categorical(17), latent_channels=2, channels=[4], patch=2).double()
    adversary = PatchAdversary([1, 8, 8], channels=4, weight=0.3, start_step=0, warmup_steps=3).double()
    x = (torch.randint(0, 17, (6, 1, 8, 8)) / 8 - 1.0).double()
    noise = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    reference, its = copy.deepcopy(model), copy.deepcopy(adversary)
    two_optimizers(reference, its, x, noise, 6)
    optimizer = torch.optim.AdamW([*model.parameters(), *adversary.parameters()], lr=1e-2, weight_decay=0)
    for step in range(6):
        found = model.infer(x, [noise])
        loss = BetaELBO(0.01).loss(found, x).mean() + adversary(model, found, x, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in ((model, reference), (adversary, its)):
        for ours, wanted in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(ours, wanted, atol=1e-9, rtol=0)


def test_its_weight_is_that_of_the_batch_of_all_processes(monkeypatch):
    torch.manual_seed(0)
    model = ConvVAE([1, 8, 8], Categorical(17), latent_channels=2, channels=[4], patch=2).double()
    adversary = PatchAdversary([1, 8, 8], channels=4, start_step=0).double()
    x = (torch.randint(0, 17, (6, 1, 8, 8)) / 8 - 1.0).double()
    sent: list[Tensor] = []

    def weight(own: slice) -> float:
        adversary(model, model.infer(x[own], [torch.zeros(len(x[own]), 2, 4, 4, dtype=torch.float64)]), x[own], 1)
        return float(adversary.logged["adaptive_weight"])

    whole, halves, module = (
        weight(slice(None)),
        (slice(0, None, 2), slice(1, None, 2)),
        "sde_diffusion.training.adversary",
    )
    monkeypatch.setattr(f"{module}.summed", lambda value: sent.append(value) or value)
    alone = [weight(half) for half in halves]
    totals = [sent[0] + sent[2], sent[1] + sent[3]] * 2
    monkeypatch.setattr(f"{module}.summed", lambda value: totals.pop(0))
    monkeypatch.setattr(f"{module}.process_count", lambda: 2)
    assert [weight(half) for half in halves] == pytest.approx([whole] * 2, rel=1e-9)
    assert min(abs(value - whole) for value in alone) > 1e-3


def run(folder: Path, *callbacks: Callback, ckpt: Path | None = None, **options: Any) -> dict[str, Any]:
    data = Digits(batch_size=64)
    torch.manual_seed(0)
    settings = {"lr": 1e-2, "betas": (0.5, 0.9), "warmup_steps": 2}
    model = VariationalModel(LATENT, adversary=ADVERSARY, data=data.describe(), **settings)
    trainer = make_trainer(folder, *callbacks, EMA(0.9), **{"max_steps": 10, "gradient_clip_val": 0.5, **options})
    trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
    assert trainer.global_step == 10
    trainer.save_checkpoint(folder / "end.ckpt")
    checkpoint: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return checkpoint


def test_a_run_counts_its_steps_once_and_resumes_bit_for_bit(tmp_path):
    """From before the discriminator starts, and from after; its weights are in the checkpoint."""
    every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    expected = run(tmp_path, every, enable_checkpointing=True)
    assert expected["global_step"] == 10
    assert any(name.startswith("adversary.discriminator.") for name in expected["state_dict"])
    # Adam has made no steps of the discriminator before it starts.
    assert {int(state["step"]) for state in expected["optimizer_states"][0]["state"].values()} == {10, 6}
    start = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["current_model_state"]
    names = [name for name in start if name.startswith("adversary.discriminator.")]
    assert not same([start[name] for name in names], [expected["current_model_state"][name] for name in names])
    for step in (2, 7):
        again = run(tmp_path / str(step), ckpt=tmp_path / f"step={step}.ckpt")
        for part in ("current_model_state", "state_dict", "optimizer_states"):
            assert same(again[part], expected[part]), (step, part)
        assert again["lr_schedulers"] == expected["lr_schedulers"]


def test_a_checkpoint_with_the_earlier_names_of_its_arguments_is_loaded(tmp_path):
    checkpoint = run(tmp_path)
    old = {"_target_": ADVERSARY["_target_"], "channels": 4, "start": 4, "rise": 3, "most": 2.0}
    checkpoint["hyper_parameters"]["adversary"] = old
    torch.save(checkpoint, tmp_path / "old.ckpt")
    adversary = VariationalModel.load_from_checkpoint(tmp_path / "old.ckpt").adversary
    assert (adversary.start_step, adversary.warmup_steps, adversary.max_weight) == (4, 3, 2.0)


def test_gradients_are_clipped_for_each_player_by_itself(tmp_path):
    norms: list[list[float]] = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            parts = (pl_module.autoencoder, pl_module.adversary)
            grads = [[p.grad for p in part.parameters() if p.grad is not None] for part in parts]
            if all(grads):
                norms.append([float(torch.cat([g.flatten() for g in part]).norm()) for part in grads])

    run(tmp_path, Norms(), gradient_clip_val=0.01)
    late = torch.tensor(norms[-4:])
    torch.testing.assert_close(late, torch.full((4, 2), 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_decoder_can_be_judged(make):
    """Its last layer is the one in whose weight and bias its outputs are linear."""
    torch.manual_seed(0)
    model, x = make(), torch.randint(0, 17, (3, 1, 8, 8)) / 8 - 1.0
    adversary = PatchAdversary([1, 8, 8], channels=4, start_step=0)
    adversary.check(model, BetaELBO())
    noise = [torch.randn(3, *dims) for dims in model.latent_shapes]
    found = model.infer(x, noise)
    assert bool(adversary(model, found, x, 1).isfinite())
    assert 0 < float(adversary.logged["adaptive_weight"]) <= 10
    model.eval()
    before = model.outputs([latent.z for latent in found.latents])
    with torch.no_grad():
        for parameter in model.decoder.last_layer.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(model.outputs([latent.z for latent in found.latents]), 2 * before)


def test_what_cannot_be_trained_with_it_is_refused_before_the_run():
    data = Digits().describe()
    settings = {"adversary": ADVERSARY, "data": data}
    own = VAE(torch.nn.Linear(64, 4), torch.nn.Linear(2, 64), Categorical(17), (1, 8, 8), (2,))
    with pytest.raises(UserError, match=r"needs a decoder with a property last_layer, .*; Linear has none"):
        VariationalModel(own, **settings)
    with pytest.raises(UserError, match=r"judges images \[1, 16, 16\], and the model makes \[1, 8, 8\]"):
        VariationalModel(LATENT, adversary={**ADVERSARY, "shape": [1, 16, 16]}, data=data)
    with pytest.raises(UserError, match=r"gradient=dreg scales .*: take objective.gradient=standard"):
        VariationalModel(LATENT, objective=ImportanceWeighted(4), **settings)
    VariationalModel(LATENT, objective=ImportanceWeighted(4, "standard"), **settings)
