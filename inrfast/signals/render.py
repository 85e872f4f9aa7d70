"""Rendering: the values of a network on a grid of any size, without a list of the grid's coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from inrfast.grids import axes
from inrfast.memory import budget_bytes, cached_rows, chunks, require
from inrfast.nn import INR
from inrfast.threads import MOST_THREADS, one_core, share
from inrfast.training.stack import modes_kept

BUFFERS = 4
"""Buffers of a layer's width that a chunk is counted with: features, pre-activations and what an activation takes."""


@torch.no_grad()
def render(
    net: nn.Module,
    shape: int | Sequence[int],
    bounds: Any = (-1.0, 1.0),
    endpoint: str = "inclusive",
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Return the predictions of a network on ``inrfast.grid(shape, endpoint, bounds)``, on the CPU, (*shape, M).

    Coordinates are computed chunk by chunk and are bit by bit those of the grid. A chunk's activations stay in cache.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (n, d) to (n, M), on any device. It is evaluated in eval mode;
        every module has its own mode back afterwards. No gradients are kept.
    shape
        Points an axis; an int is a one-dimensional grid.
    bounds, endpoint
        As in :func:`inrfast.grid`; by default those of a fit to a grid.
    memory_budget
        Bytes for the result and one chunk; None takes half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal only.

    Raises
    ------
    ValueError, TypeError
        A bad shape, bounds or endpoint; no module; a network without parameters, or that does not take the coordinates
        or does not return (n, M).
    MemoryBudgetError
        The result with a chunk of one point exceeds the budget; nothing was allocated.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    like = next(net.parameters(), None)
    if like is None:
        raise ValueError("net has no parameters, which would tell its dtype and device")
    columns = axes(shape, endpoint, bounds, like.dtype)
    sizes = [len(column) for column in columns]
    points = math.prod(sizes)
    with modes_kept(net):
        net.eval()
        outputs = _outputs(net, columns, like)
        widest = max(outputs, len(sizes), *(size for parameter in net.parameters() for size in parameter.shape))
        row_bytes = BUFFERS * widest * like.element_size() + 16 * len(sizes)
        result_bytes, budget = points * outputs * like.element_size(), budget_bytes(memory_budget)
        require(result_bytes + row_bytes, budget, f"a grid of {points} points", "render a smaller one, or its parts")
        threads = _threads(net, like)
        affordable = (budget - result_bytes) // row_bytes
        rows = max(1, min(cached_rows(widest, like), points, affordable // threads))
        values = torch.empty(points, outputs, dtype=like.dtype)
        with (
            one_core() if threads > 1 else nullcontext(),
            tqdm(total=points, disable=None if progress is None else not progress, unit="point") as bar,
        ):

            def predict(part: slice) -> None:
                with torch.no_grad():  # which a thread does not take over
                    values[part] = net(grid_rows(columns, part).to(like.device)).cpu()
                bar.update(part.stop - part.start)

            share(chunks(points, rows), [predict] * min(threads, affordable))
    return values.view(*sizes, outputs)


def _threads(net: nn.Module, like: Tensor) -> int:
    """Return how many chunks are computed at a time: only of an INR is it known that its calls do not meet."""
    return min(torch.get_num_threads(), MOST_THREADS) if isinstance(net, INR) and like.device.type == "cpu" else 1


def grid_rows(columns: Sequence[Tensor], rows: slice) -> Tensor:
    """Return some rows (n, d) of the grid with these axes, from their numbers."""
    places = torch.unravel_index(torch.arange(rows.start, rows.stop), [len(column) for column in columns])
    return torch.stack([column[place] for column, place in zip(columns, places, strict=True)], 1)


def _outputs(net: nn.Module, columns: Sequence[Tensor], like: Tensor) -> int:
    """Return M, from the grid's first point."""
    point = grid_rows(columns, slice(0, 1)).to(like.device)
    try:
        values = net(point)
    except Exception as error:
        raise ValueError(f"net does not take coords of shape {tuple(point.shape)}: {error}") from error
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != 1:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"net must map (n, {len(columns)}) to (n, M), got {got} of one point")
    return values.shape[1]
