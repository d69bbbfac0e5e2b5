"""The networks compute what the authors' code computes from the same weights; see `parity_cases`."""

import pytest
import torch
from parity_cases import EXPECTED, inputs_of, network_with_weights, shown


@pytest.mark.parametrize("name", EXPECTED)
def test_network_equals_the_authors(name):
    """float32 has 1e-6 of rounding here; outputs are of size 0.2."""
    with torch.no_grad():
        out = network_with_weights(name)(*inputs_of(name))
    assert shown(out) == pytest.approx(EXPECTED[name], abs=1e-5)
