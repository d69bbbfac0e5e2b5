"""How is the denoiser learnt? Objectives, the LightningModule, weight averaging and callbacks.

Objectives come at once; what needs Lightning, which takes seconds to import, when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion.training.objective import Objective
from sde_diffusion.training.time_sampling import (
    DiscreteTimes,
    ImportanceTimes,
    LogNormalTimes,
    TimeSampling,
    UniformTimes,
)
from sde_diffusion.training.weighting import (
    EDMWeighting,
    ELBOWeighting,
    EpsWeighting,
    LikelihoodWeighting,
    MinSNRWeighting,
    ScoreWeighting,
    VelocityWeighting,
    Weighting,
    X0Weighting,
)

if TYPE_CHECKING:
    from sde_diffusion.training.ema import EMA
    from sde_diffusion.training.module import ScoreModel

_LATE = {"EMA": "sde_diffusion.training.ema", "ScoreModel": "sde_diffusion.training.module"}

__all__ = [
    "EMA",
    "DiscreteTimes",
    "EDMWeighting",
    "ELBOWeighting",
    "EpsWeighting",
    "ImportanceTimes",
    "LikelihoodWeighting",
    "LogNormalTimes",
    "MinSNRWeighting",
    "Objective",
    "ScoreModel",
    "ScoreWeighting",
    "TimeSampling",
    "UniformTimes",
    "VelocityWeighting",
    "Weighting",
    "X0Weighting",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
