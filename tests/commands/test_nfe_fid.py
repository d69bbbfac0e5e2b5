"""The benchmark of network passes against Fréchet distances: its results, resuming after a kill, wrong inputs."""

import csv
import signal
import time

import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf

from benchmarks.curves import FRECHET, front
from benchmarks.drawn_points import named
from sde_diffusion import VPSDE, AncestralSampler, GaussianDenoiser, ScoreModel
from sde_diffusion.commands import configurations
from sde_diffusion.config import build
from sde_diffusion.metrics import FrechetDistance, load_extractor
from sde_diffusion.modality.levels import from_levels, to_levels

ODD = "{each: 1, extra: 0, sampler: {_target_: sde_diffusion.sampling.AncestralSampler, t_end: 5.0}}"
SETTINGS = (
    "nfe=[3,6]",
    "n=200",
    "long=12",
    "batch_size=64",
    *(f"~samplers.{name}" for name in ("ddpm", "sde", "pc", "dpm_2", "dpm_2_rho", "dpm_3", "dpm_sde_rho")),
    *(f"~samplers.{name}" for name in ("unipc_2", "unipc_3", "deis_4")),
    f"+samplers.odd={ODD}",
)


def rows(folder):
    with (folder / "curves.csv").open(newline="") as file:
        return {(row["sampler"], int(row["passes"])): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def measured(command, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    done = command("nfe_fid", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *SETTINGS, f"out={out}", cwd=out)
    assert done.status == 0, done.err
    return out, done


def test_a_figure_is_that_of_the_library(measured, trained):
    out, _ = measured
    model = ScoreModel.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    data = build(model.data["config"]).prepare()
    metric = FrechetDistance(load_extractor("digits", data.shape))
    metric.update(data.tensor("test"), real=True)
    x = AncestralSampler(6)(model.denoiser, (200, 1, 8, 8)).x
    metric.update(from_levels(to_levels(x, 17), 17), real=False)
    row = rows(out)["ddim", 6]
    assert float(row["frechet_distance"]) == pytest.approx(float(metric.compute()), rel=1e-4)
    assert float(row["low"]) < float(row["frechet_distance"]) < float(row["high"])
    assert row["nfe"] == "6"


def test_what_cannot_run_is_in_the_table_with_its_reason(measured):
    out, done = measured
    row = rows(out)["odd", 3]
    assert "t_end" in row["reason"]
    text = (out / "table.md").read_text()
    assert "odd has no value for some numbers of passes" in text
    assert "| odd | – | – |" in text
    assert "significant" in text
    assert text in done.out
    assert not (out / ".points").exists()


def test_best_and_its_long_walk(measured):
    out, _ = measured
    best = min(
        (float(row["frechet_distance"]), name)
        for (name, passes), row in rows(out).items()
        if passes == 6 and row["nfe"] != "0"
    )
    assert f"| 6 | {best[1]}, {best[0]:.3f} |" in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_figures(measured, command, start, trained, tmp_path):
    complete, _ = measured
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *SETTINGS, f"out={tmp_path / 'out'}")
    process = start("benchmarks.nfe_fid", *arguments, cwd=tmp_path)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("out/.points/*/*.safetensors"))) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "curves.csv").exists()
    assert command("nfe_fid", *arguments, cwd=tmp_path).status == 0
    a, b = rows(complete), rows(tmp_path / "out")
    assert {key: {**row, "seconds": ""} for key, row in a.items()} == {
        key: {**row, "seconds": ""} for key, row in b.items()
    }


@pytest.mark.slow
def test_the_closed_form_denoiser(command, trained, tmp_path):
    """Many passes on the exact denoiser of the training split return training images: as good as 600 of them."""
    settings = [s for s in SETTINGS if not s.startswith(("nfe", "n=", "long"))]
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "exact=true", "nfe=[40]", "n=600", "long=null")
    assert command("nfe_fid", *arguments, *settings, f"out={tmp_path}", cwd=tmp_path).status == 0
    data = build({"_target_": "sde_diffusion.data.digits.Digits"}).prepare()
    metric = FrechetDistance(load_extractor("digits", data.shape), reset_real_features=False)
    metric.update(data.tensor("test"), real=True)
    drawn = []
    for seed in range(60):
        index = torch.randint(1437, (600,), generator=torch.Generator().manual_seed(seed))
        metric.reset()
        metric.update(data.tensor("train")[index], real=False)
        drawn.append(float(metric.compute()))
    spread = torch.tensor(drawn).std()
    # Four standard deviations, of 60 draws: a false alarm in 5,000.
    off = float(rows(tmp_path)["heun", 40]["frechet_distance"]) - sum(drawn) / 60
    assert abs(off) < 4 * spread * (1 + 1 / 60) ** 0.5
    assert "closed-form denoiser" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("n=0", "n must be an integer"),
        ("foo=1", "'foo'"),
        ("split=foo", "split must be one of val, test; got split=foo"),
        ("extractor=foo", "foo"),
        ("nfe=5", "nfe must be a list of integers"),
        ("nfe=[5,0]", "nfe must be a list of integers of at least 1"),
        ("seeds=[]", "seeds must be a list of integers"),
        ("seeds=[0,100]", "sets of n=200 samples from seeds=[0, 100] overlap"),
        ("confidence=2", "confidence must be a number between 0 and 1"),
        ("n=60", "need at least 130 samples"),
        ("long=0", "long must be an integer of at least 1"),
        ("long=4", "long must be more than the most of nfe, 6"),
        ("nfe=[3,3]", "twice"),
        ("split=train", "split must be one of val, test"),
        ("samplers.ddim=5", "samplers.ddim must be settings {each: "),
        ("+samplers.x={each: 0, extra: 0, sampler: {}}", "samplers.x.each must be an integer of at least 1"),
        ("+samplers.x={each: 1, extra: 0, sampler: {order: 2}}", "samplers.x.sampler must be settings {_target_: "),
        (
            "+samplers.x={each: 1, extra: 0, sampler: {_target_: sde_diffusion.sampling.Foo}}",
            "samplers.x.sampler._target_",
        ),
        (
            "+samplers.x={each: 1, extra: 0, sampler: {_target_: sde_diffusion.sampling.UniPC, ordr: 1}}",
            "takes no ordr",
        ),
    ],
)
def test_refused(override, words, command, trained, tmp_path):
    arguments = (f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", *SETTINGS, f"out={tmp_path / 'out'}", override)
    done = command("nfe_fid", *arguments, cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False), done.err
    assert words in done.err


def test_passes_are_what_the_settings_say():
    """Of every sampler in conf/nfe_fid.yaml, by the network's own count: at most the budget, less than a step below."""
    cfg = OmegaConf.load(configurations.config_folder() / "nfe_fid.yaml")
    denoiser = GaussianDenoiser(VPSDE(), torch.zeros(2), 1.0)
    passes = []
    denoiser.register_forward_hook(lambda *_: passes.append(1))
    for name, entry in OmegaConf.to_container(cfg.samplers).items():
        for budget in (5, 8, 15):
            passes.clear()
            sampler = build({**entry["sampler"], "steps": (budget - entry["extra"]) // entry["each"]})
            drawn = sampler(denoiser, (2, 2), seeds=range(2))
            assert drawn.nfe == len(passes), name
            assert budget - entry["each"] < drawn.nfe <= budget, (name, budget)


@pytest.mark.slow
def test_several_checkpoints_in_one_table(command, measured, trained, tmp_path):
    """Rows are named by run; a row's figure is what the run has alone; models of other data are refused."""
    folder = tmp_path / "wider"
    tiny = tuple(s for s in TINY if "width" not in s)
    assert command("train", *tiny, "network.width=40", f"hydra.run.dir={folder}", cwd=tmp_path).status == 0
    paths = [f"'{run / 'checkpoints' / 'last.ckpt'}'" for run in (trained, folder)]
    settings = [s for s in SETTINGS if "odd" not in s]
    done = command("nfe_fid", f"ckpt=[{','.join(paths)}]", *settings, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.status == 0, done.err
    found, alone = rows(tmp_path / "out"), rows(measured[0])
    own, other = trained.name, "wider"
    assert set(found) == {(f"{run}/{name}", n) for run in (own, other) for name in ("ddim", "heun") for n in (3, 6)}
    assert found[f"{own}/ddim", 6]["frechet_distance"] == alone["ddim", 6]["frechet_distance"]
    assert found["wider/ddim", 6]["frechet_distance"] != alone["ddim", 6]["frechet_distance"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"| {own}/heun |" in text
    assert "| wider/ddim |" in text
    twice = command("nfe_fid", f"ckpt=[{paths[0]},{paths[0]}]", *settings, f"out={tmp_path / 'x'}", cwd=tmp_path)
    assert (twice.status, "a list of different ones" in twice.err) == (1, True), twice.err


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/checkpoints/last.ckpt"], ["last"]),
        (["a/checkpoints/last.ckpt", "b/checkpoints/last.ckpt"], ["a", "b"]),
        (["a/checkpoints/last.ckpt", "a/checkpoints/best.ckpt"], ["last", "best"]),
        (["a/x/last.ckpt", "b/x/best.ckpt", "b/x/last.ckpt"], ["0-last", "1-best", "2-last"]),
    ],
)
def test_runs_are_named_by_what_differs(paths, names):
    assert named(OmegaConf.create({"ckpt": paths})) == dict(zip(names, paths, strict=True))
    if len(paths) == 1:
        assert named(OmegaConf.create({"ckpt": paths[0]})) == dict(zip(names, paths, strict=True))


def test_front_compares_samplers_in_equal_passes_allowed():
    """Predictor-corrector makes four of five passes, where no other sampler was measured, and has the worst value."""
    table = [("pc", 5, 4, 123.0), ("ddim", 5, 5, 29.0), ("pc", 8, 8, 40.0), ("ddim", 8, 8, 30.0), ("heun", 10, 9, 18.0)]
    assert front([{"sampler": name, "passes": most, "nfe": made, FRECHET: far} for name, most, made, far in table]) == [
        (5, 29.0),
        (8, 29.0),
        (10, 18.0),
    ]
