"""What users have, as what a fit takes: pictures, pixels of whole numbers, no coordinates, batches of a loader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from inrfast.arrays import as_tensor, is_array
from inrfast.boxes import stated_bounds
from inrfast.calling import Calling, Select
from inrfast.errors import check_tensor
from inrfast.grids import grid
from inrfast.memory import budget_bytes, require
from inrfast.nn import declared_sizes
from inrfast.pixels import as_values, is_mask, is_picture, kind_of
from inrfast.training.data import channels_cure, check_net, count_outputs, moved, of_dtype

KEPT = 2
"""Copies of the points at a time while batches are gathered: the parts, and the whole that is made of them."""


@dataclass(frozen=True)
class Made:
    """What was made of the arguments of a fit, for its result.

    Attributes
    ----------
    grid
        Points per axis of the :func:`inrfast.grid` whose points stand in for coordinates that were not given.
    white
        What the pixels of the target were divided by.
    """

    grid: tuple[int, ...] | None = None
    white: int | None = None

    def described(self) -> dict[str, Any]:
        """Return what was made as plain values, nothing of what was taken as it came."""
        made = {"grid": None if self.grid is None else list(self.grid), "white": self.white}
        return {name: value for name, value in made.items() if value is not None}


NOTHING = Made()


def taken(net: nn.Module, coords: Any, target: Any, select: Select, name: str = "target") -> tuple[Any, Any, Made]:
    """Return coordinates and values as tensors where something is made of them, else as they came.

    Raises
    ------
    ValueError, TypeError
        A bad network; values that are missing; without coordinates, values in whose shape the network's grid is not
        found.
    """
    dtype, device = check_net(net, finite=False)
    if target is None:
        raise TypeError(
            f"{name} is missing: call fit(net, coords, {name}), or fit(net, {name}=image) of a signal on a grid, whose "
            "coordinates are then made"
        )
    if isinstance(coords, DataLoader):
        raise TypeError(f"coords holds batches, whose values are the {name}; leave {name} out: fit(net, loader)")
    white = None
    if is_picture(target) or is_array(target):
        given = target
        target, white = as_values(name, target, dtype, device)
        check_channels(net, coords, given, target, white, name)
    if coords is not None:
        return coords, target, Made(None, white)
    values = as_tensor(name, target, device)
    shape = grid_in(net, tuple(values.shape), select, name)
    return grid_of(net, shape), values, Made(shape, white)


MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""What pictures of so many channels are to Pillow."""


def check_channels(net: nn.Module, coords: Any, given: Any, values: Tensor, white: int | None, name: str) -> None:
    """Refuse pictures and pixels (H, W, C) of other channels than a network of two coordinates has outputs.

    What is said is done to what was given: the values that were made of it are not the caller's.
    """
    axes, outputs = declared_sizes(net)
    picture, shape = is_picture(given), tuple(values.shape)
    points = None if coords is None or not is_array(coords) else math.prod(as_tensor("coords", coords).shape[:-1])
    if axes != 2 or outputs is None or white is None or points not in (None, math.prod(shape[:2])):
        return
    if len(shape) != 3 and not (picture and len(shape) == 2):
        return
    channels = shape[2] if len(shape) == 3 else 1
    if channels == outputs or channels not in MODES or (not picture and outputs in shape):
        return
    cures = [f"make the network with out_features={channels}"]
    if picture and not given.mode.startswith("I") and outputs in MODES:
        cures.insert(0, f'give {name}.convert("{MODES[outputs]}")')
    elif not picture and (channels, outputs) in ((4, 3), (2, 1)):
        cures.insert(0, f"{name}[..., :{outputs}] leaves out the opacity")
    elif not picture and (channels, outputs) == (3, 1):
        cures.insert(0, f"({name} / {white}).mean(-1) is grey")
    what = f"an image of mode {given.mode}" if picture else kind_of(white)
    raise ValueError(
        f"{name} must have as many channels as the network has outputs, {outputs}, got {what} with {channels}, "
        f"{shape}; {', or '.join(cures)}"
    )


def grid_of(net: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return the grid of coordinates that stands in for points that were not given, of the network's dtype."""
    dtype, device = check_net(net, finite=False)
    return grid(tuple(shape), bounds=stated_bounds(net), dtype=dtype, device=device)


def grid_in(net: nn.Module, shape: tuple[int, ...], select: Select, name: str = "target") -> tuple[int, ...]:
    """Return the points per axis of values (*grid, M), or (*grid) of a single output, for a network.

    Raises
    ------
    ValueError
        The shape is none of these.
    """
    found = list(_sizes(net, shape, select))
    for axes, outputs in found:
        if len(shape) == axes + 1 and shape[-1] == outputs:
            return shape[:-1]
        if outputs == 1 and len(shape) == axes:
            return shape
    if not found:
        raise ValueError(
            f"coords are missing, and {name} of shape {shape} does not tell them: net takes neither {len(shape) - 1} "
            f"nor {len(shape)} coordinates; give coords"
        )
    axes, outputs = found[0]
    raise ValueError(
        f"coords are missing, and {name} of shape {shape} is no grid of {axes} axes with {outputs} values per point, "
        f"for which they would be made{_cure(shape, axes, outputs, name)}"
    )


def _cure(shape: tuple[int, ...], axes: int, outputs: int, name: str) -> str:
    """Return how values of another shape become those of a grid."""
    if len(shape) == axes + 1 and shape[0] == outputs:
        return f"; its outputs stand first, {moved(name, len(shape))}"
    if len(shape) == axes + 1:
        return channels_cure(shape[-1], outputs, name)
    if len(shape) == axes and shape[-1] != outputs:
        return channels_cure(1, outputs, name)
    return f"; give coords, or {name} as ({', '.join(['points'] * axes)}, {outputs})"


def _sizes(net: nn.Module, shape: tuple[int, ...], select: Select) -> Iterable[tuple[int, int]]:
    """Yield the numbers of coordinates and outputs that a network may have for values of this shape."""
    declared, outputs = declared_sizes(net)
    dtype, device = check_net(net, finite=False)
    for axes in [declared] if declared is not None else [len(shape) - 1, len(shape)]:
        if outputs is not None and select is None:
            yield axes, outputs
        elif axes > 0:
            try:
                yield (
                    axes,
                    count_outputs(net, torch.zeros(2, axes, dtype=dtype, device=device), "coords", Calling(select)),
                )
            except (ValueError, TypeError):  # another number of coordinates is tried
                continue


# ---- batches -----------------------------------------------------------------------------------------------------


def is_batches(coords: Any, target: Any) -> bool:
    """Return whether batches of (coords, values) stand in for both."""
    if target is not None or coords is None or is_array(coords) or is_picture(coords) or isinstance(coords, str):
        return False
    return isinstance(coords, Iterable | Dataset)


def gathered(net: nn.Module, batches: Any, memory_budget: int | None) -> tuple[Tensor, Tensor, int | None, Made]:
    """Return the points of all batches (N, d), their values (N, M), the points of a batch, and what was made of them.

    They are read once. A ``DataLoader`` that shuffles is read in the order of its data set.

    Raises
    ------
    ValueError, TypeError
        No batches, or of no length; a batch that is no pair of points and as many values.
    MemoryBudgetError
        All points together exceed the budget.
    """
    dtype, device = check_net(net, finite=False)
    count = _length(batches)
    found: list[_Batch] = []
    for number, batch in enumerate(_in_order(batches)):
        if number >= count:
            raise ValueError(f"coords must be as many batches as its length says, {count}, got more")
        own = _pair(number, batch, dtype, device, all(other.white is None for other in found))
        if found:
            own.check_like(found[0], number)
        else:
            needed = KEPT * count * (own.points.numel() + own.values.numel()) * dtype.itemsize
            instead = "give fewer points, or raise memory_budget: a fit holds all of its points"
            require(needed, budget_bytes(memory_budget, device), f"gathering {count} batches", instead)
        found.append(own)
    if not found:
        raise ValueError("coords must hold at least one batch of (coords, values), got none")
    size = len(found[0].points) if len(found) > 1 else None
    points, values = torch.cat([own.points for own in found]), torch.cat([own.values for own in found])
    return points, values, size, Made(None, found[0].white)


def _length(batches: Any) -> int:
    """Return the number of batches."""
    endless = isinstance(getattr(batches, "dataset", None), IterableDataset)
    if isinstance(batches, Dataset):
        raise TypeError(
            f"coords must be points or batches of (coords, values), got the data set {type(batches).__name__}; give "
            "torch.utils.data.DataLoader(dataset, batch_size=...)"
        )
    try:
        return len(batches)
    except TypeError:
        what = "a loader of an IterableDataset" if endless else type(batches).__name__
        raise TypeError(
            f"coords must be batches of a known number, since a fit gathers its points once, got {what} without "
            "a length; list(batches) has one, if it ends"
        ) from None


def _in_order(batches: Any) -> Any:
    """Return batches in the order of their data set where a loader only shuffles it: a fit shuffles by its seed."""
    if type(batches) is not DataLoader or type(batches.sampler) is not RandomSampler or batches.batch_size is None:
        return batches
    if batches.sampler.replacement or batches.sampler.num_samples != len(batches.dataset):  # type: ignore[arg-type]
        return batches
    return DataLoader(
        batches.dataset,
        batches.batch_size,
        num_workers=batches.num_workers,
        collate_fn=batches.collate_fn,
        drop_last=batches.drop_last,
        timeout=batches.timeout,
        worker_init_fn=batches.worker_init_fn,
        multiprocessing_context=batches.multiprocessing_context,
    )


@dataclass(frozen=True)
class _Batch:
    """Points (n, d) and values (n, M) of one batch, of what kind the values were, and their white."""

    points: Tensor
    values: Tensor
    kind: str
    white: int | None

    def check_like(self, first: _Batch, number: int) -> None:
        """Refuse points or values of another width or kind than those of the first batch."""
        for what, own, other in (("points", self.points, first.points), ("values", self.values, first.values)):
            if own.shape[1] != other.shape[1]:
                raise ValueError(
                    f"batches of coords must be alike, got {what} of (n, {other.shape[1]}) in batch 0 and {what} of "
                    f"(n, {own.shape[1]}) in {number}"
                )
        if self.kind != first.kind:
            raise TypeError(
                f"batches of coords must hold values of one kind, got {first.kind} in batch 0 and {self.kind} in "
                f"{number}"
            )


def _pair(number: int, batch: Any, dtype: torch.dtype, device: torch.device, told: bool) -> _Batch:
    """Return one batch, checked as points and values are; ``told``: whether pixels are warned of."""
    where = f"batch {number} of coords"
    if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
        kind = f"{type(batch).__name__}{f' of {len(batch)}' if hasattr(batch, '__len__') else ''}"
        raise TypeError(f"{where} must be a pair (coords, values), got {kind}; a loader's collate_fn can make it one")
    named = f"batch {number}'s coords", f"batch {number}'s values"
    points = of_dtype(named[0], check_tensor(named[0], batch[0], device=device), dtype)
    given = batch[1] if is_picture(batch[1]) else as_tensor(named[1], batch[1], device)
    values, white = as_values(named[1], given, dtype, device, told)
    values = of_dtype(named[1], check_tensor(named[1], values, finite=False), dtype)
    kind = kind_of(white) if white is not None else "booleans" if is_mask(given) else "floating-point values"
    shape, places = tuple(values.shape), tuple(points.shape[:-1])
    if not places or shape not in (places, (*places, *shape[-1:])):
        raise ValueError(
            f"{where} must hold points (..., d) and values (..., M) or (...) of the same points, got "
            f"{tuple(points.shape)} and {shape}"
        )
    count = math.prod(places)
    return _Batch(
        points.detach().to(device, dtype).reshape(count, -1),
        values.detach().to(device, dtype).reshape(count, -1),
        kind,
        white,
    )
