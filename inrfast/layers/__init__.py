"""Layers: one handler per kind of parameter layer, which knows its block of the Jacobian.

To add a kind is to add a file here, or to call ``LAYERS.add`` with a class of one's own, derived from :class:`Layer`;
:func:`inrfast.testing.check_layer` checks it. Parameters of unknown modules are known by the torch functions that take
them (:mod:`inrfast.layers.calls`). Whatever no handler recognises goes to :mod:`inrfast.layers.autodiff`.
"""

from inrfast.layers.base import LAYERS, Factors, Layer
from inrfast.layers.finding import layers_of

__all__ = ["LAYERS", "Factors", "Layer", "layers_of"]
