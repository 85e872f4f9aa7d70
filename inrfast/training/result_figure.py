"""The figure of a fit: loss and PSNR over the steps, and the signal beside its reconstruction."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from inrfast import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from inrfast.training.result import FitResult


def draw(
    result: FitResult, pictures: Sequence[np.ndarray], reconstructed: bool, path: str | os.PathLike[str] | None
) -> Figure:
    """Return the figure that :meth:`FitResult.plot` describes; with ``path``, also write it there.

    ``pictures`` are the target, the reconstruction, both or none; ``reconstructed`` tells what a single one is.
    """
    tall = 0.0
    if pictures:
        two = pictures[0].ndim > 1
        ratio = pictures[0].shape[0] / pictures[0].shape[1] if two else 0.3
        wide = 9.0 / (3 if len(pictures) == 2 and two else len(pictures) if two else 1)
        tall = min(wide * ratio, 5.0) + 0.4
    figure = plots.new_figure(9, 3.4 + tall)
    above: Figure | SubFigure = figure
    if pictures:
        parts = figure.add_gridspec(2, 1, height_ratios=[3.4, tall])
        above, below = (figure.add_subfigure(parts[i]) for i in range(2))
        names = (
            ["target", "reconstruction"] if len(pictures) == 2 else ["reconstruction" if reconstructed else "target"]
        )
        (_curves if pictures[0].ndim == 1 else _images)(below, dict(zip(names, pictures, strict=True)))
    _progress(above, result)
    if path is not None:
        plots.save(figure, path)
    return figure


def _progress(figure: Figure | SubFigure, result: FitResult) -> None:
    loss, psnr = figure.subplots(1, 2)
    values = np.asarray(result.losses, dtype=float)
    log = bool(values.size) and bool((values[np.isfinite(values)] > 0).all())
    steps = range(1, len(values) + 1)
    plots.over_steps(steps, {"loss": result.losses}, loss, label="training loss", log=log, markers=False, legend=False)
    if not log:
        loss.set_ylim(auto=True)
    finite = [own for own in result.psnrs if math.isfinite(own)]
    title = f"{result.psnr:.2f} dB after {result.steps:,} steps"
    plots.over_steps(
        result.eval_steps, {"PSNR": result.psnrs}, psnr, label="PSNR (dB)", title=title, legend=False,
        markers=len(result.psnrs) <= 60,
    )  # fmt: skip
    if finite and min(finite) < 0:
        psnr.set_ylim(bottom=1.1 * min(finite))
    if math.isfinite(result.best_psnr) and result.best_step < result.steps:
        psnr.plot(result.best_step, result.best_psnr, "*", color=plots.BLACK, label="best", markersize=10)
        psnr.legend(frameon=False, fontsize=9)
    loss.set_title("training loss of every step", fontsize=11)


def _images(figure: SubFigure, images: dict[str, np.ndarray]) -> None:
    """Draw pictures in the range of the first one, and where they differ."""
    first = next(iter(images.values()))
    low, high = min(float(first.min()), 0.0), max(float(first.max()), 1.0 if first.min() >= 0 else 0.0)
    scale = (high - low) or 1.0
    panels = list(figure.subplots(1, len(images) + (len(images) > 1), squeeze=False)[0])
    for axes, (name, image) in zip(panels, images.items(), strict=False):
        axes.imshow(((image - low) / scale).clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=11)
    if len(images) > 1:
        target, found = images.values()
        off = np.abs(found - target)
        shown = panels[-1].imshow(off if off.ndim == 2 else off.mean(2), cmap="magma", vmin=0, interpolation="nearest")
        panels[-1].set_title("size of the error", fontsize=11)
        figure.colorbar(shown, ax=panels[-1], shrink=0.85)
    for axes in panels:
        axes.set_axis_off()


def _curves(figure: SubFigure, signals: dict[str, np.ndarray]) -> None:
    axes = figure.subplots()
    for number, (name, values) in enumerate(signals.items()):
        color, width = (plots.BLACK, 1.8) if number == 0 and len(signals) > 1 else (plots.PALETTE[1], 1.0)
        axes.plot(values, label=name, color=color, linewidth=width)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
