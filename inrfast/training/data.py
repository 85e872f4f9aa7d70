"""What a fit is given, checked at its door: points, values, weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import check_coords, check_tensor
from inrfast.nn import INR
from inrfast.training.stack import modes_kept

MOST_SPREAD = 100.0
"""Largest spread of targets, where PSNR is stated for a range of 1: pixels from 0 to 255 are meant to be scaled."""

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
    """

    coords: Tensor
    target: Tensor
    weight: Tensor | None = None

    @property
    def points(self) -> int:
        """N."""
        return self.coords.shape[1]

    def keep(self, index: Sequence[int]) -> Data:
        """Return the data of some of the networks."""
        some = [None if own is None else own if len(own) == 1 else own[list(index)] for own in self._all()]
        return Data(*some)  # type: ignore[arg-type]

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return points, values and weights of some rows of a single network, without the first axis."""
        return tuple(None if own is None else own[0, index] for own in self._all())  # type: ignore[return-value]

    def _all(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.coords, self.target, self.weight


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
    return Data(coords, target, joined([one.weight for one in data]))


def check_net(net: Any, argument: str = "net") -> tuple[torch.dtype, torch.device]:
    """Return dtype and device of a network that can be trained."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"{argument} must be a torch.nn.Module, got {type(net).__name__}")
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{argument} has no trainable parameter")
    for name, parameter in net.named_parameters():
        if parameter.is_complex():
            raise TypeError(f"{argument} must have real parameters, got {parameter.dtype} in {name!r}")
    dtype = trainable[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{argument} must be fp32 or fp64, got {dtype}")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        check_tensor(f"{argument}.{name}", tensor, floating=False, nonempty=False)
    return dtype, trainable[0].device


def check_data(
    net: nn.Module,
    coords: Any,
    target: Any,
    weight: Any = None,
    names: tuple[str, str, str] = ("coords", "target", "weight"),
) -> Data:
    """Return points, values and weights of one network, of its dtype and device, without points of weight 0.

    Parameters
    ----------
    coords, target, weight
        Shapes (N, d), (N, M) or (*grid, M), and (N,), (N, 1), (N, M) or the same with the grid; M = 1 also without
        the last axis. A weight of 0 (or False) leaves its point out, whose target may then be anything.
    names
        What the arguments are called in messages.

    Raises
    ------
    ValueError, TypeError
        Bad shapes, dtypes, devices; NaN or Inf; negative weights, or none above 0.
    """
    dtype, device = check_net(net)
    coords = check_coords(names[0], coords, net.in_features if isinstance(net, INR) else None, device)
    n, outputs = len(coords), count_outputs(net, coords, names[0])
    weight, counts = _check_weight(names[2], weight, n, outputs, dtype, device)
    target = check_tensor(names[1], target, finite=False)
    if target.device != device:
        raise ValueError(f"{names[1]} is on {target.device} but the network is on {device}; move one of them")
    for argument, tensor in ((names[0], coords), (names[1], target)):
        if tensor.dtype != dtype:
            raise TypeError(f"{argument} must have the network's dtype {dtype}, got {tensor.dtype}")
    flat = target.shape if target.shape[-1:] == (outputs,) and target.ndim > 1 else (*target.shape, 1)
    if math.prod(flat[:-1]) != n or flat[-1] != outputs:
        single = f", or without the last axis: ({n},) or (*grid)" if outputs == 1 else ""
        raise ValueError(
            f"{names[1]} must have shape ({n}, {outputs}) or (*grid, {outputs}) with {n} grid points{single}, "
            f"got {tuple(target.shape)}"
        )
    target = target.detach().reshape(n, outputs)
    coords = coords.detach()
    if counts is not None:
        assert weight is not None
        coords, target, weight = coords[counts], target[counts], weight[counts]
    if weight is not None:  # a single output of no weight may hold anything too
        target = torch.where(weight > 0, target, torch.zeros_like(target))
    check_tensor(names[1], target)
    return Data(*(None if own is None else aligned(own).unsqueeze(0) for own in (coords, target, weight)))  # type: ignore[arg-type]


def check_spread(data: Data, argument: str = "target") -> None:
    """Refuse targets far beyond the range of 1 that the PSNR is stated for."""
    low, high = (float(value) for value in torch.aminmax(data.target))
    if high - low > MOST_SPREAD:
        raise ValueError(
            f"{argument} must span a range near 1, for which losses and PSNR are stated, got {low:g} to {high:g}; "
            f"scale it (pixels of 8 bits: divide by 255)"
        )


def _check_weight(
    argument: str, weight: Any, n: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Return weights (N, 1 or M), and which points have any if some have none."""
    if weight is None:
        return None, None
    weight = check_tensor(argument, weight, floating=False)
    if weight.dtype != torch.bool and not weight.is_floating_point():
        raise TypeError(f"{argument} must be boolean or of a floating-point dtype, got {weight.dtype}")
    if weight.device != device:
        raise ValueError(f"{argument} is on {weight.device} but the network is on {device}; move one of them")
    if weight.numel() not in (n, n * outputs):
        raise ValueError(
            f"{argument} must hold one number a point ({n}) or one a target ({n} x {outputs}), "
            f"got shape {tuple(weight.shape)}"
        )
    weight = weight.detach().to(dtype).reshape(n, -1)
    if bool((weight < 0).any()):
        raise ValueError(f"{argument} must not be negative, got {float(weight.min()):g}")
    counts = (weight > 0).any(1)
    if not bool(counts.any()):
        raise ValueError(f"{argument} must be above 0 somewhere, got only 0")
    return weight, None if bool(counts.all()) else counts


def aligned(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor at an aligned address, the same one if it is so already."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


@torch.no_grad()
def count_outputs(net: nn.Module, coords: Tensor, argument: str = "coords") -> int:
    """Return M, from two points or, for a network that takes nothing else, from all."""
    if isinstance(net, INR):
        return net.out_features
    with modes_kept(net):
        net.eval()
        try:
            rows = coords[:2]
            values = net(rows)
        except Exception:  # whatever a network raises on two points, it may still take its full grid
            rows = coords
            try:
                values = net(rows)
            except Exception as error:
                raise ValueError(f"net does not take {argument} of shape {tuple(coords.shape)}: {error}") from error
    if not isinstance(values, Tensor):
        raise TypeError(f"net must return a tensor (N, M), got {type(values).__name__}")
    if values.ndim != 2 or len(values) != len(rows) or values.shape[1] == 0:
        raise ValueError(f"net must map ({len(rows)}, d) to ({len(rows)}, M), got shape {tuple(values.shape)}")
    return values.shape[1]
