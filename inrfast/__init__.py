"""inrfast: see where an implicit neural representation loses rank, cure it, and fit it fast."""

from inrfast import init
from inrfast.encodings import PositionalEncoding, Polynomial, RandomFourier
from inrfast.grids import grid
from inrfast.jacobians import jacobian
from inrfast.nn import INR, SphereNorm, calibrate_batchnorm_
from inrfast.ops.grid_init import rank_expanding
from inrfast.tangent_kernel import ntk

__version__ = "0.1.0"

__all__ = [
    "INR",
    "PositionalEncoding",
    "Polynomial",
    "RandomFourier",
    "SphereNorm",
    "calibrate_batchnorm_",
    "grid",
    "init",
    "jacobian",
    "ntk",
    "rank_expanding",
]
