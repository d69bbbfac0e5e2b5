"""Layers that preserve magnitudes."""

import pytest
import torch
from lightning.pytorch import Trainer

from sde_diffusion.conditions import AugmentationLabels
from sde_diffusion.data import Digits
from sde_diffusion.nn import EDM2UNet
from sde_diffusion.nn.edm2 import UnitBlock
from sde_diffusion.nn.magnitude import UnitConditioning, UnitWeights, mp_cat, mp_silu, mp_sum
from sde_diffusion.training import ScoreModel


def size(x):
    return x.square().mean().sqrt().item()


def test_sums_joints_and_layers_keep_the_root_mean_square():
    """Of 200,000 normal numbers: 1 within 2% (their own error is 0.2%), for any weights."""
    torch.manual_seed(0)
    a, b = torch.randn(50, 64, 8, 8), torch.randn(50, 32, 8, 8)
    layer, linear = UnitWeights(64, 128, 3), UnitWeights(64, 512)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(128, 1, 1, 1) * 10)
        inside = layer(a)[..., 1:-1, 1:-1]  # zeros are outside
        for found in (mp_sum(a, torch.randn_like(a), 0.3), mp_cat(a, b, 0.5), mp_silu(a), inside, linear(a[..., 0, 0])):
            assert size(found) == pytest.approx(1, rel=0.02)
        joined = mp_cat(a, 7 * torch.ones_like(b), 0.2)
        assert joined[:, :64].square().sum() / joined[:, 64:].square().sum() == pytest.approx(
            (0.8 / 0.2 / 7) ** 2, rel=0.01
        )


def test_what_a_layer_computes_depends_on_the_direction_of_its_weights_alone():
    torch.manual_seed(0)
    layer, x = UnitWeights(5, 3, 3).double(), torch.randn(2, 5, 4, 4, dtype=torch.float64)
    out = layer(x)
    (slope,) = torch.autograd.grad(out.sin().sum(), layer.weight)
    along = (slope * layer.weight).flatten(1).sum(1)
    assert along.abs().max() < 1e-3 * slope.abs().max()  # but for the 1e-4 in the norm
    layer.normalise_weights()
    torch.testing.assert_close(layer(x), out, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.weight.flatten(1).square().mean(1), torch.ones(3).double(), rtol=1e-3, atol=0)


def test_an_encoders_block_normalises_its_input():
    options = {"embedding_dim": 4, "head_channels": 4, "dropout": 0.0, "balance": 0.3, "clip": 256.0, "dims": 2}
    torch.manual_seed(0)
    block = UnitBlock(8, 16, encodes=True, attention=True, **options)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    torch.testing.assert_close(block(x, embedding), block(5 * x, embedding), rtol=1e-3, atol=1e-3)


def test_no_forward_pass_changes_the_weights():
    network = EDM2UNet([1, 8, 8], channels=8, channel_mult=[1], blocks=1, attention=[]).train()
    before = [weights.clone() for weights in network.parameters()]
    network(torch.randn(2, 1, 8, 8), torch.zeros(2)).sum().backward()
    assert all(map(torch.equal, before, network.parameters()))


def test_training_normalises_the_weights_before_each_step(tmp_path):
    """At first, normal numbers differ from mean square 1 by up to 30%; after a step of Adam, by up to its rate."""
    torch.manual_seed(0)
    network = {"channels": 8, "channel_mult": [1], "blocks": 1, "attention": [], "shape": [1, 8, 8]}
    denoiser = {"_target_": "sde_diffusion.denoiser.NetworkDenoiser", "sde": {"_target_": "sde_diffusion.sde.VPSDE"}}
    denoiser["network"] = {"_target_": "sde_diffusion.nn.EDM2UNet", **network}
    model = ScoreModel(denoiser, {"_target_": "sde_diffusion.training.DenoisingScoreMatching"}, lr=1e-3)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        enable_checkpointing=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        **quiet,
    )
    trainer.fit(model, Digits(batch_size=4))
    layers = [part for part in model.modules() if isinstance(part, UnitWeights)]
    assert len(layers) > 20
    for layer in layers:
        found = layer.weight.flatten(1).square().mean(1)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=5e-3, atol=0)


def test_labels_of_an_augmentation_count_by_their_size_and_0_has_a_derivative():
    """Null labels stand beside others in a batch; a zoom of twice the size is another condition."""
    torch.manual_seed(0)
    conditioning = UnitConditioning(64, 0, {"augment": AugmentationLabels(9)}, 16)
    labels = torch.zeros(3, 9)
    labels[1:, 2] = torch.tensor([0.2, 2.0])
    out = conditioning(torch.zeros(3), augment=labels)
    out.square().sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in conditioning.parameters())
    assert size(out[1] - out[0]) < 0.3 < size(out[2] - out[1])
