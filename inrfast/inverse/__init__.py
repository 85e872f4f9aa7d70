"""Inverse problems: forward operators with their adjoints, and the solvers that fit a network to measurements."""

from __future__ import annotations

from inrfast.inverse.ambiguities import align_ambiguities
from inrfast.inverse.blur import Blur
from inrfast.inverse.downsample import Downsample
from inrfast.inverse.fourier import Fourier, FourierMagnitude
from inrfast.inverse.gaussian import Gaussian, GaussianMagnitude
from inrfast.inverse.masks import Mask
from inrfast.inverse.net_adm import net_adm
from inrfast.inverse.net_gd import net_gd
from inrfast.inverse.operators import AdjointError, LinearOperator, Operator, check_adjoint
from inrfast.inverse.radon import Radon
from inrfast.inverse.result import Reconstruction

__all__ = [
    "AdjointError",
    "Blur",
    "Downsample",
    "Fourier",
    "FourierMagnitude",
    "Gaussian",
    "GaussianMagnitude",
    "LinearOperator",
    "Mask",
    "Operator",
    "Radon",
    "Reconstruction",
    "align_ambiguities",
    "check_adjoint",
    "net_adm",
    "net_gd",
]
