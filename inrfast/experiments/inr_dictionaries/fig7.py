"""Fig. 7: the sine networks of Fig. 6 whose first layer is trained with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from inrfast.experiments.inr_dictionaries.fig2 import sharpness
from inrfast.experiments.inr_dictionaries.fig6 import drawn, identity
from inrfast.experiments.inr_dictionaries.recovery import Recovery, Variant


class Fig7(Recovery):
    """Trained first layers."""

    name = "fig7"
    title = "Fig. 7: recovery by sine networks with a trained first layer, from W = I, I/2 and random"
    variants: ClassVar = (identity(1.0, True), identity(0.5, True), drawn(True))

    def said(self, variant: Variant) -> str:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        return "present"

    def claims(self, found: Mapping[str, Mapping[str, Any]], image: Mapping[str, float]) -> Sequence[str]:
        """See :class:`inrfast.experiments.inr_dictionaries.recovery.Recovery`."""
        return [spread_out(found["W=1"], image), *sharpness(found, ("W=1", "W=0.5"), "omega=30")]


RECOVERED = 0.8
"""Of the odd bins of the image, from which on its copies count as mostly gone."""


def spread_out(one: Mapping[str, Any], image: Mapping[str, float], how: str = "") -> str:
    """Say whether training the mapping brings back the image's odd bins, without which it repeats itself."""
    return (
        f"Trained from one cycle per unit{how}, frequencies move by up to {one['moved']:.2g} cycles per unit; then "
        f"the odd bins hold {one['odd']:.2f} of the energy (the image's own {image['odd']:.2f}), "
        f"{one['recovered']:.2f} of the image's there is recovered, and the PSNR is {one['psnr']:.2f} dB "
        f"where even bins alone reach {image['even_psnr']:.2f}: "
        + ("the copies are mostly gone, as the paper says." if one["recovered"] > RECOVERED
           else "the copies are not gone; the paper says that they mostly are.")
    )  # fmt: skip
