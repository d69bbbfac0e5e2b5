"""Other programs' checkpoints: equal outputs, and what is done with them; see `layouts`."""

import json
import pathlib
import shutil

import pytest
import torch
from layouts import CASES, authors_dit_file, drawn, folder_of, inputs_of, score_sde_file
from safetensors.torch import load_file

from sde_diffusion import (
    VPSDE,
    AncestralSampler,
    ClassifierFreeGuidance,
    NetworkDenoiser,
    Pretrained,
    ScoreModel,
    UNet,
    UserError,
    log_likelihood,
)
from sde_diffusion.commands.typed_conditions import in_full
from sde_diffusion.denoiser import TableStep
from sde_diffusion.pretrained import recognises
from sde_diffusion.pretrained.schedulers import diffusion_of
from sde_diffusion.sde import NoiseTable

TABLES = ["ddpm", "classes", "learned_variance", "dit"]
VE = ["ncsnpp", "ncsnpp_centred"]
SCORES = [name for name in CASES if name.startswith("score_sde")]


def given(name):
    label = CASES[name].get("label")
    return {} if label is None else {"label": torch.tensor(label)}


def shown(x):
    return x.flatten()[::29].tolist()


def equal(found, expected):
    """To 1e-5 of the largest."""
    size = max(map(abs, expected))
    assert shown(found)[: len(expected)] == pytest.approx(expected, abs=1e-5 * size)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    found = {name: Pretrained.load(folder_of(name, root / name, name == "ddpm")) for name in [*TABLES, *VE]}
    return found | {"authors_dit": Pretrained.load(authors_dit_file(root))}


@pytest.mark.parametrize("name", [*TABLES, "authors_dit"])
def test_network_of_a_table_predicts_as_its_own_program(loaded, name):
    model = loaded[name]
    for number, alpha_bar, expected in CASES[name]["expected"]:
        t = model.sde.time(torch.tensor(alpha_bar, dtype=torch.float64).logit())
        assert float(model.noise_conditioning(model.sde, t)) == pytest.approx(number, abs=1e-3)
        with torch.no_grad():
            equal(model(inputs_of(model.shape), t, **given(name)).x0, expected)


@pytest.mark.parametrize("name", VE)
def test_ncsnpp_on_the_unit_interval_predicts_as_its_own_program(loaded, name):
    """sigma is on [0, 1] there, and x0 on [-1, 1] here."""
    model = loaded[name]
    for sigma, _, expected in CASES[name]["expected"]:
        t = model.sde.time(-2 * torch.tensor(2 * sigma, dtype=torch.float64).log())
        with torch.no_grad():
            equal(model(inputs_of(model.shape), t).x0, expected)


@pytest.mark.parametrize("name", SCORES)
def test_score_sde_has_the_score_of_its_averaged_weights(name, tmp_path):
    model = Pretrained.load(score_sde_file(name, tmp_path))
    for t, _, expected in CASES[name]["expected"]:
        with torch.no_grad():
            equal(model(inputs_of(model.shape), t).score, expected)


def test_imported_networks_are_sampled_scored_and_guided(loaded):
    model = loaded["dit"]
    guided = ClassifierFreeGuidance(model, scale=2.0, null={"label": 5})
    samplers = [AncestralSampler(steps=3, grid=model.grid), AncestralSampler(steps=3, eta=1.0)]
    for sampler in samplers:
        drawn = sampler(guided, (2, 3, 8, 8), label=torch.tensor([1, 2])).x
        assert bool(drawn.isfinite().all())
    flow = log_likelihood(loaded["ncsnpp"], inputs_of((3, 8, 8)), method="heun2", steps=3)
    assert bool(flow.log_prob.isfinite().all())
    assert isinstance(model.model(), ScoreModel)
    assert model.model().dropout.dropped == ["label"]  # the null class was trained
    assert loaded["classes"].model().dropout.dropped == []


@pytest.mark.parametrize("name", ["ddpm", "learned_variance", "ncsnpp", "classes"])
def test_a_folder_of_diffusers_is_written_as_it_was_read(loaded, name, tmp_path):
    """The same names and weights, and a table with the same levels."""
    loaded[name].save(tmp_path, "diffusers")
    written = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    own = drawn(CASES[name]["keys"])
    assert sorted(written) == sorted(own)
    assert all(torch.equal(written[key], own[key]) for key in own)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    unlike = {key: value for key, value in CASES[name]["config"].items() if config.get(key, value) != value}
    assert set(unlike) <= {
        "_diffusers_version",
        "time_embedding_dim",
        "mid_block_scale_factor",
        "freq_shift",
        "flip_sin_to_cos",
    }
    again = Pretrained.load(tmp_path)
    levels = torch.linspace(-4, 4, 9, dtype=torch.float64)
    told = [one.noise_conditioning(one.sde, one.sde.time(levels)) for one in (loaded[name], again)]
    assert torch.allclose(*told, atol=1e-6)


def test_a_trained_denoiser_with_step_numbers_is_written_for_diffusers(tmp_path):
    network = {"_target_": "sde_diffusion.nn.UNet", "shape": [1, 8, 8], "channels": 32, "channel_mult": [1, 1]}
    network |= {"head_channels": None, "embedding": "timestep", "feature_dim": 32, "modulation": "shift"}
    network |= {"blocks": 1, "decoder_attention": "all", "rescale": False, "resampling": "convolution"}
    denoiser = {"_target_": "sde_diffusion.NetworkDenoiser", "sde": {"_target_": "sde_diffusion.CosineVPSDE"}}
    denoiser |= {"network": network, "prediction": "v", "noise_conditioning": "step", "input_scale": "none"}
    data = {"name": "digits", "shape": [1, 8, 8], "levels": 17}
    objective = {"_target_": "sde_diffusion.training.DenoisingScoreMatching"}
    model = Pretrained.of(ScoreModel(denoiser, objective, data=data))
    with pytest.raises(UserError, match=r"no such U-Net. The nearest that it has needs norm_groups=8 \(here null\)"):
        model.save(tmp_path / "no", "diffusers")
    assert not (tmp_path / "no").exists()
    network["norm_groups"] = 8
    model = Pretrained.of(ScoreModel(denoiser, objective, data=data))
    model.save(tmp_path / "out", "diffusers")
    again = Pretrained.load(tmp_path / "out")
    assert str(model.sde).startswith("CosineVPSDE")
    for number in (1, 400, 998):  # the two paths' tables, at times where the network is told this number
        t = torch.tensor(number / 999, dtype=torch.float64)
        s = again.sde.time(model.sde.log_snr(t))
        assert float(again.noise_conditioning(again.sde, s)) == pytest.approx(number, abs=1e-4)
    model.save(tmp_path / "own")
    own = Pretrained.load(tmp_path / "own")
    assert own.sde == model.sde
    assert own.description.data["levels"] == 17


@pytest.mark.parametrize("widths", [[32, 64], [64, 64], [96, 96]])
def test_attention_of_ncsnpp_with_other_groups_than_ours_is_refused(widths, tmp_path):
    """diffusers norms attention in 32 groups at every width; the imported network would be another function."""
    folder = folder_of("ncsnpp", tmp_path, config={"block_out_channels": widths})
    with pytest.raises(UserError, match=rf"norms of 32 groups at {widths[1]} channels, not (16|24)"):
        Pretrained.load(folder)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "LCMScheduler"])
def test_schedulers_without_a_known_table_are_refused(name, tmp_path):
    folder = folder_of("ddpm", tmp_path, scheduler={"_class_name": name})
    with pytest.raises(UserError, match=f"is of {name}, which has no table of betas .*DDPMScheduler"):
        Pretrained.load(folder)


def test_a_scheduler_has_the_defaults_of_its_class(tmp_path):
    folder = folder_of("ddpm", tmp_path)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "HeunDiscreteScheduler"}')
    model = Pretrained.load(folder)
    assert model.grid.spacing == "linspace"
    assert model.noise_conditioning.alphas_bar[0] == pytest.approx(1 - 0.00085)


def test_latent_variables_are_written_without_clipping(tmp_path):
    loaded = Pretrained.load(folder_of("ddpm", tmp_path))
    loaded.description.data["levels"] = None
    loaded.save(tmp_path / "latent", "diffusers")
    scheduler = json.loads((tmp_path / "latent" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["clip_sample"] is False


def test_a_folder_that_holds_something_is_not_written_over(loaded, tmp_path):
    loaded["ddpm"].save(tmp_path / "kept")
    with pytest.raises(UserError, match="kept exists already, and is not an empty folder"):
        loaded["ddpm"].save(tmp_path / "kept", "diffusers")


def test_a_path_is_named_only_for_checkpoints_that_do_not_say_theirs(tmp_path):
    folder = folder_of("ddpm", tmp_path)
    with pytest.raises(
        UserError, match=r"sde=vp is for checkpoints of score_sde_pytorch, and .* is none: leave it out"
    ):
        Pretrained.load(folder, sde="vp")


def test_a_model_on_a_learned_path_is_not_written_for_other_programs():
    denoiser = {"_target_": "sde_diffusion.NetworkDenoiser", "sde": {"_target_": "sde_diffusion.LearnedVPSDE"}}
    denoiser["network"] = {"_target_": "sde_diffusion.nn.MLP", "shape": [4], "width": 8, "depth": 1}
    objective = {"_target_": "sde_diffusion.training.DenoisingScoreMatching"}
    with pytest.raises(UserError, match="this ScoreModel is not written for other programs: its path is learned"):
        Pretrained.of(ScoreModel(denoiser, objective, data={"name": "four", "shape": [4]}))


def test_spacings_are_those_of_diffusers(loaded):
    """For 10 of 1,000 steps: set_timesteps of DDIMScheduler."""
    table, sde = loaded["ddpm"].noise_conditioning, loaded["ddpm"].sde
    wanted = {
        ("leading", 0): range(900, -1, -100),
        ("leading", 1): range(901, 0, -100),
        ("trailing", 0): range(999, 98, -100),
        ("linspace", 0): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    }
    for (spacing, offset), numbers in wanted.items():
        times = NoiseTable(table.alphas_bar, spacing, offset).times(sde, 10)
        assert table(sde, times).tolist() == pytest.approx(list(numbers), abs=1e-6)
    assert isinstance(table, TableStep)
    assert loaded["learned_variance"].grid.offset == 1


def test_a_module_of_x_and_t_is_wrapped_in_one_line():
    class Theirs(torch.nn.Module):
        def forward(self, x, t):
            return x * t[:, None, None, None] / 1000

    denoiser = NetworkDenoiser(VPSDE(), Theirs(), "eps", noise_conditioning="step", input_scale="none")
    x = inputs_of((3, 8, 8))
    assert torch.allclose(denoiser(x, 0.5).eps, x * 0.4995, atol=1e-5)


WRONG = {
    "missing": ({"changes": {"conv_in.bias": None}}, r"1 missing \(conv_in.bias\)"),
    "extra": ({"changes": {"more.weight": torch.zeros(2)}}, r"1 extra \(more.weight\)"),
    "shape": ({"changes": {"conv_in.bias": torch.zeros(31)}}, r"of another shape \(conv_in.bias \[31\] for \[32\]\)"),
    "nan": ({"changes": {"conv_in.bias": torch.full((32,), torch.nan)}}, "conv_in.bias has NaN or infinite"),
    "class": ({"config": {"_class_name": "UNet2DConditionModel"}}, "UNet2DConditionModel, which is not .* known"),
    "channels": (
        {"config": {"in_channels": 4, "out_channels": 4}},
        r"conv_in.weight \[32, 3, 3, 3\] for \[32, 4, 3, 3\]",
    ),
    "option": ({"config": {"upsample_type": "resnet"}}, "does not have: upsample_type=resnet"),
    "table": ({"scheduler": {"beta_schedule": "laplace"}}, "beta_schedule=laplace is not known; .* linear"),
    "prediction": ({"scheduler": {"prediction_type": "flow"}}, "prediction_type=flow is not known"),
    "no signal": ({"scheduler": {"rescale_betas_zero_snr": True}}, "ends without signal"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_folder_is_refused_in_one_message(case, tmp_path):
    changes, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        Pretrained.load(folder_of("ddpm", tmp_path, **changes))


def test_other_files_are_refused_in_one_message(tmp_path):
    for name, content in (("network.pkl", UNet([1, 8, 8], channels=8)), ("other.pt", {"weight": torch.zeros(2)})):
        torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=r"reading those can run any code\. Convert it"):
        Pretrained.load(tmp_path / "network.pkl")
    with pytest.raises(UserError, match="of no kind that is known, which are: a folder of diffusers"):
        Pretrained.load(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"missing\.pth does not exist"):
        Pretrained.load(tmp_path / "missing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        Pretrained.load(tmp_path / "empty")
    with pytest.raises(UserError, match="averaged weights do not fit"):
        Pretrained.load(score_sde_file("score_sde_ddpm", tmp_path, lost=1))
    unnamed = score_sde_file("score_sde_ddpm", tmp_path).rename(tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"does not say on which path .* Pretrained\.load\(path, sde=\.\.\.\)"):
        Pretrained.load(unnamed)
    assert str(Pretrained.load(unnamed, sde="subvp").sde).startswith("SubVPSDE")


def test_tables_of_betas_equal_those_of_the_papers():
    """Ends of DDPM's and Stable Diffusion's alpha_bar, and improved DDPM's formula where it is not capped."""
    linear = diffusion_of({}, "").noise_conditioning["alphas_bar"]
    assert [linear[0], linear[-1]] == pytest.approx([1 - 1e-4, 4.0358e-5], rel=1e-4)
    stable = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    assert diffusion_of(stable, "").noise_conditioning["alphas_bar"][-1] == pytest.approx(0.00466, rel=1e-3)
    cosine = diffusion_of({"beta_schedule": "squaredcos_cap_v2"}, "").noise_conditioning["alphas_bar"]
    f = (torch.tensor([0.508, 0.008], dtype=torch.float64) / 1.008 * torch.pi / 2).cos().square()
    assert cosine[499] == pytest.approx(float(f[0] / f[1]), rel=1e-9)


def test_the_command_s_short_form_is_a_checkpoint():
    typed = ["sample", "pretrained=DIR", "sampler=ddpm"]
    assert in_full("sample", typed) == ["sample", "ckpt=DIR", "sampler=ddpm"]


def test_a_checkpoint_of_ours_is_known_by_any_name(tmp_path):
    ours = pathlib.Path(__file__).parents[1] / "releases" / "0.1.0.ckpt"
    for suffix in (".ckpt", ".pt", ".pth", ".bin"):
        assert not recognises(shutil.copy(ours, tmp_path / f"model{suffix}"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert recognises(tmp_path / "other.pth")
