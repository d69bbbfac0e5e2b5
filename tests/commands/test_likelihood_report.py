"""Names of scores in what `likelihood` reports."""

import pytest

from sde_diffusion.commands.likelihood_report import label


def test_every_score_has_a_name_and_others_are_refused():
    names = [label(score, 5) for score in ("flow", "log_prob", "elbo", "iwae", "chain_elbo")]
    assert names == ["the flow", "log p by the flow", "the ELBO", "IWAE-5", "the ELBO of the same chain"]
    with pytest.raises(KeyError):
        label("other", 1)
