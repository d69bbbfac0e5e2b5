"""How is the denoiser learnt? Objectives, the LightningModule, weight averaging and callbacks.

Objectives come at once; what needs Lightning, which takes seconds to import, when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion.training.objective import DenoisingScoreMatching, Objective
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
    from sde_diffusion.training.callbacks import SampleGrid, StopOnNonFinite, TrainingProgress
    from sde_diffusion.training.checkpoint_callbacks import BestCheckpoint, FinalValidation, LastCheckpoint
    from sde_diffusion.training.ema import EMA
    from sde_diffusion.training.generative import GenerativeModel
    from sde_diffusion.training.loggers import CSVLogger, WandbLogger
    from sde_diffusion.training.module import ScoreModel
    from sde_diffusion.training.noise_levels import LossByNoiseLevel

_LATE = {
    **dict.fromkeys(("SampleGrid", "StopOnNonFinite", "TrainingProgress"), "callbacks"),
    **dict.fromkeys(("BestCheckpoint", "FinalValidation", "LastCheckpoint"), "checkpoint_callbacks"),
    **dict.fromkeys(("CSVLogger", "WandbLogger"), "loggers"),
    **{"EMA": "ema", "GenerativeModel": "generative", "ScoreModel": "module", "LossByNoiseLevel": "noise_levels"},
}
NOT_BUILDABLE = tuple(_LATE)
"""What Lightning runs: it writes files and talks to servers, and no configuration out of a checkpoint may name it."""

__all__ = [
    "EMA",
    "BestCheckpoint",
    "CSVLogger",
    "DenoisingScoreMatching",
    "DiscreteTimes",
    "EDMWeighting",
    "ELBOWeighting",
    "EpsWeighting",
    "FinalValidation",
    "GenerativeModel",
    "ImportanceTimes",
    "LastCheckpoint",
    "LikelihoodWeighting",
    "LogNormalTimes",
    "LossByNoiseLevel",
    "MinSNRWeighting",
    "Objective",
    "SampleGrid",
    "ScoreModel",
    "ScoreWeighting",
    "StopOnNonFinite",
    "TimeSampling",
    "TrainingProgress",
    "UniformTimes",
    "VelocityWeighting",
    "WandbLogger",
    "Weighting",
    "X0Weighting",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
