"""Means with confidence intervals over images, paired differences, and how an order agrees with the paper's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its confidence interval; with one value the half is None."""

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.half is None else f"{self.mean:.2f} ± {self.half:.2f}"

    @property
    def signed(self) -> str:
        """As text with the mean's sign."""
        return f"{self.mean:+.2f}" if self.half is None else f"{self.mean:+.2f} ± {self.half:.2f}"

    @property
    def low(self) -> float:
        """Lower end; minus infinity with one value."""
        return -float("inf") if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end; infinity with one value."""
        return float("inf") if self.half is None else self.mean + self.half

    @property
    def decided(self) -> bool:
        """Whether it leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def json(self) -> dict[str, float | int | None]:
        """As JSON holds it."""
        return {"mean": self.mean, "half": self.half, "count": self.count}


def interval(values: Sequence[float]) -> Interval:
    """Return mean and 95 % interval, Student's t: ``mean ± t_(0.975, n - 1) s / sqrt(n)``."""
    from scipy import stats  # slow to import

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, n)
    scale = float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * scale, n)


def difference(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Return the interval of ``above - below``, paired: entry i of both is of image i."""
    return interval([a - b for a, b in zip(above, below, strict=True)])


@dataclass(frozen=True)
class Pair:
    """Two methods, of which the paper's number of the first is larger, and our difference first minus second."""

    first: str
    second: str
    paper: float
    ours: Interval

    @property
    def verdict(self) -> str:
        """``agrees`` or ``opposite`` where the interval leaves out zero, ``open`` otherwise."""
        if not self.ours.decided:
            return "open"
        return "agrees" if self.ours.mean > 0 else "opposite"


def pairs(paper: Mapping[str, float], ours: Mapping[str, Sequence[float]]) -> list[Pair]:
    """Return every pair of methods, in the paper's order."""
    ranked = sorted(paper, key=lambda name: -paper[name])
    return [
        Pair(first, second, paper[first] - paper[second], difference(ours[first], ours[second]))
        for first, second in itertools.combinations(ranked, 2)
    ]


def kendall(paper: Mapping[str, float], ours: Mapping[str, Sequence[float]]) -> float:
    """Return Kendall's tau-b between the paper's numbers and our means."""
    from scipy import stats  # slow to import

    return float(stats.kendalltau(list(paper.values()), [float(np.mean(ours[name])) for name in paper]).statistic)


def distance(paper: Mapping[str, float], ours: Mapping[str, float]) -> float:
    """Return the root mean square of our numbers minus the paper's, over its methods."""
    return float(np.sqrt(np.mean([(ours[name] - paper[name]) ** 2 for name in paper])))
