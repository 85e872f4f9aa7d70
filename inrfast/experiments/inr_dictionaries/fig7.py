"""Fig. 7: the sine networks of Fig. 6 whose first layer is trained with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from inrfast.experiments.inr_dictionaries.fig2 import ordered
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
        return [spread_out(found["W=1"], image), *ordered(found, ("W=1", "W=0.5", "omega=30"))]


def spread_out(one: Mapping[str, Any], image: Mapping[str, float]) -> str:
    """Say whether training the mapping brings energy to the odd bins, and the picture beyond what even bins hold."""
    better = one["psnr"] > image["even_psnr"]
    return (
        f"Trained from one cycle per unit, frequencies move by up to {one['moved']:.2g} cycles per unit; then the odd "
        f"bins hold {one['odd']:.2f} of the energy (the image's own {image['odd']:.2f}), and the PSNR is "
        f"{one['psnr']:.2f} dB where even bins alone reach {image['even_psnr']:.2f}: "
        + ("the copies are mostly gone, as the paper says." if better else "the copies remain, unlike in the paper.")
    )
