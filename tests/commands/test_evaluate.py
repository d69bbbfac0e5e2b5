"""The evaluate command: metrics, intervals and classes, files of samples, resuming after a kill, wrong inputs."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from test_sample_resume import SLOW_STEPS, wait_for_parts

from sde_diffusion.commands.data_sides import resumed_features
from sde_diffusion.data import Digits
from sde_diffusion.metrics import PRDC, KernelDistance, interval, load_extractor
from sde_diffusion.storage.record import git_state

QUICK = ("sampler=ddim", "sampler.steps=4", "resamples=20")


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def run(command, out, *arguments):
    done = command("evaluate", *arguments, f"out={out}", cwd=out.parent)
    assert done.status == 0, done.err
    return read(out), done


@pytest.fixture(scope="module")
def digits():
    return Digits().prepare()


@pytest.fixture(scope="module")
def evaluated(command, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return out, *run(command, out, f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "n=300", *QUICK)


def write(path, x, labels=None):
    """Data on [-1, 1] as a file of samples, on 0 ... 255."""
    images = (x.movedim(1, -1) * 127.5 + 127.5).round().to(torch.uint8).numpy()
    np.savez(path, images=images, **({} if labels is None else {"labels": labels.numpy()}))
    return f"samples={path}"


def test_figures_are_those_of_the_library(evaluated, command, trained, tmp_path, digits):
    """Samples of a file, with the digits' 17 levels; and samples of a checkpoint, without the file's 256 levels."""
    _, report, done = evaluated
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    assert command("sample", ckpt, "n=300", *QUICK[:2], f"out={tmp_path}", cwd=tmp_path).status == 0
    file = tmp_path / "samples.npz"
    found, told = run(command, tmp_path / "out", f"samples={file}", "data=digits", QUICK[2])
    images = torch.from_numpy(np.load(file, allow_pickle=False)["images"]).movedim(-1, 1)
    x = (images.double() / 255 * 16).round().float() / 8 - 1
    extractor = load_extractor("digits")
    for metric in (KernelDistance(extractor), PRDC(extractor)):
        metric.update(digits.tensor("test"), real=True)
        metric.update(x, real=False)
        for name, one in interval(metric, resamples=20).items():
            assert found[name] == pytest.approx(one.value, rel=1e-6), name
            assert found["intervals"][name] == pytest.approx(one.as_dict(), rel=1e-6, abs=1e-9), name
            assert f"{found[name]:.4g}" in told.out
    assert (found["nfe"], found["sampler"], found["samples"]) == (None, None, str(file))
    for name in ("frechet_distance", "kernel_distance", "inception_score"):
        assert found[name] == pytest.approx(report[name], rel=0.02), name
    assert (
        set(report["intervals"])
        == set(found["intervals"])
        == {
            "frechet_distance",
            "frechet_infinity",
            "kernel_distance",
            "inception_score",
            "precision",
            "recall",
            "density",
            "coverage",
            "memorisation_share",
        }
    )
    assert {name: reason[:26] for name, reason in report["skipped"].items()} == dict.fromkeys(
        ("sliced_wasserstein", "energy"), "it is meant for points; me"
    )
    expected = {"n": 300, "n_reference": 300, "nfe": 4, "seeds": [0, 299], "extractor": "digits", "split": "test"}
    assert {key: report[key] for key in expected} == expected
    assert set(report["seconds"]) == {"sampling", "features", "statistics"}
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    assert (report["n_training_split"], report["resize"], report["git"]) == (300, "none", git_state())
    assert "4 network passes" in done.out


def test_classes_and_copies(command, tmp_path, digits):
    """The training split itself as samples: recognised, as good as possible, and detected as copies."""
    labels = digits.split("train").label
    found, done = run(
        command, tmp_path / "out", write(tmp_path / "own.npz", digits.tensor("train"), labels), "data=digits", QUICK[2]
    )
    assert set(found["classes"]["label"]) == {str(label) for label in range(10)}
    assert sum(one["n"] for one in found["classes"]["label"].values()) == len(labels)
    for label, one in found["classes"]["label"].items():
        assert one["recognised"] > 0.95
        assert one["n_reference"] == int((digits.split("test").label == int(label)).sum())
        assert one["kernel_distance"]["low"] < 0.5  # of the class's own data: near 0; another class is tens away
    assert found["memorisation_share"] > 0.99
    assert found["memorisation_z"] > 3
    assert found["frechet_distance"] == pytest.approx(found["training_split"]["frechet_distance"], rel=1e-6)
    assert "label 7" in done.out


def test_features_of_the_data_are_made_once(evaluated, command, trained, tmp_path):
    """The second run reads them; with another extractor, they are computed and stored separately."""
    out, report, _ = evaluated
    cache = out.parent / "outputs" / "references"
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sorted(path.suffix for path in before) == [".json", ".safetensors", ".safetensors"]
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "n=300", *QUICK, f"cache={cache}")
    again, _ = run(command, tmp_path / "again", *arguments)
    assert again["intervals"] == report["intervals"]
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    pixels, _ = run(command, tmp_path / "pixels", *arguments, "extractor=pixels", "metrics=[frechet,inception_score]")
    assert pixels["frechet_distance"] != report["frechet_distance"]
    assert "classifier" in pixels["skipped"]["inception_score"]
    assert len(list(cache.glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_figures(command, start, trained, tmp_path):
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *SLOW_STEPS, "resamples=20")
    process = start("evaluate", *arguments, f"out={tmp_path / 'killed'}", cwd=tmp_path)
    wait_for_parts(tmp_path / "killed", process)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / ".samples").glob("*.safetensors")}
    assert len(kept) < 20
    assert not (tmp_path / "killed" / "metrics.json").exists()
    found, done = run(command, tmp_path / "killed", *arguments)
    complete, _ = run(command, tmp_path / "complete", *arguments)
    assert f"resuming after {10 * len(kept)} of 200" in done.out
    assert found["intervals"] == complete["intervals"]
    assert not (tmp_path / "killed" / ".samples").exists()


def test_against_the_training_split_itself(command, trained, tmp_path):
    """There is no baseline, and memorisation, which compares two splits, is left out."""
    found, done = run(
        command, tmp_path / "out", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "n=200", *QUICK, "split=train"
    )
    assert (found["n_reference"], found["n_training_split"], found["training_split"]) == (1437, 0, {})
    assert "split=test" in found["skipped"]["memorisation"]
    assert "no memorisation" in done.out


def test_one_class_against_its_own_data(command, tmp_path, digits):
    folder = tmp_path / "run"
    assert command("train", *TINY, "conditional=true", f"hydra.run.dir={folder}", cwd=tmp_path).status == 0
    ckpt = f"ckpt={folder / 'checkpoints' / 'last.ckpt'}"
    found, _ = run(command, tmp_path / "three", ckpt, "n=30", "label=3", *QUICK, "metrics=[kernel]")
    assert found["n_reference"] == int((digits.split("test").label == 3).sum())
    assert "classes" not in found
    every, _ = run(command, tmp_path / "all", ckpt, "n=30", *QUICK, "metrics=[kernel,energy]")
    assert (every["n_reference"], len(every["classes"]["label"])) == (300, 10)
    for label in ("x", "99", "true"):
        few = command("evaluate", ckpt, f"label={label}", *QUICK, f"out={tmp_path / 'x'}", cwd=tmp_path)
        assert (few.status, "label must be one of 0 ... 9" in few.err) == (1, True), few.err


def test_points(command, tmp_path):
    folder = tmp_path / "run"
    assert (
        command("train", *TINY, "data=moons", "data.n_train=2000", f"hydra.run.dir={folder}", cwd=tmp_path).status == 0
    )
    found, _ = run(command, tmp_path / "out", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}", "n=200", *QUICK)
    assert list(found["skipped"]) == ["inception_score"]
    assert found["energy_distance"] > found["training_split"]["energy_distance"]
    assert found["sliced_wasserstein"] > found["training_split"]["sliced_wasserstein"] > 0


def test_few_samples(command, trained, tmp_path):
    """Those metrics that need a covariance are left out with the reason; if none is left, that is an error."""
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    found, done = run(command, tmp_path / "out", ckpt, "n=40", *QUICK, "metrics.prdc.k=2")
    assert set(found["skipped"]) == {"frechet", "frechet_infinity", "sliced_wasserstein", "energy"}
    assert "kernel distance" in found["skipped"]["frechet"]
    assert "singular covariance" in done.out
    # The baseline depends on the data only: it is read from the cache, or computed again if that is damaged.
    for damage in (None, "{"):
        (baseline,) = (tmp_path / "outputs" / "references").glob("baseline-*.json")
        if damage:
            baseline.write_text(damage)
        again, _ = run(
            command, tmp_path / ("damaged" if damage else "again"), ckpt, "n=40", "seed=9", *QUICK, "metrics.prdc.k=2"
        )
        assert again["training_split"] == found["training_split"] != {}
    alone = command("evaluate", ckpt, "n=40", *QUICK, "metrics=[frechet]", f"out={tmp_path / 'x'}", cwd=tmp_path)
    assert (alone.status, "none of the metrics" in alone.err) == (1, True)
    assert not (tmp_path / "x" / "metrics.json").exists()


REFUSED = {
    "neither": ([], ["ckpt=PATH", "samples=FILE"]),
    "no data": (["samples=own.npz"], ["data=digits"]),
    "no file": (["samples=nowhere.npz", "data=digits"], ["no samples at nowhere.npz"]),
    "no npz": (["samples=words.npz", "data=digits"], ["words.npz is neither an .npz nor an .npy file"]),
    "another shape": (["samples=large.npz", "data=digits"], ["[1, 9, 9]", "[1, 8, 8]"]),
    "floats": (["samples=floats.npz", "data=digits"], ["uint8", "float32"]),
    "other arrays": (["samples=other.npz", "data=digits"], ["no array named images;"]),
    "labels of another length": (["samples=labels.npz", "data=digits"], ["labels must be integers [40]"]),
    "no metrics": (["samples=own.npz", "data=digits", "metrics=[]"], ["metrics is needed: choose metrics= from"]),
    "a label for a file": (
        ["samples=own.npz", "data=digits", "label=3", "n=5"],
        ["label= and n= cannot be given with samples="],
    ),
    "a sampler for a file": (
        ["samples=own.npz", "data=digits", "sampler=dpm"],
        ["sampler= cannot be given with samples="],
    ),
    "a folder without samples": (["samples=.", "data=digits"], ["neither a samples.npz nor pictures"]),
    "no such metric": (["samples=own.npz", "data=digits", "metrics=[foo]"], ["metrics=foo", "kernel"]),
    "no such split": (["samples=own.npz", "data=digits", "split=foo"], ["train, val, test"]),
    "an invalid confidence": (
        ["samples=own.npz", "data=digits", "level=2"],
        ["confidence must be a number between 0 and 1"],
    ),
    "other samples of another shape": (["samples=own.npz", "data=digits", "against=large.npz"], ["[1, 9, 9]"]),
    "other samples of another kind": (["samples=own.npz", "data=digits", "against=points.npz"], ["holds points"]),
    "an extractor of another shape": (["samples=own.npz", "data=digits", "extractor=mnist"], ["mnist", "pixels"]),
    "inception without weights": (["samples=own.npz", "data=digits", "extractor=inception"], ["inception", "fid"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, command, tmp_path):
    overrides, parts = REFUSED[case]
    own = torch.zeros(40, 1, 8, 8)
    write(tmp_path / "own.npz", own)
    write(tmp_path / "large.npz", torch.zeros(40, 1, 9, 9))
    write(tmp_path / "labels.npz", own, torch.zeros(3))
    np.savez(tmp_path / "floats.npz", images=np.zeros((40, 8, 8, 1), np.float32))
    np.savez(tmp_path / "other.npz", stuff=np.zeros(3))
    np.savez(tmp_path / "points.npz", points=np.zeros((40, 2)))
    (tmp_path / "words.npz").write_text("hello")
    done = command("evaluate", *overrides, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    for part in parts:
        assert part in done.err, (part, done.err)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "outputs").exists()  # refused before the features of the data are computed


def test_features_resume_after_their_last_batch(tmp_path):
    """As after a kill of a slow extractor; those of other samples start again."""
    x, seen = torch.arange(21.0).reshape(7, 3), []

    def features(x, at_most=9, **plan):
        seen.clear()

        def of(some):
            if len(seen) == at_most:
                raise SystemExit
            seen.append(len(some))
            return 2 * some

        return resumed_features(of, lambda: iter(x.split(2)), tmp_path / "kept", plan)

    with pytest.raises(SystemExit):
        features(x, at_most=3, extractor="a")
    assert features(x, extractor="a").equal(2 * x)
    assert seen == [1]
    assert features(x, extractor="b").equal(2 * x)
    assert features(x + 1, extractor="b").equal(2 * x + 2)
    assert seen == [2, 2, 2, 1]
