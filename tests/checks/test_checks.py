"""Numbers and counts of Python, NumPy and torch are equivalent in all arguments; bools and text raise errors."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from sde_diffusion import (
    EMA,
    MLP,
    VPSDE,
    BetaTable,
    DEISSampler,
    DPMSolver,
    EmpiricalDenoiser,
    GaussianMixtureDenoiser,
    GeometricLevels,
    HeunSampler,
    Hutchinson,
    LevelDecoder,
    ODESampler,
    PredictorCorrector,
    ScoreModel,
    SDESampler,
    UNet,
    UniformDequantisation,
    UniformTime,
)
from sde_diffusion.checks import as_integer, as_number, check_count, check_sizes
from sde_diffusion.data.densities import Moons

INTEGERS = [
    6,
    np.int64(6),
    np.uint8(6),
    np.array(6),
    torch.tensor(6),
    6.0,
    np.float32(6),
    torch.tensor(6.0),
    Fraction(6),
]
NONE = [True, np.bool_(True), torch.tensor(True), "6", None, 6j, [6], np.array([6]), torch.tensor([6]), int, object()]
COUNTS = {
    "BetaTable": lambda n: BetaTable(n).n,
    "GeometricLevels": lambda n: GeometricLevels(n).n,
    "points": lambda n: len(UniformTime().times(VPSDE(), n)),
    "chunk": lambda n: EmpiricalDenoiser(VPSDE(), torch.zeros(2, 2), n).chunk,
    "draws": lambda n: len(GaussianMixtureDenoiser(VPSDE(), [[1, 0], [-1, 0]], 1).sample(n)),
    "width": lambda n: MLP([2], width=n, depth=1).input.out_features,
    "n_classes": lambda n: MLP([2], n_classes=n, width=4, depth=1).conditioning.conditions["label"].n_classes,
    "octaves": lambda n: MLP([2], width=4, depth=1, octaves=n).octaves.octaves,
    "channels": lambda n: UNet([1, 2, 2], channels=n, channel_mult=[1], blocks=1, attention=[]).input.out_channels,
    "probes": lambda n: Hutchinson(n).columns,
    "levels": lambda n: UniformDequantisation(n).levels,
    "decoder": lambda n: LevelDecoder(n).levels,
    "steps": lambda n: DPMSolver(n).steps,
    "points of a data set": lambda n: Moons(n_train=n).n_train,
    "first step": lambda n: EMA(start_step=n).start_step,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    for given in INTEGERS:
        found = COUNTS[name](given)
        assert type(found) is int
        assert found == 6
    for given in (*NONE, 6.5, math.nan, math.inf, -6):
        with pytest.raises(ValueError, match=r"must be|need"):
            COUNTS[name](given)


def test_numbers_come_back_as_pythons_own():
    for given in INTEGERS:
        assert (type(as_number("x", given)), as_number("x", given)) == (float, 6.0)
        assert (type(as_integer("x", given)), as_integer("x", given)) == (int, 6)
    for given in NONE:
        with pytest.raises(ValueError, match="x must be a number; got"):
            as_number("x", given)
        with pytest.raises(ValueError, match="x must be an integer of at least 0; got"):
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SDESampler(eta="x"), "eta must be a number; got 'x'"),
        (lambda: DPMSolver(eta="x"), "eta must be a number; got 'x'"),
        (lambda: HeunSampler(churn="x"), "churn must be a number; got 'x'"),
        (lambda: PredictorCorrector(snr="x"), "snr must be a number; got 'x'"),
        (lambda: ScoreModel({}, {}, lr="a"), "lr must be a number; got 'a'"),
        (lambda: ODESampler(rtol="a"), "rtol must be a number; got 'a'"),
        (
            lambda: DPMSolver(grid="karras"),
            r"grid must be one of .*; got 'karras' \(did you mean karras_rho\?\); or give a Grid of your own",
        ),
        (lambda: ODESampler(coordinate=0), "coordinate must be one of state, noise_to_signal, unit_variance; got 0"),
        (lambda: SDESampler(adaptive="no"), "adaptive must be true or false; got 'no'"),
        (lambda: DPMSolver(denoise="no"), "denoise must be true or false; got 'no'"),
        (lambda: DEISSampler(order="2"), "order of DEIS must be an integer from 1 to 4; got '2'"),
        (lambda: Moons(noise="x"), "noise must be a number; got 'x'"),
        (lambda: EMA(decay="x"), "decay must be a number; got 'x'"),
        (lambda: MLP([]), r"shape must be a list of positive sizes .*; got \[\]"),
        (lambda: UNet([1, 4, 4], channel_mult=[]), r"channel_mult must be .*; got \[\]"),
    ],
)
def test_what_is_said(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_options_of_solvers_are_like_other_numbers():
    sampler = ODESampler(options={"min_step": np.float32(0.25), "max_num_steps": torch.tensor(7)})
    assert sampler.solver().options == {"min_step": 0.25, "max_num_steps": 7}
    assert type(sampler.solver().options["min_step"]) is float
    with pytest.raises(ValueError, match="min_step="):
        ODESampler(options={"min_step": True})
