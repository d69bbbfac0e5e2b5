"""Small networks of the published kinds, with weights that are drawn in one order, and what the authors' code returns.

The values were computed with these weights by diffusers 0.42 (`ddpm`, `dit_s`), score_sde_pytorch (`ddpmpp`, `ncsnpp`,
`ncsnpp_256`), EDM (`edm_ddpmpp`, `edm_ncsnpp`, `adm`) and EDM2 (`edm2_xs`), on a CPU in float32.
"""

import torch
from network_presets import network_of

from sde_diffusion.nn import TimestepEmbedding

SMALL = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [1], "feature_dim": 16, "embedding_dim": 64}
CLASSES = 5
STEPS, LOG_SIGMA = (3.7, 998.2), (-4.1, 3.6)
DIT = {"width": 32, "depth": 2, "heads": 4, "n_classes": CLASSES, "learned_variance": True}
DIT["embedding"] = TimestepEmbedding(256, cos_first=True)  # diffusers' frequencies; the authors' lack the endpoint
UNIT = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [1], "head_channels": 8, "n_classes": CLASSES}

CASES = {
    "ddpm": ({"channel_mult": [1, 2], "blocks": 1}, STEPS),
    "ddpmpp": (SMALL, STEPS),
    "ncsnpp": (SMALL | {"feature_dim": 32}, LOG_SIGMA),
    "ncsnpp_256": (SMALL | {"feature_dim": 32}, LOG_SIGMA),
    "edm_ddpmpp": (SMALL | {"stem_channels": 16, "n_classes": CLASSES}, STEPS),
    "edm_ncsnpp": (SMALL | {"stem_channels": 16, "feature_dim": 32, "n_classes": CLASSES}, LOG_SIGMA),
    "adm": (SMALL | {"channels": 64, "feature_dim": 64, "embedding_dim": 256, "n_classes": CLASSES}, STEPS),
    "dit_s": (DIT, STEPS),
    "edm2_xs": (UNIT, LOG_SIGMA),
}
"""Changes of the presets, and the network's second input."""


def network_with_weights(name):
    made = network_of(name, shape=[3, 8, 8], dropout=0.0, **CASES[name][0]).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in made.parameters():
            std = weights[0].numel() ** -0.5 if weights.ndim > 1 else 0.3
            weights.copy_(std * torch.randn(weights.shape, generator=generator))
    return made


def inputs_of(name):
    """x, c_noise, and the label if there is one."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    label = (torch.tensor([1, 4]),) if "n_classes" in CASES[name][0] else ()
    return x, torch.tensor(CASES[name][1]), *label


def shown(out):
    """A few of the outputs."""
    return out.detach().flatten()[::37].tolist()


# fmt: off
EXPECTED = {
    "ddpm": [-0.046899, 0.031462, 0.190153, -0.014956, 0.183385, 0.389525,
        -0.038334, 0.09369, -0.23739, 0.490268, 0.461457],
    "ddpmpp": [0.375342, 0.042967, 0.511396, 0.564274, 0.3632, 0.371459,
        0.390932, 0.300461, 0.282669, 0.447022, 0.53189],
    "ncsnpp": [-0.249856, -0.197048, 0.103909, -0.08133, 0.018376, -0.04663,
        -0.349169, 0.124863, 0.158614, 0.194809, -0.223152],
    "ncsnpp_256": [0.151046, 0.473821, 0.430261, 0.235407, -0.935822, -0.946848,
        0.300556, 0.048577, 0.02183, -0.856342, -0.936123],
    "edm_ddpmpp": [0.119718, 0.376181, -0.250447, -0.2883, 0.105887, -0.241027,
        0.161424, -0.538417, -0.048859, 0.166837, -0.127372],
    "edm_ncsnpp": [-0.366947, -0.41744, -0.146653, -0.236702, 0.361773, 0.335489,
        -0.640008, -0.167307, -0.06602, 0.539236, 0.307206],
    "adm": [0.060755, 0.101788, -0.236234, -0.200059, 0.077636, 0.223065,
        0.088212, -0.288864, -0.34225, 0.106516, 0.042948],
    "dit_s": [-1.219973, 0.574165, -0.01208, -0.972389, 0.068978, -1.330101,
        0.970049, 1.142151, -1.121349, -1.495503, -0.333885],
    "edm2_xs": [-0.340673, 0.069095, -0.143087, -0.10268, -0.024654, -0.556404,
        0.595772, -0.337009, -0.321589, 0.22565, 0.655968],
}
# fmt: on
