"""A fit that has learned nothing but its signal's mean value says so, and what to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inrfast.errors import warn
from inrfast.metrics import mse_to_psnr

if TYPE_CHECKING:
    from inrfast.signals.kinds import Signal
    from inrfast.training.result import FitResult

NEAR = 0.5
"""Decibels above the PSNR of the mean value up to which a fit is no better."""

STEPS = 50
"""Updates from which on a fit should have learned something."""


def tell_little(result: FitResult, signal: Signal) -> None:
    """Warn where a fit of some steps ends, of itself, no better than the signal's mean value would be."""
    if result.interrupted:
        return
    target = signal.target.reshape(len(signal.coords), -1).double()
    mean = mse_to_psnr(float((target - target.mean(0)).square().mean()), result.data_range)
    if result.steps < STEPS or not mean + NEAR > result.psnr > float("-inf") or mean == float("inf"):
        return
    warn(
        f"the fit has {result.psnr:.2f} dB, the signal's mean value alone {mean:.2f} dB: it has learned next to "
        "nothing; try another --lr, more --steps, or leave the options of the network out"
    )
