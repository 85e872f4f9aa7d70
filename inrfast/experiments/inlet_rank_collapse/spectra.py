"""Spectra over several random networks: the networks of a cell, means and deviations, ranks as intervals, drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from inrfast.calibration import calibrate_batchnorm_
from inrfast.experiments.drawing import finish
from inrfast.experiments.inlet_rank_collapse.methods import Method
from inrfast.experiments.paper import Found
from inrfast.grids import grid
from inrfast.linalg.spectrum import RankInterval
from inrfast.linalg.tsqr import SingularValues, singular_values
from inrfast.memory import chunks
from inrfast.nn import INR

RTOLS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Tolerances of ranks of matrices, relative to sigma_1."""

FLOOR = 1e-6
"""Lower end of their curves, relative to sigma_1."""

ROWS = 4096
"""Points of a chunk."""

SUBSTANTIAL, ALIKE = 1.5, 0.1
"""A rank is called substantially higher from this ratio on, and two ranks alike up to this relative difference."""


def network(
    method: Method, side: int, seed: int, device: torch.device, outputs: int = 1, hidden_layers: int = 3
) -> tuple[INR, Tensor]:
    """Return a method's network in eval mode and the ``side`` x ``side`` grid (N, 2) on [-1, 1]^2, both in fp64.

    The weights are those drawn for fp32; batch norms have the statistics of the grid.
    """
    net = method.network(2, outputs, seed, hidden_layers=hidden_layers, device=device).double()
    coords = grid((side, side), dtype=torch.float64, device=device)
    if "batch" in net.norm_names:
        calibrate_batchnorm_(net, coords)
    return net.eval(), coords


def representation(net: INR, coords: Tensor, layer: int) -> Callable[[], Iterator[Tensor]]:
    """Return what yields Z, chunk of points by chunk: after hidden layer ``layer``, or of the encoding at -1."""

    @torch.no_grad()
    def source() -> Iterator[Tensor]:
        for rows in chunks(len(coords), ROWS):
            features = coords[rows] if net.encoding is None else net.encoding(coords[rows])
            for index in range(layer + 1):
                features = net.activate(index, net.layers[index](features))
            yield features

    return source


def found_values(values: SingularValues, rtols: Sequence[float]) -> dict[str, Any]:
    """Return ranks and the stable rank as JSON holds them."""
    return {
        "ranks": [interval(values.rank(rtol)) for rtol in rtols],
        "stable_rank": values.stable_rank(),
        "largest": float(values.values[0]),
        "floor": values.floor,
    }


def resolved(source: Callable[[], Iterator[Tensor]], rtols: Sequence[float]) -> SingularValues:
    """Return all singular values, resolved to the smallest tolerance."""
    return singular_values(source, min(rtols))


def interval(rank: RankInterval) -> list[int]:
    """Return a rank's interval as JSON holds it."""
    return [rank.lower, rank.upper]


# ---- over runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """Ranks of several runs at one tolerance.

    Attributes
    ----------
    lower, upper
        Means of the ends of their intervals.
    deviation
        Standard deviation over the runs of the intervals' middles; None for a single run.
    runs
        How many.
    size
        The largest rank possible: an interval that ends there is open above.
    """

    lower: float
    upper: float
    deviation: float | None
    runs: int
    size: int

    @property
    def middle(self) -> float:
        """The mean rank."""
        return (self.lower + self.upper) / 2

    @property
    def known(self) -> bool:
        """Whether the interval is narrow: 10 % of the rank at most."""
        return self.upper - self.lower <= 0.1 * max(self.middle, 1.0)

    def __str__(self) -> str:
        if not self.known:
            return f">= {self.lower:,.0f}" if self.upper >= self.size else f"{self.lower:,.0f} to {self.upper:,.0f}"
        digits = ",.1f" if self.deviation else ",.0f"  # of runs that differ: the mean is no whole number
        if self.upper - self.lower >= 0.5:
            told = f"{self.lower:{digits}} to {self.upper:{digits}}"
        else:
            told = f"{self.middle:{digits}}"
        return told if self.deviation is None else f"{told} ± {self.deviation:{digits}}"


def ranks_over_runs(found: Sequence[Found], size: int) -> list[Ranks]:
    """Return the ranks at each tolerance of several cells of one method."""
    given = np.array([cell.numbers["ranks"] for cell in found], dtype=float)  # (runs, tolerances, 2)
    middles, runs = given.mean(2), len(given)
    deviations = middles.std(0, ddof=1) if runs > 1 else [None] * given.shape[1]
    return [
        Ranks(float(low), float(high), None if std is None else float(std), runs, size)
        for (low, high), std in zip(given.mean(0), deviations, strict=True)
    ]


@dataclass(frozen=True)
class Band:
    """A mean curve over runs with its standard deviation; None for a single run."""

    mean: np.ndarray
    deviation: np.ndarray | None


def band(curves: Sequence[np.ndarray]) -> Band:
    """Return mean and deviation at each index, as far as every run has one."""
    length = min(map(len, curves))
    stacked = np.array([curve[:length] for curve in curves], dtype=float)
    return Band(stacked.mean(0), stacked.std(0, ddof=1) if len(stacked) > 1 else None)


def order(first: Ranks, second: Ranks) -> int:
    """Return 1 where the first mean rank is the higher one, -1 where it is the lower, 0 where that is not clear.

    Clear is a gap between the intervals of more than two standard errors of the difference.
    """
    error = 2 * sum(0.0 if r.deviation is None else r.deviation**2 / r.runs for r in (first, second)) ** 0.5
    return int(first.lower > second.upper + error) - int(first.upper + error < second.lower)


# ---- words -------------------------------------------------------------------------------------------------------


def tolerance(rtol: float) -> str:
    """Return a tolerance as tables write it."""
    return f"{rtol:.0e}".replace("e-0", "e-")


def listed(rtols: Sequence[float]) -> str:
    """Return tolerances in words."""
    words = list(map(tolerance, rtols))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def substantially_higher(names: tuple[str, str], what: str, ranks: tuple[list[Ranks], list[Ranks]],
                         rtols: Sequence[float]) -> str:  # fmt: skip
    """Return a sentence on where the first rank is substantially higher than the second, with all numbers."""
    pairs = list(zip(*ranks, rtols, strict=True))
    higher = [(a, b, t) for a, b, t in pairs if order(a, b) > 0]
    where = {
        f"substantially higher ({SUBSTANTIAL:g} times or more)": [
            t for a, b, t in higher if a.lower >= SUBSTANTIAL * b.upper
        ],
        f"higher, but less than {SUBSTANTIAL:g} times": [t for a, b, t in higher if a.lower < SUBSTANTIAL * b.upper],
        "not clearly different (a gap of at most two standard errors)": [t for a, b, t in pairs if order(a, b) == 0],
        "lower": [t for a, b, t in pairs if order(a, b) < 0],
    }
    told = "; ".join(f"{word} at {listed(rtols)}" for word, rtols in where.items() if rtols)
    numbers = ", ".join(f"{a} against {b} at {tolerance(t)}" for a, b, t in pairs)
    return f"{what}: {names[0]} is, compared with {names[1]}, {told} ({numbers})."


def matching(names: tuple[str, str], what: str, ranks: tuple[list[Ranks], list[Ranks]], rtols: Sequence[float]) -> str:
    """Return a sentence on where the first rank is within 10 % of the second, or above it."""
    pairs = list(zip(*ranks, rtols, strict=True))
    reached = [t for a, b, t in pairs if a.lower >= (1 - ALIKE) * b.upper]
    missed = [f"{a} against {b} at {tolerance(t)}" for a, b, t in pairs if t not in reached]
    if not missed:
        return f"{what}: {names[0]} reaches {names[1]} (within 10 %, or above) at all {len(pairs)} tolerances."
    where = f"at {listed(reached)} and not elsewhere" if reached else "at no tolerance"
    return f"{what}: {names[0]} reaches {names[1]} (within 10 %, or above) {where} ({', '.join(missed)})."


def rank_rows(labels: Mapping[str, str], ranks: Mapping[str, list[Ranks]]) -> list[list[str]]:
    """Return the lines of a table of ranks, one column a tolerance."""
    return [[labels[name], *map(str, found)] for name, found in ranks.items()]


# ---- drawings ----------------------------------------------------------------------------------------------------


def draw_band(axes: Axes, found: Band, method: Method, floor: float) -> None:
    """Draw a mean curve and its shaded deviation, down to ``floor``."""
    shown = found.mean > floor
    index = np.arange(1, len(shown) + 1)[shown]
    mean = found.mean[shown]
    axes.plot(index, mean, label=method.label, **style(method))
    if found.deviation is not None:
        deviation = found.deviation[shown]
        low, high = np.maximum(mean - deviation, floor), mean + deviation
        axes.fill_between(index, low, high, color=method.colour, alpha=0.2, linewidth=0)


def draw_ranks(axes: Axes, found: Sequence[Ranks], method: Method, rtols: Sequence[float]) -> None:
    """Draw mean ranks against the tolerance; bars hold the certified interval and the deviation over runs."""
    known = [(t, r) for t, r in zip(rtols, found, strict=True) if r.known]
    middle = np.array([r.middle for _, r in known])
    spread = np.array([0.0 if r.deviation is None else r.deviation for _, r in known])
    lower = np.array([r.lower for _, r in known]) - spread
    upper = np.array([r.upper for _, r in known]) + spread
    errors = np.clip([middle - np.maximum(lower, 0.8), upper - middle], 0, None)
    axes.errorbar(
        [t for t, _ in known], middle, errors, label=method.label, marker="o", markersize=3.5, capsize=2,
        **style(method),
    )  # fmt: skip


def style(method: Method) -> dict[str, Any]:
    """Return colour and line of a method's curve."""
    return {"color": method.colour, "linestyle": "--" if method.dashed else "-", "linewidth": 1.5}


def finish_ranks(axes: Axes, quantity: str, most: int) -> None:
    """Finish axes of ranks against the tolerance, both logarithmic; ``most`` is the largest rank possible."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_ylim(0.8, 2.5 * most)
    axes.axhline(most, color="0.45", linestyle=":", linewidth=1)
    where = axes.get_yaxis_transform()
    axes.annotate(f"full rank {most:,}", (0.02, most), (0, 3), where, "offset points", fontsize=8, color="0.35")
    finish(axes, "Rank against tolerance", rf"tolerance relative to {quantity} ($\rightarrow$ smaller)", "rank")
