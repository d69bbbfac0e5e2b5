"""What is measured of the data? Operators A of y = A(x_0) + noise n."""

from sde_diffusion.guidance.operators.base import Linearised, Operator
from sde_diffusion.guidance.operators.blur import Blur, GaussianBlur
from sde_diffusion.guidance.operators.downsample import Downsample
from sde_diffusion.guidance.operators.grey import Grey
from sde_diffusion.guidance.operators.mask import Mask
from sde_diffusion.guidance.operators.matrix import LinearOperator, Nonlinear

__all__ = [
    "Blur",
    "Downsample",
    "GaussianBlur",
    "Grey",
    "LinearOperator",
    "Linearised",
    "Mask",
    "Nonlinear",
    "Operator",
]
