"""The calibration report: exact draws pass, and each way of being wrong is noticed by some statistic."""

import pytest
import torch
from posterior_cases import NOISE, OPERATOR, four_modes, random
from sampling_cases import SIX

from sde_diffusion.commands.calibration import calibration
from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.guidance import Mask
from sde_diffusion.modality import Points

N, DRAWS = 300, 19


@pytest.fixture(scope="module")
def problem():
    """The mixture, truths, measurements, and draws from the exact posterior of each: [N, 19, 2]."""
    mixture, generator = four_modes(SIX["vp"]), torch.Generator().manual_seed(0)
    truth = mixture.sample(N, generator)
    y = OPERATOR(truth) + NOISE * random(N, 1, seed=5)
    exact = [mixture.condition(OPERATOR, one, NOISE).sample(DRAWS, generator) for one in y]
    return mixture, truth, y, torch.stack(exact)


def report(problem, draws):
    mixture, truth, y, _ = problem
    others = mixture.sample(1000, torch.Generator().manual_seed(1))
    where = torch.ones(2, dtype=torch.bool)
    return calibration(OPERATOR, draws.float(), y.float(), truth.float(), others.float(), Points((2,)), where, NOISE)


def test_exact_draws_pass(problem):
    """Fails once in a hundred seeds; this seed is fixed."""
    found = report(problem, problem[3])
    assert found.failed == []
    assert set(found.ranks) == {"values", "mean", "component 1", "component 2", "density", "residual"}
    covered = {one.level: one for one in found.covered["mean"]}
    assert covered[0.5].found == pytest.approx(0.5, abs=4 * 0.029)
    assert covered[0.8].found == pytest.approx(0.8, abs=4 * 0.023)
    assert covered[0.95].found is None
    assert "no test fails" in found.in_words()[0]
    assert "95% it takes n=39 draws" in found.in_words()[-1]
    assert found.picture().width > 800


def test_few_items_are_said_to_be_too_few_for_a_test(problem, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda self, words, **options: titles.append(words))
    for n in (3, 30):
        mixture, truth, y, exact = problem
        found = report((mixture, truth[:n], y[:n], None), exact[:n])
        assert found.picture().width > 800
        assert ("too few items" in found.in_words()[0], "too few items" in titles[-1]) == (n == 3, n == 3)


def test_wrong_draws_fail(problem):
    mixture, _, _, exact = problem
    centre = exact.mean(1, keepdim=True)
    narrow = report(problem, centre + 0.6 * (exact - centre))
    assert {"values", "mean"} <= set(narrow.failed)
    assert narrow.covered["values"][0].found < 0.42
    shifted = report(problem, exact + torch.tensor([0.1, 0.1]))
    assert {"mean", "residual"} <= set(shifted.failed)
    # Draws that ignore y: coordinates, which alone are calibrated, do not notice it.
    prior = mixture.sample(N * DRAWS, torch.Generator().manual_seed(3)).reshape(N, DRAWS, 2)
    assert report(problem, prior).failed == ["residual"]


def test_rough_draws_fail():
    """Of smooth data, draws with white noise: the means and components hardly notice it, and the density does."""
    places = torch.arange(16, dtype=torch.float64)
    covariance = torch.exp(-0.5 * ((places[:, None] - places) / 4).square()) + 0.01 * torch.eye(16)
    data = GaussianDenoiser(SIX["vp"], torch.zeros(16), covariance=covariance)
    generator, where = torch.Generator().manual_seed(0), places >= 6
    truth, others = data.sample(N, generator), data.sample(1000, generator)
    operator = Mask(~where)
    y = operator(truth) + 0.1 * random(N, 6, seed=5)
    exact = torch.stack([data.condition(operator, one, 0.1).sample(DRAWS, generator) for one in y])
    rough = exact + 0.1 * where * random(N, DRAWS, 16, seed=7)
    failed = [
        calibration(operator, draws, y, truth, others, Points((16,)), where, 0.1).failed for draws in (exact, rough)
    ]
    assert failed == [[], ["density"]]
