"""A signal taken apart into scales, of which each is small enough for a kernel: cell means, and details in patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.choosing.samples import Samples

PATCH = 200
"""Points of a patch, about: what lies between two samples is decided by their neighbours, and many small patches say
more than a few large ones."""

RING = 2
"""Samples next to the border of a patch that are not held out, as they miss neighbours; fewer of narrow patches."""

OVERLAP = 1.35
"""Cells of the next scale along one side of a patch, so that no frequency lies between the two scales."""

FLOOR = 0.25
"""Of the mean energy of details, what is added to that of each patch before patches are drawn by it: quiet ones too."""

SHARE_OF_CELLS = 1 / 3
"""Of all points, those for the scales of cell means."""

REGIONS = 12
"""Parts of a sample that is the whole signal, for the standard error."""

POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Scale:
    """Points of one scale of a signal: those that train, and those of the finest scale that judge.

    Attributes
    ----------
    train, values
        Points (n, d), and values (n, M) there without those of the coarser scales.
    held_out, held_values
        Points and values that judge, (m, d) and (m, M); None: the scale is judged where it trains.
    smooth, held_smooth
        In patches of samples, what the coarser scales hold at the points, (n, M) and (m, M): to be continued between
        the samples as well, though the coarser scales tell when it is learned. None: nothing, or nothing judges it.
    part
        Number of the patch of each point that judges, those that train if ``held_out`` is None.
    weight
        What each part counts in the mean over the signal; the parts are drawn by the energy of their details.
    counts
        Training samples of the signal that one point stands for: 1 in patches of samples, those of a cell in others.
    patch
        Shape of a patch; None: the scale is whole.
    """

    train: Tensor
    values: Tensor
    held_out: Tensor | None
    held_values: Tensor | None
    part: Tensor
    weight: Tensor
    counts: float
    patch: tuple[int, ...] | None
    smooth: Tensor | None = None
    held_smooth: Tensor | None = None


def bytes_of(samples: Samples, points: int) -> int:
    """Return about how many bytes taking a signal apart needs at its peak: 0 where it is taken whole.

    In fp64: of a grid six copies of the values and three of the points, of points anywhere what their ``2 d`` nearest
    cells hold too.
    """
    axes, outputs = samples.coords.shape[1], samples.values.shape[1]
    if samples.count <= points:
        return 0
    each = 6 * outputs + 3 * axes + 3 if _is_pooled(samples) else (4 * axes + 3) * outputs + 14 * axes
    return 8 * each * len(samples.values)


def _is_pooled(samples: Samples) -> bool:
    """Return whether a signal's cells are those of its grid."""
    return samples.shape is not None and samples.known is None and len(samples.shape) <= len(POOL)


def scales_of(samples: Samples, points: int, seed: int) -> list[Scale]:
    """Return the scales of a signal, the finest first, of about so many points together.

    The samples of a signal that is larger than ``points`` are averaged over cells, so few that a kernel between all of
    them is small. What the means leave over, the details, is taken in patches at the signal's own spacing and place, of
    which half of the samples, at random, train and the others judge. Between the two come as many scales, in patches of
    cells, as a large signal needs so that no frequency is left out.
    """
    random = np.random.default_rng(seed)
    known = np.arange(len(samples.values)) if samples.known is None else np.flatnonzero(samples.known.numpy())
    samples = replace(samples, values=samples.values.double() - samples.values[known].double().mean(0))
    if len(known) <= points:
        return [_whole(samples, known, random)]
    most = max(int(SHARE_OF_CELLS * points), 16)
    if not _is_pooled(samples):
        return _of_scattered(samples, known, most, points - most, random)
    return _of_grid(samples, most, points - most, random)


def _tree(points: Tensor) -> Any:
    """Return a tree (scipy.spatial.cKDTree) that finds the nearest of some points."""
    from scipy.spatial import cKDTree  # slow to import

    return cKDTree(points.numpy())


def _whole(samples: Samples, known: np.ndarray, random: np.random.Generator) -> Scale:
    """Return all samples, halved; a part is the region around one of a few of them."""
    rows = random.permutation(known)
    train, judges = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    coords = samples.coords.double()
    _, near = _tree(coords[train[:REGIONS]]).query(coords[judges].numpy())
    _, part, sizes = np.unique(near, return_inverse=True, return_counts=True)
    weight = torch.from_numpy(sizes / len(judges))
    values = samples.values.double()
    return Scale(
        coords[train], values[train], coords[judges], values[judges], torch.from_numpy(part), weight, 1.0, None
    )


# ---- grids -------------------------------------------------------------------------------------------------------


def _of_grid(samples: Samples, cells: int, points: int, random: np.random.Generator) -> list[Scale]:
    """Return the scales of a grid."""
    assert samples.shape is not None
    axes = len(samples.shape)
    values = samples.values.double().T.reshape(1, -1, *samples.shape)
    places = samples.coords.double().T.reshape(1, axes, *samples.shape)
    found: list[Scale] = []
    counts = 0.5  # half of the samples train
    while True:
        shape = tuple(values.shape[2:])
        patch = patch_shape(shape)
        means, coarser = _averaged(values, patch, cells), _averaged(places, patch, cells)
        smooth = F.interpolate(means, size=shape, mode=SMOOTH[axes])
        share = points // (1 + len(found))
        level = _patches(_rows(places), _rows(values), _rows(smooth), shape, patch, share, random, halve=not found)
        found.append(replace(level, counts=counts if found else 1.0))
        counts *= math.prod(shape) / math.prod(means.shape[2:])
        values, places = means, coarser
        if math.prod(means.shape[2:]) <= cells:
            part = torch.zeros(math.prod(means.shape[2:]), dtype=torch.int64)
            one = torch.ones(1, dtype=torch.float64)
            return [*found, Scale(_rows(places), _rows(values), None, None, part, one, counts, None)]


def _rows(grid: Tensor) -> Tensor:
    """Return the values (N, M) of a grid (1, M, *shape)."""
    return grid.flatten(2)[0].T.contiguous()


def _averaged(values: Tensor, patch: Sequence[int], cells: int) -> Tensor:
    """Return means over cells: so many that they are a small kernel's, or so small that a patch overlaps some."""
    shape = values.shape[2:]
    least = [math.ceil(n * OVERLAP / length) if length < n else 1 for n, length in zip(shape, patch, strict=True)]
    side = (math.prod(shape) / cells) ** (1 / len(shape))
    while True:
        size = [max(1, low, math.floor(n / side)) for n, low in zip(shape, least, strict=True)]
        if math.prod(size) <= cells or size == least:
            return POOL[len(shape)](values, size)
        side *= 1.05


def patch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the points per axis of a patch of a grid: about a cube, longer where another axis is short."""
    left, sides = float(PATCH), dict[int, int]()
    for place, axis in enumerate(sorted(range(len(shape)), key=lambda axis: shape[axis])):
        sides[axis] = max(1, min(shape[axis], round(left ** (1 / (len(shape) - place)))))
        left = max(left / sides[axis], 1.0)
    return tuple(sides[axis] for axis in range(len(shape)))


def _patches(
    places: Tensor,
    values: Tensor,
    smooth: Tensor,
    shape: Sequence[int],
    patch: tuple[int, ...],
    points: int,
    random: np.random.Generator,
    halve: bool,
) -> Scale:
    """Return patches of a grid, drawn by the energy of what they hold."""
    side = np.array(patch)
    room = np.array(shape) // side
    offset = random.integers(0, np.array(shape) - room * side + 1)
    tiles = np.stack(np.meshgrid(*map(np.arange, room), indexing="ij"), -1).reshape(-1, len(side)) * side + offset
    inside = np.stack(np.meshgrid(*map(np.arange, side), indexing="ij"), -1).reshape(-1, len(side))
    rows = np.ravel_multi_index((tiles[:, None] + inside).transpose(2, 0, 1), tuple(shape))
    ring = np.where(side < np.array(shape), np.minimum(RING, (side - 1) // 4), 0)
    inner = ((inside >= ring) & (inside < side - ring)).all(1)
    energy = _energy(values, shape)[torch.from_numpy(rows)].mean(1).numpy()
    each = 0.5 * (len(inside) + inner.sum()) if halve else len(inside)
    chosen, weight = drawn(energy, max(2, round(points / each)), random)
    if halve:
        return _halved(places, values, smooth, rows[chosen], inner, weight, patch, random)
    part = torch.arange(len(chosen)).repeat_interleave(len(inside))
    train = rows[chosen].ravel()
    return Scale(places[train], values[train] - smooth[train], None, None, part, weight, 1.0, patch)


def _energy(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the energy (N,) of the finest details: squared differences to the mean of the neighbours."""
    grid = values.T.reshape(1, -1, *shape)
    size = [3 if n >= 3 else 1 for n in shape]
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(shape)]
    near = pool(grid, size, stride=1, padding=[(k - 1) // 2 for k in size], count_include_pad=False)
    return (grid - near).square().sum(1).flatten()


def drawn(energy: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, Tensor]:
    """Return which of some patches are drawn, in proportion to their energy and in even steps, and their weights.

    The weights make ``sum(weight * x)`` an unbiased estimate of the mean of ``x`` over all patches (Horvitz and
    Thompson, 1952), of little variance where ``x`` goes with the energy.
    """
    count = min(count, len(energy))
    chance = energy + FLOOR * energy.mean()
    chance = np.full(len(energy), 1 / len(energy)) if chance.sum() == 0 else chance / chance.sum()
    sure = np.zeros(len(energy), dtype=bool)
    while True:  # those that would be drawn more than once are drawn for certain
        rest = count - sure.sum()
        share = np.where(sure, 0.0, chance)
        share = share / share.sum() * rest if rest and share.sum() else np.zeros(len(energy))
        more = (share > 1) & ~sure
        if not more.any():
            break
        sure |= more
    steps = np.concatenate([[0.0], np.cumsum(share)])
    ticks = random.random() + np.arange(rest)
    picked = np.unique(np.searchsorted(steps, ticks, side="right") - 1).clip(0, len(energy) - 1)
    chosen = np.concatenate([np.flatnonzero(sure), picked])
    odds = np.concatenate([np.ones(int(sure.sum())), share[picked]])
    return chosen, torch.from_numpy(1 / (odds * len(energy)))


def _halved(
    places: Tensor,
    values: Tensor,
    smooth: Tensor,
    rows: np.ndarray,
    inner: Any,
    weight: Tensor,
    patch: tuple[int, ...],
    random: np.random.Generator,
) -> Scale:
    """Return patches of which half trains, and the inner ones of the other half judge; each row in one patch only."""
    first = np.zeros(rows.size, dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    trained = random.permuted(np.broadcast_to(np.arange(rows.shape[1]) % 2 == 0, rows.shape), axis=1)
    judged = ~trained & inner & first.reshape(rows.shape)
    trained = trained & first.reshape(rows.shape)
    kept, part = np.unique(np.nonzero(judged)[0], return_inverse=True)
    train, judges = rows[trained], rows[judged]
    return Scale(
        places[train],
        values[train] - smooth[train],
        places[judges],
        values[judges] - smooth[judges],
        torch.from_numpy(part),
        weight[torch.from_numpy(kept)],
        1.0,
        patch,
        smooth[train],
        smooth[judges],
    )


# ---- scattered points --------------------------------------------------------------------------------------------


def _of_scattered(
    samples: Samples, known: np.ndarray, cells: int, points: int, random: np.random.Generator
) -> list[Scale]:
    """Return two scales of points anywhere: means around some of them, and neighbourhoods."""
    coords, values = samples.coords[known].double(), samples.values[known].double()
    axes = coords.shape[1]
    _, near = _tree(coords[random.permutation(len(known))[:cells]]).query(coords.numpy())
    near = torch.from_numpy(np.unique(near, return_inverse=True)[1])
    sizes = torch.bincount(near).double()[:, None]
    cells = len(sizes)
    means = torch.zeros(cells, values.shape[1], dtype=torch.float64).index_add_(0, near, values) / sizes
    centres = torch.zeros(cells, axes, dtype=torch.float64).index_add_(0, near, coords) / sizes
    far, index = _tree(centres).query(coords.numpy(), k=range(1, min(2 * axes, cells) + 1))
    share = torch.from_numpy(1 / (far + 1e-9) ** 2)
    smooth = ((share / share.sum(1, keepdim=True))[..., None] * means[index]).sum(1)
    tree = _tree(coords)
    middles = random.permutation(len(known))[: 8 * points // PATCH]
    size = min(PATCH, len(known))
    _, rows = tree.query(coords[middles].numpy(), k=size)
    energy = (values - smooth)[torch.from_numpy(rows)].square().sum(-1).mean(1).numpy()
    chosen, weight = drawn(energy, max(2, round(points / (0.75 * size))), random)
    patches = _halved(coords, values, smooth, rows[chosen], np.arange(size) < size // 2, weight, (size,), random)
    part = torch.zeros(cells, dtype=torch.int64)
    one = torch.ones(1, dtype=torch.float64)
    return [patches, Scale(centres, means, None, None, part, one, len(known) / 2 / cells, None)]
