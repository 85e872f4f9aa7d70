"""The eight networks that are compared: ReLU, and ReLU with an encoding, norms, filters or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from inrfast.calibration import calibrate_batchnorm_
from inrfast.encodings import PositionalEncoding
from inrfast.nn import INR
from inrfast.plots import PALETTE

OCTAVES = 6
"""Of the positional encoding where none are tuned."""

FREQUENCY = 16.0
"""Of the Fourier filters where none is tuned: frequencies up to 16 / sqrt(d) radians per unit of a coordinate."""


@dataclass(frozen=True)
class Variant:
    """A network of the comparison.

    Attributes
    ----------
    name
        As files spell it.
    label
        As figures and tables spell it.
    options
        Of :class:`inrfast.INR`; ``"octaves"`` are those of a positional encoding, ``"filters"`` those of every hidden
        layer: ``frequency / sqrt(d)`` is the largest entry of W, so that filters do not change with the depth, as with
        ``INR(modulation=)``, whose number is ``frequency sqrt(hidden_layers)``.
    colour, dashed
        Of its curve.
    """

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    colour: str = "#000000"
    dashed: bool = False

    def network(self, inputs: int, width: int, hidden_layers: int, seed: int, **others: Any) -> INR:
        """Return the network ``inputs -> width x hidden_layers -> 1``; ``others`` are further options of ``INR``."""
        options = {**self.options, **others}
        octaves = options.pop("octaves", None)
        if octaves is not None:
            options["encoding"] = PositionalEncoding(octaves)
        filters = options.pop("filters", None)
        if filters is not None:  # as INR spells it, for all filters of the network
            options["modulation"] = {"name": filters["name"], "scale": filters["frequency"] * hidden_layers**0.5}
        return INR(inputs, 1, width=width, hidden_layers=hidden_layers, seed=seed, **options)

    def but(self, **options: Any) -> Variant:
        """Return the variant with other options."""
        return replace(self, options={**self.options, **options})

    @property
    def filtered(self) -> bool:
        """Whether its layers are multiplied by filters."""
        return "filters" in self.options


def fourier(frequency: float) -> dict[str, Any]:
    """Return Fourier filters ``sin(W x + b)`` for every hidden layer."""
    return {"name": "fourier", "frequency": frequency}


PLAIN = Variant("plain", "ReLU", {}, "#000000")
PE = Variant("pe", "PE", {"octaves": OCTAVES}, PALETTE[2])
SPHERE = Variant("sphere", "sphere", {"norm": "sphere"}, PALETTE[0])
HADAMARD = Variant("hadamard", "Hadamard", {"filters": fourier(FREQUENCY)}, PALETTE[4])
BOTH = Variant("both", "sphere + Hadamard", {"norm": "sphere", "filters": fourier(FREQUENCY)}, PALETTE[1])
TOPK = Variant("topk", "TopK", {"norm": "topk"}, PALETTE[3])
TOPK_SPHERE = Variant("topk_sphere", "TopK-SP", {"norm": "topk_sphere"}, PALETTE[5])
BN = Variant("bn", "BN", {"norm": "batch"}, "#999999")

VARIANTS = {one.name: one for one in (PLAIN, PE, SPHERE, HADAMARD, BOTH, TOPK, TOPK_SPHERE, BN)}
"""The variants by name; ReLU, with which all are compared, first."""

DEFINITIONS = (
    "Only a summary of the paper is at hand, so that all definitions are this project's own: sphere is sqrt(m) z / |z| "
    "after every activation; Hadamard multiplies every hidden layer by a trained filter sin(W x + b) of the "
    "coordinates (Multiplicative Filter Networks), after the norm; TopK keeps the quarter of a layer's m units that is "
    "largest at a point, and TopK-SP projects what is left onto the sphere; BN stands after the activation, with "
    f"statistics of all points, and its kernel is that of these. Where nothing else is said PE has {OCTAVES} octaves, "
    f"and filters have frequency {FREQUENCY:g}."
)


def ready(net: INR, coords: Tensor) -> INR:
    """Return a network in eval mode, its batch norms with the statistics of ``coords``."""
    if any(isinstance(norm, torch.nn.BatchNorm1d) for norm in net.norms):
        calibrate_batchnorm_(net, coords)
    return net.eval()
