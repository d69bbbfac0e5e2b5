"""What `train ckpt=... KEY=VALUE` does with each key: it is used, or a message says that it cannot change."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary
from omegaconf import DictConfig, OmegaConf

from sde_diffusion.commands import configurations, train
from sde_diffusion.commands.resuming import CHANGEABLE
from sde_diffusion.errors import UserError
from sde_diffusion.training.schedule import timer_of

TINY = (
    "network=mlp",
    "network.width=16",
    "network.depth=1",
    "data.min_batches_per_epoch=10",
    "callbacks.samples.n=2",
    "trainer.max_steps=4",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=2",
    "model.warmup_steps=3",
)


@dataclass
class Seen:
    """What trains."""

    trainer: Any
    model: Any
    data: Any
    cfg: DictConfig
    deterministic: bool

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's parameters and settings."""
        return self.trainer.optimizers[0].param_groups[0]

    @property
    def schedule(self) -> Any:
        return self.trainer.lr_scheduler_configs[0].scheduler

    def callback(self, name: str) -> Any:
        target = OmegaConf.select(self.cfg, f"callbacks.{name}._target_").rpartition(".")[2]
        (found,) = [callback for callback in self.trainer.callbacks if type(callback).__name__ == target]
        return found


class EnoughError(Exception):
    """Raised when the first resumed step begins."""


class Look(Callback):
    """Record the objects at the first resumed step, after the model's own hooks, and end the run."""

    def __init__(self) -> None:
        self.seen: tuple[Any, Any] | None = None
        self.deterministic = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen = (trainer, pl_module)
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        raise EnoughError


def composed(*overrides: str) -> DictConfig:
    """The configuration of the command, with Hydra's own."""
    configurations.register_resolvers()
    with hydra.initialize_config_dir(str(configurations.config_folder()), version_base="1.3"):
        cfg = hydra.compose("train", overrides=list(overrides), return_hydra_config=True)
    GlobalHydra.instance().clear()
    return cfg


def command(folder: Path, *overrides: str, look: bool = False) -> Seen | None:
    """The command in this process; with look, until the first step begins."""
    cfg = composed(f"hydra.run.dir='{folder}'", *overrides)
    cfg.hydra.runtime.output_dir = str(folder)
    folder.mkdir(exist_ok=True)
    HydraConfig.instance().set_config(cfg)
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    spy, original, kept = Look(), train.build_trainer, {}

    def spied(cfg: DictConfig, folder: Path) -> Any:
        kept["cfg"], trainer = cfg, original(cfg, folder)
        if look:
            trainer.callbacks.insert(0, spy)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_trainer", spied)
        with contextlib.suppress(EnoughError):
            train.train(cfg)
    return Seen(*spy.seen, spy.seen[0].datamodule, kept["cfg"], spy.deterministic) if spy.seen else None


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    command(folder, *TINY)
    return str(folder / "checkpoints" / "last.ckpt")


def attribute(of: str, name: str | None = None) -> Any:
    """Reads an attribute off the trainer, the data, ... or a callback, named as the key unless said otherwise."""
    return lambda seen, key: getattr(
        seen.callback(of.split()[1]) if " " in of else getattr(seen, of), name or key.rpartition(".")[2]
    )


def hparam(seen: Seen, key: str) -> Any:
    return seen.model.hparams[key.rpartition(".")[2]]


def sampler(seen: Seen, key: str) -> Any:
    """Of the sampler that draws the grids; of a part, how the command names it."""
    value = getattr(seen.callback("samples").sampler, key.rpartition(".")[2])
    folder = ".".join(type(value).__module__.split(".")[:2])
    return f"{{_target_:{folder}.{type(value).__name__}}}" if folder.startswith("sde_diffusion.") else value


def limit(seen: Seen) -> float:
    timer = timer_of(seen.trainer)
    assert timer is not None
    return float(timer.time_elapsed() + (timer.time_remaining() or 0.0))


REFUSED = ("sde.", "network.", "denoiser.", "first_stage.", "text.", "conditional", "experiment")

COUNTS: dict[str, tuple[Any, Any]] = {
    "seed": (7, hparam),
    "model.lr": (0.25, lambda seen, _: seen.group["initial_lr"]),
    "model.betas": ([0.5, 0.75], lambda seen, _: list(seen.group["betas"])),
    "model.weight_decay": (0.125, lambda seen, _: seen.group["weight_decay"]),
    "model.warmup_steps": (64, hparam),
    "model.schedule": ("constant", hparam),
    "model.dequantise": (True, hparam),
    "model.label_dropout": (0.5, hparam),
    "model.validation_draws": (3, hparam),
    "model.compile": (True, lambda seen, _: seen.model.denoiser.compiled is not None),
    "model.activation_checkpointing": (
        True,
        lambda seen, _: seen.model.denoiser.network.activation_checkpointing,
    ),
    "denoiser.compute_dtype": ("bfloat16", lambda seen, _: str(seen.model.denoiser.compute_dtype)[6:]),
    "denoiser.channels_last": (True, lambda seen, _: seen.model.denoiser.channels_last),
    "callbacks.ema.decay": (0.5, attribute("callback ema")),
    "callbacks.ema.warmup": (False, attribute("callback ema")),
    "callbacks.ema.start_step": (9, attribute("callback ema")),
    "callbacks.ema.every_n_steps": (3, attribute("callback ema")),
    "callbacks.non_finite.every_n_steps": (9, attribute("callback non_finite")),
    "callbacks.noise_levels.folder": ("elsewhere", lambda seen, _: str(seen.callback("noise_levels").folder)),
    "callbacks.schedule.folder": ("elsewhere", lambda seen, _: str(seen.callback("schedule").folder)),
    "callbacks.noise_levels.bins": (7, attribute("callback noise_levels")),
    "callbacks.progress.refresh_every": (9, attribute("callback progress")),
    "callbacks.best.dirpath": ("elsewhere", lambda seen, _: Path(seen.callback("best").dirpath).name),
    "callbacks.best.filename": ("lowest", attribute("callback best")),
    "callbacks.best.monitor": ("train/loss", attribute("callback best")),
    "callbacks.best.auto_insert_metric_name": (True, attribute("callback best")),
    "callbacks.best.enable_version_counter": (True, attribute("callback best", "_enable_version_counter")),
    "callbacks.last.folder": ("elsewhere", lambda seen, _: seen.callback("last").path.parent.name),
    "trainer.accelerator": ("cpu", lambda seen, _: seen.trainer.strategy.root_device.type),
    "trainer.precision": ("64-true", attribute("trainer")),
    "trainer.max_steps": (60, attribute("trainer")),
    "trainer.max_time": ("00:01:00:00", lambda seen, _: f"00:0{round(limit(seen) / 3600)}:00:00"),
    "trainer.gradient_clip_val": (0.5, attribute("trainer")),
    "trainer.accumulate_grad_batches": (2, attribute("trainer")),
    "trainer.val_check_interval": (7, attribute("trainer", "val_check_batch")),
    "trainer.check_val_every_n_epoch": (3, attribute("trainer")),
    "trainer.num_sanity_val_steps": (1, attribute("trainer")),
    "trainer.log_every_n_steps": (3, attribute("trainer")),
    "trainer.use_distributed_sampler": (
        True,
        lambda seen, _: seen.trainer._accelerator_connector.use_distributed_sampler,
    ),
    "trainer.enable_model_summary": (
        True,
        lambda seen, _: any(isinstance(callback, ModelSummary) for callback in seen.trainer.callbacks),
    ),
    "trainer.deterministic": (True, lambda seen, _: seen.deterministic),
    "data.batch_size": (32, attribute("data")),
    "data.seed": (5, attribute("data")),
    "data.min_batches_per_epoch": (17, attribute("data")),
    "data.flip": (True, attribute("data")),
    "objective.weighting.sigma_data": (0.75, lambda seen, _: seen.model.objective.weighting.sigma_data),
    "objective.times.mean": (-1.5, lambda seen, _: seen.model.objective.times.mean),
    "objective.times.std": (1.75, lambda seen, _: seen.model.objective.times.std),
    "objective.times.stratified": (False, lambda seen, _: seen.model.objective.times.stratified),
    "logger.csv.folder": ("elsewhere", lambda seen, _: seen.trainer.loggers[0].save_dir),
    "callbacks.samples.folder": ("elsewhere", lambda seen, _: str(seen.callback("samples").folder)),
    "callbacks.samples.n": (3, attribute("callback samples")),
    "callbacks.samples.every_n_validations": (5, attribute("callback samples")),
    "sampler.method": ("implicit_adams", sampler),
    "sampler.rtol": (0.25, sampler),
    "sampler.atol": (0.25, sampler),
    "sampler.max_nfe": (777, sampler),
    "sampler.denoise": (False, sampler),
    "sampler.t_end": (0.5, sampler),
    "sampler.steps": (7, sampler),
    "sampler.options": ({"order": 5}, sampler),
    "sampler.coordinate": ("{_target_:sde_diffusion.sampling.UnitVariance}", sampler),
    "sampler.grid": ("{_target_:sde_diffusion.sde.UniformTime}", sampler),
}
"""Key: a value other than the run's, and a function that reads it from the objects of the training."""

BY_ITSELF = (
    "callbacks.samples.sampler",
    "guidance",
    "model.condition_dropout",
    "model.measured",
    "model.augmentation",
    "data.shrink",
    "data.captions",
)
"""Have tests of their own: one replaces `sampler`; guidance is null or a choice; this run has no conditions, which a
measurement or a text would be; and smaller data do not fit the network."""

NOT_ON_ONE_CPU = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""No other value works here."""


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[str]:
    if not isinstance(node, dict):
        return [".".join(path)]
    return [leaf for key, value in node.items() for leaf in leaves(value, (*path, str(key)))]


def keys() -> list[str]:
    """Every key on the command's help page, except the classes of parts, which are chosen by groups."""
    cfg = OmegaConf.to_container(composed(), resolve=False)
    assert isinstance(cfg, dict)
    return [leaf for leaf in leaves({k: v for k, v in cfg.items() if k != "hydra"}) if not leaf.endswith("_target_")]


def test_every_key_is_classified() -> None:
    listed = {*COUNTS, *BY_ITSELF, *NOT_ON_ONE_CPU}
    decided = [key for key in keys() if key in listed or key.startswith(REFUSED) or key == "ckpt"]
    assert decided == keys()
    assert listed <= set(keys())


def word(key: str, value: Any) -> str:
    text = str(value).replace(" ", "").replace("'", "")
    return f"{key}={text}"


@pytest.fixture(scope="module")
def resumed(ckpt: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """All overrides at once."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    words = [word(key, value) for key, (value, _) in COUNTS.items()]
    folder = tmp_path_factory.mktemp("resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        seen = command(folder / "run", f"ckpt={ckpt}", *words, look=True)
    torch.use_deterministic_algorithms(deterministic)
    assert seen is not None
    return seen


@pytest.mark.parametrize("key", COUNTS)
def test_an_override_counts(key: str, resumed: Seen) -> None:
    value, reads = COUNTS[key]
    assert reads(resumed, key) == value


def test_no_override_is_the_runs_own(ckpt: str) -> None:
    """Otherwise the test above could not fail."""
    run = OmegaConf.load(Path(ckpt).parent.parent / "config.yaml")
    assert not [key for key, (value, _) in COUNTS.items() if OmegaConf.select(run, key) == value]


def test_the_sampler_of_the_grids(ckpt: str, tmp_path: Path) -> None:
    chosen = "callbacks.samples.sampler={_target_:sde_diffusion.sampling.AncestralSampler,steps:3}"
    seen = command(tmp_path / "run", f"ckpt={ckpt}", "trainer.max_steps=6", chosen, look=True)
    assert seen is not None
    found = seen.callback("samples").sampler
    assert (type(found).__name__, found.steps) == ("AncestralSampler", 3)


def test_the_learning_rate_is_that_of_a_run_that_had_it_from_the_start(resumed: Seen) -> None:
    """Four steps of 64 of a warm-up to 0.25."""
    assert resumed.schedule.base_lrs == [0.25]
    assert resumed.group["lr"] == pytest.approx(0.25 * 5 / 64, rel=1e-12)
    assert resumed.group["fused"]


def test_the_seed_of_the_order_follows_the_seed(ckpt: str, tmp_path: Path) -> None:
    seen = command(tmp_path / "run", f"ckpt={ckpt}", "trainer.max_steps=6", "seed=7", look=True)
    assert seen is not None
    assert (seen.model.hparams["seed"], seen.data.seed) == (7, 7)


@pytest.mark.parametrize("key", [key for key in keys() if key.startswith(REFUSED[:4]) and key not in CHANGEABLE])
def test_a_key_of_the_model_is_refused(key: str, ckpt: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a resumed run keeps its model: .* leave it out"):
        command(tmp_path / "run", f"ckpt={ckpt}", "trainer.max_steps=6", f"{key}=null")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "choice",
    [
        "sde=ve",
        "network=unet_small",
        "denoiser=eps",
        "experiment=edm",
        "conditional=true",
        "text=minilm",
        "captions=rendered",
    ],
)
def test_another_model_is_refused(choice: str, ckpt: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{choice}: a resumed run keeps its model"):
        command(tmp_path / "run", f"ckpt={ckpt}", "trainer.max_steps=6", choice)


def test_another_choice_takes_the_place_of_the_runs(ckpt: str, tmp_path: Path) -> None:
    """With its own keys only, and the run's other settings unchanged."""
    words = (
        "sampler=ddim",
        "sampler.steps=3",
        "objective=min_snr",
        "guidance=cfg",
        "guidance.scale=1",
        "trainer.max_steps=6",
    )
    seen = command(tmp_path / "run", f"ckpt={ckpt}", *words, look=True)
    assert seen is not None
    assert "rtol" not in seen.cfg.sampler
    assert seen.callback("samples").sampler.steps == 3
    assert seen.callback("samples").denoiser_of(seen.model).scale == 1
    assert type(seen.model.objective.weighting).__name__ == "MinSNRWeighting"
    assert seen.cfg.callbacks.samples.n == 2
    assert seen.data.min_batches_per_epoch == 10


@pytest.mark.parametrize("names", [["best.ckpt"], ["best.ckpt", "last.ckpt"], ["last.ckpt", "best.ckpt"]])
def test_the_advice_names_a_checkpoint_that_is_there(names: list[str], ckpt: str, tmp_path: Path) -> None:
    """A run that was killed between its first two files has only best.ckpt."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in names:  # the last one is the newest
        shutil.copy(ckpt, folder / name)
    wanted = folder / ("last.ckpt" if "last.ckpt" in names else "best.ckpt")
    with pytest.raises(UserError, match=f"already contains a run: resume it with ckpt={wanted}, or"):
        command(tmp_path / "run", *TINY)


@pytest.mark.parametrize(("data", "shape"), [("moons", r"\[2\]"), ("ring", r"\[2\]")])
def test_data_of_another_shape_are_refused(data: str, shape: str, ckpt: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"items of shape \[1, 8, 8\] and no conditions, and {data} has items of shape {shape}"
    ):
        command(tmp_path / "run", f"ckpt={ckpt}", "trainer.max_steps=6", f"data={data}")
    assert not list((tmp_path / "run").iterdir())
