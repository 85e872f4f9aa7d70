"""The figure of a spectrum: eigenvalues with their error, counts, and tolerances with the ranks at them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from inrfast import plots
from inrfast.errors import ResolutionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inrfast.linalg.spectrum import Spectrum

LEAST = 1e-18
"""Smallest value drawn, relative to the largest: rounding of fp64 leaves nothing of smaller ones."""

LEVELS = 40
"""Levels at which estimated counts are drawn."""


def draw(spectrum: Spectrum, rtols: Sequence[float], path: str | os.PathLike[str] | None) -> Figure:
    """Return the figure that :meth:`Spectrum.plot` describes; with ``path``, also write it there."""
    largest = float(spectrum.eigenvalues[0])
    values = spectrum.eigenvalues.cpu().numpy() / largest
    lower, upper = (bound.cpu().numpy() / largest for bound in spectrum.bounds())
    floor = spectrum.floor
    resolved = values[values > floor] if math.isfinite(floor) else values[:0]
    smallest = max(
        min([*rtols, *resolved[-1:], *(count.low / largest for count in spectrum.certified), 0.1]) / 30, LEAST
    )
    figure = plots.new_figure(6.4, 4.6)
    axes = figure.subplots()
    index = np.arange(1, len(values) + 1)
    shown = np.where(values > 0, values, np.nan)
    marker = "o" if len(values) <= 60 else None
    color = plots.PALETTE[0]
    axes.plot(index, shown, color=color, linewidth=1.6, marker=marker, markersize=3, label="eigenvalues")
    if np.isfinite(upper).all() and bool((upper - lower > 0.02 * np.maximum(values, smallest)).any()):
        lower, upper = (np.maximum(bound, smallest / 10) for bound in (lower, upper))
        axes.fill_between(index, lower, upper, color=color, alpha=0.25, linewidth=0, label="between their bounds")
    _counts(axes, spectrum, largest, smallest)
    if len(values) > 1 and smallest < floor < math.inf:
        axes.axhspan(smallest, floor, color="0.9", linewidth=0, zorder=0, label="below the floor: not told from zero")
    for rtol in rtols:
        axes.axhline(rtol, color="0.45", linestyle="--", linewidth=0.9)
        where = axes.get_yaxis_transform()
        axes.annotate(_ranked(spectrum, rtol), (0.02, rtol), (0, 2), where, "offset points", **plots.NOTE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()  # which take most of the time of a figure
    axes.set_ylim(smallest, 3)
    axes.set_xlim(0.9, max(len(values), spectrum.size if len(values) < spectrum.size else 2) * 1.1)
    axes.set_xlabel("index of the eigenvalue")
    axes.set_ylabel(plots.QUANTITIES["lambda"][1])
    title = f"{len(values):,} of {spectrum.size:,} eigenvalues, {spectrum.method}"
    plots._finish(axes, f"{title}\n$\\lambda_1$ = {largest:.4g}, trace {spectrum.trace:.4g}", True)
    if path is not None:
        plots.save(figure, path)
    return figure


def _counts(axes: Axes, spectrum: Spectrum, largest: float, smallest: float) -> None:
    """Draw numbers of eigenvalues above levels: proven ones as bars, estimated ones as a band."""
    label = "certified counts"
    for count in spectrum.certified:
        level = math.sqrt(max(count.low, 0.0) * max(count.high, 0.0)) / largest
        if count.upper > 0 and level > 0:
            ends = [max(count.lower, 0.95), max(count.upper, 1)]
            axes.plot(ends, [level] * 2, color=plots.BLACK, marker="|", markersize=9, linewidth=3, label=label)
            label = "_"
    if spectrum.counts is None:
        return
    found = []
    for level in np.geomspace(max(smallest, min(spectrum.counts.smallest_rtol(), 0.5)), 0.9, LEVELS).tolist():
        with suppress(ResolutionError):  # a level of few eigenvalues
            found.append(spectrum.counts.count(level))
    if not found:
        return
    levels = [count.rtol for count in found]
    fewest, most = [max(count.lower, 0.9) for count in found], [max(count.upper, 0.9) for count in found]
    label = "estimated counts, three standard errors"
    axes.fill_betweenx(levels, fewest, most, color=plots.PALETTE[1], alpha=0.3, linewidth=0, label=label)


def _ranked(spectrum: Spectrum, rtol: float) -> str:
    """Return a tolerance and what is known of the rank at it."""
    estimated = ""
    rank = spectrum.count_above(rtol * float(spectrum.eigenvalues[0]), rtol)
    if spectrum.counts is not None:
        with suppress(ResolutionError):
            rank, estimated = spectrum.counts.count(rtol), ", estimated"
    with suppress(ResolutionError):
        rank, estimated = spectrum.rank(rtol), ""
    between = f"{rank.lower:,}" if rank.lower == rank.upper else f"between {rank.lower:,} and {rank.upper:,}"
    return f"tolerance {rtol:.3g}: rank {between}{estimated}"
