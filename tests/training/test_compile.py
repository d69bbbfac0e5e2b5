"""A compiled denoiser is one graph: in training, where a sampler calls it, on every path and with every prediction."""

import math
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from sde_diffusion import AncestralSampler, NetworkDenoiser
from sde_diffusion.denoiser.network import PARAMETERIZATIONS
from sde_diffusion.nn import MLP
from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sde_diffusion.training import LogNormalTimes, Objective, X0Weighting

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
            denoiser.compile(backend="eager")
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
