"""Artificial images: noise and blank ones, with the data's shape and levels."""

import pytest
import torch

from sde_diffusion.data.artificial import artificial
from sde_diffusion.data.split import Split


@pytest.mark.parametrize("levels", [None, 17])
def test_artificial_images(levels):
    generator = torch.Generator().manual_seed(0)
    if levels is None:
        like = Split(torch.randn(500, 3, 4, 4, generator=generator) * 0.2 + 0.3)
    else:
        like = Split(torch.randint(3, 9, (500, 3, 4, 4), generator=generator, dtype=torch.uint8), levels=levels)
    mean, std = like.tensor().mean(), like.tensor().std()
    noise, blank = (artificial(kind, 400, like).tensor() for kind in ("noise", "blank"))
    # 19,200 normals: the mean's standard error is 0.007 standard deviations, the standard deviation's 0.5 per cent.
    assert float(noise.mean() - mean) == pytest.approx(0, abs=0.03 * float(std))
    assert float(noise.std() / std) == pytest.approx(1, abs=0.05)
    assert torch.equal(blank.flatten(1).amax(1), blank.flatten(1).amin(1))
    assert blank.amin() == -1
    assert blank.amax() == 1
    assert len(blank.unique()) == (levels or 400)
    for images in (noise, blank):
        assert images.shape == (400, 3, 4, 4)
        if levels:
            assert ((images + 1) * 8 - ((images + 1) * 8).round()).abs().max() < 1e-5
