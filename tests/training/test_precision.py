"""Every precision of Lightning trains, samples, gives likelihoods and resumes, or raises an error."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT_STR
from lightning.pytorch import Trainer
from test_resume import CHECKPOINTING, assert_same_end, every_step
from tiny import make_model, make_trainer, ring, tensors

from sde_diffusion import AncestralSampler, UserError, log_likelihood
from sde_diffusion.training import EMA, ScoreModel
from sde_diffusion.training.callbacks import SampleGrid
from sde_diffusion.training.noise_levels import LossByNoiseLevel
from sde_diffusion.training.precision import PRECISIONS

VALIDATED = {"limit_val_batches": 1, "val_check_interval": 5, "check_val_every_n_epoch": None}


def run(folder: Path, precision: str, *more: Any, ckpt: Path | None = None, **options: Any) -> dict[str, Any]:
    trainer = make_trainer(
        folder,
        EMA(0.9),
        SampleGrid(folder / "samples", AncestralSampler(2), n=2),
        LossByNoiseLevel(folder, bins=2),
        *more,
        **{"precision": precision, "max_steps": 10, "gradient_clip_val": 1.0, **VALIDATED, **options},
    )
    trainer.fit(make_model(), ring(), ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    checkpoint: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return checkpoint


def test_every_precision_is_decided_on() -> None:
    assert set(PRECISIONS) <= set(get_args(_PRECISION_INPUT_STR))


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "16-mixed"])
def test_trains_draws_scores_and_resumes(precision: str, tmp_path: Path) -> None:
    complete, again = tmp_path / "complete", tmp_path / "again"
    expected = run(complete, precision, every_step(complete), **CHECKPOINTING)
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert {tensor.dtype for tensor in tensors(expected["state_dict"])} == {kind}
    assert {tensor.dtype for tensor in tensors(expected["current_model_state"])} == {kind}
    assert len(list((complete / "samples").iterdir())) == 2
    assert_same_end(run(again, precision, ckpt=complete / "step=5.ckpt"), expected)
    denoiser = ScoreModel.load_from_checkpoint(complete / "end.ckpt").denoiser
    x = AncestralSampler(5)(denoiser, (4, 2)).x
    assert bool(torch.isfinite(log_likelihood(denoiser, x).log_prob).all())


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "16-mixed"])
def test_fused(precision: str, clip: float | None, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, precision=precision, gradient_clip_val=clip, max_steps=1)
    trainer.fit(make_model(), ring())
    (group,) = trainer.optimizers[0].param_groups
    assert group["fused"]


def test_a_fused_step_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, settings = [], ScoreModel._optimizer_settings
    for fused in (True, False):
        monkeypatch.setattr(ScoreModel, "_optimizer_settings", lambda self, on=fused: {**settings(self), "fused": on})
        model = make_model(weight_decay=0.1)
        make_trainer(tmp_path, gradient_clip_val=1.0, max_steps=8).fit(model, ring())
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_in_each_precision(tmp_path: Path) -> None:
    """With a limit of 0, the first update is far below the learning rate, because of AdamW's epsilon."""
    moved = {}
    for precision in ("32-true", "bf16-mixed", "64-true"):
        for clip in (1e-12, None):
            model = make_model(warmup_steps=0)
            before = torch.cat([p.detach().flatten() for p in model.parameters()])
            trainer = make_trainer(tmp_path, precision=precision, gradient_clip_val=clip, max_steps=1)
            trainer.fit(model, ring())
            after = torch.cat([p.detach().flatten() for p in model.parameters()])
            moved[precision, clip] = float((after - before).abs().max())
        assert moved[precision, 1e-12] < 1e-5 < moved[precision, None]


@pytest.mark.parametrize(
    ("first", "second"), [("32-true", "bf16-mixed"), ("bf16-mixed", "64-true"), ("64-true", "32-true")]
)
def test_another_precision_on_resuming(first: str, second: str, tmp_path: Path) -> None:
    run(tmp_path, first, max_steps=5)
    (tmp_path / "end.ckpt").rename(tmp_path / "5.ckpt")
    checkpoint = run(tmp_path, second, ckpt=tmp_path / "5.ckpt")
    kind = torch.float64 if second == "64-true" else torch.float32
    assert {tensor.dtype for tensor in tensors(checkpoint["current_model_state"])} == {kind}
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["fused"]


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_refused_in_one_sentence(precision: str, tmp_path: Path) -> None:
    trainer: Trainer = make_trainer(tmp_path, EMA(), precision=precision)
    with pytest.raises(UserError, match=rf"trainer.precision={precision} .*32-true, bf16-mixed, 16-mixed, 64-true"):
        trainer.fit(make_model(), ring())


@pytest.mark.parametrize(("precision", "warns"), [("bf16-mixed", True), ("32-true", False)])
def test_two_precisions_at_once_are_warned_of(
    precision: Any, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    denoiser: Any = model.denoiser
    denoiser.compute_dtype = torch.bfloat16
    model.check_trainer(make_trainer(tmp_path, precision=precision))
    assert (f"denoiser.compute_dtype=bfloat16 and trainer.precision={precision}: autocast" in caplog.text) is warns
