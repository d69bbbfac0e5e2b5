"""The vector quantised autoencoder: an honest bound, gradients of its objective, its first stage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion.errors import UserError
from sde_diffusion.training import BetaELBO, QuantizedELBO
from sde_diffusion.variational import VQVAE, Categorical, ConvVAE, ConvVQVAE, Gaussian, VectorQuantizer, bound
from sde_diffusion.variational.exploration import coordinates, information


def toy(shape: tuple[int, ...] = (1, 2)) -> VQVAE:
    """z_e = x of shape [1, 2], two places, or [1], none; codes -1, 0 and 1; p(x | z) = N(2 z, 1)."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return (self.factor * z).unsqueeze(1)

    quantizer = VectorQuantizer(3, 1)
    quantizer.codebook.copy_(torch.tensor([[-1.0], [0.0], [1.0]]))
    quantizer.started.fill_(True)
    return VQVAE(nn.Identity(), Twice(), quantizer, Gaussian(1.0, learned=False), shape, shape).double()


@pytest.mark.parametrize("values", [[[[0.8, -0.2]], [[-3.0, 0.4]]], [[0.8], [-3.0]]], ids=["two places", "no places"])
def test_the_bound_is_below_the_evidence_by_what_the_other_codes_explain(values):
    """Log p(x) by summing over all sequences of codes; the bound has the term of the nearest ones alone."""
    x = torch.tensor(values, dtype=torch.float64)
    model = toy(tuple(x.shape[1:])).eval()
    codes = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    each = -0.5 * (x.unsqueeze(-1) - 2 * codes).square() - 0.5 * math.log(2 * math.pi) - math.log(3)
    evidence = each.logsumexp(-1).flatten(1).sum(1)
    nearest = (x.unsqueeze(-1) - codes).abs().argmin(-1, keepdim=True)
    found = bound(model, x, draws=4, importance=3)
    torch.testing.assert_close(found.log_prob, each.gather(-1, nearest).flatten(1).sum(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.kl[0], torch.full((2,), x[0].numel() * math.log(3), dtype=torch.float64))
    assert bool((found.log_prob < evidence).all())
    (z,) = model.generate([torch.tensor([-2.0, 2.0]).reshape(2, *(1,) * (x.ndim - 1)).expand_as(x)])
    torch.testing.assert_close(z, torch.tensor([-1.0, 1.0]).reshape(2, *(1,) * (x.ndim - 1)).expand_as(x).double())
    assert float(found.std_error.abs().max()) < 1e-12


def test_the_commitment_reaches_the_encoder_and_not_the_codes():
    """By hand, at x = 0.8 and code 1: beta 2 (x - 1), and the decoder's gradient passed straight through."""
    model = toy().eval()
    x = torch.tensor([[[0.8, 0.0]]], dtype=torch.float64)
    z_e = x.clone().requires_grad_()
    found = model.infer(z_e, [])
    # z = z_e + sg(...), so the gradient of the decoder (factor 2) and of x itself (-1) both arrive at z_e
    (through,) = torch.autograd.grad(QuantizedELBO(0.25).loss(found, x).sum() * 2, z_e, retain_graph=True)
    reconstruction = 2 * (2 * torch.tensor([1.0, 0.0]) - x[0, 0]) - (2 * torch.tensor([1.0, 0.0]) - x[0, 0])
    commitment = 0.25 * 2 * (x[0, 0] - torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(through[0, 0], reconstruction + commitment)
    (plain,) = torch.autograd.grad(BetaELBO().loss(found, x).sum() * 2, z_e)
    torch.testing.assert_close(through[0, 0] - plain[0, 0], commitment)


def test_it_is_a_first_stage():
    """`encode` gives the vectors before quantisation, and `decode` quantises; samples have uniform codes."""
    torch.manual_seed(0)
    model = ConvVQVAE([1, 6, 6], Categorical(5), codebook_size=8, latent_channels=3, channels=[8, 8], patch=2)
    x = torch.randint(0, 5, (40, 1, 6, 6)) / 2 - 1.0
    model.train().infer(x, [])
    model.eval()
    z = model.encode(x)
    assert model.latent_shapes == [(3, 2, 2)]
    assert z.draw(torch.randn(40, 3, 2, 2)) is z.mean
    codes = model.quantizer(z.mean).z
    assert not torch.equal(codes, z.mean)
    torch.testing.assert_close(model.decode([z.mean]), model.decode([codes]))
    torch.testing.assert_close(model.infer(x, []).log_prob, model.observation.log_prob(x, model.outputs([z.mean])))
    assert int(model.usage(model.infer(x, []))["counts"].sum()) == 160
    drawn = model.generate([torch.randn(2000, 3, 2, 2)])[0]
    shares = torch.bincount(model.quantizer.index_of(drawn).flatten(), minlength=8) / 8000
    assert float((shares - 1 / 8).abs().max()) < 5 * math.sqrt(1 / 8 * 7 / 8 / 8000)  # false alarms: 5e-6
    with pytest.raises(UserError, match="a VQ encoder is deterministic and has no entropy: no bound in nats"):
        z.entropy()


def test_continuous_latents_are_refused():
    model = ConvVAE([1, 6, 6], Categorical(5), channels=[4], patch=2)
    with pytest.raises(UserError, match="are codes, such as model/autoencoder=vq"):
        QuantizedELBO().check(model)


def test_codes_have_no_coordinates_but_information_at_each_place():
    model = ConvVQVAE([1, 8, 8], Categorical(17), codebook_size=4, latent_channels=2, channels=[4, 4]).eval()
    found = model.infer(torch.zeros(3, 1, 8, 8), [torch.zeros(3, 2, 4, 4)])
    assert coordinates(found) is None
    (amounts,) = information(found)
    assert amounts.shape == (4, 4)
    torch.testing.assert_close(amounts.sum(), found.kl()[0, 0])
