"""The likelihood command on a user's rows, in the data's own units."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import TINY

from sde_diffusion import ScoreModel, log_likelihood

QUICK = ("rtol=1e-3", "atol=1e-3", "elbo.draws=8")


def table(folder):
    with (folder / "likelihood.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def heights(command, tmp_path_factory):
    """A model of a table of two columns, of thousands and of units, and the table's folder."""
    folder = tmp_path_factory.mktemp("heights")
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(300, 2)) * [800, 0.5] + [2500, 10]
    header = "height,acidity"
    np.savetxt(folder / "heights.csv", rows, delimiter=",", header=header, comments="")
    done = command(
        "train",
        *TINY,
        "data=arrays",
        f"data.path={folder / 'heights.csv'}",
        "data.range=auto",
        "data.min_batches_per_epoch=10",
        f"hydra.run.dir={folder / 'run'}",
        cwd=folder,
    )
    assert done.status == 0, done.err
    return folder


def test_densities_in_the_data_s_own_units(heights, command, tmp_path):
    """p(y) = p(x) |dx/dy|, with x = 2 (y - low) / (high - low) - 1 taken from the table itself."""
    y = np.array([[2500.0, 10.0], [1700.0, 10.6], [9e6, -4000.0]])
    np.save(tmp_path / "rows.npy", y)
    ckpt = heights / "run" / "checkpoints" / "last.ckpt"
    done = command("likelihood", f"ckpt={ckpt}", *QUICK, "x=rows.npy", "batch_size=1", "out=out", cwd=tmp_path)
    assert done.status == 0, done.err
    model = ScoreModel.load_from_checkpoint(ckpt)
    low, high = (np.array(model.data["units"][end]) for end in ("low", "high"))
    written = np.loadtxt(heights / "heights.csv", delimiter=",", skiprows=1)
    assert ((low >= written.min(0)) & (high <= written.max(0)) & (high - low > 0.7 * np.ptp(written, axis=0))).all()
    x = torch.from_numpy(2 * (y - low) / (high - low) - 1).float()
    rows = table(tmp_path / "out")
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    for i, row in enumerate(rows):
        here = float(log_likelihood(model.denoiser, x[i : i + 1], 1e-3, 1e-3, seeds=[i]).log_prob)
        assert float(row["log_prob"]) == pytest.approx(here, rel=1e-6)
        assert float(row["log_density"]) == pytest.approx(here + np.log(2 / (high - low)).sum(), rel=1e-6)
    report = json.loads((tmp_path / "out" / "likelihood.json").read_text())
    assert report["own_units"]["log_density"] == pytest.approx(np.mean([float(row["log_density"]) for row in rows]))
    assert (report["data"], report["split"], report["n"]) == ("rows.npy", "rows", 3)
    assert "own units" in done.out
    assert "standard error" in done.out


def test_one_item_spoils_no_other(heights, command, tmp_path):
    """A row for which the solver fails counts as impossible; the others have the same scores as without it."""
    y = np.array([[2500.0, 10.0], [2600.0, 9.9], [1e30, 10.0]])
    np.savez(tmp_path / "rows.npz", points=y)
    ckpt = f"ckpt={heights / 'run' / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, *QUICK, "x=rows.npz", "elbo=null", "out=out", cwd=tmp_path)
    assert done.status == 0, done.err
    rows = table(tmp_path / "out")
    assert all(math.isfinite(float(row["log_prob"])) for row in rows[:2])
    assert float(rows[2]["log_prob"]) < -1e20


def test_the_table_has_one_sign(heights, command, tmp_path):
    """elbo is the sum of its three columns, in a batch of one item, too."""
    ckpt = f"ckpt={heights / 'run' / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, *QUICK, "n=1", "out=out", cwd=tmp_path)
    assert done.status == 0, done.err
    (row,) = table(tmp_path / "out")
    parts = sum(float(row[f"elbo_{part}"]) for part in ("reconstruction", "prior", "diffusion"))
    assert float(row["elbo"]) == pytest.approx(parts, rel=1e-6)
    report = json.loads((tmp_path / "out" / "likelihood.json").read_text())
    assert (report["n"], report["std_error"]) == (1, None)
    assert report["elbo"]["nats_per_dim"] == pytest.approx(
        sum(report["elbo"][part] for part in ("reconstruction", "prior", "diffusion"))
    )
    assert report["quote"]["by"] == "flow"
    assert "more is more likely" in report["columns"]


@pytest.mark.slow
def test_images_on_levels(trained, command, tmp_path):
    """Levels 0 ... 16 in any of the usual layouts, and grey levels of pictures rounded to the nearest of them."""
    levels = np.random.default_rng(0).integers(0, 17, (4, 8, 8))
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    np.save(tmp_path / "a.npy", levels)
    np.savez(tmp_path / "b.npz", images=np.round(levels * 255 / 16).astype(np.uint8)[..., None])
    np.savetxt(tmp_path / "c.csv", levels.reshape(4, 64), delimiter=",")
    found = []
    for name in ("a.npy", "b.npz", "c.csv"):
        done = command("likelihood", ckpt, *QUICK, f"x={name}", f"out={name[0]}", cwd=tmp_path)
        assert done.status == 0, done.err
        found.append([row["log_prob"] for row in table(tmp_path / name[0])])
        report = json.loads((tmp_path / name[0] / "likelihood.json").read_text())
        smaller = min(report["bits_per_dim"], report["elbo"]["bits_per_dim"])
        assert report["quote"]["bits_per_dim"] == smaller
    assert found[0] == found[1] == found[2]


def test_unfinished_scores_are_of_their_rows(heights, command, tmp_path):
    """Other rows in the same file are distinguished from those that were scored before a kill."""
    rows = np.array([[2500.0, 10.0], [2600.0, 9.9], [2400.0, 9.0], [2450.0, 9.5]])
    np.save(tmp_path / "rows.npy", rows)
    ckpt = f"ckpt={heights / 'run' / 'checkpoints' / 'last.ckpt'}"
    typed = ("likelihood", ckpt, *QUICK, "x=rows.npy", "elbo=null", "batch_size=1", "out=out")
    done = command(*typed, cwd=tmp_path, watch=[tmp_path / "out"], kill_at=20)
    assert done.status == -9
    assert list((tmp_path / "out" / ".scores").rglob("*.safetensors"))
    np.save(tmp_path / "rows.npy", rows + 1.0)
    done = command(*typed, cwd=tmp_path)
    assert done.status == 1
    assert "unfinished results of another command" in done.err
    np.save(tmp_path / "rows.npy", rows)
    assert command(*typed, cwd=tmp_path).status == 0


REFUSED = {
    "not there": ("x=missing.npy", "missing.npy does not exist"),
    "another shape": ("x=wide.npy", "[N, 2]"),
    "not finite": ("x=nan.csv", "rows 1"),
    "words": ("x=words.csv", "not a table of numbers"),
    "no file": ("x=3", "x must be text or null; got x=3"),
    "a split beside": ("split=val", "leave split=val out"),
    "no classes": ("label=0", "this model was trained without label: leave label= out"),
    "all out of reach": ("max_nfe=3", "the solver takes no item"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, heights, command, tmp_path):
    np.save(tmp_path / "good.npy", np.array([[2500.0, 10.0]]))
    np.save(tmp_path / "wide.npy", np.zeros((3, 5)))
    (tmp_path / "nan.csv").write_text("a,b\n1,2\n3,nan\n")
    (tmp_path / "words.csv").write_text("a,b\n1,2\n3,four\n")
    override, words = REFUSED[case]
    ckpt = f"ckpt={heights / 'run' / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, *QUICK, "x=good.npy", override, "elbo=null", "out=out", cwd=tmp_path)
    assert (done.status, words in done.err) == (1, True), done.err
    assert (done.err.count("error: "), "Traceback" in done.err) == (1, False)
    assert not (tmp_path / "out" / "likelihood.json").exists()


def test_levels_that_are_none(trained, command, tmp_path):
    np.save(tmp_path / "half.npy", np.full((2, 64), 0.5))
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, *QUICK, "x=half.npy", cwd=tmp_path)
    assert (done.status, "integers from 0 to 16; got 0.5" in done.err) == (1, True), done.err


def test_one_dimension(command, tmp_path):
    """A column of numbers, from training to the density of a single one."""
    np.save(tmp_path / "column.npy", np.random.default_rng(0).normal(7, 2, (100, 1)))
    done = command(
        "train",
        *TINY,
        "data=arrays",
        "data.path=column.npy",
        "data.range=auto",
        "hydra.run.dir=run",
        "data.min_batches_per_epoch=10",
        cwd=tmp_path,
    )
    assert done.status == 0, done.err
    np.save(tmp_path / "one.npy", np.array([7.0]))
    done = command("likelihood", "ckpt=run/checkpoints/last.ckpt", *QUICK, "x=one.npy", "out=out", cwd=tmp_path)
    assert done.status == 0, done.err
    assert math.isfinite(float(table(tmp_path / "out")[0]["log_density"]))
