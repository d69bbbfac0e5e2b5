import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from sde_diffusion.nn import FourierEmbedding, PositionalEmbedding
from sde_diffusion.nn.embedding import Conditioning


@pytest.mark.parametrize("name", ["positional", "fourier"])
def test_features_are_a_rotation_per_frequency(name):
    # Angle addition: features of c + d are those of c rotated by ω·d, which NumPy's complex numbers do here.
    embedding = {"positional": PositionalEmbedding, "fourier": FourierEmbedding}[name](32)
    c, d = torch.linspace(-4, 4, 41, dtype=torch.float64), 0.37

    def as_complex(features):
        return features[:, :16].numpy() + 1j * features[:, 16:].numpy()

    turn = np.exp(1j * d * embedding.frequencies.double().numpy())
    np.testing.assert_allclose(as_complex(embedding(c + d)), as_complex(embedding(c)) * turn, atol=1e-13)
    np.testing.assert_allclose(np.abs(as_complex(embedding(c))), np.sqrt(2), rtol=1e-13)


def test_positional_frequencies_are_geometric_within_bfloat16():
    # bfloat16 keeps 8 bits: relative rounding 2⁻⁸ each, so 2⁻⁷ in the ratio of two.
    omega = PositionalEmbedding(64, highest=16.0, lowest=1e-3).frequencies.double().numpy()
    np.testing.assert_allclose(omega[[0, -1]], [16.0, 1e-3], rtol=2**-8)
    np.testing.assert_allclose(omega[1:] / omega[:-1], (1e-3 / 16) ** (1 / 31), rtol=2**-7)


def test_fourier_frequencies_have_the_stated_spread():
    # 4096 normal draws: the sample deviation lies within 6% of 2π·scale but for 1 seed in 10⁷; the seed is fixed.
    omega = FourierEmbedding(8192, scale=3.0).frequencies.double().numpy()
    assert omega.std() == pytest.approx(2 * np.pi * 3, rel=0.06)
    assert abs(omega.mean()) < 6 * 2 * np.pi * 3 / 64


def test_fourier_frequencies_are_equal_in_another_process_and_untouched_by_the_global_seed():
    torch.manual_seed(1)
    here = FourierEmbedding(8).frequencies
    code = "import torch; from sde_diffusion.nn import FourierEmbedding as F; print(F(8).frequencies.tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    torch.manual_seed(2)
    assert here.tolist() == FourierEmbedding(8).frequencies.tolist() == json.loads(there)
    state = torch.get_rng_state()
    FourierEmbedding(8)
    assert torch.equal(state, torch.get_rng_state())


def test_names_of_earlier_checkpoints_are_still_known():
    """Checkpoints hold the name of their features: "ncsnpp" has another today, and "ddpm" its own features."""
    former, today = (Conditioning(16, embedding=name).features for name in ("ncsnpp", "gaussian_fourier"))
    torch.testing.assert_close(former.state_dict(), today.state_dict(), rtol=0, atol=0)
    assert next(iter(Conditioning(16, embedding="ddpm").state_dict())) == "features.frequencies"
    with pytest.raises(ValueError, match="positional, fourier, timestep, timestep_cos, gaussian_fourier; got"):
        Conditioning(16, embedding="ncsn")


def test_features_of_earlier_checkpoints_are_those_of_ddpm():
    """1 down to 1e-4 radian a step, in equal ratios; within bfloat16's rounding."""
    frequencies = Conditioning(64, embedding="ddpm").features.frequencies.double().numpy()
    np.testing.assert_allclose(frequencies, np.geomspace(1, 1e-4, 32), rtol=2**-8)


@pytest.mark.parametrize("embedding", [PositionalEmbedding(64), FourierEmbedding(64)])
def test_cast_to_bfloat16_and_back_changes_nothing(embedding):
    # 999·t in bfloat16 frequencies would be off by radians, had they not been rounded at construction.
    c = torch.linspace(0, 999, 50)
    before = embedding(c)
    assert torch.equal(embedding.bfloat16()(c), before)
    embedding.float()


@pytest.mark.parametrize("embedding", [PositionalEmbedding(64), FourierEmbedding(64)])
def test_least_squares_reads_the_noise_number_off_the_features(embedding):
    # A linear map of the features gives c on [−4, 4] within 0.005 at held-out points: 0.01 apart can be told apart.
    train, held_out = torch.linspace(-4, 4, 801, dtype=torch.float64), torch.linspace(-3.995, 3.995, 800).double()
    weights, *_ = np.linalg.lstsq(embedding(train).numpy(), train.numpy(), rcond=1e-10)
    np.testing.assert_allclose(embedding(held_out).numpy() @ weights, held_out.numpy(), atol=5e-3)


def test_positional_features_tell_steps_of_a_thousand_apart():
    # Correlation of features of neighbouring steps 0, 1, …, 999 stays below that of a step with itself by 1%.
    features = PositionalEmbedding(64)(torch.arange(1000.0)).double().numpy()
    correlation = features @ features.T / 64
    np.fill_diagonal(correlation, 0)
    assert correlation.max() < 0.99


def test_conditioning_adds_the_embedding_of_the_label_to_that_of_the_noise():
    # A label whose row is zero leaves what a network without labels computes from the same weights.
    labelled, plain = Conditioning(8, n_classes=3).double(), Conditioning(8).double()
    plain.load_state_dict({k: v for k, v in labelled.state_dict().items() if k != "embeddings.label.weight"})
    torch.nn.init.zeros_(labelled.embeddings.label.weight)
    c = torch.linspace(-1, 1, 5).double()
    expected = plain(c)
    torch.testing.assert_close(labelled(c, torch.tensor([0, 1, 2, 3, 0])), expected)
    # Shifting row 1 is shifting the bias of the first layer, for samples of class 1 alone.
    shift = torch.arange(8.0).double()
    with torch.no_grad():
        labelled.embeddings.label.weight[1] = shift
        plain.input.bias += shift
    mixed = labelled(c, torch.tensor([0, 1, 1, 2, 3]))
    torch.testing.assert_close(mixed[1:3], plain(c)[1:3])
    torch.testing.assert_close(mixed[[0, 3, 4]], expected[[0, 3, 4]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PositionalEmbedding(7), "even"),
        (lambda: PositionalEmbedding(2), "at least 4"),
        (lambda: PositionalEmbedding(8, highest=1.0, lowest=2.0), "lowest <= highest"),
        (lambda: FourierEmbedding(8, scale=0.0), "positive"),
        (lambda: Conditioning(8, embedding="sine"), r"one of positional, fourier, timestep, .* got 'sine'"),
        (lambda: Conditioning(8, n_classes=-1), "n_classes"),
    ],
)
def test_bad_arguments_name_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("embedding", [PositionalEmbedding(64), FourierEmbedding(64)])
def test_default_features_move_with_a_hundredth_of_the_noise_number(embedding):
    # Root-mean-square change of unit features; frequencies 1 … 10⁻⁴, made for steps 0 … 999, would move by 0.0025.
    c = torch.linspace(-4, 4, 81, dtype=torch.float64)
    change = (embedding(c + 0.01) - embedding(c)).square().mean(1).sqrt()
    assert change.min() > 0.02
    assert change.max() < 0.2  # and smoothly: neighbours share their features
