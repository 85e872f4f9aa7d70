"""Fig. 6: one image by sine networks whose first layer stays as it starts: one frequency, or random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from inrfast.experiments.inr_dictionaries.fig2 import missing, sharpness
from inrfast.experiments.inr_dictionaries.networks import HIDDEN_OMEGA, siren
from inrfast.experiments.inr_dictionaries.recovery import EMPTY, HIDDEN_LAYERS, Recovery, Variant
from inrfast.nn import INR

OMEGA = 2 * math.pi
"""With which W = I is one cycle per unit. The paper's captions say 1, with which no harmonic but 0 falls on a bin."""


def identity(scale: float, trainable: bool, omega: float = OMEGA) -> Variant:
    """Return the sine network whose first layer has the weights ``scale I``, once for every second unit."""

    def network(width: int, seed: int, device: torch.device) -> INR:
        net = siren(2, 3, width, HIDDEN_LAYERS, omega, seed, device)
        with torch.no_grad():
            net.layers[0].weight.copy_(scale * torch.eye(2).repeat(-(-width // 2), 1)[:width])  # type: ignore[operator]
        net.layers[0].requires_grad_(trainable)
        return net

    name = "2 pi" if omega == OMEGA else f"{omega:g}"
    kind = "trained" if trainable else "frozen"
    told = (
        f"sines, omega {name} in the first layer and {HIDDEN_OMEGA:g} behind it, first weights {scale:g} I for every "
        f"pair of units, random phases, {kind}"
    )
    key = f"W={scale:g}" + ("" if omega == OMEGA else f"+omega={omega:g}")
    label = "W = I" if scale == 1 else f"W = {scale:g} I"
    return Variant(key, label + ("" if omega == OMEGA else f", omega {omega:g}"), network, told)


def drawn(trainable: bool, omega: float = 30.0) -> Variant:
    """Return the sine network of random first weights."""

    def network(width: int, seed: int, device: torch.device) -> INR:
        net = siren(2, 3, width, HIDDEN_LAYERS, omega, seed, device)
        net.layers[0].requires_grad_(trainable)
        return net

    kind = "trained" if trainable else "frozen"
    told = f"sines, omega {omega:g} in the first layer and {HIDDEN_OMEGA:g} behind it, first layer drawn and {kind}"
    return Variant(f"omega={omega:g}", f"omega = {omega:g}", network, told)


class Fig6(Recovery):
    """Frozen first layers, and beside the paper's the caption's omega of 1 taken by its word."""

    name = "fig6"
    title = "Fig. 6: imperfect recovery by sine networks with a frozen first layer, W = I, I/2 and random"
    variants: ClassVar = (identity(1.0, False), identity(0.5, False), drawn(False), identity(1.0, False, 1.0))

    def said(self, variant: Variant) -> str:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        return "none" if variant.key in ("W=1", "W=1+omega=1") else "present"

    def claims(self, found: Mapping[str, Mapping[str, Any]], image: Mapping[str, float]) -> Sequence[str]:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        word = found["W=1+omega=1"]
        return [
            missing(found["W=1"], found["W=0.5"]), *sharpness(found, ("W=1", "W=0.5"), "omega=30"),
            f"With the caption's omega of 1 and W = I, a frequency of 1 / (2 pi) cycles per unit, the odd bins hold "
            f"{word['odd']:.2g} of the energy and the PSNR is {word['psnr']:.2f} dB. "
            + ("So the figure's missing bins take an omega of 2 pi, which makes its mapping that of Fig. 2, as the "
               "paper's text asks." if word["odd"] > EMPTY else "They are missing then too."),
        ]  # fmt: skip
