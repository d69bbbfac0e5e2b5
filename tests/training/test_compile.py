"""A compiled denoiser is one graph: in training, where a sampler calls it, on every path and with every prediction."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import CHECKPOINTING, assert_same_end, every_step
from tiny import make_model, make_trainer, ring
from torch._dynamo.utils import counters

from sde_diffusion import AncestralSampler, NetworkDenoiser
from sde_diffusion.denoiser.network import PARAMETERIZATIONS
from sde_diffusion.nn import MLP, DiT
from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.training import EMA, LogNormalTimes, Objective, ScoreModel, X0Weighting
from sde_diffusion.training.callbacks import SampleGrid

PATHS = (VPSDE(), SubVPSDE(), VESDE(), CosineVPSDE(), EDMSDE(), RectifiedFlow())


def denoiser_of(sde: SDE, prediction: str) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(sde, MLP((2,), width=8, depth=1, embedding_dim=8), prediction)


def defined(sde: SDE, prediction: str) -> bool:
    return prediction != "v" or isinstance(sde, VPSDE | CosineVPSDE)


CASES = [(sde, prediction) for prediction in PARAMETERIZATIONS for sde in PATHS if defined(sde, prediction)]
"""Quick: each path with one prediction. Slow: all."""


@pytest.mark.parametrize(
    ("sde", "prediction"),
    [
        pytest.param(*case, marks=() if place % 7 == 0 else pytest.mark.slow, id=f"{case[1]}-{type(case[0]).__name__}")
        for place, case in enumerate(CASES)
    ],
)
def test_one_graph(sde: SDE, prediction: str) -> None:
    """No break, no new graph for each time, and what the eager one computes."""
    torch._dynamo.reset()
    counters.clear()
    objective = Objective(X0Weighting(), LogNormalTimes(stratified=True))
    sampler = AncestralSampler(steps=12)

    def results(compiled: bool) -> list[Any]:
        denoiser = denoiser_of(sde, prediction)
        if compiled:
            torch.nn.Module.compile(denoiser, backend="eager")  # all of it, as torch.compile(denoiser) does
        found = []
        for seed in range(3):  # three training steps, the data of which differ
            torch.manual_seed(seed)
            x0, noise = torch.randn(2, 6, 2)
            loss = objective(denoiser, x0, objective.times(sde, 6), noise).mean()
            loss.backward()
            found.append(loss.detach())
        found.append(torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]))
        return [*found, sampler(denoiser.eval(), (4, 2)).x]

    expected, actual = results(False), results(True)
    assert not counters["graph_break"], counters["graph_break"]
    # [B] times in training; without gradients, evaluated; and with one time for all samples
    assert counters["stats"]["unique_graphs"] <= 4, counters["stats"]
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b)


def test_the_eager_path_still_refuses_times_outside() -> None:
    for t in (1.5, -0.1, math.nan, torch.tensor([0.5, 2.0])):
        with pytest.raises(ValueError, match="outside the range"):
            VPSDE().alpha(t)


def test_blocks_of_one_kind_are_compiled_once() -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(VPSDE(), DiT([1, 4, 4], width=16, depth=4, heads=2, feature_dim=8))
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    expected = denoiser(x, t).x0
    denoiser.compile(backend="eager")
    torch.testing.assert_close(denoiser(x, t).x0, expected)
    assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
    assert denoiser.compiled is None  # not the network as a whole
    assert not any("_orig_mod" in name for name in denoiser.state_dict())


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one_and_resumes(tmp_path: Path) -> None:
    """To rounding, with the average, the keys of checkpoints, and without compiling validations and pictures."""

    def run(folder: Path, compiled: bool, ckpt: Path | None = None) -> dict[str, Any]:
        every = {"limit_val_batches": 1, "val_check_interval": 5, "check_val_every_n_epoch": None, "max_steps": 10}
        pictures = SampleGrid(folder / "samples", AncestralSampler(2), n=3)
        trainer = make_trainer(folder, EMA(0.9), pictures, every_step(folder), **{**every, **CHECKPOINTING})
        trainer.fit(make_model(compile=compiled), ring(), ckpt_path=ckpt, weights_only=True)
        trainer.save_checkpoint(folder / "end.ckpt")
        found: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
        return found

    plain = run(tmp_path / "plain", False)
    torch._dynamo.reset()
    counters.clear()
    compiled = run(tmp_path / "compiled", True)
    assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
    for part in ("state_dict", "current_model_state"):
        assert list(compiled[part]) == list(plain[part])
        for name, weight in plain[part].items():
            torch.testing.assert_close(compiled[part][name], weight, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    assert_same_end(run(tmp_path / "again", True, tmp_path / "compiled" / "step=5.ckpt"), compiled)
    model = ScoreModel.load_from_checkpoint(tmp_path / "compiled" / "end.ckpt")
    assert model.denoiser.compiled is None
