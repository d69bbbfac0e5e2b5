"""An operator and a likelihood of a user's module, named on the command line of `restore`."""

import json

import numpy as np
import pytest

MODULE = """
from sde_diffusion.guidance import MeasurementLikelihood, Operator


class Rows(Operator):
    '''Every n-th row of pictures [C, H, W].'''

    part_of_data = True

    def __init__(self, every=2, sign=1):
        super().__init__()
        self.every, self.sign = every, sign

    def forward(self, x):
        return x[..., :: self.every, :]

    def adjoint(self, y):
        x = y.new_zeros(*y.shape[:-2], self.every * y.shape[-2], y.shape[-1])
        x[..., :: self.every, :] = self.sign * y
        return x


class Certain(MeasurementLikelihood):
    '''S = (noise^2 / scale) I.'''

    gradients = 1

    def __init__(self, scale=1.0):
        self.scale = scale

    def shift(self, guess):
        return guess.covariance(guess.adjoint(guess.residual * (self.scale / guess.noise)))
"""

OPERATOR = "operator={_target_:my_posteriors.Rows,every:2}"
LIKELIHOOD = ("posterior._target_=my_posteriors.Certain", "posterior.scale=0.1")


@pytest.fixture
def restore(command, trained, tmp_path):
    """restore(*settings): two pictures, in a folder with the module."""
    (tmp_path / "my_posteriors.py").write_text(MODULE)
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 256, (2, 8, 8), np.uint8))
    np.save(tmp_path / "odd.npy", np.arange(8)[:, None].repeat(8, 1) % 2)  # 1 is to be filled
    ckpt = f"ckpt={trained}/checkpoints/last.ckpt"

    def run(*settings):
        return command("restore", ckpt, "images=in.npy", "noise=0.3", "n=2", "sampler.steps=4", *settings, cwd=tmp_path)

    return run


def test_ones_own_draw_as_those_of_the_package(restore, tmp_path):
    """Every second row is a mask, and `Certain` is `PointEstimate`: the same draws, by either or both."""
    mask, dps = ("operator=mask", "operator.path=odd.npy"), ("posterior=dps", "posterior.scale=0.1")
    plugin, found = "+plugins=[my_posteriors]", []
    for settings in ((*mask, *dps), (plugin, OPERATOR, *LIKELIHOOD), (plugin, OPERATOR, *dps)):
        done = restore(*settings, "overwrite=true", "out=out")
        assert done.status == 0, done.err
        found.append(np.load(tmp_path / "out" / "restored.npz")["images"].astype(int))
        report = json.loads((tmp_path / "out" / "restore.json").read_text())
        if LIKELIHOOD[0] in settings:
            assert report["operator"] == {"_target_": "my_posteriors.Rows", "every": 2}
            assert report["posterior"] == {"_target_": "my_posteriors.Certain", "scale": 0.1}
    assert found[0].std() > 1
    assert all(np.abs(other - found[0]).max() <= 1 for other in found[1:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("operator=grey", "operator.weights=[1]", *LIKELIHOOD), 'add "+plugins=[my_posteriors]"'),
        (("+plugins=[my_posteriors]", OPERATOR.replace("every:2", "sign:-1")), "the adjoint of Rows() is wrong"),
    ],
)
def test_what_is_refused(restore, settings, words):
    done = restore(*settings, "out=refused")
    assert (done.status, done.err.count("\n"), words in done.err) == (1, 1, True), done.err
