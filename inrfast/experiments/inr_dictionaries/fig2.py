"""Fig. 2: one image by Fourier feature networks of one frequency, 1 or 1/2 cycle per unit, and of random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from inrfast.encodings import Encoding, RandomFourier
from inrfast.experiments.inr_dictionaries.networks import ffn
from inrfast.experiments.inr_dictionaries.recovery import EMPTY, HIDDEN_LAYERS, Recovery, Variant
from inrfast.nn import INR

COUNT = 256
"""Of random frequencies, as in the code."""


def one_frequency(frequency: float, trainable: bool = False, lr: float | None = None) -> Variant:
    """Return the network on ``cos`` and ``sin`` of ``2 pi f0 r``, per axis, and maybe a learning rate of its own."""

    def network(width: int, seed: int, device: torch.device) -> INR:
        mapping = RandomFourier(frequencies=frequency * torch.eye(2), trainable=trainable)
        return ffn(2, 3, width, HIDDEN_LAYERS, mapping, seed, device)

    kind = "trained from f0" if trainable else "fixed"
    told = f"ReLU on cosine and sine of f0 = {frequency:g} cycles per unit on each axis, {kind}, weights N(0, 1/in)"
    key, label = ("", "") if lr is None else (f"+lr={lr:g}", f", lr {lr:g}")
    return Variant(f"f0={frequency:g}{key}", f"f0 = {frequency:g}{label}", network, told, lr)


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
        return [missing(found["f0=1"], found["f0=0.5"]), *sharpness(found, ("f0=1", "f0=0.5"), "sigma=10")]


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


BLURRY = 0.5
"""Of the image's energy above N/8, what a blurry picture holds at most."""


def sharpness(found: Mapping[str, Mapping[str, Any]], low: Sequence[str], rich: str) -> list[str]:
    """Say whether the rich mapping is the best, and the pictures of low frequencies are blurry, as the paper shows."""
    psnrs = ", ".join(f"{key} {found[key]['psnr']:.2f} dB" for key in (*low, rich))
    best = all(found[key]["psnr"] < found[rich]["psnr"] for key in low)
    blurry = [key for key in low if found[key]["fine"] < BLURRY]
    fine = ", ".join(f"{key} {found[key]['fine']:.2f}" for key in (*low, rich))
    if len(blurry) == len(low):
        said = "those of low frequencies are blurry, as the paper says"
    elif blurry:
        said = f"of those of low frequencies only {' and '.join(blurry)} is blurry; the paper says it of all"
    else:
        said = "those of low frequencies are not blurry with these settings, unlike in the paper"
    return [
        f"PSNR: {psnrs}: {rich} is {'' if best else 'not '}the best, {'as' if best else 'unlike'} in the paper.",
        f"Energy above N/8, relative to the image's (below {BLURRY:g} it is called blurry): {fine}: {said}.",
    ]
