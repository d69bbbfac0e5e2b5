"""Numbers and counts of Python, NumPy and torch are alike wherever one is wanted; bools and words are none."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    BetaTable,
    EmpiricalDenoiser,
    GaussianMixtureDenoiser,
    GeometricLevels,
    Hutchinson,
    LevelDecoder,
    UNet,
    UniformDequantisation,
    UniformTime,
)
from sde_diffusion.checks import as_number, as_whole, check_count, check_sizes

WHOLE = [6, np.int64(6), np.uint8(6), np.array(6), torch.tensor(6), 6.0, np.float32(6), torch.tensor(6.0), Fraction(6)]
NONE = [True, np.bool_(True), torch.tensor(True), "6", None, 6j, [6], np.array([6]), torch.tensor([6]), int, object()]
COUNTS = {
    "BetaTable": lambda n: BetaTable(n).n,
    "GeometricLevels": lambda n: GeometricLevels(n).n,
    "points": lambda n: len(UniformTime().times(VPSDE(), n)),
    "chunk": lambda n: EmpiricalDenoiser(VPSDE(), torch.zeros(2, 2), n).chunk,
    "draws": lambda n: len(GaussianMixtureDenoiser(VPSDE(), [[1, 0], [-1, 0]], 1).sample(n)),
    "width": lambda n: MLP([2], width=n, depth=1).input.out_features,
    "n_classes": lambda n: MLP([2], n_classes=n, width=4, depth=1).conditioning.n_classes,
    "octaves": lambda n: MLP([2], width=4, depth=1, octaves=n).octaves,
    "channels": lambda n: UNet([1, 2, 2], channels=n, channel_mult=[1], blocks=1, attention=[]).input.out_channels,
    "probes": lambda n: Hutchinson(n).columns,
    "levels": lambda n: UniformDequantisation(n).levels,
    "decoder": lambda n: LevelDecoder(n).levels,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    for given in WHOLE:
        found = COUNTS[name](given)
        assert type(found) is int
        assert found == 6
    for given in (*NONE, 6.5, math.nan, math.inf, -6):
        with pytest.raises(ValueError, match=r"must be|need"):
            COUNTS[name](given)


def test_numbers_come_back_as_pythons_own():
    for given in WHOLE:
        assert (type(as_number("x", given)), as_number("x", given)) == (float, 6.0)
        assert (type(as_whole("x", given)), as_whole("x", given)) == (int, 6)
    for given in NONE:
        with pytest.raises(ValueError, match="x must be a number; got"):
            as_number("x", given)
        with pytest.raises(ValueError, match="x must be a whole number of at least 0; got"):
            check_count("x", given, least=0)
    assert check_sizes("x", np.array([2, 3])) == check_sizes("x", torch.Size([2, 3])) == (2, 3)


def test_paths_keep_pythons_own_numbers_and_so_their_hash():
    """A path is the key of caches and goes into checkpoints."""
    for kind in (np.float64, torch.tensor):
        sde = VPSDE(beta_min=kind(0.1), t_min=kind(1e-5))
        assert all(type(value) is float for value in dataclasses.asdict(sde).values())
    assert VPSDE(beta_max=np.int64(20)) == VPSDE()
    assert hash(VPSDE(beta_max=torch.tensor(20))) == hash(VPSDE())
    with pytest.raises(ValueError, match=r"beta_min of VPSDE must be a number; got '0.1'"):
        VPSDE(beta_min="0.1")
