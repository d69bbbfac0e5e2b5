"""The likelihood command: its results, resuming after a kill, and wrong inputs."""

import csv
import json
import math
import signal
import time

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from sde_diffusion import LevelDecoder, ScoreModel, UniformDequantisation, bits_per_dim, elbo, log_likelihood
from sde_diffusion.commands.scorer import Scorer
from sde_diffusion.conditions import Conditions
from sde_diffusion.config import build
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise

SPLITS = ("train", "val", "test", "against")
QUICK = ("rtol=1e-3", "atol=1e-3", "elbo.draws=8", "batch_size=16")


def read(folder):
    return json.loads((folder / "likelihood.json").read_text())


@pytest.fixture(scope="module")
def scored(command, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored")
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "split=all", "n=40", "against=noise", *QUICK)
    done = command("likelihood", *arguments, f"out={out}", cwd=out)
    assert done.status == 0, done.err
    return out, done


def test_figures_are_those_of_the_library(scored, trained):
    """The first batch, computed again with the public functions."""
    out, _ = scored
    model = ScoreModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    data = build(model.data["config"]).prepare()
    with (out / "likelihood.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    # 40 of 300 at random, always the same, in three batches of which the first is looked at.
    items = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:16].tolist()
    rows = [next(row for row in rows if row["index"] == str(item)) for item in items]
    x = data.tensor("test")[items]
    fill = UniformDequantisation(17)
    filled = fill(x, Noise(items, x.shape[1:], dtype=torch.float64), 0)
    flow = log_likelihood(model.denoiser, filled, rtol=1e-3, atol=1e-3, seeds=items)
    bits = bits_per_dim(flow.log_prob, 64, levels=17, data_range=fill.data_range)
    decoder = LevelDecoder.frequencies(17, data.tensor("train"))
    place = read(out)["elbo_settings"]["t_end"]
    bound = elbo(model.denoiser, x, steps=None, draws=8, decoder=decoder, t_end=place, rows=16, seeds=items)
    for name, values in (("log_prob", -bits * 64 * math.log(2)), ("elbo", bound.log_prob)):
        assert [float(row[name]) for row in rows] == pytest.approx(values.tolist(), rel=1e-6), name


def test_report(scored):
    out, done = scored
    with Image.open(out / "likelihood.png") as picture:  # a histogram of each split and of the noise
        assert min(picture.size) > 300
    report = read(out)
    with (out / "likelihood.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = {name: np.array([float(row["log_prob"]) for row in rows if row["split"] == name]) for name in SPLITS}
    assert {name: len(numbers) for name, numbers in values.items()} == dict.fromkeys(SPLITS, 40)
    own = values["test"]
    bits = -own / (64 * math.log(2))
    assert report["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-9)
    assert report["std_error"] == pytest.approx(bits.std(ddof=1) / 40**0.5, rel=1e-6)
    assert report["splits"]["test"]["bits_per_dim"] == report["bits_per_dim"]
    parts = report["elbo"]
    assert parts["bits_per_dim"] == pytest.approx(sum(parts[k] for k in ("reconstruction", "prior", "diffusion")))
    # Three batches of at most 16 items, each with its own number of passes.
    assert 10 < report["nfe"]["mean"] <= report["nfe"]["max"] < 100
    assert (report["n"], report["levels"], report["dims"], report["trained_on"]) == (40, 17, 64, "digits")
    assert "17 levels" in report["convention"]
    assert report["uniform"] == pytest.approx(4.0875, abs=1e-4)  # log2(17)
    assert report["against"]["auroc"] == pytest.approx((own[:, None] > values["against"]).mean(), abs=1e-9)
    far, far_other = (np.abs(numbers - np.median(own)) for numbers in (own, values["against"]))
    assert report["against"]["auroc_typicality"] == pytest.approx((far[:, None] < far_other).mean(), abs=0.02)
    for text in (f"{report['bits_per_dim']:.4f}", "AUROC", "noise", str(out / "likelihood.json")):
        assert text in done.out
    assert not (out / ".scores").exists()
    assert "at most 5,000 (max_nfe)" in done.out
    assert "to quote" in done.out


def test_blank_images_are_told_apart_by_typicality(command, trained, tmp_path):
    done = command(
        "likelihood",
        f"ckpt={trained / 'checkpoints' / 'last.ckpt'}",
        "n=60",
        "against=blank",
        "elbo=null",
        "rtol=1e-3",
        "atol=1e-3",
        f"out={tmp_path}",
        cwd=tmp_path,
    )
    assert done.status == 0, done.err
    other = read(tmp_path)["against"]
    assert other["auroc_typicality"] > 0.8
    assert other["below"] + other["above"] > 0.3
    assert "elbo" not in read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_ends_with_the_same_report(how, command, start, trained, tmp_path):
    settings = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "batch_size=4", "n=100", "elbo.draws=64", "rtol=1e-6")
    complete, broken = tmp_path / "complete", tmp_path / "broken"
    assert command("likelihood", *settings, f"out={complete}", cwd=tmp_path).status == 0
    process = start("likelihood", *settings, f"out={broken}", cwd=tmp_path)
    until = time.monotonic() + 120
    while len(list(broken.glob(".scores/*/*.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how), (out, err)
    assert not (broken / "likelihood.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in broken.glob(".scores/*/*.safetensors")}
    assert 2 <= len(kept) < 25
    other = command("likelihood", *settings, "seed=1", f"out={broken}", cwd=tmp_path)
    assert (other.status, "unfinished results of another command" in other.err) == (1, True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert command("likelihood", *settings, f"out={broken}", cwd=tmp_path).status == 0
    a, b = read(complete), read(broken)
    assert {**a, "seconds": None} == {**b, "seconds": None}
    assert (complete / "likelihood.csv").read_text() == (broken / "likelihood.csv").read_text()


def test_the_standard_error_that_is_enough(command, trained, tmp_path):
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *QUICK, "elbo=null")
    assert command("likelihood", *arguments, "target_se=0.1", f"out={tmp_path}", cwd=tmp_path).status == 0
    report = read(tmp_path)
    assert report["std_error"] <= 0.1
    assert report["n"] < 300
    assert report["n"] % 16 == 0


def test_points_have_densities(command, tmp_path):
    """Continuous data: nats per dimension of the density, whatever the order of magnitude of bits would be."""
    run = tmp_path / "run"
    done = command("train", *TINY, "data=moons", f"hydra.run.dir={run}", cwd=tmp_path)
    assert done.status == 0, done.err
    settings = (f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "n=50", "elbo.draws=8", "prior=matched", "trace=exact")
    done = command("likelihood", *settings, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 0, done.err
    report = read(tmp_path / "out")
    assert "bits_per_dim" not in report
    assert report["nats_per_dim"] == pytest.approx(-report["log_prob"] / 2)
    assert "no bins" in report["convention"]
    refused = command("likelihood", *settings, "draws=3", f"out={tmp_path / 'other'}", cwd=tmp_path)
    assert (refused.status, "continuous" in refused.err) == (1, True)


def test_another_data_set_is_named(command, trained, tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (40, 8, 8), dtype=np.uint8) * 15
    np.savez(tmp_path / "own.npz", train_images=images, test_images=images[:20])
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, "data=arrays", f"data.path={tmp_path / 'own.npz'}", *QUICK, "n=8", cwd=tmp_path)
    assert done.status == 1
    assert "256 levels" in done.err
    assert "data with 17" in done.err


REFUSED = {
    "no such split": (["split=foo"], ["foo", "train, val, test"]),
    "no split": (["split=[]"], ["split=[] is empty", "train, val, test"]),
    "a bound of steps in words": (["elbo.steps=ten"], ["elbo.steps must be an integer", "ten"]),
    "a bound that is no settings": (["elbo=false"], ["elbo must be settings {steps: ", "or null; got elbo=false"]),
    "a seed beyond 64 bits": (["seed=9223372036854775808"], ["seed must be an integer", "64 bits"]),
    "other data that are not there": (["against=mnist", "against_root=/nowhere"], ["against_root", "/nowhere"]),
    "no such method": (["method=foo"], ["adams", "dopri5", "foo"]),
    "no such trace": (["trace=foo"], ["hutchinson", "hutch++", "exact"]),
    "no probes": (["probes=0"], ["probes", "at least 1"]),
    "probes of hutch++": (["trace=hutch++", "probes=4"], ["multiple of 3", "4"]),
    "no tolerance": (["rtol=0"], ["rtol must be a positive number", "0"]),
    "a negative tolerance": (["atol=-1e-5"], ["atol must be a positive number"]),
    "a word for a tolerance": (["rtol=abc"], ["rtol must be a positive number", "abc"]),
    "no batch": (["batch_size=0"], ["batch_size", "at least 1"]),
    "noise counted as likelihood": (["draws=2"], ["trace=exact", "draws=1"]),
    "no such prior": (["prior=foo"], ["standard", "matched", "foo"]),
    "no such decoder": (["elbo.decoder=foo"], ["frequencies", "uniform"]),
    "classes it does not depend on": (["label=3"], ["trained without label", "conditional=true"]),
    "no such other data": (["against=foo"], ["noise", "blank", "mnist", "foo"]),
    "other data without a place": (["against=mnist"], ["against_root"]),
    "other data of another shape": (["against=moons"], ["[2]", "[1, 8, 8]"]),
    "an invalid target": (["target_se=-1"], ["target_se must be a positive number"]),
    "an unknown key": (["foo=1"], ["'foo'", "rtol", "split"]),
    "steps of a method that chooses them": (["steps=10"], ["steps cannot be given with adams", "heun3"]),
    "a tolerance that cannot be met": (
        ["method=dopri5", "rtol=1e-14", "atol=1e-14", "n=2", "elbo=null", "max_nfe=500"],
        ["cannot meet", "t =", "method=adams"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, command, trained, tmp_path):
    overrides, parts = REFUSED[case]
    out = tmp_path / "out"
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "n=20", *QUICK, f"out={out}")
    done = command("likelihood", *arguments, *overrides, cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert done.err.count("error: ") == 1
    for part in parts:
        assert part in done.err, (part, done.err)
    assert not (out / "likelihood.json").exists()


@pytest.mark.parametrize(
    ("target", "n", "words"), [(1.0, 32, "target_se=1 reached with 32 of 60"), (1e-6, 60, "above target_se=1e-06")]
)
def test_a_target_for_the_standard_error(target, n, words, command, trained, tmp_path):
    """At least two batches, and a warning if all items do not suffice."""
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    settings = ("n=60", "elbo=null", *QUICK[:2], "batch_size=16", f"target_se={target}")
    done = command("likelihood", ckpt, *settings, f"out={tmp_path}", cwd=tmp_path)
    assert (done.status, words in done.out + done.err) == (0, True), done.err
    report = read(tmp_path)
    assert (report["n"], report["n_wanted"], report["target_se"]) == (n, 60, target)
    assert (report["std_error"] <= target) == (n == 32)


def test_what_stands_there_is_kept(scored, command, trained, tmp_path):
    out, _ = scored
    before = (out / "likelihood.json").read_bytes()
    done = command("likelihood", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", f"out={out}", cwd=tmp_path)
    assert (done.status, "overwrite=true" in done.err) == (1, True)
    assert (out / "likelihood.json").read_bytes() == before


@pytest.mark.parametrize("together", [1, 4])
def test_memory_that_does_not_hold_a_batch(together, trained, tmp_path, caplog):
    """The batch is halved until it fits, for the next split too; every item is scored, in order, with its seed."""
    from omegaconf import OmegaConf

    from sde_diffusion.commands.scored_data import ScoredData
    from sde_diffusion.commands.scoring_run import ScoringRun

    model = ScoreModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    splits = build(model.data["config"]).prepare().splits
    asked = []

    class Stub(Scorer):
        levels, plan = None, {}
        impossible = passes = lambda self, *_: []

        def __call__(self, x, seeds, rows):
            asked.append(rows)
            assert len(x) <= together * rows
            if rows > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return {"log_prob": x.flatten(1).sum(1).double() + torch.tensor(seeds)}

    cfg = OmegaConf.create({"seed": 7, "batch_size": 20, "target_se": None, "overwrite": False, "guidance": None})
    stub = Stub()
    stub.together = together
    run = ScoringRun(cfg, model, torch.device("cpu"), stub, tmp_path)
    data = ScoredData("digits", "own", splits, 40, {}, Conditions())
    for split in ("test", "val"):
        items = data.items(split)
        scores = run.score(data, split)
        x = splits[split].tensor(items)
        expected = x.flatten(1).sum(1).double() + 7 + items
        assert torch.equal(scores["log_prob"], expected[items.argsort()])
        assert asked == ([20, 10] if split == "test" else []) + [5] * (8 if together == 1 else 4)
        asked.clear()
    assert run.sizes == [5]
    assert [record.getMessage() for record in caplog.records] == [
        "ran out of memory with 20 items at once: trying half as many"
    ]


def test_an_item_beyond_the_solver_spoils_no_other(trained, caplog):
    """It is found by halving its batch; the others have the same scores as without it."""
    from omegaconf import OmegaConf

    from sde_diffusion.commands.scored_data import ScoredData
    from sde_diffusion.commands.scoring_run import ScoringRun
    from sde_diffusion.data import Split

    class Stub(Scorer):
        levels, plan = None, {}
        passes = list

        def __call__(self, x, seeds, rows):
            if bool((x > 100).any()):
                raise UserError("cannot meet its tolerance")
            return {"log_prob": x.sum(1).double() + torch.tensor(seeds)}

        def impossible(self, x, seeds, rows):
            return {"log_prob": torch.full((len(x),), -math.inf, dtype=torch.float64)}

    model = ScoreModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    cfg = OmegaConf.create(
        {"ckpt": str(trained / "checkpoints" / "last.ckpt"), "seed": 7, "batch_size": 20, "guidance": None}
    )
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[[3, 11]] = 1e3
    for role in ("rows", "against"):
        data = ScoredData("rows", role, {"rows": Split(x)}, None, {}, Conditions())
        run = ScoringRun(cfg, model, torch.device("cpu"), Stub(), trained)
        part = run._batch(data, "rows", data.items("rows"))
        scores = dict(zip(part["index"].long().tolist(), part["log_prob"].tolist(), strict=True))
        for i in range(20):
            expected = -math.inf if i in (3, 11) else float(x[i].sum()) + 7 + i
            assert scores[i] == pytest.approx(expected, abs=1e-5)
        assert sorted(record.args[0] for record in caplog.records) == [3, 11]
        caplog.clear()
    own = ScoredData("rows", "own", {"rows": Split(x)}, None, {}, Conditions())
    with pytest.raises(UserError, match="tolerance"):
        run._batch(own, "rows", own.items("rows"))


@pytest.mark.slow
def test_other_data_beyond_the_solver_count_as_impossible(command, trained, tmp_path):
    """The command continues: to distinguish data, only the ranks matter."""
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "n=20", "batch_size=10", "elbo.draws=4", "rtol=1e-3")
    own = command("likelihood", *arguments, f"out={tmp_path / 'own'}", cwd=tmp_path)
    assert own.status == 0, own.err
    enough = read(tmp_path / "own")["nfe"]["max"]
    done = command(
        "likelihood", *arguments, "against=noise", f"max_nfe={enough}", f"out={tmp_path / 'a'}", cwd=tmp_path
    )
    assert done.status == 0, done.err
    other = read(tmp_path / "a")["against"]
    if "impossible" in other:
        assert other["impossible"] + other["n"] == 20
        assert "counts as impossible" in done.out + done.err
    assert other["elbo"]["bits_per_dim"] > read(tmp_path / "own")["elbo"]["bits_per_dim"]
    assert other["by_elbo"]["auroc"] > 0.9
    few = command("likelihood", *arguments, "max_nfe=5", f"out={tmp_path / 'b'}", cwd=tmp_path)
    assert (few.status, "max_nfe = 5" in few.err) == (1, True)
