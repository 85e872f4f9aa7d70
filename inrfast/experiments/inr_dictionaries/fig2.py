"""Fig. 2: one image by Fourier feature networks of one frequency, 1 or 1/2 cycle per unit, and of random ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from inrfast.encodings import Encoding, RandomFourier
from inrfast.experiments.inr_dictionaries.networks import ffn
from inrfast.experiments.inr_dictionaries.recovery import EMPTY, HIDDEN_LAYERS, Recovery, Variant
from inrfast.nn import INR

COUNT = 256
"""Of random frequencies, as in the code."""


def one_frequency(frequency: float, trainable: bool = False) -> Variant:
    """Return the network on ``cos`` and ``sin`` of ``2 pi f0 r``, per axis."""

    def network(width: int, seed: int, device: torch.device) -> INR:
        mapping = RandomFourier(frequencies=frequency * torch.eye(2), trainable=trainable)
        return ffn(2, 3, width, HIDDEN_LAYERS, mapping, seed, device)

    kind = "trained from f0" if trainable else "fixed"
    told = f"ReLU on cosine and sine of f0 = {frequency:g} cycles per unit on each axis, {kind}, weights N(0, 1/in)"
    return Variant(f"f0={frequency:g}", f"f0 = {frequency:g}", network, told)


def random_frequencies(sigma: float, trainable: bool = False) -> Variant:
    """Return the network on random Fourier features."""

    def network(width: int, seed: int, device: torch.device) -> INR:
        mapping: Encoding = RandomFourier(COUNT, sigma, trainable=trainable)
        return ffn(2, 3, width, HIDDEN_LAYERS, mapping, seed, device)

    kind = "trained" if trainable else "fixed"
    told = f"ReLU on {COUNT} random Fourier frequencies, sigma {sigma:g}, {kind}, weights N(0, 1/in)"
    return Variant(f"sigma={sigma:g}", f"sigma = {sigma:g}", network, told)


class Fig2(Recovery):
    """Fixed mappings."""

    name = "fig2"
    title = "Fig. 2: imperfect recovery by Fourier feature networks, f0 = 1, f0 = 1/2, sigma = 10"
    variants: ClassVar = (one_frequency(1.0), one_frequency(0.5), random_frequencies(10.0))

    def said(self, variant: Variant) -> str:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        return "none" if variant.key == "f0=1" else "present"

    def claims(self, found: Mapping[str, Mapping[str, Any]], image: Mapping[str, float]) -> Sequence[str]:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        return [missing(found["f0=1"], found["f0=0.5"]), *ordered(found, ("f0=1", "f0=0.5", "sigma=10"))]


def missing(one: Mapping[str, Any], half: Mapping[str, Any]) -> str:
    """Say whether the odd bins are empty with one cycle per unit and hold energy with half a cycle."""
    empty, full = one["odd"] < EMPTY, half["odd"] > 1e-3
    told = (
        f"With one cycle per unit the odd bins hold {one['odd']:.1e} of the energy, with half a cycle {half['odd']:.2f}"
    )
    if empty and full:
        return f"{told}: odd harmonics are missing from the first alone, as the paper says."
    return (
        f"{told}: {'not ' if not empty else ''}missing from the first, {'not ' if not full else ''}there in the second."
    )


def ordered(found: Mapping[str, Mapping[str, Any]], rising: Sequence[str]) -> list[str]:
    """Say whether the PSNR rises in this order, and how much fine detail each holds."""
    psnrs = [found[key]["psnr"] for key in rising]
    told = ", ".join(f"{key} {value:.2f} dB" for key, value in zip(rising, psnrs, strict=True))
    right = all(low < high for low, high in itertools.pairwise(psnrs))
    fine = ", ".join(f"{key} {found[key]['fine']:.2f}" for key in rising)
    return [
        f"PSNR: {told}: {'in the order that the paper shows' if right else 'not in the order that the paper shows'}. "
        f"Energy above N/8, relative to the image's: {fine}; far below 1 is a blurry picture."
    ]
