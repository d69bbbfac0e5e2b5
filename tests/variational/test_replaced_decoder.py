"""A decoder can be replaced by one that was trained on the same latent variables, and by no other."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.data import Digits
from sde_diffusion.metrics import load_extractor
from sde_diffusion.variational import MLPVAE, Categorical, FirstStage


def first_stage(seed: int, encoder: MLPVAE | None = None) -> FirstStage:
    """A trained autoencoder of the digits; with the encoder of another one, if given, and a decoder of its own."""
    torch.manual_seed(seed)
    model, x = MLPVAE((1, 8, 8), Categorical(17), latent_dim=16, width=128), Digits().tensor("train")
    if encoder is not None:
        model.encoder = encoder.encoder.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(600):
        some = x[torch.randint(len(x), (64,))]
        found = model.infer(some, [torch.randn(64, 16)])
        loss = (0.1 * found.kl().sum(0) - found.log_prob).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stage = FirstStage(model)
    stage.fit_statistics([x])
    return stage


@pytest.mark.slow
def test_a_decoder_is_replaced_by_one_of_the_same_latent_variables_alone():
    """Standardised latent variables of test items, by the first encoder, decoded by three decoders.

    One that knows what they mean leaves a small part of the data's variance, and the digit can be read. For one that
    does not, the picture is independent of the item: its squared error is at least the variance of the data. Which
    digit is made of which is by chance; of ten digits one is right on average, with a standard deviation of one, as
    of a random permutation, so that more than four are right in 0.4% of trainings.
    """
    own = first_stage(0)
    stages = {"own": own, "same encoder": first_stage(1, own.autoencoder), "another encoder": first_stage(1)}
    test = Digits().split("test")
    x, classifier = test.tensor(), load_extractor("digits", (1, 8, 8))
    variance = (x - Digits().tensor("train").mean(0)).square().mean()
    with torch.no_grad():
        w = own.standardise(own.encode(x).mean)
        again = {name: stage.decode(w) for name, stage in stages.items()}
        itself = stages["another encoder"]
        again["another first stage as a whole"] = itself.decode(itself.standardise(itself.encode(x).mean))
        right = {
            name: float((classifier.logits(y).argmax(1) == test.label).double().mean()) for name, y in again.items()
        }
    share = {name: float((y - x).square().mean() / variance) for name, y in again.items()}
    for name in ("own", "same encoder", "another first stage as a whole"):
        assert share[name] < 0.3
        assert right[name] > 0.9
    assert share["another encoder"] > 1
    assert right["another encoder"] <= 0.4
