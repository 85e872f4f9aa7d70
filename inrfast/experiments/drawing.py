"""What the drawings of figures have in common: names of axes, a light grid, one legend below all."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

LETTER, LINE, MOST_COLUMNS = 0.068, 0.6, 4
"""Of a legend: width of a letter, and of a line with its gaps, in inches; columns at most."""


def finish(axes: Axes, title: str, across: str, up: str) -> None:
    """Name the axes and lay a light grid below the curves."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(drawing: Drawing, axes: Axes) -> None:
    """Name the curves of one of the axes below all of them."""
    handles, labels = axes.get_legend_handles_labels()
    column = max(map(len, labels)) * LETTER + LINE
    columns = min(max(int(drawing.get_figwidth() / column), 1), MOST_COLUMNS)
    drawing.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, handlelength=2.6
    )
