"""Which conditions a denoiser takes, what their values may be, and what is said of other keywords, in every call."""

import numpy as np
import pytest
import torch
from torch import nn

from sde_diffusion import (
    MLP,
    VPSDE,
    AncestralSampler,
    Denoiser,
    EmpiricalDenoiser,
    GaussianDenoiser,
    NetworkDenoiser,
    Objective,
    Prediction,
    ScoreModel,
    UNet,
    elbo,
    log_likelihood,
)

X = torch.zeros(3, 2)
SAMPLER = AncestralSampler(3)
CALLS = {
    "sampler": lambda denoiser, **given: SAMPLER(denoiser, (3, 2), **given).x,
    "inversion": lambda denoiser, **given: SAMPLER.invert(denoiser, X, **given).x,
    "likelihood": lambda denoiser, **given: log_likelihood(denoiser, X, 0.1, 0.1, **given).log_prob,
    "bound": lambda denoiser, **given: elbo(denoiser, X, 5, **given).log_prob,
    "objective": lambda denoiser, **given: Objective()(denoiser, X, 0.5, X, **given),
    "directly": lambda denoiser, **given: denoiser(X, 0.5, **given).x0,
}


class OwnLabel(nn.Module):
    """An own network with a condition of its own."""

    def forward(self, x, t, strength=1.0):
        return strength * x


class Open(Denoiser):
    """Takes anything, and says what it was given."""

    sde = VPSDE()

    def forward(self, x_t, t, **conditions):
        self.given = conditions
        return Prediction(self.sde, x_t, t, 0 * x_t)


class Wrapper(Denoiser):
    """What guidance will be: conditions of its own, and those of the denoiser that it wraps."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.sde = inner, inner.sde

    @property
    def conditions(self):
        return (*self.inner.conditions, "scale")

    def check_conditions(self, conditions, batch, device, wait=True):
        known = super().check_conditions(conditions, batch, device, wait)
        inner = {name: value for name, value in known.items() if name != "scale"}
        return known | self.inner.check_conditions(inner, batch, device, wait)

    def forward(self, x_t, t, scale=1.0, **conditions):
        return self.inner(x_t, t, **conditions)


def conditional(n_classes=4):
    """A network with weights that are not zero, so that labels matter."""
    torch.manual_seed(0)
    network = MLP([2], n_classes=n_classes, width=8, depth=1, embedding_dim=8)
    for p in network.parameters():
        nn.init.normal_(p)
    return NetworkDenoiser(VPSDE(), network)


GAUSS = GaussianDenoiser(VPSDE(), [0.0, 0.0], 1.0)
DENOISERS = {
    "closed": (GAUSS, ()),
    "empirical": (EmpiricalDenoiser(VPSDE(), X), ()),
    "unconditional": (NetworkDenoiser(VPSDE(), MLP([2], width=8, depth=1)), ()),
    "conditional": (conditional(), ("label",)),
    "own": (NetworkDenoiser(VPSDE(), OwnLabel()), ("strength",)),
    "wrapper": (Wrapper(conditional()), ("label", "scale")),
    "open": (Open(), None),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_know_their_conditions(name):
    denoiser, conditions = DENOISERS[name]
    assert denoiser.conditions is None if conditions is None else tuple(denoiser.conditions) == conditions


def test_a_conditional_unet_takes_a_label():
    network = UNet([1, 4, 4], 3, channels=4, channel_mult=[1], blocks=1, attention=[])
    assert tuple(NetworkDenoiser(VPSDE(), network).conditions) == ("label",)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", DENOISERS)
def test_seeds_by_other_names_point_to_seeds(name, call):
    denoiser, conditions = DENOISERS[name]
    takes_seed = call in ("likelihood", "bound")  # an argument of these
    for keyword in ("generator",) if takes_seed else ("seed", "generator"):
        with pytest.raises(TypeError, match=rf"'{keyword}'.*seeds=, one integer for each sample"):
            CALLS[call](denoiser, **{keyword: [5, 6, 7]})
        CALLS[call](denoiser, **{keyword: None})
    if conditions is not None:
        allowed = f"it takes {', '.join(conditions) or 'none'}"
        with pytest.raises(TypeError, match=rf"takes no condition 'temperature' \({allowed}\)"):
            CALLS[call](denoiser, temperature=1.0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        *((name, "classes are given as label=") for name in ("labels", "y", "class_labels", "classes")),
        ("lable", "did you mean label="),
        ("num_samples", "first size of shape"),
        ("num_inference_steps", "argument of the sampler's constructor"),
        ("latents", "given as latent="),
    ],
)
def test_near_misses(call, keyword, hint):
    with pytest.raises(TypeError, match=rf"NetworkDenoiser takes no condition '{keyword}' \(it takes label\).*{hint}"):
        CALLS[call](conditional(), **{keyword: torch.zeros(3, dtype=torch.int64)})


def test_an_open_denoiser_gets_everything_as_it_is():
    denoiser, label = Open(), torch.tensor([4, 1, 2])
    for call in CALLS.values():
        call(denoiser, label=label, text="a word")
        assert denoiser.given["text"] == "a word"
        times = len(denoiser.given["label"]) // 3  # the bound puts draws of several times together
        assert torch.equal(denoiser.given["label"], label.repeat(times))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("denoiser", [conditional(), Wrapper(conditional())], ids=["network", "wrapper"])
def test_labels_in_any_form(denoiser, call):
    """An integer stands for all; lists, arrays and tensors of integers are alike; 4 is the null class, like none."""
    expected = CALLS[call](denoiser, label=torch.tensor([2, 2, 2]))
    for label in (2, np.int64(2), torch.tensor(2), [2, 2, 2], np.array([2, 2, 2], np.uint8), torch.full((3,), 2).int()):
        assert torch.equal(CALLS[call](denoiser, label=label), expected)
    assert not torch.equal(CALLS[call](denoiser, label=[2, 1, 0]), expected)
    none = CALLS[call](denoiser)
    assert torch.equal(CALLS[call](denoiser, label=None), none)
    torch.testing.assert_close(CALLS[call](denoiser, label=4), none, rtol=1e-4, atol=1e-5)  # one embedding, or B


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (5, r"label must be integers in 0 ... 3 \(or 4: no label\); got 5"),
        (-1, "got -1"),
        ([0, 1, 7], "got 7"),
        (torch.tensor([0, 1, -2]), "got -2"),
        ([0, 1], r"one integer for each of the 3 samples; got shape \[2\]"),
        (torch.zeros(3, 1, dtype=torch.int64), r"got shape \[3, 1\]"),
        (torch.zeros(3), "got float32"),
        (1.0, "got float32"),
        (True, "got bool"),
        ("three", "got 'three'"),
        (["a", "b", "c"], "label must be integers"),
    ],
)
def test_labels_that_are_none(call, label, message):
    with pytest.raises(ValueError, match=message):
        CALLS[call](conditional(), label=label)


def test_a_label_of_all_samples_in_a_walk_is_looked_at_once(monkeypatch):
    denoiser = conditional()
    looks = []
    kind = denoiser.network.conditioning.conditions["label"]
    check = kind.check
    monkeypatch.setattr(
        kind,
        "check",
        lambda name, label, batch, device, wait=True: looks.append(wait) or check(name, label, batch, device, wait),
    )
    SAMPLER(denoiser, (3, 2), label=1)
    assert looks == [True, False, False, False]  # once with the device waited for, then without


@pytest.mark.parametrize("call", [call for call in CALLS if call != "directly"])
def test_what_is_no_denoiser(call):
    model = ScoreModel(conditional(), Objective())
    for given, message in (
        (model, "got ScoreModel: give its .denoiser"),
        (MLP([2]), r"got MLP: a network is made one by NetworkDenoiser\(sde, network\)"),
        (GaussianDenoiser, "got the class GaussianDenoiser: give an instance"),
        (None, "got NoneType"),
        (VPSDE(), "got VPSDE"),
    ):
        with pytest.raises(TypeError, match=f"denoiser must be a Denoiser; {message}"):
            CALLS[call](given)


@pytest.mark.parametrize("call", ["sampler", "directly"])
def test_a_compiled_denoiser_is_one(call):
    denoiser = conditional()
    compiled = torch.compile(denoiser, backend="eager")
    assert torch.equal(CALLS[call](compiled, label=1), CALLS[call](denoiser, label=1))


@pytest.mark.parametrize("sde", ["vp", VPSDE, None, 3])
def test_what_is_no_path(sde):
    for make in (
        lambda: NetworkDenoiser(sde, MLP([2])),
        lambda: GaussianDenoiser(sde, [0.0], 1.0),
        lambda: EmpiricalDenoiser(sde, X),
    ):
        with pytest.raises(TypeError, match=r"sde must be a path"):
            make()


def test_reprs_say_what_things_are_made_of():
    text = repr(conditional())
    for part in ("NetworkDenoiser(", "sde=VPSDE(t_min=1e-05", "prediction=edm", "noise_conditioning=log_sigma", "MLP("):
        assert part in text
    assert repr(GAUSS) == f"GaussianDenoiser(sde={VPSDE()}, components=1, shape=[2])"
    assert repr(EmpiricalDenoiser(VPSDE(), X)) == f"EmpiricalDenoiser(sde={VPSDE()}, data=tensor[3, 2], chunk=16384)"
    assert repr(Objective()) == (
        "DenoisingScoreMatching(weighting=EDMWeighting(sigma_data=0.5), "
        "times=LogNormalTimes(mean=-1.2, std=1.2, stratified=True))"
    )
