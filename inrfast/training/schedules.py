"""Learning-rate schedules of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable

from inrfast.errors import check_choice, check_float

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "exponential": lambda progress: 0.1**progress,
}
"""Factor of the learning rate as a function of the fraction of the fit that is done."""


def learning_rates(lr: float, schedule: str | Callable[[int], float], steps: int) -> Callable[[int], float]:
    """Return the learning rate of each step ``0 <= t < steps``.

    Parameters
    ----------
    lr
        Learning rate that the schedule multiplies.
    schedule
        ``"exponential"`` (``0.1^(t/steps)``, a tenth at the end), ``"cosine"`` (to 0), ``"constant"``, or a callable
        from the step to a factor.

    Raises
    ------
    ValueError, TypeError
        An unknown name (with the nearest match); later, a callable whose factor is negative, not finite or no number.
    """
    if not callable(schedule):
        shape = SCHEDULES[check_choice("schedule", schedule, SCHEDULES)]
        return lambda step: lr * shape(step / steps)
    return lambda step: lr * check_float(f"schedule({step})", schedule(step), minimum=0.0)
