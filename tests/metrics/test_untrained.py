"""Extractors without weights: what they compute, how wide they are, and in which order they put distorted images."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from sde_diffusion.data import Digits
from sde_diffusion.errors import UserError
from sde_diffusion.metrics import (
    FrechetDistance,
    PrincipalComponents,
    RandomConvolutions,
    fingerprint,
    load_extractor,
    untrained_name,
)


@pytest.fixture(scope="module")
def digits():
    return Digits().prepare()


@pytest.mark.parametrize(("n", "d"), [(200, 30), (20, 30)])
def test_components_are_scikit_learns(n, d):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) ** -1.0 + 0.3
    extractor = PrincipalComponents(x, 6)
    exact = x.double().numpy()
    other = PCA(5, svd_solver="full").fit(exact)
    along = torch.from_numpy(other.transform(exact))
    aside = torch.from_numpy(exact - other.inverse_transform(other.transform(exact))).norm(dim=1)
    found = extractor(x).double()
    signs = (found[:, :5] * along).sum(0).sign()
    # Components are kept to 16 binary places: 30 numbers of at most 4 are off by less than 30 * 4 / 2^17.
    torch.testing.assert_close(found[:, :5] * signs, along, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, 5], aside, atol=1e-3, rtol=0)


def test_all_dimensions_keep_distances():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    for width in (4, 9):
        found = PrincipalComponents(x, width)(x)
        torch.testing.assert_close(torch.cdist(found, found), torch.cdist(x, x), atol=3e-3, rtol=1e-3)


def test_data_in_a_plane_have_no_more_components():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 5)
    found = PrincipalComponents(x, 4)(x)
    assert found.shape == (50, 4)
    assert found[:, 1:].abs().max() < 1e-3
    assert found.isfinite().all()


def test_a_seed_makes_one_network():
    x = torch.rand(3, 3, 16, 20) * 2 - 1
    one, same, other = (
        RandomConvolutions((3, 16, 20)),
        RandomConvolutions((3, 16, 20)),
        RandomConvolutions((3, 16, 20), 1),
    )
    assert torch.equal(one(x), same(x))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert one(x).shape == (3, one.num_features)


@pytest.mark.parametrize(("n", "width"), [(20, 8), (300, 16), (480, 32), (959, 32), (960, 64), (50_000, 64)])
def test_the_width_leaves_fifteen_samples_a_feature(n, width):
    assert untrained_name("pca", n) == f"pca{width}"
    assert untrained_name("pca12", n) == "pca12"
    assert untrained_name("digits", n) == "digits"


@pytest.mark.parametrize("name", ["pca", "pca24", "random_conv"])
def test_by_name(name, digits):
    data = digits.tensor("train")[:300]
    extractor = load_extractor(name, digits.shape, data=data)
    assert extractor.num_features == (24 if name == "pca24" else 16)
    assert extractor(data[:5]).shape == (5, extractor.num_features)
    again = load_extractor(name, digits.shape, data=data)
    assert fingerprint(again) == fingerprint(extractor)
    with pytest.raises(ValueError, match=r"takes samples of shape \(1, 8, 8\); got \(1, 9, 9\)"):
        extractor(torch.zeros(2, 1, 9, 9))
    with pytest.raises(UserError, match="is made of data"):
        load_extractor(name, digits.shape)


def test_a_network_for_images_takes_no_points():
    with pytest.raises(UserError, match=r"takes images.*use 'pca'"):
        load_extractor("random_conv", data=torch.zeros(30, 5))


@pytest.mark.parametrize("name", ["pca16", "random_conv16"])
def test_worse_digits_are_farther(name, digits):
    """Blurred, noisy, of fewer classes, or few copied over and over: each family in its order, all above fresh ones."""
    x, label = digits.tensor("train"), digits.split("train").label
    real, rest, of_rest = x[:600], x[600:], label[600:]
    extractor = load_extractor(name, digits.shape, data=real)
    generator = torch.Generator().manual_seed(0)

    def distance(fake: torch.Tensor) -> float:
        metric = FrechetDistance(extractor)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        return metric.compute().item()

    def any_of(pool: torch.Tensor) -> torch.Tensor:
        return pool[torch.randint(len(pool), (800,), generator=generator)]

    noise = torch.randn(rest.shape, generator=generator)
    families = {
        "blur": [torch.from_numpy(gaussian_filter(rest.numpy(), (0, 0, s, s))) for s in (0.5, 0.8, 1.2)],
        "noise": [(rest + s * noise).clamp(-1, 1) for s in (0.2, 0.4, 0.8)],
        "classes": [any_of(rest[of_rest >= k]) for k in (2, 5, 8)],
        "copies": [any_of(rest[:k]) for k in (60, 20, 5)],
    }
    fresh = distance(rest)
    for family, sets in families.items():
        found = [distance(fake) for fake in sets]
        assert fresh < found[0] < found[1] < found[2], (family, fresh, found)
        assert all(map(math.isfinite, found))
