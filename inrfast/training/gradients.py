"""The gradient of a fit's loss in three ways that give the same numbers: layerwise, chunked, whole.

- :class:`LayerwiseGradient`: forward and backward of an :class:`inrfast.INR` written out over chunks of rows that
  stay in cache, every buffer reused; nearly all of its time is matrix products.
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
from inrfast.memory import chunks, require
from inrfast.nn import INR
from inrfast.ops import gemm
from inrfast.training.in_place import IN_PLACE

Loss = str | Callable[[Tensor, Tensor], Tensor]
LOSSES = ("mse",)
"""Losses known by name; all of them are means over points and outputs."""

CACHED_BYTES = 2**20
"""Size of one buffer of activations on a CPU: a handful of them live between the second and third cache level."""
LEAST_ROWS, MOST_ROWS = 256, 8192
DEVICE_ROWS = 2**16
"""Rows of a chunk elsewhere than on a CPU: enough to fill a GPU, few enough to fit it."""
PROBE_ROWS = 16
ENCODINGS = (type(None), RandomFourier, PositionalEncoding, Polynomial)


class Gradient(Protocol):
    """What a fit asks for: called with the rows of a batch (None: all), it fills ``.grad`` and returns the loss."""

    name: str
    rows: int
    """Points that may be evaluated at once."""
    loss_is_mse: bool
    """Whether the loss of a full batch is the mean squared error of the predictions in eval mode."""

    def __call__(self, batch: Tensor | None) -> float:
        """Fill ``.grad`` of every trainable parameter and return the loss of the batch."""
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


def _chunk_rows(widest: int, like: Tensor) -> int:
    """Return how many rows keep a buffer of ``widest`` columns in cache."""
    if like.device.type != "cpu":
        return DEVICE_ROWS
    return min(max(CACHED_BYTES // (widest * like.element_size()), LEAST_ROWS), MOST_ROWS)


def _zero_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


class LayerwiseGradient:
    """Backpropagation of an INR without norms, written out per layer: one pass over cache-sized chunks of rows.

    With ``u_l = Z_{l-1} W_l^T + b_l``, ``Z_l = act(u_l)`` and the error ``E_L = 2 (f - y) / (n M)`` at the head:
    ``dW_l = E_l^T Z_{l-1}``, ``db_l = sum_n E_l``, ``E_{l-1} = (E_l W_l) * act'(u_{l-1})``, each added up over the
    chunks. Layers below the lowest trainable one are not visited on the way back.
    """

    name = "layerwise"
    loss_is_mse = True

    def __init__(self, net: INR, coords: Tensor, target: Tensor, budget: int) -> None:
        self.net, self.target = net, target
        self.layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
        trainable = [any(p.requires_grad for p in layer.parameters()) for layer in self.layers]
        self.lowest = trainable.index(True)
        self._encode(coords, budget)
        self._allocate(coords, budget)

    def _encode(self, coords: Tensor, budget: int) -> None:
        """Encode the points once if that fits half the budget, otherwise at every step."""
        self.inputs, self.encoding = coords, self.net.encoding
        if self.encoding is None:
            return
        columns = self.encoding.out_features
        if 2 * len(coords) * columns * coords.element_size() <= budget:
            self.inputs = coords.new_empty(len(coords), columns)
            for rows in chunks(len(coords), _chunk_rows(columns, coords)):
                self.inputs[rows] = self.encoding(coords[rows])
            self.encoding = None

    def _allocate(self, like: Tensor, budget: int) -> None:
        width, hidden, outputs = self.net.width, self.net.hidden_layers, self.net.out_features
        row_bytes = like.element_size() * ((2 * hidden + 2) * width + outputs)
        require(row_bytes, budget, "one row of a training step", "a narrower network would fit")
        rows = min(_chunk_rows(max(width, outputs), like), len(like), budget // row_bytes)
        self.rows = rows
        self.features = [like.new_empty(rows, width) for _ in range(hidden)]
        self.slopes = [like.new_empty(rows, width) for _ in range(hidden)]
        self.errors = [like.new_empty(rows, width) for _ in range(2)]
        # Column-major, since BLAS is several times faster on a few long columns than on many short rows.
        self.outputs = like.new_empty(outputs, rows).t()

    @torch.no_grad()
    def __call__(self, batch: Tensor | None) -> float:
        """See :class:`Gradient`."""
        inputs, target = (self.inputs, self.target) if batch is None else (self.inputs[batch], self.target[batch])
        _zero_gradients(self.net)
        squares = 0.0
        for rows in chunks(len(inputs), self.rows):
            x = inputs[rows] if self.encoding is None else self.encoding(inputs[rows])
            error = self._forward(x).sub_(target[rows])
            squares += float(error.square().sum())
            self._backward(x, error.mul_(2 / target.numel()))
        return squares / target.numel()

    def _forward(self, x: Tensor) -> Tensor:
        """Return the predictions at ``x``; features and slopes (derivatives of the activations) stay in the buffers."""
        n, features = len(x), x
        for index, layer in enumerate(self.layers[:-1]):
            slope = self._linear(layer, features, self.slopes[index][:n])
            features = self.features[index][:n]
            activate = IN_PLACE[self.net.activations[index]]
            activate(slope, self.net.omegas[index], features, self.errors[0][:n])
        return self._linear(self.layers[-1], features, self.outputs[:n])

    @staticmethod
    def _linear(layer: nn.Linear, features: Tensor, out: Tensor) -> Tensor:
        gemm.mm(features, layer.weight.detach().t(), out)
        return out if layer.bias is None else out.add_(layer.bias)

    def _backward(self, x: Tensor, error: Tensor) -> None:
        """Add the gradients of one chunk, from the error at the head down to the lowest trainable layer."""
        n = len(x)
        for index in range(len(self.layers) - 1, self.lowest - 1, -1):
            layer = self.layers[index]
            features = self.features[index - 1][:n] if index > 0 else x
            if layer.weight.grad is not None:
                gemm.addmm_(layer.weight.grad, error.t(), features)
            if layer.bias is not None and layer.bias.grad is not None:
                layer.bias.grad.add_(error.sum(0))
            if index > self.lowest:
                error = gemm.mm(error, layer.weight.detach(), self.errors[index % 2][:n])
                error.mul_(self.slopes[index - 1][:n])


class ChunkedGradient:
    """Autograd of the mean squared error over chunks of rows, exact for networks that treat points one by one."""

    name = "chunked"
    loss_is_mse = True

    def __init__(self, net: nn.Module, coords: Tensor, target: Tensor) -> None:
        self.net, self.coords, self.target = net, coords, target
        widest = max(parameter.shape[0] for parameter in net.parameters() if parameter.ndim > 0)
        self.rows = min(_chunk_rows(widest, coords), len(coords))

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


class WholeGradient:
    """Autograd over all points of the batch at once, exact for every network and loss."""

    name = "whole"
    loss_is_mse = False

    def __init__(self, net: nn.Module, coords: Tensor, target: Tensor, loss: Loss) -> None:
        self.net, self.coords, self.target = net, coords, target
        self.loss = loss if callable(loss) else nn.functional.mse_loss
        self.rows = len(coords)

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
