"""What the drawings of figures have in common: names of axes, a light grid, one legend below all."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing


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
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, handlelength=2.6)
