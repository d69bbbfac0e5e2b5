"""Augmented images against images of known functions, and samples of a model that is told about it."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from sde_diffusion import EDMSDE, MLP, AncestralSampler, NetworkDenoiser, Objective, ScoreModel
from sde_diffusion.conditions import Conditions
from sde_diffusion.training import Augmentation


def waves(points, width, height):
    """A sum of cosines at points [..., 2], in pixels from the centre; even about the pixels at the border."""
    x, y = points[..., 0] + (width - 1) / 2, points[..., 1] + (height - 1) / 2
    across, down = np.pi * x / (width - 1), np.pi * y / (height - 1)
    return 0.4 * np.cos(2 * across) - 0.3 * np.cos(down) + 0.5 * np.cos(across) * np.cos(2 * down)


def grid(width, height):
    return np.stack(np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2), -1)


def expected(labels, width, height, rule):
    """The function of the points that are moved to the pixels, by the forward maps that the labels stand for."""
    mirrored, turned, w, cos, sin, v_cos, v_sin, u_x, u_y = labels
    v, b = math.copysign(math.hypot(v_cos, v_sin), v_cos), math.atan(v_sin / v_cos)
    stretch = (
        math.log(2)
        * rule.stretch
        * v
        * np.array([[math.cos(2 * b), math.sin(2 * b)], [math.sin(2 * b), -math.cos(2 * b)]])
    )
    turn = Rotation.from_euler("z", math.atan2(sin, cos + 1)).as_matrix()[:2, :2]
    forward = expm(stretch) @ turn @ np.diag([2 ** (rule.scale * w)] * 2) @ np.diag([(-1) ** mirrored, (-1) ** turned])
    moved = grid(width, height) - rule.translation * np.array([u_x * width, u_y * height])
    return waves(np.linalg.solve(forward, moved[..., None])[..., 0], width, height)


def test_images_are_those_of_the_moved_function():
    rule, errors = Augmentation(probability=1.0), []
    for width, height in ((24, 20), (48, 40), (96, 80)):
        torch.manual_seed(1)
        image = torch.from_numpy(waves(grid(width, height), width, height))
        found, labels = rule(image.expand(20, 1, -1, -1))
        wanted = np.stack([expected(own, width, height, rule) for own in labels.double().tolist()])
        errors.append(float(np.abs(found[:, 0].numpy() - wanted).max()))
    # The interpolation's error, which falls with the size of the pixels; one wrong sign gives errors of order 1.
    assert errors[0] < 0.05
    assert errors[2] < errors[1] / 1.9 < errors[0] / 3.6


def test_nothing_is_changed_with_probability_0():
    x = torch.randn(50, 3, 5, 4)
    found, labels = Augmentation(probability=0.0)(x)
    assert torch.equal(found, x)
    assert not labels.any()


def test_images_whose_labels_are_0_are_the_same_and_others_are_not():
    torch.manual_seed(0)
    x = torch.randn(4000, 1, 4, 4)
    found, labels = Augmentation(probability=0.12)(x)
    same = (found == x).flatten(1).all(1)
    assert torch.equal(same, ~labels.any(1))
    # Each share within 5 standard errors of its probability: false alarms once in 250,000 runs.
    shares = (labels != 0).double().mean(0)
    wanted = torch.tensor([0.5, 0.06, *[0.12] * 4, 0.12 / 2, *[0.12] * 2], dtype=torch.float64)
    assert bool(((shares - wanted).abs() < 5 * (wanted * (1 - wanted) / 4000).sqrt()).all())
    only_mirrored = torch.tensor([1.0, *[0.0] * 8])
    rows = (labels == only_mirrored).all(1)
    assert torch.equal(found[rows], x[rows].flip(-1))


def toy(told: bool) -> torch.Tensor:
    """Samples of a model of bright left and dark right halves, trained with half of them mirrored."""
    torch.manual_seed(0)
    rule = Augmentation(probability=1.0, turn=False, scale=0, rotate=False, stretch=0, translation=0)
    denoiser = NetworkDenoiser(EDMSDE(), MLP((1, 2, 4), width=32, depth=1, conditions=rule.conditions()))
    model = ScoreModel(denoiser, Objective(), augmentation=rule if told else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    side = torch.tensor([0.7, 0.7, -0.7, -0.7]).expand(1, 2, 4)
    for _ in range(150):
        x = side + 0.05 * torch.randn(64, 1, 2, 4)
        loss = model.training_loss({"x": x if told else rule(x)[0]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return AncestralSampler(steps=20, eta=0)(model.denoiser, (200, 1, 2, 4)).x[..., :2].mean((1, 2, 3))


def test_augmentation_does_not_leak_into_samples():
    assert float(toy(told=True).min()) > 0.5
    assert 60 < int((toy(told=False) < 0).sum()) < 140  # untold, half of the samples are mirrored


def test_only_training_sets_the_condition():
    rule = Augmentation()
    network = MLP((1, 4, 4), width=16, depth=1, conditions=Conditions(rule.conditions(), n_classes=3))
    denoiser = NetworkDenoiser(EDMSDE(), network)
    assert list(denoiser.conditions) == ["label"]
    x, t = torch.randn(2, 1, 4, 4), torch.ones(2)
    assert torch.equal(denoiser(x, t).x0, denoiser(x, t, augment=torch.zeros(2, 9)).x0)
    with pytest.raises(ValueError, match=r"augment must be finite numbers, 9 for each sample .*got nan"):
        denoiser(x, t, augment=torch.full((2, 9), math.nan))


def test_refusals():
    with pytest.raises(ValueError, match="scale must be a standard deviation, at least 0; got -1"):
        Augmentation(scale=-1)
    plain = NetworkDenoiser(EDMSDE(), MLP((1, 4, 4), width=16, depth=1))
    with pytest.raises(ValueError, match=r"the network lacks the condition augment: augmentation\.conditions\(\)"):
        ScoreModel(plain, Objective(), augmentation=Augmentation(), data={"shape": [1, 4, 4]})
    with pytest.raises(ValueError, match=r"augmentation is for images \[C, H, W\] .*got \[2\]"):
        ScoreModel(plain, Objective(), augmentation=Augmentation(), data={"shape": [2]})
