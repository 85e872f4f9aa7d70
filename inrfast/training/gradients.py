"""The gradient of a fit's loss in three ways that give the same numbers: layerwise, chunked, whole.

- :class:`LayerwiseGradient`: forward and backward of an :class:`inrfast.INR` written out over chunks of rows that
  stay in cache (:mod:`inrfast.training.layerwise`); nearly all of its time is matrix products.
- :class:`ChunkedGradient`: autograd over such chunks, for any other network that treats its points one by one.
- :class:`WholeGradient`: autograd over the full batch, for networks that couple points (batch norm in train mode),
  draw random numbers (dropout) or carry hooks, and for losses that need all predictions at once.

:func:`gradient_of` picks the first that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inrfast.encodings import Polynomial, PositionalEncoding, RandomFourier
from inrfast.memory import cached_rows, chunks
from inrfast.nn import INR
from inrfast.training.layerwise import LayerwiseGradient

Loss = str | Callable[[Tensor, Tensor], Tensor]
LOSSES = ("mse",)
"""Losses known by name; all of them are means over points and outputs."""

PROBE_ROWS = 16
ENCODINGS = (type(None), RandomFourier, PositionalEncoding, Polynomial)


class Gradient(Protocol):
    """What a fit asks for: called with the rows of a batch (None: all), it fills ``.grad`` and returns the loss."""

    name: str
    loss_is_mse: bool
    """Whether the loss of a full batch is the mean squared error of the predictions in eval mode."""

    def __call__(self, batch: Tensor | None) -> float:
        """Fill ``.grad`` of every trainable parameter and return the loss of the batch."""
        ...

    def mean_square(self) -> float:
        """Return the mean squared error of the predictions in eval mode over all points."""
        ...


def gradient_of(net: nn.Module, coords: Tensor, target: Tensor, loss: Loss, budget: int) -> Gradient:
    """Return the fastest gradient that is exact for this network and loss.

    Parameters
    ----------
    net
        In train mode; every trainable parameter gets a ``.grad`` of zeros.
    coords, target
        Shapes (N, d) and (N, M), device and dtype of the network.
    loss
        ``"mse"`` or a callable of (predictions, targets).
    budget
        Bytes that buffers and cached encodings may take.

    Raises
    ------
    MemoryBudgetError
        Not even one row fits.
    """
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    if callable(loss) or _has_hooks(net):
        return WholeGradient(net, coords, target, loss)
    if _is_plain(net):
        return LayerwiseGradient(net, coords, target, budget)
    if _is_pointwise(net, coords):
        return ChunkedGradient(net, coords, target)
    return WholeGradient(net, coords, target, loss)


def _has_hooks(net: nn.Module) -> bool:
    """Return whether hooks watch or change the passes: they expect the whole batch, once a step."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(module, kind, None) for module in net.modules() for kind in kinds) or any(
        getattr(parameter, kind, None) for parameter in net.parameters() for kind in on_parameters
    )


def _is_plain(net: nn.Module) -> TypeGuard[INR]:
    """Return whether ``net`` is an INR without norms whose parts are the library's own, so its formula is known."""
    return (
        type(net) is INR
        and all(type(layer) is nn.Linear for layer in net.layers)
        and all(type(norm) is nn.Identity for norm in net.norms)
        and type(net.encoding) in ENCODINGS
        and (net.encoding is None or not any(p.requires_grad for p in net.encoding.parameters()))
        and len({(p.dtype, p.device) for p in net.parameters()}) == 1
        and not any("forward" in vars(module) for module in net.modules())
    )


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Give every module its own train or eval mode back at the end."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _is_pointwise(net: nn.Module, coords: Tensor) -> bool:
    """Return whether each prediction in train mode depends on its own point alone, and is that of eval mode.

    Half of a few points is moved: the predictions at the others must not change in a single bit. Buffers and random
    generators are left as they were.
    """
    count = min(PROBE_ROWS, len(coords))
    rows = coords[torch.linspace(0, len(coords) - 1, count, device=coords.device).long()]
    kept = count // 2
    if kept == 0:
        return False
    moved = torch.cat([rows[:kept], 0.5 * rows[kept:] + 0.1])

    def predict(points: Tensor) -> Any:
        return functional_call(net, {name: buffer.clone() for name, buffer in net.named_buffers()}, (points,))

    devices = [coords.device] if coords.device.type == "cuda" else []
    try:
        with modes_kept(net), torch.random.fork_rng(devices):
            trained, disturbed = predict(rows), predict(moved)
            net.eval()
            evaluated = predict(rows)
    except Exception:  # a network may take nothing but its full grid: then it is differentiated as a whole
        return False
    return torch.equal(trained[:kept], disturbed[:kept]) and torch.equal(trained, evaluated)


def _zero_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


@torch.no_grad()
def _mean_square(net: nn.Module, coords: Tensor, target: Tensor, rows: int) -> float:
    """Return the mean squared error in eval mode, ``rows`` points at a time."""
    with modes_kept(net):
        net.eval()
        squares = 0.0
        for some in chunks(len(coords), rows):
            squares += float((net(coords[some]) - target[some]).double().square().sum())
    return squares / target.numel()


class ChunkedGradient:
    """Autograd of the mean squared error over chunks of rows, exact for networks that treat points one by one."""

    name = "chunked"
    loss_is_mse = True

    def __init__(self, net: nn.Module, coords: Tensor, target: Tensor) -> None:
        self.net, self.coords, self.target = net, coords, target
        widest = max(parameter.shape[0] for parameter in net.parameters() if parameter.ndim > 0)
        self.rows = min(cached_rows(widest, coords), len(coords))

    def __call__(self, batch: Tensor | None) -> float:
        """See :class:`Gradient`."""
        coords, target = (self.coords, self.target) if batch is None else (self.coords[batch], self.target[batch])
        _zero_gradients(self.net)
        squares = 0.0
        for rows in chunks(len(coords), self.rows):
            with torch.enable_grad():
                square = (self.net(coords[rows]) - target[rows]).square().sum()
                (square / target.numel()).backward()
            squares += float(square.detach())
        return squares / target.numel()

    def mean_square(self) -> float:
        """See :class:`Gradient`."""
        return _mean_square(self.net, self.coords, self.target, self.rows)


class WholeGradient:
    """Autograd over all points of the batch at once, exact for every network and loss."""

    name = "whole"
    loss_is_mse = False

    def __init__(self, net: nn.Module, coords: Tensor, target: Tensor, loss: Loss) -> None:
        self.net, self.coords, self.target = net, coords, target
        self.loss = loss if callable(loss) else nn.functional.mse_loss

    def __call__(self, batch: Tensor | None) -> float:
        """See :class:`Gradient`."""
        coords, target = (self.coords, self.target) if batch is None else (self.coords[batch], self.target[batch])
        _zero_gradients(self.net)
        with torch.enable_grad():
            value = self.loss(self.net(coords), target)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"loss must return a tensor of one element that depends on the predictions, got {got}")
            value.backward()
        return float(value.detach())

    def mean_square(self) -> float:
        """See :class:`Gradient`."""
        return _mean_square(self.net, self.coords, self.target, len(self.coords))
