"""What goes in: data sets, and batches of their items.

To add a data set, write a subclass of `DataModule` with `name` and `load`; see `Digits`. Its modality follows from the
shape of its items ([D] points, [C, L] signals, [C, H, W] images), unless `modality_class` is set.
"""

from sde_diffusion.data.arrays import Arrays
from sde_diffusion.data.caption_table import CaptionTable
from sde_diffusion.data.densities import Checkerboard, Density, Moons, Pinwheel, Ring, SwissRoll
from sde_diffusion.data.digits import Digits
from sde_diffusion.data.encoded import Encoded, EncodedImages
from sde_diffusion.data.folder import Folder
from sde_diffusion.data.hub import HubImages
from sde_diffusion.data.idx import IdxImages
from sde_diffusion.data.loader import Batch, InOrder, Loader, Shuffled
from sde_diffusion.data.module import DataModule
from sde_diffusion.data.parquet import ParquetImages
from sde_diffusion.data.processes import OrnsteinUhlenbeck
from sde_diffusion.data.split import Split
from sde_diffusion.modality.levels import from_levels, to_levels

__all__ = [
    "Arrays",
    "Batch",
    "CaptionTable",
    "Checkerboard",
    "DataModule",
    "Density",
    "Digits",
    "Encoded",
    "EncodedImages",
    "Folder",
    "HubImages",
    "IdxImages",
    "InOrder",
    "Loader",
    "Moons",
    "OrnsteinUhlenbeck",
    "ParquetImages",
    "Pinwheel",
    "Ring",
    "Shuffled",
    "Split",
    "SwissRoll",
    "from_levels",
    "to_levels",
]
