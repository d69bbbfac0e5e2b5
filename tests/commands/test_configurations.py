"""Every configuration composes and builds the object it names, with the values that the class documents."""

import importlib
import inspect
import math
from types import SimpleNamespace

import hydra
import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from PIL import Image

from sde_diffusion.commands import app, building, configurations, train
from sde_diffusion.commands.building import build_trainer
from sde_diffusion.config import build, find_class
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import Classifier
from sde_diffusion.modality.levels import from_levels, to_levels
from sde_diffusion.training import VariationalObjective

CONF = configurations.config_folder()
SMALL = ("network=mlp", "network.width=16", "network.depth=1")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(*overrides: str, command: str = "train"):
    configurations.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, overrides=list(overrides))


def loss_of(model) -> torch.Tensor:
    """Loss of 64 items of random values."""
    torch.manual_seed(0)
    x = torch.rand(64, *model.data["shape"]) * 2 - 1
    if levels := model.data["levels"]:
        x = from_levels(to_levels(x, levels), levels)
    conditions = {name: kind.nulls(64) for name, kind in model.conditions.items()}
    return model.training_loss({"x": x, **conditions})


def takes_denoisers(objective: str) -> bool:
    return not issubclass(find_class(compose(f"objective={objective}").objective._target_), VariationalObjective)


def test_the_groups_of_the_plan_are_there():
    assert set(choices("sde")) >= {"vp", "ve", "subvp", "cosine", "edm", "rectified"}
    assert set(choices("denoiser")) >= {"eps", "x0", "v", "velocity", "score", "edm"}
    assert set(choices("sampler")) >= {"ode", "sde", "ddpm", "ddim"}
    assert set(choices("data")) >= {"digits", "arrays", "folder", "mnist", "fashion_mnist", "ring", "checkerboard"}
    assert set(choices("experiment")) >= {"ddpm", "ncsn", "mnist"}


@pytest.mark.parametrize("objective", filter(takes_denoisers, choices("objective")))
@pytest.mark.parametrize("sde", choices("sde"))
def test_every_path_with_every_objective(sde, objective):
    if objective.startswith("vdm") and sde != "learned":
        with pytest.raises(UserError, match=r"no schedule to learn: take sde=learned"):
            train.build_model(compose(f"sde={sde}", f"objective={objective}", *SMALL))
        return
    if objective == "vdm_gradient":
        sde = "learned sde.schedule=knots"
    _, model = train.build_model(compose(*f"sde={sde}".split(), f"objective={objective}", *SMALL))
    assert type(model.denoiser.sde).__name__.lower().startswith(sde.removesuffix("flow")[:4]) or sde == "cosine"
    loss = loss_of(model)
    assert float(loss) >= 0
    loss.backward()
    assert all(math.isfinite(float(p.grad.norm())) for p in model.denoiser.parameters() if p.grad is not None)


@pytest.mark.parametrize("denoiser", choices("denoiser"))
@pytest.mark.parametrize("sde", choices("sde"))
def test_every_path_with_every_denoiser(sde, denoiser):
    cfg = compose(f"sde={sde}", f"denoiser={denoiser}", *SMALL)
    if denoiser == "v" and sde not in ("vp", "cosine", "learned"):
        with pytest.raises(UserError, match=r"variance-preserving.*velocity"):
            train.build_model(cfg)
        return
    _, model = train.build_model(cfg)
    # With a last layer of zeros the network's output is zero, and so is the spelling that it predicts.
    for parameter in model.denoiser.parameters():
        torch.nn.init.zeros_(parameter)
    sde_ = model.denoiser.sde
    t = 0.3 * sde_.t_max
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    prediction = model.denoiser.double()(x, t)
    alpha, sigma, data = float(sde_.alpha(t)), float(sde_.sigma(t)), cfg.denoiser.sigma_data
    zero = {
        "eps": lambda: prediction.eps,
        "x0": lambda: prediction.x0,
        "v": lambda: alpha * prediction.eps - sigma * prediction.x0,
        "velocity": lambda: prediction.velocity,
        "score": lambda: prediction.score,
        "edm": lambda: prediction.x0 - alpha * data**2 / (alpha**2 * data**2 + sigma**2) * x,
    }[denoiser]()
    assert zero.abs().max() < 1e-9


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("sampler", choices("sampler"))
def test_every_sampler_in_every_command(sampler, command):
    sampler_ = build(app.resolved(compose(f"sampler={sampler}", command=command).sampler))
    assert type(sampler_).__module__.startswith("sde_diffusion.sampling")


@pytest.mark.parametrize(
    ("overrides", "network"),
    [
        ([], "UNet"),
        (["experiment=ddpm"], "UNet"),
        (["network=mlp", "network.width=16"], "MLP"),
        (["data=moons", "network.width=16"], "MLP"),
        (["data=moons", "network=unet_small"], "UNet"),
        (["experiment=digits_likelihood"], "MLP"),
    ],
)
def test_a_data_set_takes_the_network_of_its_name_where_none_is_chosen(overrides, network):
    cfg = compose(*overrides)
    assert cfg.network._target_ == cfg.denoiser.network._target_ == f"sde_diffusion.nn.{network}"
    assert ("width" in cfg.network) == (network == "MLP")  # the keys of no other network are left


NEEDED = {"arrays": ["data.path=FILE"], "folder": ["data.root=DIR"], "mnist": ["data.root=DIR"]}
NEEDED["fashion_mnist"] = NEEDED["cifar10"] = NEEDED["mnist"]
NEEDED["hub"] = ["data.name=NAME"]


@pytest.mark.parametrize("data", choices("data"))
def test_every_data_set(data):
    """It composes; if it needs no file it is built, and otherwise the message names the key."""
    if data in NEEDED:
        (needed,) = NEEDED[data]
        with pytest.raises(UserError, match=f"{needed.split('=')[0]} must be given"):
            app.resolved(compose(f"data={data}").data)
    module = build(app.resolved(compose(f"data={data}", *NEEDED.get(data, [])).data))
    assert type(module).__module__.startswith("sde_diffusion.data")


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_is_what_its_preset_says(experiment, monkeypatch):
    """The composed configuration has each key and choice of the preset, and the model can be built and trained."""
    preset = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    chosen = cfg.hydra.runtime.choices
    for choice in preset.pop("defaults", []):
        if isinstance(choice, dict):  # else another preset, on which it builds
            ((group, name),) = choice.items()
            assert chosen[group.removeprefix("override /")] == name

    def leaves(node, path=()):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, (*path, key))
        else:
            yield ".".join(path), node

    for key, value in leaves(preset):
        if not (isinstance(value, str) and "${" in value):
            assert OmegaConf.select(cfg, key) == value, key
    with open_dict(cfg):
        if "compile" in cfg.model:
            cfg.model.compile = False  # which would take half a minute
        if chosen["data"] in NEEDED:
            cfg.data = compose().data
            cfg.network = compose().network
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    if chosen["model"] == "latent":
        with pytest.raises(UserError, match="needs a trained first stage"):
            train.build_model(cfg)
        return
    _, model = train.build_model(cfg)
    assert float(loss_of(model)) >= 0
    build(app.resolved(cfg.sampler))


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_keys_and_values(path):
    """Keys are arguments of the class; values of the paths and the plain samplers are its defaults."""
    node = yaml.safe_load(path.read_text()) or {}
    if path.parent.name == "metrics":  # each under its own name, so that several can be chosen
        (node,) = node.values()
        build(node, extractor=Classifier((1, 8, 8), (4,), 4, 3))
    if "_target_" not in node:
        return
    package, _, name = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(package), name, None) or find_class(node["_target_"])
    parameters = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert set(node) - {"_target_", "defaults"} <= set(parameters)
    if path.parent.name == "sde" or f"{path.parent.name}/{path.stem}" in ("sampler/ode", "sampler/sde"):
        for key, value in node.items():
            if key != "_target_":
                default = parameters[key].default
                assert (float(value) if isinstance(default, float) else value) == default, key


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_presets_for_a_gpu_say_what_to_take_without_one(tmp_path):
    trainer = {"accelerator": "gpu", "max_steps": 1}
    empty = {"callbacks": {}, "logger": {}, "guidance": None}
    cfg = OmegaConf.create({"sampler": {"_target_": "sde_diffusion.sampling.DPMSolver"}, "trainer": trainer, **empty})
    with pytest.raises(UserError, match=r"accelerator=gpu: torch finds no GPU .* which experiment=mnist_cpu and"):
        build_trainer(cfg, tmp_path)


def test_a_network_s_patches_are_those_of_the_data_s_size(command, tmp_path):
    """Before the data are known, their size is not held against a network: 7 divides 28, and not 8."""
    settings = ("network=dit_s", "network.width=48", "network.depth=1", "network.heads=3", "network.patch=7")
    shorter = ("trainer.max_steps=1", "trainer.val_check_interval=1", "callbacks.samples=null")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        Image.new("L", (28, 28), 12 * i).save(images / f"{i}.png")
    where = ("data=folder", f"data.root={images}")
    done = command("train", *settings, *shorter, *where, "denoiser.noise_conditioning=step", cwd=tmp_path)
    assert done.status == 0, done.err


def test_two_names_of_a_checkpoint_are_refused(command, tmp_path):
    done = command("sample", "ckpt=a.ckpt", "pretrained=b", cwd=tmp_path)
    assert done.status == 1
    assert "ckpt=a.ckpt pretrained=b: these are two names of one setting" in done.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data=moons network=unet_small", "the data are vectors of shape [2]: network=mlp (MLP) takes them"),
        (
            "network=dit_s network.patch=3",
            "network.patch=3 does not divide the size of the data, 8x8: take one of 1, 2, 4, 8",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_data(settings, message, command, tmp_path):
    done = command("train", *settings.split(), cwd=tmp_path)
    assert done.status == 1
    assert message in done.err


@pytest.mark.parametrize(
    ("network", "shape", "ckpt", "warns"),
    [
        ("mlp", (3, 32, 32), None, True),
        ("mlp", (1, 8, 8), None, False),
        ("mlp", (3, 32, 32), "last.ckpt", False),  # its network is that of its own run
        ("unet", (3, 32, 32), None, False),
        ("mlp", (2,), None, False),
    ],
)
def test_the_default_perceptron_is_warned_of_on_large_images(network, shape, ckpt, warns, monkeypatch, caplog):
    runtime = SimpleNamespace(choices={"network": network})
    known = SimpleNamespace(initialized=lambda: True, get=lambda: SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(building, "HydraConfig", known)
    building._warn_of_perceptron(OmegaConf.create({"ckpt": ckpt}), SimpleNamespace(shape=shape))
    assert ("an image of 32x32 as 3072 unrelated numbers" in caplog.text) is warns
    assert len(caplog.messages) == warns
