"""The figure of a tangent kernel: its slices ``K(., x0)`` at some points, as pictures on their grid."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from inrfast import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inrfast.tangent.kernel import TangentKernel

ACROSS = 4
"""Slices in a row of the figure."""


def usual(shape: tuple[int, ...]) -> list[int]:
    """Return the numbers of the points that are drawn unless others are asked for: the middle, and towards corners."""
    places = [[size // 2 for size in shape], [size // 4 for size in shape], [0 for _ in shape]]
    places.append([size - 1 if axis == len(shape) - 1 else size // 2 for axis, size in enumerate(shape)])
    return list(dict.fromkeys(int(np.ravel_multi_index(place, shape)) for place in places))


def slices(kernel: TangentKernel, points: Sequence[int]) -> torch.Tensor:
    """Return ``K(., x0)`` for some points, (number, points), summed over outputs unless it is of one of them."""
    count = kernel.outputs if kernel.output == "full" else 1
    wanted = [point * count + output for point, output in itertools.product(points, range(count))]
    found = kernel.columns(wanted).reshape(-1, count, len(points), count)
    return found.diagonal(dim1=1, dim2=3).sum(-1).t()


def draw(
    kernel: TangentKernel, points: Sequence[int], shape: tuple[int, ...], path: str | os.PathLike[str] | None
) -> Figure:
    """Return the figure that :meth:`inrfast.NTK.plot` describes; with ``path``, also write it there."""
    values = slices(kernel, points).cpu().double().numpy().reshape(len(points), *shape)
    ends = float(values.min()), float(values.max())
    rows, across = math.ceil(len(points) / ACROSS), min(len(points), ACROSS)
    height = 2.4 if len(shape) == 1 else min(max(2.5 * shape[-2] / shape[-1], 1.2), 5)
    figure = plots.new_figure(2.5 * across + 1, (height + 0.4) * rows + 0.5)
    panels = figure.subplots(rows, across, squeeze=False)
    for axes in panels.flat[len(points) :]:
        axes.set_axis_off()
    for axes, point, one in zip(panels.flat, points, values, strict=False):
        place = [int(i) for i in np.unravel_index(point, shape)]
        where = ", ".join(f"{x:.3g}" for x in kernel.coords[point].tolist())
        plots.field(one, axes, ends=ends, at=place, title=f"$x_0$ = ({where})")
    pictures = [image for axes in panels.flat for image in axes.get_images()]
    if pictures:
        figure.colorbar(pictures[0], ax=panels, shrink=0.8)
    if len(shape) == 1:
        figure.supxlabel("number of the point", fontsize=9)
    outputs = f"output {kernel.output}" if isinstance(kernel.output, int) else "summed over outputs"
    which = "" if kernel.outputs == 1 else f", {outputs}"
    figure.suptitle(f"Tangent kernel $K(x, x_0)$ over x{which}", fontsize=11)
    if path is not None:
        plots.save(figure, path)
    return figure
