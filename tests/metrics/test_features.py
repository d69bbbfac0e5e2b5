import importlib.util
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.signal import correlate2d
from scipy.special import expit

from benchmarks.train_classifiers import RECIPES, folded, main, with_batch_norms
from sde_diffusion.data.digits import Digits
from sde_diffusion.data.idx import IdxImages
from sde_diffusion.data.parquet import ParquetImages
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import FrechetDistance, extractor_names, load_extractor
from sde_diffusion.metrics.features import WEIGHTS, Classifier, read_classifier

ROOT = Path(__file__).parents[2]
MNIST = Path(os.environ.get("SDE_DATA", ROOT.parent / "shared" / "data")) / "mnist"
CIFAR10 = MNIST.with_name("cifar10")
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
SOURCES = {
    "digits": Digits,
    "mnist": lambda: IdxImages(root=str(MNIST)),
    "cifar10": lambda: ParquetImages(root=str(CIFAR10)),
}
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST's idx files are not in {MNIST} (SDE_DATA moves it)")


needs_cifar10 = pytest.mark.skipif(
    not (CIFAR10.is_dir() and importlib.util.find_spec("pyarrow")), reason=f"needs pyarrow and the files in {CIFAR10}"
)


def header(path: Path) -> dict:
    """The JSON at the front of a safetensors file, read by hand."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size])


def accuracy(name: str, x: torch.Tensor, label: torch.Tensor) -> float:
    """Share of right answers: the head, read from the file by NumPy, applied to the extractor's features."""
    tensors = load_file(WEIGHTS / f"{name}.safetensors")
    extractor = load_extractor(name)
    features = torch.cat([extractor(part) for part in x.split(1000)]).numpy()
    scores = features @ tensors["head.weight"].T.astype(np.float32) + tensors["head.bias"]
    return float((scores.argmax(1) == label.numpy()).mean())


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("digits", 0.97),
        pytest.param("mnist", 0.99, marks=needs_mnist),
        pytest.param("cifar10", 0.83, marks=[pytest.mark.slow, needs_cifar10]),
    ],
    ids=list(SHAPES),
)
def test_the_shipped_classifier_is_as_good_as_its_file_says(name, least):
    data = SOURCES[name]()
    found = accuracy(name, data.tensor("test"), data.split("test").label)
    stated = float(header(WEIGHTS / f"{name}.safetensors")["__metadata__"]["test_accuracy"])
    assert found >= least
    assert found == pytest.approx(stated, abs=1.5 / len(data.split("test")))  # one image on the fence may fall over


@pytest.mark.parametrize("name", SHAPES)
def test_the_weights_are_tensors_and_text_and_small(name):
    path = WEIGHTS / f"{name}.safetensors"
    content = header(path)
    about = content.pop("__metadata__")
    assert {entry["dtype"] for entry in content.values()} == {"F16"}
    numbers = sum(int(np.prod(entry["shape"])) for entry in content.values())
    assert int(about["parameters"]) == numbers
    assert path.stat().st_size < 2 * numbers + 4096 < 1_200_000
    assert about["command"].startswith(f"python -m benchmarks.train_classifiers --data {name}")
    assert json.loads(about["architecture"])["widths"] == list(RECIPES[name].widths)


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_what_scipy_makes_of_the_file(name):
    x = np.random.default_rng(1).uniform(-1, 1, SHAPES[name])
    tensors = {key: value.astype(np.float64) for key, value in load_file(WEIGHTS / f"{name}.safetensors").items()}
    found = load_extractor(name)(torch.from_numpy(x)[None])[0].numpy()
    kernels = sorted(key for key in tensors if key.startswith("trunk") and key.endswith("weight"))
    for i, key in enumerate(kernels):
        stride = 1 if i == 0 else 2
        maps = [sum(correlate2d(a, k, "same") for a, k in zip(x, kernel, strict=True)) for kernel in tensors[key]]
        x = np.stack(maps)[:, ::stride, ::stride] + tensors[key.replace("weight", "bias")][:, None, None]
        x = x * expit(x)
    h = tensors["hidden.weight"] @ x.ravel() + tensors["hidden.bias"]
    np.testing.assert_allclose(found, h * expit(h), rtol=1e-4, atol=1e-4)


def test_batch_norms_are_folded_into_the_convolutions():
    torch.manual_seed(0)
    trunk = with_batch_norms(Classifier((3, 6, 6), (4, 5), 6, 2).trunk)
    x = 2 * torch.randn(50, 3, 6, 6) + 1
    trunk(x)  # sets the running statistics
    alone = folded(trunk)
    assert len(alone) == len(trunk) - 2
    torch.testing.assert_close(alone(x), trunk.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_float32_and_depend_on_the_image_alone(name):
    extractor = load_extractor(name, SHAPES[name])
    x = torch.rand(40, *SHAPES[name], generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = extractor(x)
    assert together.dtype == torch.float32
    assert together.shape == (40, extractor.num_features)
    alone = torch.cat([extractor.train()(image[None]) for image in x])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(extractor(x.double()), together, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in extractor.parameters())


def test_the_digit_features_order_good_and_bad_samples():
    data = Digits()
    train, test = data.tensor("train"), data.tensor("test")
    rng = np.random.default_rng(0)
    flat = train.flatten(1).numpy().astype(np.float64)
    drawn = rng.multivariate_normal(flat.mean(0), np.cov(flat, rowvar=False), size=1797, method="svd")
    fakes = {
        "data": train,
        "gaussian": (torch.from_numpy(drawn).mul(8).round() / 8).clamp(-1, 1).float().view(-1, 1, 8, 8),
        "noise": torch.from_numpy(rng.integers(0, 17, (1797, 1, 8, 8)) / 8 - 1).float(),
    }
    found = {}
    for name, fake in fakes.items():
        metric = FrechetDistance(load_extractor("digits"))
        metric.update(test, real=True)
        metric.update(fake, real=False)
        found[name] = metric.compute().item()
    # Repeated draws of Gaussian and noise move the distances by a few per cent; these margins are wide.
    assert found["gaussian"] > 3 * found["data"]
    assert found["noise"] > 2 * found["gaussian"]


def test_pixels_are_the_numbers_themselves():
    x = torch.arange(24, dtype=torch.float64).view(2, 3, 2, 2)
    extractor = load_extractor("pixels", (3, 2, 2))
    assert extractor.num_features == 12
    assert extractor(x).tolist() == [list(range(12)), list(range(12, 24))]
    assert load_extractor("pixels", [5]).num_features == 5


def test_names():
    assert extractor_names() == ["pixels", "cifar10", "digits", "mnist"]
    with pytest.raises(
        UserError, match="unknown feature extractor 'inceptoin'; choose from pixels, cifar10, digits, mnist"
    ):
        load_extractor("inceptoin")


def test_shapes_are_checked():
    with pytest.raises(UserError, match=r"'digits' takes samples of shape \(1, 8, 8\).*; got \(1, 28, 28\).*'pixels'"):
        load_extractor("digits", (1, 28, 28))
    with pytest.raises(ValueError, match=r"'mnist' takes samples of shape \(1, 28, 28\).*got \(784,\)"):
        load_extractor("mnist")(torch.zeros(2, 784))
    with pytest.raises(UserError, match="'pixels' needs the shape"):
        load_extractor("pixels")
    with pytest.raises(ValueError, match=r"'pixels' takes samples of shape \(3,\)"):
        load_extractor("pixels", (3,))(torch.zeros(2, 4))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_of_another_kind_is_refused_and_not_run(tmp_path):
    path, trap = tmp_path / "weights.safetensors", tmp_path / "trap"
    with pytest.raises(UserError, match=r"no classifier weights at .*weights\.safetensors"):
        read_classifier(path)
    path.write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(UserError, match="is not a classifier"):
        read_classifier(path)
    assert not trap.exists()
    whole = (WEIGHTS / "digits.safetensors").read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="is not a classifier"):
        read_classifier(path)
    path.write_bytes(whole.replace(b"num_features", b"num_featurez"))
    with pytest.raises(UserError, match="num_featurez"):
        read_classifier(path)


@pytest.mark.slow
def test_the_script_makes_a_classifier_anew(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "digits.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_classifiers", "--data", "digits", "--seed", "3", "--out", str(out)])
    main()
    assert [path.name for path in out.parent.iterdir()] == ["digits.safetensors"]
    stated = header(out)["__metadata__"]["test_accuracy"]
    assert f"test accuracy {stated} (300 images)" in capsys.readouterr().out
    assert float(stated) >= 0.97
    data = Digits()
    with torch.no_grad():
        right = read_classifier(out).logits(data.tensor("val")).argmax(1) == data.split("val").label
    assert right.float().mean() >= 0.95  # of 60; a classifier of 99% falls below with probability 3e-4


def test_an_extractor_of_ones_own_is_returned_as_it_is():
    own = torch.nn.Flatten()
    with pytest.raises(ValueError, match="must have an int num_features; got Flatten"):
        load_extractor(own)
    own.num_features = 64
    assert load_extractor(own, (1, 8, 8)) is own
