import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import load_extractor
from sde_diffusion.metrics.pretrained import DINOV2_FOLDER, INCEPTION_FILE


class FakeInception(nn.Module):
    """Takes what torch-fidelity's network takes, and reads its weights as that does."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.path = feature_extractor_weights_path
        self.fc = nn.Linear(2048, 1008)
        if self.path is not None:
            self.load_state_dict(torch.load(self.path))

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        self.seen = x
        return (x.float().mean((1, 2, 3))[:, None].expand(-1, 2048),)


class FakeDino(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width)

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        self.seen = x
        return SimpleNamespace(pooler_output=x.mean((2, 3)).repeat(1, 342)[:, :1024])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def fidelity(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def transformers(monkeypatch, folder):
    module = ModuleType("transformers")

    def from_pretrained(path, local_files_only, use_safetensors):
        assert (path, local_files_only, use_safetensors) == (str(folder / DINOV2_FOLDER), True, True)
        return FakeDino(int((folder / DINOV2_FOLDER / "config.json").read_text()))

    module.Dinov2Model = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", module)


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [("inception", "torch_fidelity", r"sde_diffusion\[fid\]"), ("dinov2", "transformers", r"sde_diffusion\[dinov2\]")],
)
def test_a_missing_library(name, module, install, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=rf"{name}' needs {module}.*{install}.*'pixels', 'digits', 'mnist' and 'cifar10' work now"
    ):
        load_extractor(name)


def test_a_torchvision_of_another_torch_is_no_traceback(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("sde_diffusion.metrics.pretrained.importlib.import_module", broken)
    with pytest.raises(UserError, match="nms does not exist"):
        load_extractor("inception")


def test_missing_weights(folder, fidelity, transformers):
    with pytest.raises(UserError, match=rf"no weights at {folder}/{INCEPTION_FILE}; get https.*SDE_WEIGHTS.*work now"):
        load_extractor("inception")
    with pytest.raises(UserError, match=r"config.json and .*model.safetensors not found; get .*SDE_WEIGHTS.*work now"):
        load_extractor("dinov2")
    with pytest.raises(UserError, match="never downloaded"):
        load_extractor("dinov2", download=True)
    assert load_extractor("inception", download=True).network.path is None  # asked for: torch-fidelity may fetch it


def test_inception_sees_8_bit_colour(folder, fidelity):
    torch.save(FakeInception("", ["2048"]).state_dict(), folder / INCEPTION_FILE)
    extractor = load_extractor("inception", (1, 4, 4))
    assert extractor.network.path == str(folder / INCEPTION_FILE)
    assert not extractor.training
    assert not any(p.requires_grad for p in extractor.parameters())
    x = torch.arange(256).float().view(1, 1, 16, 16) / 127.5 - 1
    assert extractor(x).shape == (1, extractor.num_features)
    # Each of the 256 levels comes back as itself, in all three channels.
    assert extractor.network.seen.tolist() == torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16).tolist()
    extractor(x - 0.4 / 127.5)  # to the nearest, not down
    assert extractor.network.seen[0, 0].flatten().tolist() == list(range(256))
    extractor(x.expand(1, 3, 16, 16) * 1.0005)
    assert int(extractor.network.seen.max()) == 255
    # The score's classes are without bias.
    features = torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extractor.head(features), F.linear(features, extractor.network.fc.weight))
    assert extractor.head(features).shape == (2, extractor.num_classes)


class Trap:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_inception_weights_of_another_kind_are_refused_and_not_run(folder, fidelity):
    for content in (pickle.dumps(Trap(folder / "trap")), b"", b"<html>"):
        (folder / INCEPTION_FILE).write_bytes(content)
        with pytest.raises(UserError, match="does not hold Inception's weights"):
            load_extractor("inception")
    torch.save(Trap(folder / "trap"), folder / INCEPTION_FILE)
    with pytest.raises(UserError, match="does not hold Inception's weights"):
        load_extractor("inception")
    assert not (folder / "trap").exists()
    torch.save({"other": torch.zeros(1)}, folder / INCEPTION_FILE)
    with pytest.raises(UserError, match="does not hold Inception's weights"):
        load_extractor("inception")


def test_dinov2_sees_normalised_images(folder, transformers):
    (folder / DINOV2_FOLDER).mkdir()
    (folder / DINOV2_FOLDER / "model.safetensors").touch()
    (folder / DINOV2_FOLDER / "config.json").write_text("768")
    with pytest.raises(UserError, match="is of width 768"):
        load_extractor("dinov2")
    (folder / DINOV2_FOLDER / "config.json").write_text("1024")
    extractor = load_extractor("dinov2", (3, 32, 32))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert extractor(x).shape == (2, extractor.num_features)
    expected = F.interpolate(x / 2 + 0.5, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(extractor.network.seen[:, channel], (expected[:, channel] - mean) / std)
    grey = extractor(x[:, :1])
    torch.testing.assert_close(grey, extractor(x[:, :1].expand(-1, 3, -1, -1)))


def test_shapes_that_are_no_images(folder, fidelity):
    with pytest.raises(
        UserError, match=r"'inception' takes images of 1 or 3 channels; got samples of shape \(2,\).*pixels"
    ):
        load_extractor("inception", (2,))
    with pytest.raises(ValueError, match=r"takes images \[B, 1 or 3, H, W\].*\(1, 4, 8, 8\)"):
        load_extractor("inception", download=True)(torch.zeros(1, 4, 8, 8))
