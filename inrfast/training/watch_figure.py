"""The figure of a watched network: ranks, eigenvalues, the layers' shares and dead units, over the steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inrfast import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inrfast.training.watch import Watch

DRAWN = 6
"""Eigenvalues that are drawn, as many as there are colours."""


def ranks(seen: Watch) -> Figure:
    """Return a figure of one panel: the ranks over the steps."""
    figure = plots.new_figure(5.2, 4.0)
    _ranks(figure.subplots(), seen)
    return figure


def draw(seen: Watch, path: str | os.PathLike[str] | None) -> Figure:
    """Return the figure that :meth:`inrfast.training.watch.Watch.plot` describes; with ``path``, also write it."""
    figure = plots.new_figure(18, 4.6)
    left, values, shares, units = figure.subplots(1, 4)
    records = seen.history
    steps = [record.step for record in records]
    _ranks(left, seen)
    heads = range(min(DRAWN, *(len(record.eigenvalues) for record in records)))
    alive = {rf"$\lambda_{{{k + 1}}}$": [record.eigenvalues[k] for record in records] for k in heads}
    plots.over_steps(steps, alive, values, label="eigenvalue", title="Largest eigenvalues", log=True)
    traces = _columns([record.layer_shares for record in records])
    plots.over_steps(
        steps,
        {plots.plain(name or type(seen.net).__name__): column for name, column in traces.items()},
        shares,
        label="share of the trace",
        title="Shares of the layers",
    )
    told = {
        plots.plain(f"dead in {name}"): column for name, column in _columns([r.dead_units for r in records]).items()
    }
    changes = [float("nan") if record.weights_change is None else record.weights_change for record in records]
    plots.over_steps(
        steps,
        {"change of the weights": changes, **told},
        units,
        black=["change of the weights"],
        label="share",
        title="Dead units, and change of the weights",
    )
    if path is not None:
        plots.save(figure, path)
    return figure


def _ranks(axes: Axes, seen: Watch) -> None:
    records = seen.history
    plots.over_steps(
        [record.step for record in records],
        {
            f"rtol {rtol:.0e}": [(record.ranks[k].lower + record.ranks[k].upper) / 2 for record in records]
            for k, rtol in enumerate(seen.rtols)
        },
        axes,
        label="numerical rank",
        title=f"Rank of the tangent kernel\n{len(seen.points):,} of {len(seen.coords):,} points",
    )


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the numbers of each name over all rows, NaN where a row has none."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, float("nan")) for row in rows] for name in names}
