"""Labels and measurements from the file to every command: by value, from the items, resumed, guided."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf

from sde_diffusion import AncestralSampler, GenerativeModel, UserError, log_likelihood
from sde_diffusion.commands import conditions, drawing
from sde_diffusion.commands.sampling_run import sample_in_batches
from sde_diffusion.data import Arrays
from sde_diffusion.training.guided_denoiser import guided_denoiser

SAMPLER = ("sampler=ddim", "sampler.steps=3")
CFG = {"_target_": "sde_diffusion.guidance.ClassifierFreeGuidance", "scale": 3.0}


def arrays(n, seed=0):
    """Points N((-+0.4, (rate - 27.5)/20), 0.1^2): the label gives the sign, and the rate depends on it."""
    source = np.random.default_rng(seed)
    side = source.integers(0, 2, n)
    rate = source.uniform(20, 30, n) + 5 * side
    x = np.stack([0.8 * side - 0.4, (rate - 27.5) / 20], 1) + 0.1 * source.standard_normal((n, 2))
    return {"train_x": x.astype(np.float32), "train_labels": np.array(["left", "right"])[side], "rate": rate}


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A tiny run on such points; its checkpoint is run/checkpoints/last.ckpt."""
    folder = tmp_path_factory.mktemp("told")
    np.savez(folder / "data.npz", **arrays(200))
    settings = ("data=arrays", f"data.path={folder / 'data.npz'}", "data.conditions=[rate]", "conditional=true")
    done = command("train", *TINY, *settings, "model.lr=0.05", f"hydra.run.dir={folder / 'run'}", cwd=folder)
    assert done.status == 0, done.err
    assert (folder / "run" / "samples" / "step-0000030.png").is_file()
    return folder


@pytest.fixture(scope="module")
def ckpt(folder):
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def model(ckpt):
    return GenerativeModel.load_from_checkpoint(ckpt)


@pytest.fixture
def run(command, ckpt, tmp_path):
    def run_it(name, *settings):
        out = tmp_path / "out"
        done = command(name, f"ckpt={ckpt}", *settings, f"out={out}", "overwrite=true", cwd=tmp_path)
        return done, out

    return run_it


def test_the_file_is_read_as_it_is(folder, model):
    """Each item keeps its own label and rate in every split, and the kinds are those of the training split."""
    data, file = Arrays(str(folder / "data.npz"), conditions=["rate"]), arrays(200)
    rows = {tuple(x): (word, np.float32(rate)) for x, word, rate in zip(*file.values(), strict=True)}
    for split in data.splits.values():
        for x, label, rate in zip(split.x, split.label, split.others["rate"], strict=True):
            assert rows[tuple(x.numpy())] == (["left", "right"][label], rate.numpy())
    rate = data.conditions["rate"]
    assert rate.mean == pytest.approx(float(data.split("train").others["rate"].mean()), rel=1e-6)
    assert model.conditions.describe() == data.conditions.describe()
    assert data.conditions["label"].names == ["left", "right"]
    batch = data.train_batch(torch.tensor([3, 1]))
    assert torch.equal(batch["rate"], data.split("train").others["rate"][[3, 1]])


def test_samples_by_value_from_the_command_line(run, model, tmp_path):
    np.save(tmp_path / "rates.npy", [21.0, 25.0, 34.0])
    for typed, rate in (("rate=31.5", [31.5] * 3), ("rate=[21,25,34]", [21, 25, 34]), ("rate=rates.npy", [21, 25, 34])):
        done, out = run("sample", *SAMPLER, "n=3", "label=right", typed, "batch_size=2", "film=1")
        assert done.status == 0, done.err
        found = np.load(out / "samples.npz")
        assert (found["labels"].tolist(), found["rate"].tolist()) == ([1, 1, 1], rate)
        complete = AncestralSampler(3, eta=0.0)(model.denoiser, (3, 2), label=1, rate=torch.tensor(rate)).x
        torch.testing.assert_close(torch.from_numpy(found["points"]), complete, rtol=0, atol=1e-5)  # cut into 2 and 1
    alone = AncestralSampler(3, eta=0.0)(model.denoiser, (3, 2)).x
    for typed in ((), ("label=none",), ("label=null", "rate=None")):
        done, out = run("sample", *SAMPLER, "n=3", *typed)
        assert "given label=none, rate=none" in done.out
        found = np.load(out / "samples.npz")
        assert set(found.files) & {"rate", "labels"} == set()
        torch.testing.assert_close(torch.from_numpy(found["points"]), alone, rtol=0, atol=1e-5)


def test_guided_by_both(run, model):
    done, out = run("sample", *SAMPLER, "n=2", "label=left", "rate=22", "guidance=cfg", "guidance.scale=3")
    assert done.status == 0, done.err
    guided = AncestralSampler(3, eta=0.0)(guided_denoiser(model, CFG), (2, 2), label=0, rate=22.0).x
    torch.testing.assert_close(torch.from_numpy(np.load(out / "samples.npz")["points"]), guided, rtol=0, atol=1e-5)


REFUSED = {
    ("label=right",): "and rate is missing: give rate=VALUE",
    ("label=right", "rate=null"): "and rate is missing: give rate=VALUE",
    ("label=right", "rate=nan"): "and rate is missing: give rate=VALUE",
    ("label=right", "rate=[1,2]"): "rate must be one number for each of the 3 samples; got shape [2]",
    ("label=right", "rate=fast"): "rate must be finite numbers (or all NaN: no rate); got 'fast'",
    ("label=up", "rate=3"): "label=up is not a class; the classes are left, right",
    ("label=left", "rat=3"): "conditions of the model: label, rate (did you mean rate?)",
    ("label=none", "rate=3"): "and label is missing: give label=VALUE, or none for all of them",
    ("label=left", "rate=none.npy"): "none.npy",
    ("label=left", "rate=3", "sed=3"): "unknown key 'sed' (did you mean seed?)",
}


def test_what_is_refused(run):
    for settings, words in REFUSED.items():
        done, out = run("sample", "n=3", *settings)
        assert (done.status, done.err.count("error: "), "Traceback" in done.err) == (1, 1, False), done.err
        assert words in done.err, settings
        assert not out.exists()
    done, _ = run("likelihood", "n=2", "label=own")
    assert "and rate is missing: give rate=VALUE" in done.err


def test_a_stopped_sampling_resumes_with_its_own_conditions(model, tmp_path):
    """Stopped after the first batch: the rest is drawn with the remaining conditions; others raise an error."""
    node = {"n": 5, "seed": 0, "batch_size": 2, "overwrite": False, "guidance": None}
    sampler = {"_target_": "sde_diffusion.sampling.AncestralSampler", "steps": 3}
    cfg, device = OmegaConf.create({**node, "sampler": sampler}), torch.device("cpu")
    told = {"label": torch.tensor([0, 1, 1, 0, 1]), "rate": torch.linspace(20, 34, 5)}
    complete = torch.cat(list(drawing.draw(cfg, model, told, device, tmp_path / "complete").batches()))
    torch.testing.assert_close(complete, AncestralSampler(3)(model.denoiser, (5, 2), **told).x, rtol=0, atol=1e-5)

    class PowerCutError(Exception):
        pass

    calls = []

    def stopped(*arguments, **options):
        calls.append(options)
        if len(calls) == 2:
            raise PowerCutError
        return AncestralSampler(3)(*arguments, **options)

    plan = json.loads((tmp_path / "complete" / "plan.json").read_text())
    with pytest.raises(PowerCutError):
        sample_in_batches(stopped, model.denoiser, (2,), range(5), 2, told, folder=tmp_path / "broken", plan=plan)
    other = {**told, "rate": told["rate"] + 1}
    with pytest.raises(UserError, match="overwrite=true"):
        drawing.draw(cfg, model, other, device, tmp_path / "broken")
    again = torch.cat(list(drawing.draw(cfg, model, told, device, tmp_path / "broken").batches()))
    assert torch.equal(again, complete)


def test_samples_to_be_compared_come_under_the_items_own_conditions_together(model, folder):
    """Label and rate of each sample are those of the same item, and all items are used."""
    split = Arrays(str(folder / "data.npz"), conditions=["rate"]).split("test")
    pairs = sorted(zip(split.label.tolist(), split.others["rate"].tolist(), strict=True))
    found = conditions.for_items(model, {}, split, 2 * len(split))
    assert sorted(zip(found["label"].tolist(), found["rate"].tolist(), strict=True)) == sorted(2 * pairs)
    right = conditions.for_items(model, {"label": "right"}, split, 7)
    assert set(right["label"].tolist()) == {1}
    assert set(right["rate"].tolist()) <= {rate for label, rate in pairs if label}
    with pytest.raises(UserError, match="no item to compare with has exactly rate=3"):
        conditions.for_items(model, {"rate": 3}, split, 7)
    assert conditions.for_items(model, {"label": None, "rate": None}, split, 7) == {}


def test_evaluation(run, folder):
    done, out = run("evaluate", *SAMPLER, "n=40", "metrics=[energy]", "cache=cache", "split=train")
    assert done.status == 0, done.err
    split = Arrays(str(folder / "data.npz"), conditions=["rate"]).split("train")
    report = json.loads((out / "metrics.json").read_text())
    assert {name: one["n_reference"] for name, one in report["classes"]["label"].items()} == {
        name: int((split.label == number).sum()) for number, name in enumerate(("left", "right"))
    }
    done, out = run("evaluate", *SAMPLER, "n=30", "metrics=[energy]", "cache=cache", "split=train", "label=left")
    report = json.loads((out / "metrics.json").read_text())
    assert (report["n_reference"], report["conditions"]) == (int((split.label == 0).sum()), {"label": "left"})


def test_likelihoods_of_items_with_what_is_known_of_them(run, model, folder, tmp_path):
    options = ("elbo=null", "method=rk4", "steps=4", "trace=exact")
    split = Arrays(str(folder / "data.npz"), conditions=["rate"]).split("test")
    items = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:3]
    batch = split.batch(items)
    want = log_likelihood(model.denoiser, method="rk4", steps=4, trace="exact", **batch).log_prob
    done, out = run("likelihood", "n=3", "label=own", "rate=own", "batch_size=2", *options)
    assert done.status == 0, done.err
    report = json.loads((out / "likelihood.json").read_text())
    assert report["conditions"] == {"label": "own", "rate": "own"}
    assert "given label=own, rate=own" in done.out

    def scores():
        with (out / "likelihood.csv").open(newline="") as file:
            return {int(float(row["index"])): float(row["log_prob"]) for row in csv.DictReader(file)}

    assert [scores()[item] for item in items.tolist()] == pytest.approx(want.tolist(), abs=1e-4)
    x = batch["x"].numpy()
    np.savez(tmp_path / "rows.npz", x=x, y=batch["label"].numpy(), rate=batch["rate"].numpy())
    done, _ = run("likelihood", f"x={tmp_path / 'rows.npz'}", "label=own", "rate=own", *options)
    assert done.status == 0, done.err
    assert [scores()[item] for item in range(3)] == pytest.approx(want.tolist(), abs=1e-4)
    told = log_likelihood(model.denoiser, batch["x"], method="rk4", steps=4, trace="exact", label=1, rate=33.0).log_prob
    done, _ = run("likelihood", "n=3", "label=right", "rate=33", *options)
    assert done.status == 0, done.err
    assert [scores()[item] for item in items.tolist()] == pytest.approx(told.tolist(), abs=1e-4)


def test_classes_with_names_under_another_name_than_label(command, tmp_path):
    """Their names are used in the log, by the command line, in files and reports, and for the rows of a file."""
    x, words = arrays(60)["train_x"], arrays(60)["train_labels"]
    np.savez(tmp_path / "data.npz", train_x=x, side=words)
    data = ("data=arrays", "data.path=data.npz", "data.conditions=[side]", "conditional=true")
    done = command("train", *TINY, *data, "model.label_dropout=0", "hydra.run.dir=run", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "given    side: 2 classes (0 left, 1 right)" in done.out
    ckpt = "ckpt=run/checkpoints/last.ckpt"
    done = command("sample", ckpt, *SAMPLER, "n=3", "side=right", "out=drawn", cwd=tmp_path)
    assert "given side=right" in done.out
    with np.load(tmp_path / "drawn" / "samples.npz") as found:
        assert (found["side"].tolist(), found["side_names"].tolist()) == ([1, 1, 1], ["left", "right"])
    for typed in ("side=none", "side=null"):
        done = command("sample", ckpt, *SAMPLER, "n=3", typed, "out=refused", cwd=tmp_path)
        assert done.err == "error: this model was never trained without side: give side=VALUE\n"
    samples = ("samples=drawn/samples.npz", "data=arrays", "data.path=data.npz", "+data.conditions=[side]")
    done = command("evaluate", *samples, "split=train", "metrics=[energy]", "out=scores", cwd=tmp_path)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert {name: one["n"] for name, one in report["classes"]["side"].items()} == {"right": 3}
    np.savez(tmp_path / "rows.npz", x=x[:2], side=np.array(["right", "right"]))
    scores = []
    for typed in ("side=own", "side=right"):
        words = (ckpt, "x=rows.npz", typed, "elbo=null", "method=rk4", "steps=2", "trace=exact", "out=scored")
        done = command("likelihood", *words, "overwrite=true", cwd=tmp_path)
        assert f"given {typed}" in done.out, done.err
        scores.append(json.loads((tmp_path / "scored" / "likelihood.json").read_text())["nats_per_dim"])
    assert scores[0] == scores[1]


def test_a_run_resumes_with_its_own_conditions(command, folder, ckpt, model, tmp_path):
    """Also on data with other rates: the mean that a network subtracts is part of the network."""
    other = arrays(200)
    np.savez(tmp_path / "other.npz", **{**other, "rate": other["rate"] + 1})
    settings = (f"data.path={tmp_path / 'other.npz'}", "trainer.max_steps=31", f"hydra.run.dir={tmp_path / 'run'}")
    done = command("train", f"ckpt={ckpt}", *settings, cwd=tmp_path)
    assert done.status == 0, done.err
    again = GenerativeModel.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert again.conditions.describe() == model.conditions.describe()
    assert again.data["conditions"]["rate"]["mean"] == pytest.approx(model.conditions["rate"].mean + 1, rel=1e-6)


@pytest.mark.slow
def test_a_trained_model_knows_the_conditional_law(command, tmp_path):
    """Means and deviations of 2,000 samples by value are the known ones to 0.03 (a standard error is 0.0022)."""
    np.savez(tmp_path / "data.npz", **arrays(6000))
    settings = ("data=arrays", f"data.path={tmp_path / 'data.npz'}", "data.conditions=[rate]", "data.range=[-2,2]")
    steps = ("network.width=128", "trainer.max_steps=4000", "trainer.val_check_interval=2000", "callbacks.samples.n=4")
    folder = tmp_path / "run"
    assert command("train", *settings, *steps, "conditional=true", f"hydra.run.dir={folder}", cwd=tmp_path).status == 0
    ckpt = folder / "checkpoints" / "last.ckpt"
    for side, rate in (("left", 22.0), ("left", 29.0), ("right", 26.0), ("right", 33.0)):
        out = tmp_path / f"{side}-{rate}"
        words = (f"ckpt={ckpt}", f"label={side}", f"rate={rate}", "sampler=dpm", "sampler.steps=25", "n=2000")
        assert command("sample", *words, f"out={out}", cwd=tmp_path).status == 0
        x = np.load(out / "samples.npz")["points"]
        assert x.mean(0) == pytest.approx([-0.4 if side == "left" else 0.4, (rate - 27.5) / 20], abs=0.03)
        assert x.std(0) == pytest.approx([0.1, 0.1], abs=0.02)
