"""The demo's figures: ranks against the tolerance, spectra, reconstructions, and an overview of all three."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from inrfast import plots
from inrfast.experiments.demo_text import inlet_ranks, kernel_ranks, representations

SOLID, DASHED = (0, ()), (0, (4, 2.5))

STYLES = ((SOLID, "o"), (SOLID, "s"), (DASHED, "D"), (SOLID, "^"), (DASHED, "v"), (SOLID, "P"))
"""Line and marker of each start: the two rank-expanding ones have the same first layer, and where SIREN has full rank
Fourier features do too."""


def draw(report: Mapping[str, Any], photograph: Tensor, pictures: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``overview.png``, ``ranks.png``, ``spectra.png`` and ``reconstructions.png``.

    Parameters
    ----------
    report
        The demo's report.
    photograph, pictures
        The fitted image (H, W, 1), and what each fit made of it, (H, W).
    folder
        Where they go.
    """
    images = _images(pictures, {entry["name"]: entry["fit"] for entry in report["starts"]})
    ranks = Figure(figsize=(10, 4.6), layout="constrained")
    _ranks(report, ranks)
    plots.save(ranks, folder / "ranks.png")

    spectra = Figure(figsize=(10, 4.6), layout="constrained")
    _spectra(report, spectra)
    plots.save(spectra, folder / "spectra.png")

    _row(images, photograph, folder / "reconstructions.png")

    overview = Figure(figsize=(11.2, 6.8), layout="constrained")
    rows = overview.add_gridspec(2, 1, height_ratios=(4.6, 2.1))
    above, below = (overview.add_subfigure(rows[place, 0]) for place in range(2))
    _ranks(report, above)
    plots.reconstructions(images, photograph, below)
    plots.save(overview, folder / "overview.png")


def draw_first(
    photograph: Tensor, pictures: Mapping[str, Tensor], fits: Mapping[str, Mapping[str, Any]], file: Path
) -> None:
    """Write what the fits that are done have made of the photograph, by their names as :func:`draw` has them."""
    _row(_images(pictures, fits), photograph, file)


def _images(pictures: Mapping[str, Tensor], fits: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Tensor, float]]:
    return {name: (picture, fits[name]["psnr"]) for name, picture in pictures.items()}


def _row(images: Mapping[str, tuple[Tensor, float]], photograph: Tensor, file: Path) -> None:
    row = Figure(figsize=(2.4 * (len(images) + 1), 3), layout="constrained")
    plots.reconstructions(images, photograph, row)
    plots.save(row, file)


def _ranks(report: Mapping[str, Any], figure: Figure | SubFigure) -> None:
    starts, settings = report["starts"], report["settings"]
    left, right = figure.subplots(1, 2)
    plots.rank_against_tolerance(
        settings["rtols"],
        {entry["name"]: inlet_ranks(entry) for entry in starts},
        left,
        title=f"First layer's output, {_grid(settings['grid'])}",
        full_rank=settings["width"],
        legend=False,
    )
    plots.rank_against_tolerance(
        settings["rtols"],
        {entry["name"]: kernel_ranks(entry) for entry in starts},
        right,
        quantity="lambda",
        title=f"Tangent kernel, {_grid(settings['ntk_grid'])}",
        full_rank=starts[0]["diagnosis"]["kernel"]["points"],
        legend=False,
    )
    for axes in (left, right):
        _logarithmic(axes)
        _told_apart(axes)
    _shared_legend(figure, left)


def _spectra(report: Mapping[str, Any], figure: Figure | SubFigure) -> None:
    starts, settings = report["starts"], report["settings"]
    left, right = figure.subplots(1, 2)
    plots.spectra(
        {entry["name"]: representations(entry)["layers.0"]["spectrum"]["singular_values"] for entry in starts},
        left,
        title=f"First layer's output, {_grid(settings['grid'])}",
        legend=False,
    )
    plots.spectra(
        {entry["name"]: entry["diagnosis"]["kernel"]["whole"]["eigenvalues"] for entry in starts},
        right,
        quantity="lambda",
        log_index=True,
        title=f"Tangent kernel, {_grid(settings['ntk_grid'])}",
        legend=False,
    )
    for axes in (left, right):
        _told_apart(axes)
    _shared_legend(figure, left)


def _grid(axes: list[int]) -> str:
    return f"{'x'.join(map(str, axes))} grid"


def _logarithmic(axes: Axes) -> None:
    """Make the ranks of one axis, which span decades, logarithmic, with room above the line of full rank."""
    ranks = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    axes.set_yscale("log")
    axes.set_ylim(0.8 * max(ranks.min(), 1), 1.5 * ranks.max())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _told_apart(axes: Axes) -> None:
    """Give every curve its own marker, and dashes to those that often cover another one."""
    curves = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    for line, (dashes, marker) in zip(curves, STYLES, strict=True):
        line.set_linestyle(dashes)
        line.set_linewidth(2)
        if line.get_marker() != "None":
            line.set_marker(marker)


def _shared_legend(figure: Figure | SubFigure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
