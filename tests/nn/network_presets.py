"""The networks of conf/network."""

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.config import find_class


def settings_of(name, **changes):
    """The settings of a preset, changed."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose(f"network/{name}").network) | changes


def network_of(name, **changes):
    """The network of a preset, changed."""
    settings = settings_of(name, **changes)
    return find_class(settings.pop("_target_"))(**settings)
