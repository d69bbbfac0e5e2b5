"""What samplers, paths, grids and coordinates show of themselves: readable, evaluable, and true."""

from pathlib import Path

import pytest
import sampling_cases
from omegaconf import OmegaConf

import sde_diffusion.sampling
import sde_diffusion.sde
from sde_diffusion.config import build
from sde_diffusion.sampling import (
    AncestralSampler,
    DPMSolver,
    HeunSampler,
    NoiseToSignal,
    ODESampler,
    PredictorCorrector,
    Sampler,
    SDESampler,
    UnitVariance,
)
from sde_diffusion.sde import BetaTable, GeometricLevels, KarrasRho, QuadraticTime, UniformLogSNR, UniformTime

NAMES = {
    name: getattr(module, name) for module in (sde_diffusion.sampling, sde_diffusion.sde) for name in module.__all__
}
CONF = Path(__file__).parents[2] / "conf" / "sampler"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_configured_sampler(name):
    sampler = build(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))
    again = eval(repr(sampler), NAMES)
    assert type(again) is type(sampler)
    assert vars(again) == vars(sampler)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (DPMSolver(), "DPMSolver(steps=10, order=2, eta=0.0, grid=UniformLogSNR())"),
        (AncestralSampler(7, 1.0, denoise=False), "AncestralSampler(steps=7, eta=1.0, denoise=False)"),
        (ODESampler(), "ODESampler(method='dopri5')"),
        (
            ODESampler("rk4", steps=9, options={"perturb": True}, coordinate=NoiseToSignal(), t_end=1e-3),
            "ODESampler(method='rk4', steps=9, options={'perturb': True}, coordinate=NoiseToSignal(), t_end=0.001)",
        ),
        (SDESampler("srk", 5), "SDESampler(method='srk', steps=5, eta=1.0)"),
        (HeunSampler(churn=4), "HeunSampler(steps=18, churn=4.0, grid=KarrasRho(rho=7.0))"),
        (
            PredictorCorrector(snr=0.1),
            "PredictorCorrector(predictor='reverse_diffusion', corrector='leimkuhler_matthews', steps=1000, snr=0.1)",
        ),
    ],
)
def test_words(sampler, words):
    assert repr(sampler) == words
    assert vars(eval(words, NAMES)) == vars(sampler)


def test_what_is_changed_is_shown_and_done():
    """By attribute, after construction: the repr follows, and so does the walk."""
    denoiser = sampling_cases.gaussian(sampling_cases.SIX["vp"])
    for sampler in (ODESampler("euler", steps=9), SDESampler(steps=9), AncestralSampler(9), DPMSolver(9)):
        sampler.steps = 5
        assert "steps=5" in repr(sampler)
        assert sampler(denoiser, (2, 3)).nfe == 5
    sampler = PredictorCorrector(steps=3)
    sampler.corrector = "none"
    assert "corrector='none'" in repr(sampler)
    assert sampler(denoiser, (2, 3)).nfe == 4


def test_a_sampler_of_one_s_own():
    class Own(Sampler):
        def __init__(self, strength=1.0, hidden=2):
            super().__init__()
            self.strength = strength

        def walk(self, x, run):
            return x

    assert repr(Own(0.5)) == "Own(strength=0.5)"


@pytest.mark.parametrize(
    "part",
    [
        *sampling_cases.SIX.values(),
        UniformTime(),
        QuadraticTime(),
        UniformLogSNR(),
        KarrasRho(5.0),
        BetaTable(100),
        GeometricLevels(7),
        NoiseToSignal(),
        UnitVariance(0.3),
    ],
)
def test_paths_grids_coordinates(part):
    assert eval(repr(part), NAMES) == part
