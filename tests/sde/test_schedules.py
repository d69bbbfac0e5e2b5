"""Learned noise schedules and the ends of their paths."""

import pytest
import torch

from sde_diffusion.sde import KnotSchedule, LearnedVPSDE, MonotoneSchedule


@pytest.mark.parametrize("schedule", [KnotSchedule(7), MonotoneSchedule(8)], ids=["knots", "network"])
def test_a_schedule_rises_from_0_to_1_at_its_rate(schedule):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    t = torch.linspace(0.003, 0.997, 57, dtype=torch.float64)
    with torch.no_grad():
        _, rate = schedule(t)
        assert (rate > 0).all()
        torch.testing.assert_close((schedule(t + 1e-6)[0] - schedule(t - 1e-6)[0]) / 2e-6, rate, rtol=1e-5, atol=0)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(schedule(ends)[0], ends)
        sde = LearnedVPSDE(13.3, -5.0, schedule)
        torch.testing.assert_close(sde.time(sde.log_snr(t)), t, rtol=1e-12, atol=1e-13)


def test_the_ends_keep_their_order():
    sde = LearnedVPSDE(0.0, -5.0)
    sde.moves.data = torch.tensor([-40.0, 40.0], dtype=torch.float64)
    first, last = sde.ends()
    assert first >= last + 1


def test_a_schedule_that_has_lost_its_slope_still_rises():
    schedule = MonotoneSchedule(8)
    with torch.no_grad():
        schedule.slope.sub_(3)  # by -90 before softplus
        schedule.rates.add_(2)  # and the sigmoids e^8 times as steep
        v = torch.linspace(0, 1, 101, dtype=torch.float64)
        t = schedule.inverse(v)
        assert (schedule(t)[1] > 1e-3).all()
        torch.testing.assert_close(schedule(t)[0], v, atol=1e-6, rtol=0)
