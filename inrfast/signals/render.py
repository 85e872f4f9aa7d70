"""Rendering: the values of a network on a grid of any size, without a list of the grid's coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.boxes import stated_bounds, warn_of_other_box
from inrfast.calling import Called, Calling, Select
from inrfast.errors import MemoryBudgetError, check_module
from inrfast.grids import axes
from inrfast.memory import budget_bytes, cached_rows, chunks, require
from inrfast.mlp import is_pointwise
from inrfast.modes import in_own_modes, modes_kept
from inrfast.nn import declared_sizes
from inrfast.pointwise import RANDOM, ROWS, dependence
from inrfast.progress import progress_bar
from inrfast.threads import MOST_THREADS, one_core, share

BUFFERS = 4
"""Buffers of a layer's width per chunk: features, pre-activations, and the temporaries of an activation."""


@in_own_modes
def render(
    net: nn.Module,
    shape: int | Sequence[int],
    bounds: Any = None,
    endpoint: str = "inclusive",
    memory_budget: int | None = None,
    progress: bool | None = None,
    select: Select = None,
) -> Tensor:
    """Return the predictions of a network on ``inrfast.grid(shape, endpoint, bounds)``, on the CPU, (*shape, M).

    Coordinates are computed chunk by chunk, bitwise equal to those of the grid. A chunk's activations stay in cache.
    A network that couples its points (batch statistics, attention over the batch) gets the whole grid at once; its
    values then belong to this grid, and another grid gives other values at the same points.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (n, d) to (n, M), or else (1, n, d) to (1, n, M), on any device;
        axes behind the points' are flattened. It is evaluated in eval mode; every module gets its own mode back
        afterwards. No gradients are recorded.
    shape
        Points per axis; an int is a one-dimensional grid.
    bounds, endpoint
        As in :func:`inrfast.grid`; by default those of a fit to a grid: None takes the bounds that an INR states, else
        (-1, 1).
    memory_budget
        Bytes for the result and one chunk; None takes half of what is free.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.
    select
        A key, an index, an attribute's name or a function that takes the output tensor from what the network returns,
        as in :func:`inrfast.ntk`; None: it is the output.

    Raises
    ------
    ValueError, TypeError
        A bad shape, bounds or endpoint; no module; a network without parameters or with complex ones, or that does not
        take the coordinates, or whose output is not there, not real, or has not one row per point.
    MemoryBudgetError
        The result with a chunk of one point exceeds the budget, or with the whole grid for a network that couples its
        points; nothing was allocated.
    """
    check_module("net", net)
    for name, parameter in net.named_parameters():
        if parameter.is_complex():
            raise ValueError(f"net has a complex parameter, {name!r}; only real networks are rendered")
    like = next((parameter for parameter in net.parameters() if parameter.is_floating_point()), None)
    if like is None:
        raise ValueError("net has no parameters, which would tell its dtype and device")
    columns = axes(shape, endpoint, stated_bounds(net) if bounds is None else bounds, like.dtype)
    if declared_sizes(net)[0] == len(columns):
        warn_of_other_box(net, torch.stack([torch.stack([column[0], column[-1]]) for column in columns], 1))
    sizes = [len(column) for column in columns]
    points = math.prod(sizes)
    with modes_kept(net):
        net.eval()
        budget = budget_bytes(memory_budget)
        widest = max(len(sizes), *(size for parameter in net.parameters() for size in parameter.shape))
        affordable = budget // (BUFFERS * widest * like.element_size())
        called, outputs = _tried(net, columns, points, like, affordable, select)
        widest = max(outputs, widest)
        row_bytes = BUFFERS * widest * like.element_size() + 16 * len(sizes)
        result_bytes = points * outputs * like.element_size()
        require(result_bytes + row_bytes, budget, f"a grid of {points} points", "render a smaller one, or its parts")
        # Only modules known to be thread-safe compute several chunks at a time.
        alone = select is None and is_pointwise(net)
        threads = min(torch.get_num_threads(), MOST_THREADS) if alone and like.device.type == "cpu" else 1
        affordable = (budget - result_bytes) // row_bytes
        rows = max(1, min(cached_rows(widest, like), points, affordable // threads))
        if rows < points and not alone and _needs_whole_grid(called, columns, points, like, affordable):
            rows = points
        values = torch.empty(points, outputs, dtype=like.dtype)
        with (
            one_core() if threads > 1 else nullcontext(),
            progress_bar(total=points, progress=progress, unit="point") as bar,
        ):

            def predict(part: slice) -> None:
                with torch.no_grad():  # worker threads start with torch's default modes, not the caller's
                    values[part] = _predicted(called, grid_rows(columns, part).to(like.device)).cpu()
                bar.update(part.stop - part.start)

            share(chunks(points, rows), [predict] * min(threads, affordable))
    return values.view(*sizes, outputs)


def _needs_whole_grid(net: nn.Module, columns: Sequence[Tensor], points: int, like: Tensor, affordable: int) -> bool:
    """Return whether predictions depend on other points, so that chunks would change them.

    Raises
    ------
    MemoryBudgetError
        It does, and the whole grid does not fit the budget.
    """
    count = min(points, 2 * ROWS)
    places = torch.arange(count) * (points - 1) // max(count - 1, 1)
    sample = _at(columns, places).to(like.device)
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        found = dependence(net, sample, exact=True, number=points)
        if found is None or found == RANDOM:
            return False
        if points <= affordable:
            return True
        if dependence(net, sample, number=points) is None:  # only a difference of rounding
            return False
    raise MemoryBudgetError(
        f"net couples its points ({found}), so it must be given all {points} points of the grid at once; the budget "
        f"allows {max(affordable, 0)}. Render a smaller grid or raise memory_budget"
    )


def grid_rows(columns: Sequence[Tensor], rows: slice) -> Tensor:
    """Return some rows (n, d) of the grid with these axes."""
    return _at(columns, torch.arange(rows.start, rows.stop))


def _at(columns: Sequence[Tensor], numbers: Tensor) -> Tensor:
    """Return the rows (n, d) of the grid with these indices."""
    places = torch.unravel_index(numbers, [len(column) for column in columns])
    return torch.stack([column[place] for column, place in zip(columns, places, strict=True)], 1)


def _predicted(called: Called, points: Tensor) -> Tensor:
    """Return the predictions at some points.

    A single point is passed twice to modules that fail on one point, such as those that call ``squeeze()``.
    """
    if len(points) == 1:
        with suppress(Exception):  # it may take two copies of the point, whatever it raises for one
            return called.forward(points)
        return called.forward(points.expand(2, -1).clone())[:1]
    return called.forward(points)


def _tried(
    net: nn.Module, columns: Sequence[Tensor], points: int, like: Tensor, affordable: int, select: Select
) -> tuple[Called, int]:
    """Return how a network is called, with points (n, d) or (1, n, d), and M.

    That is tried with the grid's first points and, for a network that takes nothing else, with all of it.
    """
    refused: list[Exception] = []
    for count in dict.fromkeys([min(points, 2), *([points] if points <= affordable else [])]):
        rows = grid_rows(columns, slice(0, count)).to(like.device)
        for calling in (Calling(select), Calling(select, 3)):
            for given in [rows] if count > 1 else [rows, rows.expand(2, -1)]:
                try:
                    net(calling.with_axes(given.clone()))
                except Exception as error:
                    refused.append(error)
                    continue
                called = Called(net, calling).eval()
                return called, _predicted(called, rows).shape[1]
    raise ValueError(f"net does not take coords of shape {tuple(rows.shape)}: {refused[0]}") from refused[0]
