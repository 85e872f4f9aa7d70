"""The figure of a dictionary: its first atoms as pictures, its eigenvalues, and the energy of signals."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from inrfast import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inrfast.analysis.dictionary import Dictionary

ACROSS = 5
"""Atoms in a row of the figure."""


def row(dictionary: Dictionary) -> Figure:
    """Return a figure of the first atoms alone, side by side."""
    images = dictionary.images(min(ACROSS, len(dictionary))).cpu().numpy()
    figure = plots.new_figure(2 * ACROSS, 2.3)
    panels = figure.subplots(1, ACROSS)
    for axes in panels[len(images) :]:
        axes.set_axis_off()
    for number, (image, axes) in enumerate(zip(images, panels, strict=False), 1):
        atom(image, axes, dictionary.spectrum.output == "full")
        axes.set_title(rf"$\lambda_{{{number}}}$ = {float(dictionary.eigenvalues[number - 1]):.3g}", fontsize=9)
    return figure


def draw(dictionary: Dictionary, k: int, path: str | os.PathLike[str] | None, signals: Tensor | None) -> Figure:
    """Return the figure that :meth:`Dictionary.plot` describes; with ``path``, also write it there."""
    images, values = dictionary.images(k).cpu().numpy(), dictionary.eigenvalues.cpu()
    full = dictionary.spectrum.output == "full"
    rows = math.ceil(k / ACROSS)
    figure = plots.new_figure(2 * ACROSS, 2.2 * rows + 4)
    grid = figure.add_gridspec(2, 1, height_ratios=[2.2 * rows, 4])
    above, below = (figure.add_subfigure(grid[i]) for i in range(2))
    for i, axes in enumerate(above.subplots(rows, ACROSS, squeeze=False).flat):
        if i >= k:
            axes.set_axis_off()
            continue
        atom(images[i], axes, full)
        ratio = rf" = {float(values[i] / values[0]):.2g}\,\lambda_1" if i > 0 else ""
        axes.set_title(rf"$\lambda_{{{i + 1}}}{ratio}$", fontsize=9)
    what = ", the middle slice of each" if images.ndim - full > 3 else ""
    figure.suptitle(f"{k} of {dictionary.spectrum.size:,} eigenfunctions{what}", fontsize=11)
    panels = below.subplots(1, 1 if signals is None else 2, squeeze=False)[0]
    resolved = values[values > dictionary.floor * values[0]]
    decade = math.floor(math.log10(float(resolved[-1] / values[0])))
    plots.spectra(
        {"eigenvalues": resolved},
        panels[0],
        quantity="lambda",
        smallest=10.0 ** min(decade, -1),
        log_index=True,
        title="eigenvalues",
        legend=False,
    )
    if signals is not None:
        found = dictionary.energy(signals)
        low, high = found.interval
        title = (
            "energy of the signal less its mean"
            if len(found.lower) == 1
            else f"energy of {len(found.lower)} signals less their means, on average"
        )
        plots.energy(found.thresholds, {"signals": (low, high)}, panels[1], title=title, legend=False)
    if path is not None:
        plots.save(figure, path)
    return figure


def atom(values: np.ndarray, axes: Axes, outputs: bool) -> None:
    """Draw one atom on its grid; ``outputs``: its last axis counts outputs."""
    planes = values if outputs else values[..., None]
    if planes.ndim == 2:
        axes.plot(planes, linewidth=0.9)
        axes.axhline(0, color="0.8", linewidth=0.7, zorder=0)
        axes.set_yticks([])
        axes.tick_params(labelsize=6)
        return
    while planes.ndim > 3:
        planes = planes[len(planes) // 2]
    axes.set_axis_off()
    largest = float(np.abs(planes).max()) or 1.0
    if planes.shape[2] == 3:
        axes.imshow(0.5 + planes / (2 * largest), interpolation="nearest")
    else:
        side_by_side = np.concatenate(list(np.moveaxis(planes, 2, 0)), axis=1)
        axes.imshow(side_by_side, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
