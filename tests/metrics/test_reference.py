import pickle

import pytest
import torch
from safetensors.torch import save_file

from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FrechetDistance,
    KernelDistance,
    Pixels,
    ReferenceKey,
    fingerprint,
    load_extractor,
    reference_statistics,
)
from sde_diffusion.metrics.reference import read_reference

X = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(150, 5, generator=torch.Generator().manual_seed(1)) + 0.5
KEY = ReferenceKey("points", "test", "pixels", "none", fingerprint(X), fingerprint(Pixels((5,))))


def changed(**parts: str) -> ReferenceKey:
    return ReferenceKey(**{**KEY.__dict__, **parts})


def never() -> torch.Tensor:
    raise AssertionError("features were computed again")


def test_are_made_once_and_read_back(tmp_path):
    made = reference_statistics(tmp_path / "new", KEY, lambda: X)
    found = reference_statistics(tmp_path / "new", KEY, never)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]  # no temporary file is left
    assert torch.equal(found.features, X)
    assert torch.equal(found.mean, made.mean)
    torch.testing.assert_close(found.mean, X.double().mean(0))
    torch.testing.assert_close(found.cov, X.double().T.cov())
    assert found.n == 200


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])
def test_serve_as_the_real_side(kind, tmp_path):
    direct, cached = kind(Pixels((5,))), kind(Pixels((5,)))
    direct.update(X, real=True)
    cached.use_reference(reference_statistics(tmp_path, KEY, lambda: X))
    for metric in (direct, cached):
        metric.update(Y, real=False)
    assert cached.compute().item() == pytest.approx(direct.compute().item(), rel=1e-9)


def test_moments_alone_serve_the_frechet_distance(tmp_path):
    small = reference_statistics(tmp_path, KEY, lambda: X, keep_features=False)
    assert small.features is None
    metric = FrechetDistance(Pixels((5,)))
    metric.use_reference(small)
    assert metric.moments(real=True)[0] == 200
    with pytest.raises(UserError, match=r"needs the features of the reference.*keep_features=True"):
        KernelDistance(Pixels((5,))).use_reference(small)
    with pytest.raises(UserError, match="interval of the Fréchet distance needs the features"):
        FrechetDistance(Pixels((5,)), keep_features=True).use_reference(small)
    # Asked for with features, the file is computed again with them.
    assert reference_statistics(tmp_path, KEY, lambda: X).features is not None


def test_each_key_has_a_file_of_its_own(tmp_path):
    keys = [KEY, changed(split="train"), changed(data="others"), changed(extractor="x"), changed(preprocessing="32")]
    assert len({key.file(tmp_path) for key in keys}) == 5
    assert changed(data="../../a b").file(tmp_path).parent == tmp_path


@pytest.mark.parametrize("part", ["data_digest", "extractor_digest"])
def test_stale_statistics_are_refused(part, tmp_path):
    reference_statistics(tmp_path, KEY, lambda: X)
    other = changed(**{part: "new"})
    with pytest.raises(UserError, match=rf"is of other data or another extractor: {part} .*wanted 'new'.*delete it"):
        read_reference(KEY.file(tmp_path), other)
    # Beside the first, which stays: two data sets of one name do not get in each other's way.
    reference_statistics(tmp_path, other, lambda: Y)
    assert torch.equal(reference_statistics(tmp_path, KEY, never).features, X)
    assert torch.equal(reference_statistics(tmp_path, other, never).features, Y)


@pytest.mark.parametrize("width", [1, 8193])
def test_of_any_width(width, tmp_path):
    """One feature; and so many that a covariance would not fit, which only the Fréchet distance minds."""
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(2))
    key = ReferenceKey("points", "test", "pixels", "none", fingerprint(x), fingerprint(Pixels((width,))))
    for make in (lambda: x, never):
        found = reference_statistics(tmp_path, key, make)
        assert torch.equal(found.features, x)
    metric = KernelDistance(Pixels((width,)))
    metric.use_reference(found)
    metric.update(x + 1, real=False)
    assert metric.compute().isfinite()
    if width == 1:
        assert found.cov.item() == pytest.approx(float(x.double().var()))
    else:
        with pytest.raises(UserError, match=r"8193 features.*kernel distance"):
            FrechetDistance(Pixels((width,)))


def test_statistics_of_another_extractor_are_refused(tmp_path):
    found = reference_statistics(tmp_path, KEY, lambda: X)
    with pytest.raises(UserError, match=r"are of extractor 'pixels' with 5 features.*this metric's extractor has 64"):
        FrechetDistance(load_extractor("digits")).use_reference(found)
    with pytest.raises(UserError, match="this metric's extractor has 6 features"):
        KernelDistance(Pixels((6,))).use_reference(found)


def test_the_fingerprint_knows_weights():
    one, two = load_extractor("digits"), load_extractor("digits")
    assert fingerprint(one) == fingerprint(two)
    two.head.bias.data[3] += 1e-3
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(Pixels((4,))) != fingerprint(Pixels((5,)))
    assert fingerprint(X) != fingerprint(X.T)
    assert fingerprint(X.split(50)) == fingerprint(iter(X.split(50))) != fingerprint(X.flip(0).split(50))


class Trap:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_foreign_files_are_refused_and_not_run(tmp_path):
    path, trap = KEY.file(tmp_path), tmp_path / "trap"
    path.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(UserError, match=r"holds no reference statistics.*computed again"):
        read_reference(path, KEY)
    assert not trap.exists()
    save_file({"mean": X}, path, {"format": "another"})
    with pytest.raises(UserError, match="its format is 'another'"):
        read_reference(path, KEY)


@pytest.mark.parametrize("damage", ["cut", "changed", "moved"])
def test_a_damaged_file_is_made_anew(damage, tmp_path, caplog):
    reference_statistics(tmp_path, KEY, lambda: X)
    path = KEY.file(tmp_path)
    content = path.read_bytes()
    broken = {
        "cut": content[:-8],
        "changed": content[:-40] + b"\x7f" * 40,
        "moved": content[:-40] + content[-80:-40],
    }[damage]
    path.write_bytes(broken)
    with pytest.raises(UserError, match=r"holds no reference statistics.*computed again"):
        read_reference(path, KEY)
    assert torch.equal(reference_statistics(tmp_path, KEY, lambda: X).features, X)
    assert str(path) in caplog.text
    assert torch.equal(reference_statistics(tmp_path, KEY, never).features, X)


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    with pytest.raises(UserError, match="reference points/test: 200 samples; need 2 or more, all finite"):
        reference_statistics(tmp_path, KEY, lambda: X.log())
    assert list(tmp_path.iterdir()) == []
