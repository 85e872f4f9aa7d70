"""Inverse problems: forward operators with their adjoints, and the solvers that fit a network to measurements."""

from __future__ import annotations

from inrfast.inverse.blur import Blur
from inrfast.inverse.downsample import Downsample
from inrfast.inverse.masks import Mask
from inrfast.inverse.operators import AdjointError, LinearOperator, Operator, check_adjoint

__all__ = ["AdjointError", "Blur", "Downsample", "LinearOperator", "Mask", "Operator", "check_adjoint"]
