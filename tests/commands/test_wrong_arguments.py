"""Every public name with many wrong values for each of its arguments: one sentence from this library, or it works.

What counts as a sentence: the error was raised by a `raise` of this package, not by Python or torch on its behalf, and
its message is not empty and says what was wrong (a value's name, or what must be).
"""

import inspect
import linecache
import math
import traceback

import numpy as np
import pytest
import torch

import sde_diffusion as sd
from sde_diffusion import sampling, training
from sde_diffusion.errors import UserError

WRONG = {
    "a word": "word",
    "an empty word": "",
    "not a number": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "minus one": -1,
    "zero": 0,
    "a fraction": 2.5,
    "a bool": True,
    "None": None,
    "an object": object(),
    "a class": dict,
    "a list": [1, 2],
    "an empty list": [],
    "a list of words": ["a"],
    "a dict": {"a": 1},
    "a complex number": 1j,
    "an integer tensor": torch.arange(6).reshape(2, 3),
    "a tensor of NaN": torch.full((2, 3), math.nan),
    "an array of words": np.array(["a"]),
    "a function": print,
}

VP = sd.VPSDE()
MEANS = torch.tensor([[0.5, 0.0, 0.1], [-0.5, 0.5, 0.2]])
GAUSS = sd.GaussianDenoiser(VP, MEANS[0], 0.5)
NET = sd.NetworkDenoiser(VP, sd.MLP([3], n_classes=2, width=8, depth=1))
X = torch.zeros(2, 3)

WORKS = {
    **{name: {} for name in ("VPSDE", "SubVPSDE", "CosineVPSDE", "VESDE", "EDMSDE", "RectifiedFlow")},
    **{name: {} for name in ("UniformTime", "QuadraticTime", "UniformLogSNR", "KarrasRho", "BandLogSNR", "BetaTable")},
    **{name: {} for name in ("GeometricLevels", "ODESampler", "SDESampler", "AncestralSampler", "PredictorCorrector")},
    **{name: {} for name in ("AnnealedLangevin", "HeunSampler", "DPMSolver", "UniPC", "DEISSampler")},
    **{name: {} for name in ("ExactTrace", "GaussianDecoder", "Objective", "DenoisingScoreMatching", "EMA")},
    "NetworkDenoiser": {"sde": VP, "network": sd.MLP([3], width=8, depth=1)},
    "GaussianDenoiser": {"sde": VP, "mean": MEANS[0], "std": 0.5},
    "GaussianMixtureDenoiser": {"sde": VP, "means": MEANS, "stds": 0.5},
    "ClassifierFreeGuidance": {"denoiser": NET, "scale": 2.0, "null": {"label": 2}},
    "ClassifierGuidance": {"denoiser": GAUSS, "classifier": lambda x, t: x},
    "PosteriorDenoiser": {"denoiser": GAUSS, "operator": sd.Mask(torch.tensor([1, 0, 1])), "noise": 0.1},
    "Mask": {"mask": torch.tensor([1, 0, 1])},
    "Downsample": {"factor": 2},
    "Blur": {"kernel": torch.tensor([0.2, 0.5, 0.3])},
    "LinearOperator": {"matrix": torch.ones(2, 3)},
    "Nonlinear": {"function": torch.sin},
    "Replacement": {},
    "RePaint": {},
    "TwistedSMC": {},
    "Grey": {},
    "noised": {"sde": VP, "x0": X, "t": 0.5},
    "start_time": {"sde": VP, "strength": 0.5},
    "AutoGuidance": {"denoiser": NET, "weak": NET},
    "Composition": {"denoisers": [NET, GAUSS], "weights": [2, -1]},
    "EmpiricalDenoiser": {"sde": VP, "data": MEANS},
    "LearnedVPSDE": {},
    "Text": {},
    "HashedWords": {},
    "RenderedCaptions": {},
    "VAE": {
        "encoder": torch.nn.Linear(3, 4),
        "decoder": torch.nn.Linear(2, 3),
        "observation": sd.variational.Gaussian(),
        "shape": [3],
        "latent_shape": [2],
    },
    "FirstStage": {"autoencoder": sd.variational.MLPVAE([3], sd.variational.Gaussian(), 3, 8, 0)},
    "DiffusionChain": {"denoiser": GAUSS, "shape": [3], "steps": 3},
    "VectorQuantizer": {"codebook_size": 4, "dim": 2},
    "latent_bound": {
        "first_stage": sd.FirstStage(sd.variational.MLPVAE([3], sd.variational.Gaussian(), 3, 8, 0)),
        "denoiser": NET,
        "x": X,
        "density": "elbo",
        "label": 1,
    },
    "bound": {"model": sd.DiffusionChain(GAUSS, [3], 3), "x": X},
    "MLP": {"shape": [3], "width": 8, "depth": 1},
    "UNet": {"shape": [1, 4, 4], "channels": 4, "channel_mult": [1], "blocks": 1, "attention": []},
    "DiT": {"shape": [1, 4, 4], "width": 8, "depth": 1, "heads": 2},
    "EDM2UNet": {
        "shape": [1, 4, 4],
        "channels": 8,
        "channel_mult": [1],
        "blocks": 1,
        "attention": [],
        "head_channels": 8,
    },
    "log_likelihood": {"denoiser": NET, "x": X, "rtol": 0.1, "atol": 0.1, "max_nfe": 300, "label": 1},
    "elbo": {"denoiser": NET, "x": X, "steps": 5, "label": 1},
    "bits_per_dim": {"log_prob": torch.zeros(2), "dims": 3},
    "UniformDequantisation": {"levels": 17},
    "GaussianPrior": {"mean": 0.0, "variance": 1.0},
    "LevelDecoder": {"levels": 17},
    "Hutchinson": {"probes": 2},
    "HutchPlusPlus": {"probes": 3},
    "Label": {"n_classes": 3},
    "Measurement": {"shape": [2]},
    "ScoreModel": {"denoiser": NET, "objective": sd.Objective()},
    "TunedGrid": {"log_snr": [[-5.0, 0.0, 2.0]]},
    "tune_grid": {"sampler": sd.AncestralSampler(3, 0.0), "denoiser": GAUSS, "target": X, "tries": 1, "iterations": 1},
    "VariationalModel": {"autoencoder": sd.variational.MLPVAE([3], sd.variational.Gaussian(), 3, 8, 0)},
}
"""Arguments with which each public name works."""

NOT_CALLED = {
    "SDE": "abstract",
    "Grid": "abstract",
    "Sampler": "abstract",
    "LearnedSDE": "abstract",
    "Condition": "abstract",
    "Denoiser": "abstract",
    "GenerativeModel": "abstract",
    "Prediction": "made by denoisers, in each pass",
    "Samples": "a result",
    "Likelihood": "a result",
    "Bound": "a result",
    "Pretrained": "made from files, by its own methods",
    "LatentModel": "a first stage and a ScoreModel",
    "HierarchicalVAE": "made of many networks",
    "MiniLM": "needs its weights",
    "UserError": "an exception",
    "__version__": "a word",
}

CALLS = {
    **{name: (getattr(sd, name), WORKS[name]) for name in sd.__all__ if name not in NOT_CALLED},
    "Grid.times": (sd.UniformTime().times, {"sde": VP, "points": 5}),
    "GaussianMixtureDenoiser.sample": (GAUSS.sample, {"n": 2}),
    "GaussianMixtureDenoiser.log_prob": (GAUSS.log_prob, {"x": X, "t": 0.5}),
    "denoiser, closed": (GAUSS, {"x_t": X, "t": 0.5}),
    "denoiser, network": (NET, {"x_t": X, "t": 0.5, "label": 1}),
    "perturb": (VP.perturb, {"x0": X, "t": 0.5, "noise": X}),
    "sampler": (sd.AncestralSampler(2), {"denoiser": NET, "shape": (2, 3), "label": 1}),
    "inversion": (sd.AncestralSampler(3).invert, {"denoiser": NET, "x": X, "label": 1}),
    "objective": (sd.Objective(), {"denoiser": NET, "x0": X, "label": 1}),
    "EDMWeighting": (training.EDMWeighting, {}),
    "MinSNRWeighting": (training.MinSNRWeighting, {}),
    "LogNormalTimes": (training.LogNormalTimes, {}),
    "DiscreteTimes": (training.DiscreteTimes, {"levels": sd.BetaTable()}),
    "NoiseToSignal": (sampling.NoiseToSignal, {}),
    "UnitVariance": (sampling.UnitVariance, {}),
}
"""Callables, and arguments with which they work: every public name, and some methods."""

NOT_LOOKED_AT = {"self", "conditions", "args", "kwargs", "trajectory", "create_graph", "gaussian"}
"""Other keywords; and switches of calls, which are true or false as Python sees it."""

SKIPPED = {
    # Objects of protocols (anything callable), and what another module's tests look at.
    ("log_likelihood", "prior"), ("elbo", "prior"), ("elbo", "decoder"), ("elbo", "grid"),
    ("log_likelihood", "grid"), ("log_likelihood", "coordinate"), ("log_likelihood", "options"),
    ("log_likelihood", "method"), ("GaussianMixtureDenoiser.sample", "generator"),
    ("sampler", "callback"), ("inversion", "callback"), ("tune_grid", "callback"), ("ScoreModel", "compile"),
}  # fmt: skip


def arguments(name):
    call, works = CALLS[name]
    named = inspect.signature(call.__call__ if isinstance(call, torch.nn.Module) else call).parameters
    return [a for a in dict.fromkeys((*works, *named)) if a not in NOT_LOOKED_AT and (name, a) not in SKIPPED]


def in_words(error):
    """Whether an error message is a sentence from this package."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    source = "".join(linecache.getline(last.filename, n) for n in range(last.lineno, last.lineno + 1))
    return "sde_diffusion" in last.filename and source.lstrip().startswith("raise ") and str(error).strip()


def test_every_public_name_is_called_or_excluded_for_a_reason():
    assert set(WORKS).isdisjoint(NOT_CALLED)
    assert sorted([*WORKS, *NOT_CALLED]) == sorted(sd.__all__)
    for name in ("SDE", "Grid", "Sampler", "Denoiser"):
        assert inspect.isabstract(getattr(sd, name))


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name in CALLS for a in arguments(name)])
def test_a_wrong_argument_is_refused_in_words(name, argument):
    call, works = CALLS[name]
    call(**works)
    unclear = []
    for what, value in WRONG.items():
        try:
            with torch.random.fork_rng():
                call(**{**works, argument: value})
        except (TypeError, ValueError, UserError) as error:
            if not in_words(error):
                unclear.append(f"{what}: {type(error).__name__}: {error}")
        except Exception as error:
            unclear.append(f"{what}: {type(error).__name__}: {error}")
    assert not unclear, "\n".join(unclear)
