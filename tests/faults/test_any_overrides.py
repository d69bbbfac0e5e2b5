"""Two thousand lists of settings checked, and training with three hundred valid ones: a run or one message."""

import pytest
from hypothesis import HealthCheck, given, settings
from schema_cases import GIVEN, accepted_lists, override_lists, refusal, trains_or_says_why

BATCHES, IN_EACH = 30, 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", GIVEN)
def test_looked_at(command):
    @settings(max_examples=350, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(override_lists(command))
    def look(typed):
        message = refusal(command, *typed)
        assert message is None or (message and "\n" not in message)

    look()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_trained(batch, command, tmp_path):
    for number, typed in enumerate(accepted_lists(IN_EACH, seed=1 + batch)):
        folder = tmp_path / str(number)
        folder.mkdir()
        trains_or_says_why(command, folder, typed)
