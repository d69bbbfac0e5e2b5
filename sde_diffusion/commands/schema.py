"""The schema of each command: the allowed values of its keys, checked once before the command begins.

A command's own keys are listed here with their types and ranges. For a key that holds settings of a class, the rule is
the class's constructor: its type hints are checked, and the object is built, so that the constructor's own checks run.
Values that depend on the data, such as a network's shape, are replaced by small placeholders.

OmegaConf's structured configs would repeat each constructor's arguments in a dataclass, and state no ranges: type hints
with rules (`checks.hints`) are read from the constructors themselves, those of user-defined classes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_diffusion.checks.hints import (
    BetweenZeroAndOne,
    Count,
    Described,
    Natural,
    Positive,
    arguments_of,
    at_least,
)
from sde_diffusion.commands import user_classes
from sde_diffusion.commands.config_checks import ConfigChecks
from sde_diffusion.commands.schema_values import (
    Decode,
    Editing,
    ELBOSettings,
    Ends,
    Entry,
    FirstStageSettings,
    Location,
    NoiseScale,
    Scale,
    Seed,
    Split,
    Tuning,
    Upsampler,
    some,
)
from sde_diffusion.commands.trainer_rules import TRAINER
from sde_diffusion.commands.tuned_grids import with_placeholder
from sde_diffusion.config import find_class, is_description
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.sde import GRIDS


def check(command: str, cfg: DictConfig, resumed: bool = False) -> None:
    """Check the value of each key of a command's configuration.

    Args:
        command: Name of the command.
        cfg: Its composed configuration; an integer written as 10.0 is replaced by 10.
        resumed: Whether `cfg` already contains the stored configuration of a run that is resumed.

    Raises:
        UserError: If a value is not allowed; the message names the key, the allowed values, and the value.
    """
    from lightning.pytorch import Callback

    from sde_diffusion.sampling import AncestralSampler

    checks = ConfigChecks(cfg)
    if command == "train":
        checks.keys(ckpt=str | None)
        if checks.value("ckpt") is not None and not resumed:  # the checkpoint will replace most of the settings
            checks.instances("callbacks", Callback, sampler=AncestralSampler(1))
            return
    COMMANDS[command](checks)
    known = {"out", "ckpt", user_classes.KEY, *checks.seen}
    for key in sorted(set(map(str, cfg)) - known):  # added with +
        raise UserError(f"unknown key {key!r}{did_you_mean(key, known)}; allowed: {', '.join(sorted(known))}")


_RESERVED = ("denoiser", "objective", "data", "conditions", "n_classes", "seed", "first_stage")


def _train(checks: ConfigChecks) -> None:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from sde_diffusion.conditions import Label
    from sde_diffusion.data import DataModule
    from sde_diffusion.denoiser import Denoiser
    from sde_diffusion.sampling import Sampler
    from sde_diffusion.sde import SDE
    from sde_diffusion.text import TextEncoder
    from sde_diffusion.training import Objective

    checks.keys(seed=Annotated[int, at_least(0, 2**32 - 1)], conditional=bool)
    checks.settings("trainer", Trainer, TRAINER, reserved=("logger", "callbacks", "default_root_dir"))
    cls, model = checks.model("model", reserved=_RESERVED)
    for part in ("network", "objective"):
        checks.fill_in(f"{part}.shape", _placeholder_shape(checks))
    for group in ("sde", "network", "objective"):
        checks.fill_in(f"{group}.levels", 256)
    checks.fill_in("denoiser.sigma_data", 0.5)
    checks.part("data", DataModule)
    if checks.value("text") is not None:  # as in runs of earlier versions
        checks.part("text", TextEncoder)
    sampler, sde, network = checks.part("sampler", Sampler), checks.part("sde", SDE), checks.network("network")
    denoiser, objective = (
        checks.part("denoiser", Denoiser, sde=sde, network=network),
        checks.part("objective", Objective),
    )
    conditions = dict.fromkeys(model.get("condition_dropout") or {}, Label(1))  # the real ones depend on the data
    offered = {"denoiser": denoiser, "objective": objective, "conditions": conditions, "data": {"levels": 2}}
    offered["first_stage"] = _first_stage(checks, "first_stage" in arguments_of(cls)[0])
    taken = {name: value for name, value in offered.items() if name in arguments_of(cls)[0]}
    if "denoiser" in taken:  # another model makes its networks for the shape of the data, which is not known yet
        checks.call("model", cls, **model, **taken)
    checks.instances("callbacks", Callback, sampler=sampler)
    checks.instances("logger", Logger)
    _guidance(checks)


def _placeholder_shape(checks: ConfigChecks) -> list[int]:
    """A shape that fits the network, of images or a sequence: the data's is checked when the data are known."""
    network = checks.cfg.get("network")
    patch, factors, layout = (
        OmegaConf.select(network, name) if isinstance(network, DictConfig) else None
        for name in ("patch", "channel_mult", "layout")
    )
    halvings = len(factors) if isinstance(factors, ListConfig) else 0
    side = (patch if type(patch) is int and 0 < patch < 1000 else 1) * 2 ** min(max(3, halvings), 10)
    return [side, 1] if layout == "channels_last" else [1, side, side]


def _first_stage(checks: ConfigChecks, needed: bool) -> Any:
    """Check the name of the first stage's checkpoint, and return a placeholder."""
    from sde_diffusion.training.first_stage import MISSING
    from sde_diffusion.variational import MLPVAE, FirstStage, Gaussian

    if checks.value("ckpt") is None:  # a resumed run has the description of its own
        chosen = checks.keys(first_stage=FirstStageSettings)["first_stage"]["ckpt"]
        if needed and chosen is None:
            raise UserError(MISSING)
    checks.seen.add("first_stage")
    return FirstStage(MLPVAE([1], Gaussian(), 1, 1, 0))


def _guidance(checks: ConfigChecks) -> None:
    """Check the guidance by wrapping it around a placeholder that takes any condition, with all noise levels."""
    from sde_diffusion.denoiser import Denoiser, Prediction
    from sde_diffusion.sde import SDE, RectifiedFlow, Time
    from sde_diffusion.training.guidance_models import with_models

    class Placeholder(Denoiser):
        sde: SDE = RectifiedFlow(t_min=0.0, t_max=1.0)

        def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
            return Prediction(self.sde, x_t, t, x_t)

    denoiser = Placeholder()
    offered = {"denoiser": denoiser, "denoisers": denoiser, "null": {"label": 0}}

    def with_placeholders(node: Mapping[str, Any]) -> dict[str, Any]:
        return with_models(node, lambda key, path, part: denoiser if part == "denoiser" else abs, offered)

    checks.choice("guidance", Denoiser, prepare=with_placeholders, **offered)


def _sample(checks: ConfigChecks) -> None:
    from sde_diffusion.sampling import Sampler

    checks.keys(ckpt=str, n=Count, seed=Seed, film=Natural, batch_size=Count, device=str, overwrite=bool)
    checks.keys(conditions=Mapping[str, Any] | None, edit=Editing, upsampler=Upsampler, decode=Decode, latents=bool)
    checks.keys(compile=bool, cuda_graphs=bool)
    checks.part("sampler", Sampler, prepare=with_placeholder)
    _guidance(checks)


def _restore(checks: ConfigChecks) -> None:
    from sde_diffusion.data import DataModule
    from sde_diffusion.guidance import PosteriorMethod
    from sde_diffusion.sampling import Sampler

    checks.keys(ckpt=str, images=str | None, y=str | None, split=Split | None, items=Count, noise=NoiseScale, n=Count)
    checks.keys(seed=Seed, evidence=bool, conditions=Mapping[str, Any] | None)
    checks.keys(batch_size=Count, device=str, compile=bool, overwrite=bool)
    if checks.has("operator"):  # built when the model's shape is known; left out: that of the model
        operator = checks.keys(operator=Described)["operator"]
        cls = find_class(str(operator["_target_"]), "operator", any_library=True)
        checks.settings("operator", cls, reserved=("shape",))
    checks.part("posterior", PosteriorMethod)
    checks.part("sampler", Sampler)
    checks.data("data", DataModule, Location)
    _guidance(checks)


def _evaluate(checks: ConfigChecks) -> None:
    from sde_diffusion.data import DataModule
    from sde_diffusion.metrics import Classifier
    from sde_diffusion.sampling import Sampler

    checks.keys(ckpt=str | None, samples=str | None, against=str | None, resize=bool, seed=Seed)
    checks.keys(n=Annotated[int, at_least(2)], of=Literal["samples", "reconstructions"], decode=Decode)
    checks.keys(conditions=Mapping[str, Any] | None, compile=bool, cuda_graphs=bool)
    checks.keys(split=Split, confidence=BetweenZeroAndOne, resamples=Natural)
    checks.keys(reference=Literal["sampled", "fixed"], cache=str, batch_size=Count, device=str, overwrite=bool)
    checks.part("sampler", Sampler, prepare=with_placeholder)
    _guidance(checks)
    checks.data("data", DataModule, Location)
    _extractor(checks)
    checks.parts("metrics", Described, extractor=Classifier((1, 8, 8), (4,), 4, 3))


def _extractor(checks: ConfigChecks) -> None:
    """Check an extractor's class and settings; it is built for the data's shape."""
    chosen = checks.keys(extractor=str | Described | None)["extractor"]
    if is_description(chosen):
        checks.settings("extractor", find_class(str(chosen["_target_"]), "extractor"), reserved=("shape",))


def _likelihood(checks: ConfigChecks) -> None:
    from sde_diffusion.data import DataModule
    from sde_diffusion.density import Decoder, Prior, Trace
    from sde_diffusion.density.trace import TRACES
    from sde_diffusion.sampling import ODEMethod
    from sde_diffusion.sampling.ode_methods import METHODS, ODESolver
    from sde_diffusion.sde import VPSDE, Grid

    checks.keys(ckpt=str, x=str | None, split=str | list[str], n=Count | None)
    checks.keys(conditions=Mapping[str, Any] | None)
    flow = checks.keys(rtol=Positive, atol=Positive, steps=Count | None, max_nfe=Count)
    checks.call("", ODESolver, method=checks.choice("method", ODEMethod, Literal[tuple(METHODS)]), **flow)
    checks.choice("grid", Grid, Literal[tuple(GRIDS)] | None)
    checks.choice("trace", Trace, Literal[tuple(TRACES)], **checks.keys(probes=Count))
    checks.choice("prior", Prior, Literal["standard", "matched"], sde=VPSDE())
    checks.keys(importance=Count, bound=Mapping[str, Any] | None)
    checks.keys(draws=Count, elbo=ELBOSettings | None, target_se=Positive | None)
    if checks.value("elbo") is not None:
        checks.choice("elbo.decoder", Decoder, Literal["frequencies", "uniform", "dequantised"], levels=2)
        checks.choice("elbo.grid", Grid, Literal[tuple(GRIDS)] | None)
    checks.keys(against=str | None, against_root=str | None, against_path=str | None)
    checks.data("data", DataModule, Location)
    checks.keys(seed=Seed, batch_size=Count, device=str, compile=bool, overwrite=bool)
    _guidance(checks)


def _sweep(checks: ConfigChecks) -> None:
    checks.keys(file=str, n=Count | None, seed=Natural)


def _nfe_fid(checks: ConfigChecks) -> None:
    from sde_diffusion.data import DataModule

    checks.keys(ckpt=str | list[str], exact=bool, long=Count | None, n=Count)
    checks.keys(nfe=some(Count, "[5,10]"), seeds=some(Seed, "[0]"))
    checks.keys(conditions=Mapping[str, Any] | None, split=Literal["val", "test"])
    checks.keys(confidence=BetweenZeroAndOne)
    checks.data("data", DataModule, Location)
    checks.keys(batch_size=Count, wandb=str | None, device=str, overwrite=bool)
    _extractor(checks)
    checks.parts("samplers", Entry, lambda entry: {**entry, "sampler": with_placeholder(entry["sampler"])})
    checks.keys(tune=bool, tuning=Tuning)
    _guidance(checks)


def _guidance_scales(checks: ConfigChecks) -> None:
    from sde_diffusion.data import DataModule
    from sde_diffusion.sampling import Sampler

    checks.keys(ckpt=str, classifier=str | None, unconditional=str | None, n=Count, seed=Seed)
    checks.keys(scales=some(Scale, "[0,1,2]"), intervals=some(Ends, "[null,[0.2,1.6]]"))
    checks.keys(split=Literal["val", "test"], confidence=BetweenZeroAndOne)
    checks.keys(batch_size=Count, device=str, overwrite=bool)
    checks.data("data", DataModule, Location)
    checks.part("sampler", Sampler)
    _extractor(checks)


COMMANDS: dict[str, Callable[[ConfigChecks], None]] = {
    "train": _train,
    "sample": _sample,
    "restore": _restore,
    "evaluate": _evaluate,
    "likelihood": _likelihood,
    "sweep": _sweep,
    "nfe_fid": _nfe_fid,
    "guidance": _guidance_scales,
}
"""The function that checks the keys of each command."""
