"""Every key of every configuration file is set once, and the command succeeds."""

import gzip
import importlib.util
import shlex
import struct

import numpy as np
import pytest
from autoencoders import CONVOLUTIONS, MLP, autoencoder
from conftest import TINY
from omegaconf import DictConfig, OmegaConf
from parquet_files import png, write
from PIL import Image
from setting_cases import (
    AUTOENCODER,
    EVALUATE,
    EXEMPT,
    GUIDANCE,
    LIKELIHOOD,
    NFE_FID,
    RESTORE,
    SAMPLE,
    SAMPLERS,
    SWEEP,
    TRAIN,
)

from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.data import Digits, IdxImages

CONF = config_folder()
GROUPS = (
    "model",
    "model/autoencoder",
    "observation",
    "adversary",
    "sde",
    "network",
    "denoiser",
    "objective",
    "data",
    "captions",
    "text",
    "sampler",
    "trainer",
    "logger",
    "callbacks",
)

PREFIX = {
    "model/autoencoder": "model.autoencoder.",
    "observation": "model.",
    "adversary": "model.",
    "captions": "data.",
}


def leaves(node, prefix=""):
    """The dotted names of a node's keys."""
    for key, value in node._content.items():
        if key in ("_target_", "defaults", "hydra", "samplers"):
            continue
        inner = (
            value if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation() else None
        )
        if inner is not None and len(inner):
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def keys_set(*runs):
    return {word.partition("=")[0].lstrip("+~") for run in runs for word in shlex.split(run)}


def lacking(file, prefix, *runs):
    return set(leaves(OmegaConf.load(CONF / file), prefix)) - keys_set(*runs) - EXEMPT


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_choice_is_set(group):
    for path in (CONF / group).glob("*.yaml"):
        if group == "sampler":
            runs = [run for name, run in SAMPLERS.items() if name.split(",")[0].split()[0] == path.stem]
        elif group in ("trainer", "callbacks"):
            runs = list(TRAIN.values())
        else:
            runs = [run for run in TRAIN.values() if f"{group}={path.stem}" in run.split()]
            runs += [TRAIN["conditional"]] if group == "network" else []
            runs += [TRAIN["compile"], TRAIN["conditional"]] if group == "model" else []
        assert runs or group == "logger", path
        assert not lacking(path.relative_to(CONF), PREFIX.get(group, f"{group}."), *runs), path


def test_every_key_of_the_commands_is_set():
    samplers = [f"sampler={name.split(',')[0].split()[0]}" for name in SAMPLERS]
    assert not lacking("train.yaml", "", *TRAIN.values())
    assert not lacking("sample.yaml", "", SAMPLE, AUTOENCODER["sample"], "label=3", *samplers)
    assert not lacking("restore.yaml", "", *RESTORE.values())
    for path in (path for group in ("operator", "posterior") for path in (CONF / group).glob("*.yaml")):
        choice = f"{path.parent.name}={path.stem}"
        runs = [run for run in RESTORE.values() if choice in run.split()]
        assert runs, choice
        assert not lacking(path.relative_to(CONF), f"{path.parent.name}.", *runs), choice
    assert not lacking("likelihood.yaml", "", AUTOENCODER["likelihood"], *LIKELIHOOD.values())
    assert not lacking("evaluate.yaml", "", AUTOENCODER["evaluate"], *EVALUATE.values())
    assert not lacking("nfe_fid.yaml", "", NFE_FID)
    assert not lacking("guidance.yaml", "", GUIDANCE)
    assert not lacking("sweep.yaml", "", SWEEP)
    for path in (CONF / "metrics").glob("*.yaml"):
        assert not lacking(path.relative_to(CONF), "metrics.", *EVALUATE.values()), path
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == {
        word.partition("=")[2] for run in TRAIN.values() for word in run.split() if word.startswith("experiment=")
    }


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The data that settings name: arrays, levels, folders of images, of deep images, of idx files."""
    folder, source = tmp_path_factory.mktemp("places"), np.random.default_rng(0)
    labels = np.arange(60) % 3
    np.savez(folder / "data.npz", train_images=2 * source.random((60, 8, 8)).astype(np.float32), train_labels=labels)
    np.savez(folder / "masks.npz", train_images=source.random((60, 8, 8)) < 0.3)
    np.savez(folder / "levels.npz", train_images=source.integers(0, 17, (60, 8, 8), dtype=np.uint8))
    for number in range(60):
        (folder / "images").mkdir(exist_ok=True)
        (folder / "deep").mkdir(exist_ok=True)
        Image.fromarray(source.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
        deep = source.integers(0, 4096, (8, 8), dtype=np.uint16)
        Image.fromarray(deep).save(folder / "deep" / f"{number}.png")
    table = ["file_name,text", *(f"{number}.png,number {number}" for number in range(60))]
    (folder / "images" / "metadata.csv").write_text("\n".join(table))
    np.save(folder / "matrix.npy", source.standard_normal((5, 64)))
    np.save(folder / "rows.npy", source.integers(0, 17, (3, 1, 8, 8), dtype=np.uint8))
    (folder / "idx").mkdir()
    for part, n in (("train", 60), ("t10k", 20)):
        pixels, numbers = source.integers(0, 256, (n, 8, 8), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for kind, dims, array in (("images", 3, pixels), ("labels", 1, numbers)):
            header = bytes([0, 0, 8, dims]) + struct.pack(f">{dims}I", *array.shape)
            (folder / "idx" / f"{part}-{kind}-idx{dims}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    if importlib.util.find_spec("pyarrow"):
        images = [png(source.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(60)]
        write(folder / "parquet" / "train.parquet", images, labels.tolist())
    return {
        "DATA": folder / "data.npz",
        "LEVELS": folder / "levels.npz",
        "MASKS": folder / "masks.npz",
        "ROWS": folder / "rows.npy",
        "IMAGES": folder / "images",
        "DEEP": folder / "deep",
        "MATRIX": folder / "matrix.npy",
        "IDX": folder / "idx",
        "CACHE": folder / "cache",
        "PARQUET": folder / "parquet",
    }


@pytest.fixture(scope="module")
def autoencoders(places, tmp_path_factory):
    folder, idx = tmp_path_factory.mktemp("autoencoders"), IdxImages(str(places["IDX"]), n_val=10)
    return {
        "MLPVAE": autoencoder(folder / "mlp.ckpt", Digits(), MLP),
        "CONVVAE": autoencoder(folder / "conv.ckpt", idx, CONVOLUTIONS),
    }


@pytest.fixture
def run(command, places, trained, tmp_path, request):
    def run_it(name, settings, *added, refused=None):
        words = [word for part in (*added, settings) for word in shlex.split(part)]
        known = {**places, "CKPT": trained / "checkpoints" / "best.ckpt"}
        known |= request.getfixturevalue("autoencoders") if "first_stage" in settings else {}
        for place, path in known.items():
            words = [word.replace(f"={place}", f"={path}") for word in words]
        done = command(name, *words, cwd=tmp_path)
        assert done.status == (0 if refused is None else 1), done.err[-3000:]
        assert refused is None or refused in done.err
        return done

    return run_it


SHORT = (
    "trainer.max_steps=6 trainer.val_check_interval=3 trainer.log_every_n_steps=2 data.min_batches_per_epoch=5 "
    "callbacks.samples.n=4 model.validation_draws=1"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAIN)
def test_train(name, run, tmp_path):
    settings = TRAIN[name]
    words = settings.split()
    for choice, needed in (("data=cifar10", "pyarrow"), ("data=hub", "datasets")):
        if choice in words:
            pytest.importorskip(needed)
    mlp = not any(word.startswith("network=") and word != "network=mlp" for word in words)
    left_out = "callbacks.samples=null" in words
    short = [word for word in SHORT.split() if not (left_out and word.startswith("callbacks.samples."))]
    short += [word for word in TINY if word.startswith("network") and mlp]
    # Presets choose their samplers, some of thousands of passes: fewer.
    steps = {"experiment=ncsn": "sampler.levels=3", "experiment=score_sde": "sampler.steps=4"}
    quick = [steps.get(word, "sampler.steps=3") for word in words if word.startswith("experiment=")]
    others = ("edm", "flow", "digits_likelihood", "vae", "vae_mnist", "hvae", "hvae_mnist", "first_stage", "vdm")
    if {f"experiment={name}" for name in others} & set(words) or not quick:
        quick = ["sampler=ddpm", "sampler.steps=3"]
    run("train", settings, f"hydra.run.dir={tmp_path / 'run'}", " ".join(short), " ".join(quick))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name, run, trained, tmp_path):
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    run("sample", SAMPLERS[name], ckpt, f"n=4 out={tmp_path / 'out'} sampler={name.split(',')[0].split()[0]}")
    assert (tmp_path / "out" / "samples.npz").is_file()


@pytest.mark.slow
def test_sample(run, trained, tmp_path):
    run("sample", SAMPLE, f"ckpt={trained / 'checkpoints' / 'last.ckpt'} out={tmp_path / 'out'}")
    assert (tmp_path / "out" / "film.png").is_file()


@pytest.fixture(scope="module")
def of_classes(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes") / "run"
    done = command("train", *TINY, "conditional=true", f"hydra.run.dir={folder}", cwd=folder.parent)
    assert done.status == 0, done.err
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [*(("likelihood", one) for one in LIKELIHOOD), *(("evaluate", one) for one in EVALUATE), ("sample", "label=3")],
)
def test_on_a_model(name, settings, run, trained, of_classes, tmp_path):
    found = {"likelihood": LIKELIHOOD, "evaluate": EVALUATE, "sample": {"label=3": "label=3 n=3 sampler=ddim"}}[name]
    ckpt = of_classes if "label=" in found[settings] else trained / "checkpoints" / "last.ckpt"
    given = "" if found[settings].startswith("samples=") else f"ckpt={ckpt} "
    # Read where they are said to lie, and refused: too few for mnist's own splits, or of other levels.
    refused = {
        "other data": "leaves none of 60",
        "other arrays": "the model was trained on",
        "reconstructions": "contains a ScoreModel: give a checkpoint of model=vae",
    }.get(settings)
    run(name, found[settings], f"{given}out={tmp_path / 'out'}", refused=refused)


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOENCODER)
def test_on_an_autoencoder(name, run, autoencoder, tmp_path):
    run(name, AUTOENCODER[name], f"ckpt={autoencoder} out={tmp_path / 'out'}")


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORE)
def test_restore(name, run, trained, tmp_path):
    given = f"ckpt={trained / 'checkpoints' / 'last.ckpt'} split=test items=3 out={tmp_path / 'out'}"
    run("restore", given, RESTORE[name])
    assert (tmp_path / "out" / "restored.npz").is_file()


@pytest.mark.slow
def test_nfe_fid(run, trained, tmp_path):
    run("nfe_fid", NFE_FID, f"ckpt={trained / 'checkpoints' / 'last.ckpt'} out={tmp_path / 'out'}")


@pytest.mark.slow
def test_sweep(run, tmp_path):
    run("sweep", f"{SWEEP} out={tmp_path / 'out'}")
