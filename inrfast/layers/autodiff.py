"""Any other parameter, exactly: its rows ``d f_m(x_n) / d p`` by automatic differentiation, point by point.

No two factors are known of such a parameter, so that it costs as many numbers per point and output as it has entries.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from torch import nn

from inrfast.layers.base import LAYERS, Layer


class Autodiff(Layer):
    """Parameters that no other handler takes, as those of ``nn.Bilinear`` or ``nn.LSTM``, or that are never used."""

    kind: ClassVar[str] = "autodiff"
    order: ClassVar[int] = 4
    observed: ClassVar[bool] = False

    @classmethod
    def takes(cls, module: nn.Module, names: Collection[str]) -> Sequence[str]:
        """Return all of them."""
        return list(names)


LAYERS.add(Autodiff.kind, Autodiff)
