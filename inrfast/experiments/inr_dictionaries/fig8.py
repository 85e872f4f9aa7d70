"""Fig. 8: the Fourier feature networks of Fig. 2 whose frequencies are trained with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from inrfast.experiments.inr_dictionaries.fig2 import one_frequency, random_frequencies, sharpness
from inrfast.experiments.inr_dictionaries.fig7 import spread_out
from inrfast.experiments.inr_dictionaries.recovery import Recovery, Variant

FASTER = 1e-2
"""A learning rate at which one frequency leaves its place within the fit."""


class Fig8(Recovery):
    """Trained mappings, and beside the paper's one trained at a rate that moves its frequency further."""

    name = "fig8"
    title = "Fig. 8: recovery by Fourier feature networks with trained frequencies, from f0 = 1, 1/2 and sigma = 1"
    variants: ClassVar = (one_frequency(1.0, True), one_frequency(0.5, True), random_frequencies(1.0, True),
                         one_frequency(1.0, True, FASTER))  # fmt: skip

    def said(self, variant: Variant) -> str:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        return "present"

    def claims(self, found: Mapping[str, Mapping[str, Any]], image: Mapping[str, float]) -> Sequence[str]:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        faster = spread_out(found[f"f0=1+lr={FASTER:g}"], image, f" at a rate of {FASTER:g}")
        lattice = (
            "One frequency on each axis stays one however it is trained: the picture repeats itself by whole periods "
            "of the two, so copies go only when both frequencies come near a half."
        )
        return [spread_out(found["f0=1"], image), faster, lattice, *sharpness(found, ("f0=1", "f0=0.5"), "sigma=1")]
