"""Long work in batches: order, resuming, memory that runs out, several processes, signals."""

import errno
import logging
import multiprocessing
import os
import signal
from datetime import timedelta

import pytest
import torch
from torch import distributed

from sde_diffusion.errors import UserError
from sde_diffusion.storage import signals
from sde_diffusion.storage.batches import in_batches
from sde_diffusion.storage.parts import Parts


class Squares:
    """Work whose results tell of each item, and of what it was asked."""

    def __init__(self, at_most=10**9, error=None):
        self.asked, self.at_most, self.error = [], at_most, error

    def __call__(self, items, shown):
        self.asked.append((items.start, items.stop))
        if len(items) > self.at_most:
            raise self.error
        return {"y": torch.tensor(items).double() ** 2, "first": torch.tensor(items.start)}


def squares(n):
    return torch.arange(n).double() ** 2


def test_results_are_in_order_and_resumed_by_index(tmp_path, caplog):
    """A run that ended after two batches resumes with another batch size; the figures of all batches are there."""

    class EndedError(Exception):
        pass

    caplog.set_level(logging.INFO)
    first, second = Squares(), Squares()

    def end(done, shown):
        if done.n == 8:
            raise EndedError

    with pytest.raises(EndedError):
        in_batches("squaring", 11, 4, first, tmp_path / "kept", {"seed": 1}, enough=end)
    done = in_batches("squaring", 11, 2, second, tmp_path / "kept", {"seed": 1})
    assert (first.asked, second.asked) == ([(0, 4), (4, 8)], [(8, 10), (10, 11)])
    assert torch.cat(done.each("y")).equal(squares(11))
    assert torch.cat(list(done.stored("y"))).equal(squares(11))
    assert list(map(int, done.each("first"))) == [0, 4, 8, 10]
    assert (done.n, done.sizes) == (11, [4, 2])
    assert f"squaring: resuming after 8 of 11, kept in {tmp_path / 'kept'}" in caplog.text
    with pytest.raises(UserError, match="unfinished results of another command"):
        in_batches("squaring", 11, 4, second, tmp_path / "kept", {"seed": 2})
    light = in_batches("squaring", 11, 4, second, tmp_path / "kept", {"seed": 1}, held=["first"])
    assert [list(result) for result in light.results] == [["first"]] * 4
    assert len(second.asked) == 2


def test_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = in_batches("squaring", 5, 3, Squares())
    assert torch.cat(done.each("y")).equal(squares(5))
    light = in_batches("squaring", 5, 3, Squares(), held=["first"])
    assert [list(result) for result in light.results] == [["first"]] * 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        in_batches("squaring", 5, 0, Squares())


FULL = {
    "a device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "the machine": MemoryError(),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("case", FULL)
def test_a_batch_is_halved_when_memory_runs_out(case, tmp_path, caplog):
    """Down to what fits, which is then kept to; said once, and recorded; nothing is lost or done twice."""
    work = Squares(3, FULL[case])
    done = in_batches("squaring", 21, 13, work, tmp_path / "kept")
    assert work.asked == [(0, 13), (0, 6), *((start, start + 3) for start in range(0, 21, 3))]
    assert torch.cat(done.each("y")).equal(squares(21))
    assert done.sizes == [3]
    assert [record.getMessage() for record in caplog.records] == [
        "ran out of memory with 13 items at once: trying half as many"
    ]


def test_one_item_that_does_not_fit_ends_the_work(tmp_path):
    """With the error itself; what was finished before is kept. Other errors end it at once."""
    work = Squares(0, MemoryError("one item"))
    with pytest.raises(MemoryError, match="one item"):
        in_batches("squaring", 4, 4, work)
    assert work.asked == [(0, 4), (0, 2), (0, 1)]
    work = Squares(2, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="do not fit"):
        in_batches("squaring", 4, 4, work)
    assert work.asked == [(0, 4)]


def test_enough_is_asked_of_an_earlier_runs_batches_too(tmp_path):
    for end in (6, 4):
        work = Squares()
        done = in_batches("squaring", 9, 2, work, tmp_path / "kept", enough=lambda done, shown, end=end: done.n >= end)
        assert done.n == end
    assert work.asked == []


def test_a_signal_keeps_what_is_done(tmp_path):
    """Ctrl-C in the third batch: two are kept, and the run that is resumed makes the others."""

    def interrupted(items, shown):
        if items.start == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return Squares()(items, shown)

    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    before = signals.listen()
    try:
        with pytest.raises(signals.Stopped):
            in_batches("squaring", 7, 2, interrupted, tmp_path / "kept")
    finally:
        signals.restore(before)
        signal.signal(signal.SIGINT, own)
    work = Squares()
    done = in_batches("squaring", 7, 2, work, tmp_path / "kept")
    assert work.asked == [(4, 6), (6, 7)]
    assert torch.cat(done.each("y")).equal(squares(7))


def _process(rank, folder, how, answer):
    """One of two processes that square 20 numbers, three at once."""
    os.environ["RANK"] = str(rank)
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    signals.listen()
    squaring, late = Squares(2 if how == "full" and rank else 99, MemoryError()), how if rank else ""

    def work(items, shown):
        if late == "failing" and items.start >= 6:
            raise ValueError("no such item")
        if late == "signalled" and items.start >= 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return squaring(items, shown)

    end = n = None
    try:
        enough = (lambda done, shown: done.n >= 9) if how == "enough" else None
        done = in_batches("squaring", 20, 3, work, folder / "kept", enough=enough)
        n = done.n
        assert torch.cat(done.each("y")).equal(squares(n))
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"
    answer.put((rank, squaring.asked, n, end))


def two_processes(folder, how):
    fork = multiprocessing.get_context("fork")
    answer = fork.Queue()
    processes = [fork.Process(target=_process, args=(rank, folder, how, answer)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = sorted(answer.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    return [tuple(rest) for _, *rest in answers]


def kept(folder):
    return torch.cat([part["y"] for part in Parts(folder / "kept", {}).load("y")])


def test_two_processes_share_the_batches(tmp_path):
    """Each does its own; both have all results, in order; the files are those of one process."""
    zero, one = two_processes(tmp_path, "whole")
    assert zero == ([(0, 3), (6, 9), (12, 15), (18, 20)], 20, None)
    assert one == ([(3, 6), (9, 12), (15, 18)], 20, None)
    assert kept(tmp_path).equal(squares(20))
    alone = in_batches("squaring", 20, 3, Squares(), tmp_path / "alone")
    names = [sorted(path.name for path in (tmp_path / folder).glob("*.safetensors")) for folder in ("kept", "alone")]
    assert names[0] == names[1]
    assert alone.n == 20


def test_two_processes_end_where_it_is_enough(tmp_path):
    """Where one process would, though the other has done the next batch already; then one alone goes on."""
    zero, one = two_processes(tmp_path, "enough")
    assert (zero[1:], one[1:]) == ((9, None), (9, None))
    assert kept(tmp_path).equal(squares(9))
    rest = Squares()
    assert in_batches("squaring", 20, 9, rest, tmp_path / "kept").n == 20
    assert rest.asked == [(9, 18), (18, 20)]


def test_where_one_process_has_less_memory_all_take_smaller_batches(tmp_path):
    zero, one = two_processes(tmp_path, "full")
    assert (zero[1:], one[1:]) == ((20, None), (20, None))
    assert zero[0][:2] == [(0, 3), (3, 4)]
    assert one[0][:2] == [(3, 6), (4, 5)]
    assert kept(tmp_path).equal(squares(20))


@pytest.mark.parametrize(
    ("how", "ends", "n"),
    [
        ("failing", ["UserError: process 1 of 2 failed: no such item", "ValueError: no such item"], 6),
        ("signalled", ["Stopped: 143", "Stopped: 143"], 12),
    ],
)
def test_what_ends_one_process_ends_both(how, ends, n, tmp_path):
    """Neither waits for the other; what was finished is kept."""
    answers = two_processes(tmp_path, how)
    assert [end for *_, end in answers] == ends
    assert kept(tmp_path).equal(squares(n))
