"""Training with dequantised data: what the objective gets, in training and in validation."""

from pathlib import Path

import pytest
import torch
from tiny import MLP, OBJECTIVE, make_trainer

from sde_diffusion.data import Digits
from sde_diffusion.training import ScoreModel

DENOISER = {
    "_target_": "sde_diffusion.denoiser.NetworkDenoiser",
    "sde": {"_target_": "sde_diffusion.sde.VPSDE"},
    "network": {**MLP, "shape": [1, 8, 8]},
}


class Seen(ScoreModel):
    """Records the data passed to its objective."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        inner, self.seen = self.objective, {True: [], False: []}

        def objective(denoiser, x0, t, noise, **conditions):
            self.seen[torch.is_grad_enabled()].append(x0.clone())
            return inner(denoiser, x0, t, noise, **conditions)

        objective.draw, objective.uses_data = inner.draw, inner.uses_data
        objective.fit_statistics = inner.fit_statistics
        del self.objective  # a module: a function cannot replace it
        self.objective = objective


def fit(folder: Path, dequantise: bool) -> dict[bool, list[torch.Tensor]]:
    data = Digits(batch_size=64)
    model = Seen(denoiser=DENOISER, objective=OBJECTIVE, dequantise=dequantise, data=data.prepare().describe())
    make_trainer(folder, max_steps=6, val_check_interval=3, limit_val_batches=1).fit(model, data)
    return model.seen


def offsets(x: torch.Tensor) -> torch.Tensor:
    """Places within the bins, from -1/2 to 1/2."""
    levels = (x + 1) * 8
    return levels - levels.round()


def test_bins_are_filled_anew_in_training_and_alike_in_validation(tmp_path: Path) -> None:
    seen = fit(tmp_path, dequantise=True)
    training = torch.stack([offsets(x) for x in seen[True]])
    assert training.shape[0] == 6
    assert training.abs().max() <= 0.5
    # A uniform variable's standard deviation is 1 / sqrt 12; of 24,576 of them it is off by 0.3 per cent.
    assert training.std() == pytest.approx(12**-0.5, rel=0.02)
    assert (training[0] != training[1]).all(1).any()
    validation = seen[False]
    assert len(validation) == 2
    assert torch.equal(validation[0], validation[1])
    assert offsets(validation[0]).std() == pytest.approx(12**-0.5, rel=0.02)


def test_levels_stay_levels_by_default(tmp_path: Path) -> None:
    for parts in fit(tmp_path, dequantise=False).values():
        assert all(offsets(x).abs().max() < 1e-5 for x in parts)


def test_data_without_levels_have_no_bins() -> None:
    with pytest.raises(ValueError, match="these data have no levels"):
        ScoreModel(DENOISER, OBJECTIVE, dequantise=True, data={"levels": None})
