"""compile=true: the same results to rounding, and one message where compiling fails."""

import subprocess
import sys

import numpy as np
import pytest

from sde_diffusion.commands.compilation import compilation_failed


class FailedError(RuntimeError):
    """As torch's compiler raises them."""


FailedError.__module__ = "torch._inductor.exc"


def test_errors_of_the_compiler_and_of_nothing_else_are_explained():
    error = RuntimeError("in a batch")
    assert compilation_failed(error) == compilation_failed(None) == ""
    error.__cause__ = FailedError("\n  No working C++ compiler found\nat ...")
    assert "torch.compile failed (No working C++ compiler found). On a CPU it needs" in compilation_failed(error)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_commands_have_the_same_results(command, trained, tmp_path):
    ckpt, found = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", {}
    for compiled in ("false", "true"):
        out = tmp_path / compiled
        chosen = ("sampler=dpm", "sampler.steps=4", "n=10", "batch_size=4", f"compile={compiled}", f"out={out}")
        done = command("sample", ckpt, *chosen, cwd=tmp_path)
        assert done.status == 0, done.err
        chosen = ("n=5", "elbo=null", "method=rk4", "steps=4", f"compile={compiled}", f"out={out / 'scores'}")
        done = command("likelihood", ckpt, *chosen, cwd=tmp_path)
        assert done.status == 0, done.err
        scores = np.genfromtxt(out / "scores" / "likelihood.csv", delimiter=",", names=True, dtype=None, encoding=None)
        found[compiled] = (np.load(out / "samples.npz")["images"].astype(int), scores["log_prob"])
    images, scores = zip(found["false"], found["true"], strict=True)
    assert np.abs(images[0] - images[1]).max() <= 1
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_compiler(command, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no_such_compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    words = [f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "n=4", "sampler=ddim", "compile=true", "out=drawn"]
    done = subprocess.run(
        [sys.executable, "-m", "sde_diffusion.sample", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: torch.compile failed" in done.stderr
    assert "or leave out compile=true" in done.stderr.lower()
    assert not (tmp_path / "drawn" / "samples.npz").exists()


def test_a_compiled_likelihood_needs_one_probe(command, trained, tmp_path):
    ckpt = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}"
    done = command("likelihood", ckpt, "n=2", "probes=2", "elbo=null", "compile=true", "out=scores", cwd=tmp_path)
    assert done.status == 1
    assert "error: compile=true needs a trace of one probe" in done.err
