"""How is the denoiser learned? Objectives, the LightningModule, weight averaging and callbacks.

Names that need Lightning, which takes seconds to import, are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion.training.adaptive_times import AdaptiveTimes, LogSNRTimes, ScheduleTimes
from sde_diffusion.training.adversary import PatchAdversary
from sde_diffusion.training.augmentation import Augmentation
from sde_diffusion.training.diffusion_elbo import DiffusionELBO
from sde_diffusion.training.measured import Measured
from sde_diffusion.training.objective import DenoisingScoreMatching, Objective
from sde_diffusion.training.time_sampling import (
    DiscreteTimes,
    ImportanceTimes,
    LogNormalTimes,
    TimeSampling,
    UniformTimes,
)
from sde_diffusion.training.variational_objective import (
    BetaELBO,
    ImportanceWeighted,
    QuantizedELBO,
    VariationalObjective,
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
    from sde_diffusion.training.classifier import Classifier
    from sde_diffusion.training.ema import EMA
    from sde_diffusion.training.generative import GenerativeModel
    from sde_diffusion.training.latent import LatentModel
    from sde_diffusion.training.loggers import CSVLogger, WandbLogger
    from sde_diffusion.training.module import ScoreModel
    from sde_diffusion.training.noise_levels import LearnedSchedule, LossByNoiseLevel
    from sde_diffusion.training.variational import VariationalModel

_LAZY = {
    "BestCheckpoint": "checkpoint_callbacks",
    "CSVLogger": "loggers",
    "Classifier": "classifier",
    "EMA": "ema",
    "FinalValidation": "checkpoint_callbacks",
    "GenerativeModel": "generative",
    "LastCheckpoint": "checkpoint_callbacks",
    "LatentModel": "latent",
    "LearnedSchedule": "noise_levels",
    "LossByNoiseLevel": "noise_levels",
    "SampleGrid": "callbacks",
    "ScoreModel": "module",
    "StopOnNonFinite": "callbacks",
    "TrainingProgress": "callbacks",
    "VariationalModel": "variational",
    "WandbLogger": "loggers",
}
NOT_BUILDABLE = tuple(_LAZY)
"""Classes that may write files or use the network, and that no configuration in a checkpoint may name."""

__all__ = [
    "EMA",
    "AdaptiveTimes",
    "Augmentation",
    "BestCheckpoint",
    "BetaELBO",
    "CSVLogger",
    "Classifier",
    "DenoisingScoreMatching",
    "DiffusionELBO",
    "DiscreteTimes",
    "EDMWeighting",
    "ELBOWeighting",
    "EpsWeighting",
    "FinalValidation",
    "GenerativeModel",
    "ImportanceTimes",
    "ImportanceWeighted",
    "LastCheckpoint",
    "LatentModel",
    "LearnedSchedule",
    "LikelihoodWeighting",
    "LogNormalTimes",
    "LogSNRTimes",
    "LossByNoiseLevel",
    "Measured",
    "MinSNRWeighting",
    "Objective",
    "PatchAdversary",
    "QuantizedELBO",
    "SampleGrid",
    "ScheduleTimes",
    "ScoreModel",
    "ScoreWeighting",
    "StopOnNonFinite",
    "TimeSampling",
    "TrainingProgress",
    "UniformTimes",
    "VariationalModel",
    "VariationalObjective",
    "VelocityWeighting",
    "WandbLogger",
    "Weighting",
    "X0Weighting",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
