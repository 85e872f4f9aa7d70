"""The figure of an eigenvalue variance: the matrix of pairs of layers, and the layers' shares."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from inrfast import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inrfast.analysis.variance_result import NTKVariance


def draw(variance: NTKVariance, path: str | os.PathLike[str] | None) -> Figure:
    """Return the figure that :meth:`NTKVariance.plot` describes; with ``path``, also write it there."""
    names = [plots.plain(name) or "network" for name in variance.layers]
    width, height = 2.2 + 0.62 * len(names), 1.8 + 0.42 * len(names)
    figure = plots.new_figure(width + 3.4, max(height, 2.8))
    left, right = figure.subplots(1, 2, width_ratios=[width, 3.0])
    shares = variance.pairs.cpu().numpy() / variance.variance
    plots.table_of(shares, names, names, left, title="$C_{kl}$ / variance: pairs of layers")
    places = np.arange(len(names))
    found = [layer.share for layer in variance.layers.values()]
    right.barh(places, found, color=[plots.PALETTE[0 if share >= 0 else 1] for share in found], height=0.7)
    right.axvline(0, color="0.5", linewidth=0.8)
    right.set_yticks(places, [""] * len(names))
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xlabel("share of the variance")
    right.set_title("rows added up", fontsize=11)
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"NTK eigenvalue variance {variance.variance:.4g}, normalised {variance.normalised:.4g} "
        f"({variance.points:,} points, {variance.method})",
        fontsize=11,
    )
    if path is not None:
        plots.save(figure, path)
    return figure
