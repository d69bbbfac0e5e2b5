"""What each key of each command may be, looked at once, before the command begins.

A command's own keys are listed here with their types and ranges. Of a key that holds settings of a class, the class's
constructor is the rule: its hints say the types, and the object is built on trial, so that the constructor refuses what
it refuses. What only the data decide, such as a network's shape, is replaced by a small
stand-in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict

from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.checks.hints import (
    BetweenZeroAndOne,
    Count,
    Natural,
    Positive,
    Rule,
    arguments_of,
    at_least,
    words,
)
from sde_diffusion.commands.look import Look

Seed = Annotated[int, Rule(lambda n: True, "a whole number of at most 64 bits")]
Label = Annotated[int | str | None, Rule(lambda label: True, "the number or the name of a class, or null")]
Split = Literal["train", "val", "test"]


Described = Annotated[Mapping[str, Any], Rule(lambda node: "_target_" in node, "settings {_target_: CLASS, ...}")]


class Places(TypedDict, total=False):
    """Where a model's own data lie now."""

    root: str | None
    path: str | None


class Bound(TypedDict):
    """Settings of the ELBO."""

    steps: Count | None
    draws: Count | None
    decoder: Literal["frequencies", "uniform"]
    t_end: float | None


class Entry(TypedDict):
    """A sampler of `benchmarks.nfe_fid` and the network passes that its steps take."""

    each: Count
    extra: int
    sampler: Described


def _some(hint: Any, example: str) -> Any:
    """A list that is not empty."""
    return Annotated[list[hint], Rule(bool, f"{words(list[hint])}, such as {example}")]


def _no_limit(what: str) -> Rule:
    return Rule(lambda n: n == -1 or n >= 1, f"a whole number, -1 ({what}) or at least 1")


def _is_duration(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value)) and bool(re.search("[1-9]", value))
    return bool(value) and min(value.values()) >= 0 and max(value.values()) > 0


_SHARE = Annotated[int | float, Rule(lambda x: x > 0, "a positive number of batches, or a share of them")]

TRAINER: Mapping[str, Any] = MappingProxyType(
    {
        "max_steps": Annotated[int, _no_limit("no limit")],
        "max_epochs": Annotated[int, _no_limit("no limit")] | None,
        "min_steps": Natural | None,
        "min_epochs": Natural | None,
        "max_time": Annotated[
            str | Mapping[Literal["days", "hours", "minutes", "seconds"], int],
            Rule(_is_duration, "a time DAYS:HOURS:MINUTES:SECONDS, such as 00:00:05:00"),
        ]
        | None,
        "num_nodes": Count,
        "devices": Annotated[int, _no_limit("all")] | str | list[Natural],
        "gradient_clip_val": Annotated[float, Rule(lambda x: x >= 0, "a number of at least 0")] | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "accumulate_grad_batches": Count,
        "val_check_interval": Count,
        "check_val_every_n_epoch": Count | None,
        "num_sanity_val_steps": Annotated[int, at_least(-1)],
        "log_every_n_steps": Natural,
        "limit_train_batches": _SHARE | None,
        "limit_val_batches": _SHARE | None,
        "fast_dev_run": Literal[False],  # it leaves out loggers and checkpoints: take max_steps
        "overfit_batches": Literal[0],
        "reload_dataloaders_every_n_epochs": Literal[0],  # they are endless
        "strategy": str,
        "accelerator": str,
        "profiler": str | None,
    }
)
"""Ranges of the arguments of Lightning's Trainer, which it does not check or checks in the middle of a run."""


def check(command: str, cfg: DictConfig, resumed: bool = False) -> None:
    """See that each key of a command's configuration is one that the command can work with.

    Args:
        command: Its name.
        cfg: Its composed configuration; a whole number written as 10.0 becomes 10 in it.
        resumed: Whether the run's own configuration is in it already, where a run is resumed.

    Raises:
        UserError: If a key is not; with the key, what is allowed there, and what was given.
    """
    from lightning.pytorch import Callback

    from sde_diffusion.sampling import AncestralSampler

    look = Look(cfg)
    if command == "train":
        look.keys(ckpt=str | None)
        if look.value("ckpt") is not None and not resumed:  # most is the run's own, which its checkpoint holds
            look.instances("callbacks", Callback, sampler=AncestralSampler(1))
            return
    COMMANDS[command](look)


def _train(look: Look) -> None:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from sde_diffusion.conditions import Label
    from sde_diffusion.data import DataModule
    from sde_diffusion.denoiser import Denoiser
    from sde_diffusion.sampling import Sampler
    from sde_diffusion.sde import SDE
    from sde_diffusion.training import Objective

    look.keys(seed=Annotated[int, at_least(0, 2**32 - 1)], conditional=bool)
    look.settings("trainer", Trainer, TRAINER, given=("logger", "callbacks", "default_root_dir"))
    cls, model = look.model("model", given=("denoiser", "objective", "data", "conditions", "n_classes", "seed"))
    look.fill_in("network.shape", [1, 8, 8])
    look.fill_in("denoiser.sigma_data", 0.5)
    look.part("data", DataModule)
    sampler, sde, network = look.part("sampler", Sampler), look.part("sde", SDE), look.network("network")
    denoiser, objective = look.part("denoiser", Denoiser, sde=sde, network=network), look.part("objective", Objective)
    told = dict.fromkeys(model.get("own_dropout") or {}, Label(1))  # the data decide which there are
    offered = {"denoiser": denoiser, "objective": objective, "conditions": told, "data": {"levels": 2}}
    look.call("model", cls, **model, **{name: value for name, value in offered.items() if name in arguments_of(cls)[0]})
    look.instances("callbacks", Callback, sampler=sampler)
    look.instances("logger", Logger)
    _guidance(look)


def _guidance(look: Look) -> None:
    """Look at what steers the denoiser, around a stand-in: any condition is taken, any noise level is on the path."""
    from sde_diffusion.denoiser import Denoiser, Prediction
    from sde_diffusion.sde import SDE, RectifiedFlow, Time

    class StandIn(Denoiser):
        sde: SDE = RectifiedFlow(t_min=0.0, t_max=1.0)

        def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
            return Prediction(self.sde, x_t, t, x_t)

    look.wrapper("guidance", Denoiser, denoiser=StandIn(), null={"label": 0})


def _sample(look: Look) -> None:
    from sde_diffusion.sampling import Sampler

    look.keys(ckpt=str, n=Count, seed=Seed, label=Label, film=Natural, batch_size=Count, device=str, overwrite=bool)
    look.keys(conditions=Mapping[str, Any] | None)
    look.part("sampler", Sampler)
    _guidance(look)


def _evaluate(look: Look) -> None:
    from sde_diffusion.data import DataModule
    from sde_diffusion.metrics import Classifier
    from sde_diffusion.sampling import Sampler

    look.keys(ckpt=str | None, samples=str | None, against=str | None, resize=bool, seed=Seed, label=Label)
    look.keys(n=Annotated[int, at_least(2)], conditions=Mapping[str, Any] | None)
    look.keys(split=Split, extractor=str | None, level=BetweenZeroAndOne, resamples=Natural)
    look.keys(reference=Literal["sampled", "fixed"], cache=str, batch_size=Count, device=str, overwrite=bool)
    look.part("sampler", Sampler)
    _guidance(look)
    look.places("data", DataModule, Places)
    look.parts("metrics", Described, extractor=Classifier((1, 8, 8), (4,), 4, 3))


def _likelihood(look: Look) -> None:
    from sde_diffusion.data import DataModule
    from sde_diffusion.density.trace import TRACES
    from sde_diffusion.sampling.ode_methods import ODESolver

    look.keys(ckpt=str, x=str | None, split=str | list[str], n=Count | None, label=Label)
    look.keys(conditions=Mapping[str, Any] | None)
    flow = look.keys(method=str, rtol=Positive, atol=Positive, steps=Count | None, max_nfe=Count)
    look.call("", ODESolver, **flow)
    look.keys(trace=Literal[tuple(TRACES)], probes=Count, draws=Count, prior=Literal["standard", "matched"])
    look.keys(elbo=Bound | None, target_se=Positive | None)
    look.keys(against=str | None, against_root=str | None, against_path=str | None)
    look.places("data", DataModule, Places)
    look.keys(seed=Seed, batch_size=Count, device=str, overwrite=bool)
    _guidance(look)


def _sweep(look: Look) -> None:
    look.keys(file=str, n=Count | None, seed=Natural)


def _nfe_fid(look: Look) -> None:
    from sde_diffusion.data import DataModule

    look.keys(ckpt=str | list[str], exact=bool, long=Count | None, n=Count)
    look.keys(nfe=_some(Count, "[5,10]"), seeds=_some(Seed, "[0]"))
    look.keys(label=Label, conditions=Mapping[str, Any] | None, split=Literal["val", "test"])
    look.keys(extractor=str | None, level=BetweenZeroAndOne)
    look.places("data", DataModule, Places)
    look.keys(batch_size=Count, wandb=str | None, device=str, overwrite=bool)
    look.parts("samplers", Entry)
    _guidance(look)


COMMANDS: dict[str, Callable[[Look], None]] = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "likelihood": _likelihood,
    "sweep": _sweep,
    "nfe_fid": _nfe_fid,
}
"""What looks at the keys of each command."""
