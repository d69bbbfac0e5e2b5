"""What training measures of a batch it measures of all processes: two on halves of a batch are as one on the whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from sde_diffusion.distributed import process_count, summed
from sde_diffusion.sde import VPSDE
from sde_diffusion.training import AdaptiveTimes, BetaELBO
from sde_diffusion.variational import DiagonalGaussian, LatentVariable, PosteriorSample, VectorQuantizer

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.linspace(1e-3, 1, 32, dtype=torch.float64)
SQUARES = torch.where(torch.arange(32) == 20, math.nan, 1 + X[:, 0].square())


def follow(x: torch.Tensor) -> torch.Tensor:
    """Codes that follow the vectors, of which each code has some."""
    quantizer = VectorQuantizer(4, 3, decay=0.5, restart=0.0).double().train()
    quantizer.codebook.copy_(X[:4])
    quantizer.sums.copy_(X[:4])
    quantizer.counts.fill_(1)
    quantizer.started.fill_(True)
    for _ in range(3):
        quantizer(x)
    return torch.cat([quantizer.codebook, quantizer.sums, quantizer.counts[:, None]], 1)


def begin(x: torch.Tensor) -> torch.Tensor:
    """As many codes as vectors: each begins at another one of them."""
    quantizer = VectorQuantizer(len(X), 3).double().train()
    quantizer(x)
    return quantizer.codebook


def restart(x: torch.Tensor) -> torch.Tensor:
    """Codes that nothing is near to, all but the first: they are placed at vectors of the batch."""
    quantizer = VectorQuantizer(5, 3, decay=0.0).double().train()
    quantizer.codebook.copy_(torch.cat([X[:1], torch.full((4, 3), 1e3)]))
    quantizer.started.fill_(True)
    quantizer(x)
    return quantizer.codebook


def observe(t: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    times = AdaptiveTimes(bins=3, decay=0.5)
    for _ in range(2):
        times.observe(VPSDE(), t, squares)
    return times.moments


def free_nats(x: torch.Tensor) -> torch.Tensor:
    """The mean loss over all processes.

    The mean KL divergences of the halves are 2.39 and 2.36: 2.38 free nats are more than that of all, 2.375.
    """
    q, p = (DiagonalGaussian(mean, torch.zeros_like(mean)) for mean in (1.2 * x, torch.zeros_like(x)))
    found = PosteriorSample([LatentVariable(q.mean, q, p, closed=True)], torch.zeros(len(x), dtype=torch.float64))
    return summed(BetaELBO(free_nats=2.38).loss(found, x).mean()) / process_count()


def measure(own: slice) -> dict[str, torch.Tensor]:
    x = X[own]
    of_x = {
        name: of(x)
        for name, of in {"follow": follow, "begin": begin, "restart": restart, "free nats": free_nats}.items()
    }
    return {**of_x, "observe": observe(T[own], SQUARES[own])}


def work(rank: int, folder: Path) -> None:
    torch.manual_seed(rank)  # as in training
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(measure(slice(rank, None, 2)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("both")
    multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")  # which need import nothing
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_processes_agree(both):
    for name, value in both[0].items():
        assert torch.equal(value, both[1][name]), name


@pytest.mark.parametrize("name", ["follow", "observe", "free nats"])
def test_two_processes_measure_what_one_does(both, name):
    torch.testing.assert_close(both[0][name], measure(slice(None))[name], rtol=1e-12, atol=1e-12)


def test_codes_begin_at_the_vectors_of_all_processes(both):
    found = both[0]["begin"]
    assert torch.equal(found[found[:, 0].argsort()], X[X[:, 0].argsort()])


def test_codes_restart_at_the_vectors_of_all_processes(both):
    first, *others = both[0]["restart"]
    torch.testing.assert_close(first, X.mean(0))
    places = [int((X - one).abs().sum(1).argmin()) for one in others]
    assert torch.equal(torch.stack(others), X[places])
    assert len({*places}) == 4
    assert {place % 2 for place in places} == {0, 1}
