"""Lists of log-SNRs as a grid: the lists themselves, other numbers of times, walks that begin or end elsewhere."""

import math

import numpy as np
import pytest
import torch

from sde_diffusion.sde import EDMSDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE, TunedGrid
from sde_diffusion.sde.truncated import TruncatedSDE

PATHS = (VPSDE(), SubVPSDE(), CosineVPSDE(), VESDE(), EDMSDE(), RectifiedFlow())
SHORT, LONG = [-6.0, -1.0, 2.0, 4.0], [-6.0, -2.0, -0.5, 1.0, 2.5, 5.0]


def begun(sde, lists):
    """The lists with the path's own beginning."""
    start = sde.log_snr(sde.t_max).item()
    return [[start, *one[1:]] for one in lists]


@pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)
def test_a_walk_of_a_list_s_length_takes_the_list(sde):
    lists = begun(sde, [SHORT, LONG])
    grid = TunedGrid(lists)
    for one in lists:
        times = grid.times(sde, len(one))
        assert times[0].item() == sde.t_max
        np.testing.assert_allclose(sde.log_snr(times).tolist(), one, rtol=1e-9, atol=1e-9)
        assert bool((times.diff() < 0).all())


def test_other_numbers_of_times():
    sde = VPSDE()
    short, long = begun(sde, [SHORT, LONG])
    grid = TunedGrid([long, short])  # in any order

    def found(points, **options):
        return sde.log_snr(grid.times(sde, points, **options)).numpy()

    def read(values, n):
        return np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(values)), values)

    np.testing.assert_allclose(found(5), (read(short, 5) + read(long, 5)) / 2, rtol=1e-9)  # half-way from 4 to 6
    np.testing.assert_allclose(found(3), read(short, 3), rtol=1e-9)
    assert found(1).tolist() == [sde.log_snr(sde.t_max).item()]
    last = sde.log_snr(sde.t_min).item()
    np.testing.assert_allclose(found(9), read([*long, 5 + (last - 5) * (1 - 6 / 9)], 9), rtol=1e-9)
    assert found(6000)[-1] == pytest.approx(last, abs=0.02)
    assert np.abs(np.diff(found(6000))).max() < 0.01  # many steps are small everywhere


def test_walks_that_begin_or_end_elsewhere_are_shrunk_into_their_range():
    sde = VPSDE()
    grid = TunedGrid(begun(sde, [SHORT]))
    whole = sde.log_snr(grid.times(sde, 4))
    early = grid.times(sde, 4, t_end=0.2)
    assert (early[0].item(), early[-1].item()) == (sde.t_max, 0.2)
    part = TruncatedSDE(path=sde, t_min=sde.t_min, t_max=0.6)
    late = grid.times(part, 4)
    assert late[0].item() == 0.6
    assert sde.log_snr(late[-1]).item() == pytest.approx(4.0)
    for times in (early, late):
        shares = [(one - one[0]) / (one[-1] - one[0]) for one in (sde.log_snr(times), whole)]
        torch.testing.assert_close(*shares)


def test_as_a_map_it_reaches_both_ends_and_rises():
    sde = VPSDE()
    u = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    t = TunedGrid(begun(sde, [SHORT])).time(sde, u, sde.t_min)
    assert (t[0].item(), t[-1].item()) == (sde.t_min, sde.t_max)
    (slope,) = torch.autograd.grad(t.sum(), u)
    assert bool((slope > 0).all())


@pytest.mark.parametrize(
    "wrong",
    [(), [[]], [[1.0]], [[0, 1], [2, 3]], [[1, 0]], [[0, 0, 1]], [0, 1], [["a", "b"]], [[0, math.nan]], None, 3],
)
def test_refused(wrong):
    with pytest.raises(ValueError, match="log_snr must be lists of two or more increasing numbers"):
        TunedGrid(wrong)


def test_a_walk_for_which_the_list_is_too_short_is_refused():
    sde = VPSDE()
    grid = TunedGrid([[-10, -8.0]])
    with pytest.raises(ValueError, match="it was found for another path, or the walk begins too late"):
        grid.times(TruncatedSDE(path=sde, t_min=sde.t_min, t_max=0.1), 2)
    with pytest.raises(ValueError, match="log-SNR is infinite"):
        grid.times(RectifiedFlow(t_max=1.0), 2)
    with pytest.raises(ValueError, match="t_end must lie in"):
        grid.times(sde, 2, t_end=1.0)
