"""The same results on a CUDA device as on the CPU, and no waiting for it in the walks."""

import signal

import numpy as np
import pytest
import torch
from faults.outcomes import training
from lightning.pytorch.callbacks import Callback
from training.tiny import make_model, make_trainer, ring

from sde_diffusion import (
    MLP,
    VPSDE,
    AncestralSampler,
    BetaTable,
    DEISSampler,
    DPMSolver,
    EmpiricalDenoiser,
    GaussianMixtureDenoiser,
    HeunSampler,
    NetworkDenoiser,
    Objective,
    PredictorCorrector,
    RePaint,
    Replacement,
    TwistedSMC,
    UniPC,
    elbo,
    log_likelihood,
)
from sde_diffusion.data import Digits
from sde_diffusion.guidance import Mask, MomentMatching, PosteriorDenoiser
from sde_diffusion.sampling import Noise, Walk
from sde_diffusion.training import EMA, DiscreteTimes, EDMWeighting, ImportanceTimes, LogNormalTimes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_noise_is_the_same_to_rounding():
    here, there = (Noise(range(7), (3, 5, 5), device).normal(4) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", [AncestralSampler(20, eta=1.0), DPMSolver(12)], ids=["ddpm", "dpm"])
def test_samples_are_the_same(sampler):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    here, there = (
        sampler(GaussianMixtureDenoiser(VPSDE(), means, 0.3).to(device), (50, 2), dtype=torch.float64).x
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [Replacement(AncestralSampler(20, eta=1.0)), RePaint(12, 3, 3), TwistedSMC(12, 8), AncestralSampler(12)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_posterior_samples_are_the_same(sampler):
    means, y, results = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.linspace(-1, 1, 50).reshape(-1, 1), []
    for device in ("cpu", "cuda"):
        mixture = GaussianMixtureDenoiser(VPSDE(), means, 0.3)
        posterior = PosteriorDenoiser(mixture, Mask(torch.tensor([1, 0])), 0.1, MomentMatching(1)).to(device)
        found = sampler(posterior, (50, 2), y=y, dtype=torch.float64)
        results.append(found.x.cpu())
        if found.log_evidence is not None:
            results[-1] = torch.cat([found.x, found.log_evidence.unsqueeze(1)], 1).cpu()
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_objective_is_the_same_and_its_gradient_too():
    torch.manual_seed(0)
    network = MLP((4,), width=32, depth=1)
    torch.nn.init.normal_(network.output.weight)
    objective = Objective(EDMWeighting(), LogNormalTimes())
    x, noise = torch.randn(2, 64, 4)
    t = objective.times.strata(VPSDE(), 64)
    gradients = []
    for device in ("cpu", "cuda"):
        denoiser = NetworkDenoiser(VPSDE(), network.to(device))
        loss = objective(denoiser, x.to(device), t.to(device), noise.to(device)).mean()
        (gradient,) = torch.autograd.grad(loss, network.output.weight)
        gradients.append(gradient.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


SAMPLERS = (
    AncestralSampler(8),
    AncestralSampler(8, eta=0.0),
    DPMSolver(8),
    DPMSolver(8, order=3),
    UniPC(8),
    HeunSampler(8),
    DEISSampler(8),
    PredictorCorrector(steps=8),
)
"""torchdiffeq's solvers hold the time on the device and ask for it; torchsde's walk is looked at once at either end."""


@pytest.mark.parametrize("kind", ["network", "mixture", "kernel"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_a_walk_does_not_wait_for_the_device(sampler, kind, waits):
    denoiser = (
        {
            "network": lambda: NetworkDenoiser(VPSDE(), MLP((4,), width=32, depth=1)),
            "mixture": lambda: GaussianMixtureDenoiser(VPSDE(), torch.randn(3, 4), 0.3),
            "kernel": lambda: EmpiricalDenoiser(VPSDE(), torch.randn(30, 4)),
        }[kind]()
        .cuda()
        .eval()
    )
    sampler(denoiser, (16, 4))  # the first call loads kernels
    # Seeds and the first state are sent there once a walk.
    walk, x = Walk(denoiser, Noise(range(16), (4,), "cuda"), 1e-3), torch.randn(16, 4, device="cuda")
    with torch.no_grad():
        waits()
        sampler.walk(x, walk)


class Steps(Callback):
    """Call a function before some of the training steps, and another after."""

    def __init__(self, before, after):
        self.before, self.after = before, after

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if 5 <= trainer.global_step < 15:  # the first steps load kernels
            self.before()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after()


TIMES = (LogNormalTimes(), ImportanceTimes(), DiscreteTimes(BetaTable(beta_end=0.0198)))


@pytest.mark.parametrize("times", TIMES, ids=lambda times: type(times).__name__)
def test_a_training_step_does_not_wait_for_the_device(tmp_path, times, waits):
    steps = Steps(waits, lambda: waits("default"))
    trainer = make_trainer(
        tmp_path, steps, EMA(0.9, every_n_steps=4), accelerator="gpu", log_every_n_steps=50, gradient_clip_val=1.0
    )
    model = make_model(activation_checkpointing=times is TIMES[0])
    model.objective.times = times
    trainer.fit(model, ring())
    assert trainer.global_step == 20


def test_likelihoods_agree_with_the_cpu():
    """The same probes and draws on both: to the network's rounding."""
    torch.manual_seed(0)
    network = MLP([4], width=32, depth=1)
    torch.nn.init.normal_(network.output.weight, std=0.3)
    denoiser = NetworkDenoiser(VPSDE(), network)
    x = torch.randn(16, 4)
    results = []
    for device in ("cpu", "cuda"):
        moved = denoiser.to(device)
        flow = log_likelihood(moved, x.to(device), probes=2, method="rk4", steps=40)
        bound = elbo(moved, x.to(device), steps=50)
        assert flow.log_prob.device.type == device
        results.append(torch.stack([flow.log_prob.cpu(), flow.std_error.cpu(), bound.log_prob.cpu()]))
    assert torch.allclose(*results, rtol=1e-4, atol=1e-3)


GPU = ("trainer.accelerator=gpu", "trainer.devices=1")
RUN = (
    *GPU,
    "network.width=64",
    "network.depth=2",
    "data=moons",
    "data.n_train=2000",
    "data.batch_size=128",
    "trainer.max_steps=60",
    "trainer.val_check_interval=20",
    "callbacks.samples.n=4",
    "sampler=ddpm",
    "sampler.steps=4",
)


def close(one, other, where: str = "") -> None:
    """Assert that two nested containers hold the same, tensors to a GPU's rounding."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=lambda said: f"{where}: {said}")
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            close(a, b, f"{where}[{i}]")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5), where
    elif not isinstance(one, bytes):  # of pictures and tables
        assert one == other, where


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_stopped_run_ends_where_the_unbroken_one_does(command, tmp_path, precision):
    run = (*RUN, f"trainer.precision={precision}")
    complete = command("train", *run, f"hydra.run.dir={tmp_path / 'complete'}", cwd=tmp_path, signal_at=0)
    assert complete.status == 0, complete.err
    expected = training(tmp_path / "complete")
    for share, number in ((0.3, signal.SIGINT), (0.6, signal.SIGTERM)):
        folder = tmp_path / f"stopped-{share}"
        typed = (*run, f"hydra.run.dir={folder}")
        done = command("train", *typed, cwd=tmp_path, signal_at=int(share * complete.calls), number=number)
        assert done.status == 128 + number, done.err
        again = command("train", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", cwd=tmp_path)
        assert again.status == 0, again.err
        close(expected, training(folder))


@pytest.mark.timeout(300)
def test_a_model_trained_on_the_device_is_used_on_the_cpu(command, tmp_path):
    assert command("train", *RUN, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path).status == 0
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    found = []
    for device in ("cuda", "cpu"):
        done = command("sample", ckpt, "n=16", f"device={device}", f"out={tmp_path / device}", cwd=tmp_path)
        assert done.status == 0, done.err
        found.append(np.load(tmp_path / device / "samples.npz")["points"])
    torch.testing.assert_close(*(torch.as_tensor(points) for points in found), rtol=1e-3, atol=1e-3)


@pytest.mark.timeout(300)
def test_a_full_device(command, trained, tmp_path):
    """Another process, here this one, holds nearly all of the device's memory: training is told in one message, and
    sampling takes smaller batches.
    """
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 3 * 2**30 // 2, dtype=torch.uint8, device="cuda")
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    large = ("network=mlp", "network.width=16384", "network.depth=3")
    done = command("train", *GPU, *large, f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert done.status == 1, done.err
    assert "Traceback" not in done.err
    assert "error: memory of the device ran out" in done.err, done.err
    assert "network.width" in done.err
    large = ("n=2000000", "batch_size=2000000", "sampler=ddim", "sampler.steps=2", "device=cuda")
    done = command("sample", ckpt, *large, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "ran out of memory with 2000000 items at once: trying half as many" in done.out + done.err
    assert len(np.load(tmp_path / "out" / "samples.npz")["images"]) == 2_000_000
    del held
    torch.cuda.empty_cache()


def test_a_learned_path_is_walked_and_trained_without_waiting():
    """Its parameters are fetched once a walk, however many steps; a step of training waits for nothing."""
    from sde.test_learned import Quick

    def answers(device):
        path = Quick()
        denoiser = GaussianMixtureDenoiser(path, torch.tensor([[0.2, -0.1]]), 0.5).to(device)
        latent = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64, device=device)
        drawn = DPMSolver(4)(denoiser, (2, 2), latent=latent, dtype=torch.float64, create_graph=True).x
        bound = elbo(denoiser, latent, steps=None, draws=4, create_graph=True).log_prob
        found = [drawn, bound, *torch.autograd.grad(drawn.sum() + bound.sum(), [path.ends, path.bend])]
        return [value.detach().cpu() for value in found]

    for here, there in zip(answers("cpu"), answers("cuda"), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)
    denoiser = NetworkDenoiser(Quick(), MLP((2,), width=16, depth=1)).cuda()
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    data = torch.randn(64, 2, device="cuda")
    for times in (LogNormalTimes(stratified=True), ImportanceTimes()):
        objective = Objective(EDMWeighting(), times)
        for mode in ("default", "default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                objective(denoiser, data).mean().backward()
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_batches_made_on_the_device_are_the_same():
    data = Digits(flip=True)
    index = torch.randperm(2 * len(data.split("train")))[:300]
    here = data.train_batch(index)
    data._train = data.split("train").on(torch.device("cuda"))
    there = data.train_batch(index)
    assert all(value.is_cuda and torch.equal(value.cpu(), here[name]) for name, value in there.items())
