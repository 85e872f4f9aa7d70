"""Figures of ranks, spectra and reconstructions; functions take plain numbers, draw on Axes and return them.

Colours are those of Okabe and Ito, told apart by readers of every colour vision and in this order for the first curve,
the second, ...; curves beyond the palette are dotted. No function touches ``matplotlib.pyplot``, so nothing is shown,
kept open or dependent on a display. matplotlib, of the extra ``plots``, is imported when something is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from inrfast.errors import check_choice, check_float, needs
from inrfast.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLACK = "#000000"
QUANTITIES = {
    "sigma": ("singular value", r"$\sigma_i / \sigma_1$"),
    "lambda": ("eigenvalue", r"$\lambda_i / \lambda_1$"),
}
SUFFIXES = (".png", ".pdf", ".svg")
DPI = 160
CLOSE = 0.02
"""Width of a band, of numbers between 0 and 1, up to which a line stands for it."""
NOTE: dict[str, Any] = {"color": "0.35", "fontsize": 8, "verticalalignment": "bottom"}

Curve = Sequence[float] | np.ndarray | Tensor
Image = np.ndarray | Tensor


def new_figure(width: float, height: float) -> Figure:
    """Return a new figure of a size in inches, whose parts are placed without overlap.

    Raises
    ------
    MissingLibraryError
        matplotlib is not installed.
    """
    with needs("plots", "a figure"):
        from matplotlib.figure import Figure  # slow to import, and most draw nothing

    return Figure(figsize=(width, height), layout="constrained")


def plain(name: str) -> str:
    """Return a name, which may hold dollars, as the text for matplotlib that shows it: no formula begins there."""
    return name.replace("$", r"\$")


def check_drawable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that no figure can be written to before there is one, or any where none can be drawn.

    Raises
    ------
    ValueError
        A suffix other than .png, .pdf and .svg.
    MissingLibraryError
        matplotlib is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path must end in one of {', '.join(SUFFIXES)}, got {os.fspath(path)!r}")
    with needs("plots", f"drawing {os.fspath(path)}"):
        import matplotlib.figure  # noqa: F401


def rank_against_tolerance(
    rtols: Sequence[float],
    curves: Mapping[str, Sequence[tuple[int, int]]],
    axes: Axes | None = None,
    *,
    quantity: str = "sigma",
    title: str | None = None,
    full_rank: int | None = None,
    legend: bool = True,
) -> Axes:
    """Draw numerical ranks against the relative tolerance, one curve per name: a rank depends on the tolerance.

    Parameters
    ----------
    rtols
        Relative tolerances, in any order; the axis runs from large to small.
    curves
        ``(lower, upper)`` of the rank for each tolerance; where they differ, the band between them is shaded.
    axes
        To draw on; None makes a figure of its own (``axes.figure``).
    quantity
        ``"sigma"``: tolerances are relative to sigma_1 (matrices); ``"lambda"``: to lambda_1 (kernels).
    title
        Above the axes.
    full_rank
        The largest rank possible, a dotted line.
    legend
        Whether to name the curves, below the axes.

    Raises
    ------
    ValueError
        No curve, a curve of another length than ``rtols``, a tolerance that is not positive.
    """
    check_choice("quantity", quantity, QUANTITIES)
    x = np.array([check_float("rtols", rtol, minimum=0.0, exclusive=True) for rtol in rtols])
    _check_named("curves", curves)
    axes = _axes(axes, (5.2, 4.2))
    from matplotlib.ticker import MaxNLocator  # slow to import

    order = np.argsort(-x)
    for number, (name, ranks) in enumerate(curves.items()):
        if len(ranks) != len(x):
            raise ValueError(f"curves[{name!r}] must have one rank per tolerance ({len(x)}), got {len(ranks)}")
        lower, upper = np.array(ranks, dtype=float)[order].T
        style = _style(number)
        axes.plot(x[order], (lower + upper) / 2, marker="o", markersize=4, label=name, **style)
        if bool((lower < upper).any()):
            axes.fill_between(x[order], lower, upper, color=style["color"], alpha=0.25, linewidth=0)
    if full_rank is not None:
        axes.axhline(full_rank, color="0.45", linestyle=":", linewidth=1)
        where = axes.get_yaxis_transform()
        axes.annotate(f"full rank {full_rank:,}", (0.01, full_rank), (0, 4), where, "offset points", **NOTE)
        axes.set_ylim(top=1.1 * full_rank)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    symbol = QUANTITIES[quantity][1].replace("_i", "")
    axes.set_xlabel(f"relative tolerance on {symbol}" + r" ($\rightarrow$ smaller)")
    axes.set_ylabel("numerical rank")
    return _finish(axes, title, legend)


def spectra(
    curves: Mapping[str, Curve],
    axes: Axes | None = None,
    *,
    quantity: str = "sigma",
    relative_to: float | None = None,
    dashed: Collection[str] = (),
    black: Collection[str] = (),
    smallest: float = 1e-8,
    log_index: bool = False,
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """Draw descending singular values or eigenvalues over their index, relative to the largest.

    As in figures 2 and 7 of *The Inlet Rank Collapse* (arXiv 2602.01526).

    Parameters
    ----------
    curves
        Values of each name, descending and not negative; leave out those below what was resolved.
    axes
        To draw on; None makes a figure of its own.
    quantity
        ``"sigma"`` or ``"lambda"``: what the axis is called.
    relative_to
        Divides all curves, lambda_1(K) of the whole kernel for its blocks; None: each by its own first value.
    dashed
        Names of curves drawn dashed; they take the palette from its start again.
    black
        Names of curves drawn black, such as the sum of all others; they take no colour.
    smallest
        Lower end of the axis.
    log_index
        Whether the index is logarithmic, for spectra whose head matters.
    title, legend
        As in :func:`rank_against_tolerance`.

    Raises
    ------
    ValueError
        No curve, an empty one, one that is not finite or does not start above 0.
    """
    word, symbol = QUANTITIES[check_choice("quantity", quantity, QUANTITIES)]
    smallest = check_float("smallest", smallest, minimum=0.0, exclusive=True)
    _check_named("curves", curves)
    axes = _axes(axes, (5.2, 4.2))
    numbers = {True: count(), False: count()}
    for name, given in curves.items():
        values = _array(given)
        if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or values[0] <= 0:
            raise ValueError(f"curves[{name!r}] must be finite, from a positive one downwards, got {given!r:.80}")
        style = _style(-1 if name in black else next(numbers[name in dashed]), name in dashed)
        axes.plot(np.arange(1, len(values) + 1), values / (relative_to or values[0]), label=name, **style)
    axes.set_yscale("log")
    axes.set_ylim(smallest, 2)
    axes.set_xlabel(f"index of the {word}")
    if log_index:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_ylabel(symbol if relative_to is None else symbol[:-1] + "(K)$")
    return _finish(axes, title, legend)


def over_steps(
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    axes: Axes | None = None,
    *,
    label: str,
    log: bool = False,
    black: Collection[str] = (),
    markers: bool = True,
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """Draw numbers over the steps of a training, one curve per name; NaN leaves a gap.

    Parameters
    ----------
    steps
        Where the numbers were taken, ascending.
    curves
        One number a step, of each name.
    axes, title, legend
        As in :func:`rank_against_tolerance`.
    label
        Of the vertical axis.
    log
        Whether it is logarithmic; numbers that are not positive leave a gap there. If not, it starts at 0.
    black
        As in :func:`spectra`.
    markers
        Whether every number has a mark, on its curve.

    Raises
    ------
    ValueError
        No curve, or one of another length than ``steps``.
    """
    _check_named("curves", curves)
    axes = _axes(axes, (5.2, 4.2))
    numbers, positive = count(), False
    for name, given in curves.items():
        values = _array(given)
        if values.shape != (len(steps),):
            raise ValueError(f"curves[{name!r}] must have one number per step ({len(steps)}), got {values.shape}")
        drawn = np.where(values > 0, values, np.nan) if log else values
        positive = positive or bool((drawn > 0).any())
        style = _style(-1 if name in black else next(numbers))
        marker = "o" if markers else None
        axes.plot(np.asarray(steps), drawn, marker=marker, markersize=3, label=name, **style)
    if log and positive:
        axes.set_yscale("log")
    elif not log:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    return _finish(axes, title, legend)


def energy(
    thresholds: Curve,
    curves: Mapping[str, tuple[Curve, Curve]],
    axes: Axes | None = None,
    *,
    dashed: Collection[str] = (),
    black: Collection[str] = (),
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """Draw the share of energy on eigenfunctions above a threshold, one curve per name.

    As in figure 4 of *A Structured Dictionary Perspective on INRs* (arXiv 2112.01917).

    Parameters
    ----------
    thresholds
        Levels relative to the largest eigenvalue, in any order; the axis runs from large to small.
    curves
        Lower and upper bound of the energy at every threshold; the band between them is shaded, and the line in its
        middle ends where they are more than 0.02 apart.
    axes, title, legend
        As in :func:`rank_against_tolerance`.
    dashed, black
        As in :func:`spectra`.

    Raises
    ------
    ValueError
        No curve, a curve of another length than ``thresholds``, a threshold that is not positive.
    """
    x = _array(thresholds)
    if x.ndim != 1 or x.size == 0 or not (x > 0).all():
        raise ValueError(f"thresholds must be positive numbers, got {thresholds!r:.80}")
    _check_named("curves", curves)
    axes = _axes(axes, (5.2, 4.2))
    order = np.argsort(-x)
    numbers = {True: count(), False: count()}
    for name, bounds in curves.items():
        lower, upper = (_array(bound) for bound in bounds)
        if lower.shape != x.shape or upper.shape != x.shape:
            raise ValueError(f"curves[{name!r}] must have one bound per threshold ({x.size}), got {lower.shape}")
        style = _style(-1 if name in black else next(numbers[name in dashed]), name in dashed)
        middle = np.where(upper - lower <= CLOSE, (lower + upper) / 2, np.nan)
        axes.plot(x[order], middle[order], label=name, **style)
        axes.fill_between(x[order], lower[order], upper[order], color=style["color"], alpha=0.25, linewidth=0)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(r"threshold on $\lambda_i / \lambda_1$" + r" ($\rightarrow$ smaller)")
    axes.set_ylabel("share of energy above")
    return _finish(axes, title, legend)


def reconstructions(
    images: Mapping[str, tuple[Image, float]], target: Image, figure: Figure | SubFigure | None = None
) -> list[Axes]:
    """Draw a target and its reconstructions side by side, each with its name and PSNR.

    Parameters
    ----------
    images
        ``(image, PSNR in dB)`` by name; images (H, W), (H, W, 1) or (H, W, 3) in [0, 1], clipped to it.
    target
        The image that was fitted, of the same shape.
    figure
        To draw on; None makes one (``axes[0].figure``).

    Raises
    ------
    ValueError
        No image, or one of another shape than the target's.
    """
    _check_named("images", images)
    panels = [("target", _picture("target", target))]
    for name, (image, psnr) in images.items():
        picture = _picture(f"images[{name!r}]", image)
        if picture.shape != panels[0][1].shape:
            raise ValueError(f"images[{name!r}] must have the target's shape {panels[0][1].shape}, got {picture.shape}")
        panels.append((f"{name}\n{psnr:.2f} dB", picture))
    return _side_by_side(panels, figure)


def pictures(images: Mapping[str, Image], figure: Figure | SubFigure | None = None) -> list[Axes]:
    """Draw pictures side by side, each with its name.

    Parameters
    ----------
    images
        By name: (H, W), (H, W, 1) or (H, W, 3) in [0, 1], clipped to it.
    figure
        To draw on; None makes one (``axes[0].figure``).

    Raises
    ------
    ValueError
        No image, or one that is no picture.
    """
    _check_named("images", images)
    return _side_by_side([(name, _picture(f"images[{name!r}]", image)) for name, image in images.items()], figure)


def _side_by_side(panels: Sequence[tuple[str, np.ndarray]], figure: Figure | SubFigure | None) -> list[Axes]:
    height, width = panels[0][1].shape[:2]
    if figure is None:
        figure = new_figure(2.6 * len(panels), 2.6 * height / width + 0.45)
    found = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for axes, (title, picture) in zip(found, panels, strict=True):
        # Nearest, so that a reader sees the pixels and no interpolation.
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    return found


def _axes(axes: Axes | None, size: tuple[float, float]) -> Axes:
    return new_figure(*size).subplots() if axes is None else axes


def _style(number: int, dashed: bool = False) -> dict[str, Any]:
    """Return colour and line style of the curve with this number; -1 is black."""
    color = BLACK if number < 0 else PALETTE[number % len(PALETTE)]
    linestyle = "--" if dashed else ":" if number >= len(PALETTE) else "-"
    return {"color": color, "linestyle": linestyle, "linewidth": 1.6}


def _finish(axes: Axes, title: str | None, legend: bool) -> Axes:
    axes.grid(True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        axes.set_title(title, fontsize=11)
    if legend:
        # Below the axes, where it covers no curve.
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9, handlelength=2.4
        )
    return axes


def _check_named(argument: str, named: Any) -> None:
    if not isinstance(named, Mapping):
        raise TypeError(f"{argument} must map names to what is drawn, got {type(named).__name__}")
    if not named:
        raise ValueError(f"{argument} must hold at least one name, got none")


def _array(given: Any) -> np.ndarray:
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    return np.asarray(given, dtype=float)


def _picture(argument: str, given: Any) -> np.ndarray:
    """Return an image as (H, W) or (H, W, 3), clipped to [0, 1]."""
    picture = _array(given)
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)) or picture.size == 0:
        raise ValueError(f"{argument} must have shape (H, W), (H, W, 1) or (H, W, 3), got {picture.shape}")
    if not np.isfinite(picture).all():
        raise ValueError(f"{argument} must be finite, got NaN or Inf")
    return picture.clip(0, 1)


def field(
    values: Curve,
    axes: Axes,
    *,
    ends: tuple[float, float] | None = None,
    at: Sequence[int] | None = None,
    title: str = "",
) -> Axes:
    """Draw values on a grid: a curve on one axis, on two a picture, blue below zero and red above if there are both.

    Parameters
    ----------
    values
        (N,) or (H, W); of three axes and more the middle slice of the first ones is drawn, or the one ``at`` a point.
    axes, title
        As in :func:`rank_against_tolerance`.
    ends
        The smallest and the largest value of the scale of colours, or of a curve's axis; None: those of these values.
    at
        Indices of a point to mark.

    Raises
    ------
    ValueError
        No values, or some that are not finite.
    """
    drawn, place = _array(values), None if at is None else list(at)
    if drawn.ndim == 0 or drawn.size == 0 or not np.isfinite(drawn).all():
        raise ValueError(f"values must be finite, on one axis or more, got {drawn.shape}")
    while drawn.ndim > 2:
        drawn = drawn[len(drawn) // 2 if place is None else place.pop(0)]
    low, high = (float(drawn.min()), float(drawn.max())) if ends is None else ends
    most = max(abs(low), abs(high)) or 1.0
    if drawn.ndim == 1:
        axes.plot(drawn, color=PALETTE[0], linewidth=1.2)
        axes.axhline(0, color="0.8", linewidth=0.7, zorder=0)
        axes.set_ylim(min(low, 0.0) - 0.05 * most, max(high, 0.0) + 0.1 * most)
        axes.spines[["top", "right"]].set_visible(False)
    else:
        scale = ("RdBu_r", -most, most) if low < 0 < high else ("viridis", low, high)
        axes.imshow(drawn, cmap=scale[0], vmin=scale[1], vmax=scale[2], interpolation="nearest")
        axes.set_axis_off()
    if place is not None:
        x, y = (place[0], drawn[place[0]]) if drawn.ndim == 1 else (place[1], place[0])
        axes.plot(x, y, marker="o", markersize=6, markerfacecolor="white", markeredgecolor=BLACK)
    axes.set_title(title, fontsize=9)
    return axes


def table_of(
    values: Image, rows: Sequence[str], columns: Sequence[str], axes: Axes | None = None, *, title: str | None = None
) -> Axes:
    """Draw a matrix as coloured cells with their numbers, blue below zero and red above.

    Parameters
    ----------
    values
        (rows, columns), finite.
    rows, columns
        Their names.
    axes, title
        As in :func:`rank_against_tolerance`.

    Raises
    ------
    ValueError
        Another shape than the names say, or values that are not finite.
    """
    drawn = _array(values)
    if drawn.shape != (len(rows), len(columns)) or drawn.size == 0 or not np.isfinite(drawn).all():
        raise ValueError(f"values must be finite, of shape ({len(rows)}, {len(columns)}), got {drawn.shape}")
    axes = _axes(axes, (2.0 + 0.62 * len(columns), 1.4 + 0.45 * len(rows)))
    most = float(np.abs(drawn).max()) or 1.0
    axes.imshow(drawn, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(drawn):
        color = "white" if abs(value) > 0.6 * most else BLACK
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title is not None:
        axes.set_title(title, fontsize=11)
    return axes


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as .png, .pdf or .svg, whole or not at all.

    Raises
    ------
    ValueError
        Another suffix.
    OSError
        The folder does not exist or cannot be written.
    """
    check_drawable(path)
    with whole_file(path) as file:
        figure.savefig(file, format=Path(path).suffix.lower()[1:], dpi=DPI)
