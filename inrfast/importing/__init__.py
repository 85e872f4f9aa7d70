"""Weights of other people's networks: what is known of their files, and the :class:`inrfast.INR` of equal outputs.

To add a layout is to add a file to :mod:`inrfast.importing.layouts` (or, from anywhere, to call ``LAYOUTS.add``).
"""

from inrfast.importing.base import LAYOUTS, Layout, Parts, linear_layers
from inrfast.importing.network import import_network

__all__ = ["LAYOUTS", "Layout", "Parts", "import_network", "linear_layers"]
