"""What CUDA graphs do without a CUDA device: nothing, and no more in copies. With one: tests/test_gpu.py."""

import copy
import pickle

import pytest
import torch
from omegaconf import OmegaConf
from training.tiny import make_model

from sde_diffusion import VPSDE, AncestralSampler, NetworkDenoiser, UserError
from sde_diffusion.commands.loading import speed_up
from sde_diffusion.denoiser import CUDAGraphs
from sde_diffusion.nn import MLP


def test_on_a_cpu_passes_are_made_as_usual():
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(VPSDE(), MLP((2,), width=8, depth=1, embedding_dim=8)).eval()
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    expected = AncestralSampler(4)(denoiser, (5, 2)).x
    denoiser.cuda_graphs = CUDAGraphs()
    assert torch.equal(AncestralSampler(4)(denoiser, (5, 2)).x, expected)
    assert not denoiser.cuda_graphs._recordings


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda graphs: pickle.loads(pickle.dumps(graphs))])
def test_copies_have_no_recordings(copied):
    graphs = CUDAGraphs()
    graphs._recordings["key"] = object()
    assert not copied(graphs)._recordings


def test_commands_need_a_device_for_them():
    with pytest.raises(UserError, match="cuda_graphs=true needs a CUDA device, and this command runs on cpu"):
        speed_up(make_model(), torch.device("cpu"), OmegaConf.create({"cuda_graphs": True}))
