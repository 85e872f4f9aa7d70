"""What a fit is given, checked at its door: points, values, weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from inrfast.calling import Calling, Select
from inrfast.errors import check_coords, check_float, check_module, check_tensor
from inrfast.metrics import data_range_of
from inrfast.modes import modes_kept, own_modes
from inrfast.nn import declared_sizes
from inrfast.snapshot import snapshot, twin, widen_
from inrfast.tangent import probes
from inrfast.tangent.network import PASS_DTYPE, Network
from inrfast.training.stack import has_gaps
from inrfast.wrapped import refuse_pieces, refuse_processes

MOST_SPREAD = 100.0
"""Largest spread of targets where no ``data_range`` is given: pixels from 0 to 255 are meant to be scaled."""

ALIGNMENT = 64
"""Bytes: matrix libraries repeat their digits from run to run for operands that lie alike."""


@dataclass(frozen=True)
class Data:
    """Points and values of B networks; a first axis of 1 stands for what they share.

    Attributes
    ----------
    coords, target
        Shapes (B or 1, N, d) and (B or 1, N, M).
    weight
        Shape (B or 1, N, 1 or M), no point of weight 0 in it; None: all alike.
    given
        Row numbers (B or 1, N) of the points among those that the caller gave; None: these are all.
    calling
        How networks are called at these points.
    """

    coords: Tensor
    target: Tensor
    weight: Tensor | None = None
    given: Tensor | None = None
    calling: Calling = field(default_factory=Calling)

    @property
    def points(self) -> int:
        """N."""
        return self.coords.shape[1]

    def keep(self, index: Sequence[int]) -> Data:
        """Return the data of some of the networks."""
        some = [None if own is None else own if len(own) == 1 else own[list(index)] for own in self._all()]
        return Data(*some, self.calling)  # type: ignore[arg-type,call-arg]

    def rows(self, index: Tensor | slice, place: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return points, values and weights of some rows of one network, without the first axis."""
        some = self._all()[:3]
        return tuple(None if own is None else own[place % len(own), index] for own in some)  # type: ignore[return-value]

    def numbers(self, index: Tensor | slice, place: int = 0) -> Tensor:
        """Return the numbers of some rows of one network among the points that the caller gave."""
        if self.given is not None:
            return self.given[place % len(self.given), index]
        return torch.arange(self.points, device=self.coords.device)[index] if isinstance(index, slice) else index

    def apart(self, copies: dict[tuple[int, torch.Size], Tensor]) -> Data:
        """Return copies, for functions that might write into them; ``copies`` are those made before, by their place."""

        def copied(own: Tensor | None) -> Tensor | None:
            if own is None:
                return None
            place = own.data_ptr(), own.shape
            if place not in copies:
                copies[place] = own.clone()
            return copies[place]

        return Data(*(copied(own) for own in self._all()), self.calling)  # type: ignore[arg-type,call-arg]

    def written(self) -> tuple[int, ...]:
        """Return how often coordinates, targets and weights were written to."""
        return tuple(0 if own is None else own._version for own in self._all()[:3])

    def _all(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.coords, self.target, self.weight, self.given


def stacked(data: Sequence[Data]) -> Data:
    """Return the data of single networks side by side; what is one tensor for all of them stays one."""

    def joined(own: Sequence[Tensor | None]) -> Tensor | None:
        first = own[0]
        if first is None:
            return None
        tensors = [tensor for tensor in own if tensor is not None]
        place = {(tensor.data_ptr(), tuple(tensor.shape)) for tensor in tensors}
        return first if len(place) == 1 else torch.cat(tensors)

    coords, target = joined([one.coords for one in data]), joined([one.target for one in data])
    assert coords is not None and target is not None
    weight, given = joined([one.weight for one in data]), joined([one.given for one in data])
    return Data(coords, target, weight, given, data[0].calling)


def check_net(net: Any, argument: str = "net", finite: bool = True) -> tuple[torch.dtype, torch.device]:
    """Return dtype and device of a network that can be trained; ``finite``: whether to look at its numbers too."""
    check_module(argument, net)
    if isinstance(net, torch.jit.RecursiveScriptModule):
        raise TypeError(
            f"{argument} is compiled by torch.jit.script, which hides its parameters; fit the module itself"
        )
    refuse_pieces(net, argument)
    refuse_processes(net, argument)
    trainable = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError(f"{argument} has no trainable parameter")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_inference():
            raise ValueError(
                f"{argument}.{name} was made inside torch.inference_mode and can't be trained; make the network, or a "
                "copy of it by copy.deepcopy, outside"
            )
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{argument}.{name} holds no numbers yet ({type(tensor).__name__} on {tensor.device})")
        looked = finite and isinstance(tensor, nn.Parameter)  # a buffer may hold -inf, as masks of attention do
        check_tensor(f"{argument}.{name}", tensor, floating=False, nonempty=False, finite=looked)
        if tensor.is_complex():
            raise TypeError(
                f"{argument}.{name} is {tensor.dtype}, and a fit takes networks of real numbers alone; hold its real "
                "and imaginary part (torch.view_as_real) instead"
            )
    for name, parameter in trainable.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{argument} must be fp32 or fp64, got {parameter.dtype} in {name}")
    check_apart({f"{argument}.{name}": parameter for name, parameter in net.named_parameters()})
    first = next(iter(trainable.values()))
    return first.dtype, first.device


def check_apart(parameters: Mapping[str, Tensor]) -> None:
    """Refuse trained parameters whose entries share memory, their own or another's: an update would count twice.

    Tensors side by side in one storage are fine. Only where the ranges of two meet are their places marked and counted.
    """
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, parameter in parameters.items():
        if parameter.numel():
            by_storage.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter.detach()))
    for group in by_storage.values():
        if not any(parameters[name].requires_grad for name, _ in group):
            continue
        ranges = sorted(_byte_range(tensor) for _, tensor in group)
        apart = all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))
        if not apart or any(has_gaps(tensor) for _, tensor in group):
            _check_places(group, max(stop for _, stop in ranges))


def _check_places(group: Sequence[tuple[str, Tensor]], size: int) -> None:
    """Mark the bytes of some tensors in a storage of so many, and refuse two entries at one place."""
    taken = np.zeros(size, dtype=bool)
    marked: list[tuple[str, Tensor]] = []
    for name, tensor in group:
        width, start = tensor.element_size(), _byte_range(tensor)[0]
        shape, strides = (*tensor.shape, width), (*(stride * width for stride in tensor.stride()), 1)
        places = np.lib.stride_tricks.as_strided(taken[start:], shape, strides)
        if places.any():
            other = next(
                n for n, t in marked if max(start, _byte_range(t)[0]) < min(_byte_range(tensor)[1], _byte_range(t)[1])
            )
            raise ValueError(
                f"{name} and {other} overlap in memory, so that an update of one changes the other; make them one "
                "Parameter, or give each memory of its own (.clone())"
            )
        before = np.count_nonzero(taken)
        places[...] = True
        if np.count_nonzero(taken) - before < tensor.numel() * width:
            raise ValueError(
                f"{name} overlaps itself in memory (shape {tuple(tensor.shape)}, strides {tuple(tensor.stride())}), as "
                "an expanded tensor does; give each entry its own (.clone()), or expand it in forward"
            )
        marked.append((name, tensor))


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor's entries in its storage, and the one behind its last."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start, size = tensor.storage_offset(), tensor.element_size()
    return int(start * size), int((start + last + 1) * size)


def check_data(
    net: nn.Module,
    coords: Any,
    target: Any,
    weight: Any = None,
    names: tuple[str, str, str] = ("coords", "target", "weight"),
    select: Select = None,
) -> Data:
    """Return points, values and weights of one network, of its dtype and device, without points of weight 0.

    Parameters
    ----------
    coords, target, weight
        Shapes (N, d) or (..., d), (N, M) or (*grid, M), and (N,), (N, 1), (N, M) or the same with the grid; M = 1 also
        without the last axis. Floating-point numbers of another width become those of the network's dtype. A weight of
        0 (or False) leaves its point out, whose target may then be anything.
    names
        What the arguments are called in messages.
    select
        Takes the output from what the network returns: see :class:`inrfast.calling.Calling`.

    Raises
    ------
    ValueError, TypeError
        Bad shapes, dtypes, devices; NaN or Inf; negative weights, or none above 0.
    """
    dtype, device = check_net(net)
    shaped = of_dtype(names[0], check_tensor(names[0], coords, finite=False, device=device), dtype)
    coords = check_coords(names[0], shaped, declared_sizes(net)[0], device)
    calling = calling_of(net, shaped, select)
    n, outputs = len(coords), count_outputs(net, coords, names[0], calling)
    target = of_dtype(names[1], check_tensor(names[1], target, finite=False, device=device), dtype)
    if target.device != device:
        raise ValueError(f"{names[1]} is on {target.device} but the network is on {device}; move one of them")
    check_axes(net, shaped, calling)
    grid = _grid_of(names[1], target, coords, outputs)
    grids = (grid, tuple(shaped.shape[:-1]))
    weight, counts = _check_weight(names[2], weight, coords, grids, outputs, dtype)
    target = target.detach().reshape(n, outputs)
    coords, given = coords.detach(), None
    if counts is not None:
        assert weight is not None
        coords, target, weight = coords[counts], target[counts], weight[counts]
        given = counts.nonzero().squeeze(1)
    if weight is not None:  # a single output of no weight may hold anything too
        target = torch.where(weight > 0, target, torch.zeros_like(target))
    check_tensor(names[1], target)
    found = [None if own is None else aligned(own).unsqueeze(0) for own in (coords, target, weight, given)]
    return Data(*found, calling)  # type: ignore[arg-type,call-arg]


def of_dtype(argument: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floating-point numbers in the network's dtype, the same tensor if they are; none leaves its range."""
    if tensor.dtype == dtype or tensor.dtype.itemsize < 2:
        return tensor
    moved = tensor.detach().to(dtype)
    if dtype.itemsize < tensor.dtype.itemsize and bool((moved.isinf() & tensor.isfinite()).any()):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{argument} must be within the range of the network's dtype {name}; scale its values")
    return moved


def calling_of(net: nn.Module, coords: Tensor, select: Select = None) -> Calling:
    """Return how a network is called at coordinates (..., d): with as many axes as these have; an INR with two."""
    return Calling(select, 2 if declared_sizes(net)[0] is not None else coords.ndim)


def check_axes(net: nn.Module, coords: Tensor, calling: Calling) -> None:
    """Refuse a network that treats the axes of coordinates (..., d) otherwise than their points in one row.

    Raises
    ------
    UnsupportedModuleError
        See :func:`inrfast.tangent.probes.check_axes`.
    """
    if calling.axes > 2 and math.prod(coords.shape[:-2]) > 1:
        with own_modes(), torch.no_grad():
            network = Network(widen_(snapshot(net)).eval(), calling.select, calling.axes)
            probes.check_axes(network, coords.to(PASS_DTYPE))


def range_of(data: Data, given: Any, argument: str = "data_range") -> float:
    """Return the range for which the PSNR on these points is stated: the given one, or the values' own."""
    if given is not None:
        return check_float(argument, given, minimum=0.0, exclusive=True)
    values = data.target if data.weight is None else data.target[data.weight.expand_as(data.target) > 0]
    return data_range_of(values)


def check_measured(data: Data, stops: Sequence[str], argument: str = "target") -> None:
    """Refuse to stop a fit with a loss of its own by a PSNR on one value everywhere, which only stands in for a target.

    ``stops`` are the arguments given that ask for such a stop.
    """
    if stops and bool((data.target == data.target.flatten()[0]).all()):
        raise ValueError(
            f"{stops[0]} stops a fit by its PSNR, but {argument} is {float(data.target.flatten()[0]):g} everywhere, "
            f"which says nothing beside a loss of your own; leave {stops[0]} out, or give eval_target"
        )


def check_spread(data: Data, argument: str = "target") -> None:
    """Refuse targets of a spread that is hardly meant: networks begin near 0, and learn pixels of 8 bits badly."""
    low, high = (float(value) for value in torch.aminmax(data.target))
    if high - low > MOST_SPREAD:
        raise ValueError(
            f"{argument} must span a range near 1, for which losses and PSNR are stated, got {low:g} to {high:g}; "
            f"scale it (pixels of 8 bits: divide by 255), or give data_range if that is meant"
        )


def _grid_of(argument: str, target: Tensor, coords: Tensor, outputs: int) -> tuple[int, ...]:
    """Return the shape of the points for which a target (*grid, M), or with M = 1 also (*grid), holds values."""
    n = len(coords)
    shape = tuple(target.shape) if target.shape[-1:] == (outputs,) and target.ndim > 1 else (*target.shape, 1)
    grid = shape[:-1]
    if math.prod(grid) != n or shape[-1] != outputs:
        single = f", or without the last axis: ({n},) or (*grid)" if outputs == 1 else ""
        raise ValueError(
            f"{argument} must have shape ({n}, {outputs}) or (*grid, {outputs}) with {n} grid points{single}, "
            f"got {tuple(target.shape)}{_shape_cure(argument, tuple(target.shape), n, outputs)}"
        )
    _check_order(argument, tuple(target.shape), grid, coords)
    return grid


def _shape_cure(argument: str, shape: tuple[int, ...], n: int, outputs: int) -> str:
    """Return how values of a shape that does not fit become those of n points, where that can be told."""
    if shape[:1] == (outputs,) and math.prod(shape[1:]) == n:
        return f"; its outputs stand first, {moved(argument, len(shape))}"
    if len(shape) > 1 and math.prod(shape[:-1]) == n:
        return channels_cure(shape[-1], outputs, argument)
    if math.prod(shape) == n:
        return channels_cure(1, outputs, argument)
    points = math.prod(shape) // outputs
    return f"; that is {points} points" if points * outputs == math.prod(shape) else ""


def moved(argument: str, ndim: int) -> str:
    """Say what brings the first of so many axes to the end."""
    axes = ", ".join(map(str, [*range(1, ndim), 0]))
    return f"{argument}.permute({axes}) brings them last (of a NumPy array .transpose({axes}))"


def channels_cure(channels: int, outputs: int, argument: str) -> str:
    """Return what to do with so many values per point of a network of so many outputs."""
    values, ends = f"{channels} value{'s' * (channels != 1)}", f"{outputs} output{'s' * (outputs != 1)}"
    fourth = f"{argument}[..., :3] leaves out the opacity of RGBA, or " if (channels, outputs) == (4, 3) else ""
    grey = f"{argument}.mean(-1) is grey, or " if (channels, outputs) == (3, 1) else ""
    return f"; it has {values} per point, the network {ends}: {fourth}{grey}make the network with {channels}"


def _check_order(argument: str, shape: tuple[int, ...], grid: tuple[int, ...], coords: Tensor) -> None:
    """Refuse values whose axes are those of the coordinates' grid in another order, (M, H, W) or (W, H) for (H, W).

    Their number is right, and each would be taken for the value at another point.
    """
    if len(grid) < 2 or len(grid) != coords.shape[1] or is_grid(coords, grid):
        return
    for other in sorted(set(itertools.permutations(shape, len(grid)))):
        if _longer(other) == _longer(grid):  # axes of size 1 change no order
            continue
        if math.prod(other) == len(coords) and is_grid(coords, other):
            raise ValueError(
                f"{argument} has shape {shape}, but its points are a grid {other} in row-major order; bring its axes "
                f"into the order {other}, outputs last (movedim, permute)"
            )


def _longer(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size > 1]


def is_grid(coords: Tensor, grid: tuple[int, ...]) -> bool:
    """Return whether points (N, d) are a row-major grid of this shape: each coordinate changes along its axis alone."""
    if len(grid) != coords.shape[1] or math.prod(grid) != len(coords):
        return False
    points = coords.reshape(*grid, len(grid))
    for axis in range(len(grid)):
        along = points[..., axis].movedim(axis, -1)
        line = along[(0,) * (len(grid) - 1)]
        if not torch.equal(along, line.expand_as(along)) or (len(line) > 1 and bool((line == line[0]).all())):
            return False
    return True


def _check_weight(
    argument: str, weight: Any, coords: Tensor, grids: tuple[tuple[int, ...], ...], outputs: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Return weights (N, 1 or M), and which points have any if some have none.

    ``grids`` are the shapes of the target's points and of the coordinates' as they were given. Of a target (N, M) the
    weight may have the grid of the coordinates.
    """
    grid = grids[0]
    if weight is None:
        return None, None
    weight = check_tensor(argument, weight, floating=False, device=coords.device)
    if weight.dtype != torch.bool and not weight.is_floating_point():
        raise TypeError(f"{argument} must be boolean or of a floating-point dtype, got {weight.dtype}")
    if weight.device != coords.device:
        raise ValueError(f"{argument} is on {weight.device} but the network is on {coords.device}; move one of them")
    n, shape = len(coords), tuple(weight.shape)
    own = [own for own in (shape, shape[:-1]) if len(grid) == 1 and len(own) > 1 and is_grid(coords, own)]
    leading = [(n,), *grids, *own]
    if not any(shape == (*places, *last) for places in leading for last in ((), (1,), (outputs,))):
        places = [f"{n}", *([", ".join(map(str, grid))] if len(grid) > 1 else [])]
        forms = [f"({own},)" if own == str(n) else f"({own})" for own in places]
        forms += [f"({own}, {last})" for own in places for last in dict.fromkeys((1, outputs))]
        raise ValueError(
            f"{argument} must hold one number a point ({n}) or one a target ({n} x {outputs}), in a shape out of "
            f"{', '.join(forms)}; got {shape}"
        )
    weight = weight.detach().to(dtype).reshape(n, -1)
    if bool((weight < 0).any()):
        raise ValueError(f"{argument} must not be negative, got {float(weight.min()):g}")
    total = float(weight.double().sum()) * (outputs / weight.shape[1])
    if total > torch.finfo(dtype).max:
        raise ValueError(
            f"{argument} must have a sum within {str(dtype).removeprefix('torch.')}, got up to {float(weight.max()):g} "
            f"and a sum of {total:g}; divide it by its largest, since the loss is a mean and its scale does not matter"
        )
    counts = (weight > 0).any(1)
    if not bool(counts.any()):
        raise ValueError(f"{argument} must be above 0 somewhere, got only 0")
    return weight, None if bool(counts.all()) else counts


def aligned(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor at an aligned address, the same one if it is so already.

    One made inside ``torch.inference_mode``, which autograd does not take, is copied.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 and not tensor.is_inference() else tensor.clone()


@torch.no_grad()
def count_outputs(net: nn.Module, coords: Tensor, argument: str = "coords", calling: Calling | None = None) -> int:
    """Return M, from two of the points (N, d) or, for a network that takes nothing else, from all."""
    calling = Calling() if calling is None else calling
    declared = declared_sizes(net)[1]
    if declared is not None and calling.select is None:
        return declared
    net = twin(net)
    with modes_kept(net):
        net.eval()
        try:  # on copies, since a network may write into what it gets
            rows = coords[:2]
            returned = net(calling.with_axes(rows.clone()))
        except Exception:  # whatever a network raises on two points, it may still take its full grid
            rows = coords
            try:
                returned = net(calling.with_axes(rows.clone()))
            except Exception as error:
                shape = tuple(calling.with_axes(rows).shape)
                raise ValueError(
                    f"net does not take {argument} of shape {shape}: {error}. It is called with as many axes as "
                    f"{argument} has: give coordinates (N, d), or (1, N, d) to a network that takes those"
                ) from error
    return calling.output_in(returned, len(rows)).shape[1]
