"""Ratios of numbers that are paired by seed: geometric means with confidence, and what they say of a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inrfast.experiments.scores import Interval, interval


@dataclass(frozen=True)
class Ratio:
    """A ratio over several seeds.

    Attributes
    ----------
    log
        Mean of its natural logarithm with a 95 % interval.
    below
        Seeds in which it is below 1.
    """

    log: Interval
    below: int

    @property
    def factor(self) -> float:
        """The geometric mean."""
        return math.exp(self.log.mean)

    @property
    def seen(self) -> str:
        """``lower``, ``higher``, or ``open`` where the interval holds 1."""
        if not self.log.decided:
            return "open"
        return "lower" if self.log.mean < 0 else "higher"

    def __str__(self) -> str:
        told = f"{self.factor:.3g}"
        if self.log.half is not None:
            told += f" ({math.exp(self.log.low):.3g} to {math.exp(self.log.high):.3g})"
        return f"{told}, {self.below} of {self.log.count}"

    @property
    def json(self) -> dict[str, float | int | None]:
        """As JSON holds it: the geometric mean with the ends of its interval, seeds below 1, and all seeds."""
        ends = [None, None] if self.log.half is None else [math.exp(self.log.low), math.exp(self.log.high)]
        return {"factor": self.factor, "low": ends[0], "high": ends[1], "below": self.below, "seeds": self.log.count}


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return ``above / below``, entry i of both being of seed i; all positive."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    return Ratio(interval(logs), sum(one < 0 for one in logs))


def slope(across: Sequence[float], up: Sequence[float]) -> float:
    """Return the exponent of a power law: the least-squares slope of ``log up`` against ``log across``."""
    return float(np.polyfit(np.log(across), np.log(up), 1)[0])
