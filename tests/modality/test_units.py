"""The data's own units."""

import math

import pytest
import torch

from sde_diffusion.modality.units import Units


def test_the_ends_and_the_middle():
    units = Units((0.0, -10.0), (5000.0, 30.0))
    y = torch.tensor([[0.0, -10.0], [2500.0, 10.0], [5000.0, 30.0]])
    assert units.encode(y).tolist() == [[-1, -1], [0, 0], [1, 1]]
    assert torch.equal(units.decode(units.encode(y)), y)


def test_one_range_serves_any_shape():
    y = torch.linspace(-3, 9, 24).reshape(2, 3, 2, 2)
    assert torch.allclose(Units((-3.0,), (9.0,)).encode(y), torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2))


def test_a_density_integrates_to_one_in_either_unit():
    """The uniform density on [-1, 1]^2 is 1 / area of the box in the data's own units."""
    units = Units((0.0, 10.0), (4.0, 13.0))
    assert math.exp(-2 * math.log(2) - units.log_volume(2)) == pytest.approx(1 / (4 * 3), rel=1e-12)
    assert Units((0.0,), (4.0,)).log_volume(7) == pytest.approx(7 * math.log(2))


def test_a_description_comes_back():
    units = Units((0.0,), (5000.0,))
    assert Units.of(units.describe()) == units
    assert Units.of(None) is None


@pytest.mark.parametrize("ends", [((1.0,), (1.0,)), ((0.0,), (math.inf,)), ((0.0, 1.0), (2.0,)), ((), ())])
def test_no_units(ends):
    with pytest.raises(ValueError, match="finite high above each finite low"):
        Units(*ends)
