"""Backpropagation of a coordinate MLP written out: chunks that stay in cache, buffers reused, one thread a core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from inrfast.memory import cached_rows, chunks, require
from inrfast.nn import INR
from inrfast.ops import gemm
from inrfast.ops.in_place import IN_PLACE
from inrfast.threads import together

LEAST_ROWS = 256
"""Fewest rows that are worth a thread."""


class LayerwiseGradient:
    """Gradient of the mean squared error of an INR without norms; a ``Gradient`` of a fit.

    With ``u_l = Z_{l-1} W_l^T + b_l``, ``Z_l = act(u_l)`` and the error ``E_L = 2 (f - y) / (n M)`` at the head:
    ``dW_l = E_l^T Z_{l-1}``, ``db_l = sum_n E_l``, ``E_{l-1} = (E_l W_l) * act'(u_{l-1})``, each added up over chunks
    of rows. On a CPU each thread takes its own share of the rows, so that threads wait for each other once a step and
    not once an operation. Shares and sums have a fixed order: a step can be repeated bit by bit.

    Parameters
    ----------
    net
        Its trainable parameters have a ``.grad``, which each call overwrites.
    coords, target
        Shapes (N, d) and (N, M), device and dtype of the network.
    budget
        Bytes for the buffers, and for the encoded points if they fit half of it.

    Raises
    ------
    MemoryBudgetError
        Not even one row fits the budget.
    """

    name = "layerwise"
    loss_is_mse = True

    def __init__(self, net: INR, coords: Tensor, target: Tensor, budget: int) -> None:
        self.net, self.target = net, target
        self.inputs, self.encoding = _encoded(net, coords, budget)
        row_bytes = coords.element_size() * ((2 * net.hidden_layers + 2) * net.width + net.out_features)
        require(row_bytes, budget, "one row of a training step", "a narrower network would fit")
        affordable = budget // row_bytes
        self.rows = min(cached_rows(max(net.width, net.out_features), coords), len(coords), affordable)
        threads = min(
            gemm.threads(coords.dtype, coords.device), max(1, len(coords) // LEAST_ROWS), affordable // self.rows
        )
        self.passes = [_Pass(net, self.rows, coords) for _ in range(threads)]

    @torch.no_grad()
    def __call__(self, batch: Tensor | None) -> float:
        """Fill ``.grad`` and return the loss of these rows (None: all)."""
        inputs, target = (self.inputs, self.target) if batch is None else (self.inputs[batch], self.target[batch])
        count = target.numel()
        squares = self._each_share(inputs, target, lambda one, x, y: one.gradient(x, y, self.encoding, scale=2 / count))
        for parameter, total in self.passes[0].sums.items():
            for one in self.passes[1 : len(squares)]:
                total.add_(one.sums[parameter])
            assert parameter.grad is not None
            parameter.grad.copy_(total)
        return sum(squares) / count

    @torch.no_grad()
    def mean_square(self) -> float:
        """Return the mean squared error over all points."""
        squares = self._each_share(self.inputs, self.target, lambda one, x, y: one.squares(x, y, self.encoding))
        return sum(squares) / self.target.numel()

    def _each_share(self, inputs: Tensor, target: Tensor, job: Callable[[_Pass, Tensor, Tensor], float]) -> list[float]:
        """Give each thread its share of the rows and return what the job made of each share."""
        count = min(len(self.passes), max(1, len(inputs) // LEAST_ROWS))
        share = -(-len(inputs) // count)
        return together(
            [
                functools.partial(job, one, inputs[rows], target[rows])
                for one, rows in zip(self.passes, chunks(len(inputs), share), strict=False)
            ]
        )


class _Pass:
    """What one thread needs: buffers for a chunk of rows, and sums of the gradients of its chunks."""

    def __init__(self, net: INR, rows: int, like: Tensor) -> None:
        self.rows, self.activations, self.omegas = rows, net.activations, net.omegas
        self.layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
        trainable = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in self.layers]
        self.lowest = trainable.index(True)
        self.sums: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in net.parameters() if p.requires_grad}
        self.features = [like.new_empty(rows, net.width) for _ in range(net.hidden_layers)]
        self.slopes = [like.new_empty(rows, net.width) for _ in range(net.hidden_layers)]
        self.errors = [like.new_empty(rows, net.width) for _ in range(2)]
        # Column-major, since BLAS is several times faster on a few long columns than on many short rows.
        self.outputs = like.new_empty(net.out_features, rows).t()

    @torch.no_grad()  # grad mode belongs to a thread
    def gradient(self, inputs: Tensor, target: Tensor, encoding: nn.Module | None, scale: float) -> float:
        """Sum ``scale`` times the gradients of half the squared error of these rows; return the squared error."""
        for total in self.sums.values():
            total.zero_()
        squares = 0.0
        for x, error in self._chunks(inputs, target, encoding):
            squares += float(error.square().sum())
            self._backward(x, error.mul_(scale))
        return squares

    @torch.no_grad()
    def squares(self, inputs: Tensor, target: Tensor, encoding: nn.Module | None) -> float:
        """Return the squared error of these rows."""
        return sum(float(error.square().sum()) for _, error in self._chunks(inputs, target, encoding))

    def _chunks(self, inputs: Tensor, target: Tensor, encoding: nn.Module | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the input and the error of one chunk after another."""
        for rows in chunks(len(inputs), self.rows):
            x = inputs[rows] if encoding is None else encoding(inputs[rows])
            yield x, self._forward(x).sub_(target[rows])

    def _forward(self, x: Tensor) -> Tensor:
        """Return the predictions at ``x``; features and slopes (derivatives of the activations) stay in the buffers."""
        n, features = len(x), x
        for index, layer in enumerate(self.layers[:-1]):
            slope = _linear(layer, features, self.slopes[index][:n])
            features = self.features[index][:n]
            IN_PLACE[self.activations[index]](slope, self.omegas[index], features, self.errors[0][:n])
        return _linear(self.layers[-1], features, self.outputs[:n])

    def _backward(self, x: Tensor, error: Tensor) -> None:
        """Add the gradients of one chunk, from the error at the head down to the lowest trainable layer."""
        n = len(x)
        for index in range(len(self.layers) - 1, self.lowest - 1, -1):
            layer = self.layers[index]
            features = self.features[index - 1][:n] if index > 0 else x
            if layer.weight in self.sums:
                gemm.addmm_(self.sums[layer.weight], error.t(), features)
            if layer.bias is not None and layer.bias in self.sums:
                self.sums[layer.bias].add_(error.sum(0))
            if index > self.lowest:
                error = gemm.mm(error, layer.weight.detach(), self.errors[index % 2][:n])
                error.mul_(self.slopes[index - 1][:n])


def _linear(layer: nn.Linear, features: Tensor, out: Tensor) -> Tensor:
    gemm.mm(features, layer.weight.detach().t(), out)
    return out if layer.bias is None else out.add_(layer.bias)


@torch.no_grad()
def _encoded(net: INR, coords: Tensor, budget: int) -> tuple[Tensor, nn.Module | None]:
    """Return the encoded points, or the points and the encoding if keeping them would take over half the budget."""
    if net.encoding is None:
        return coords, None
    columns = net.encoding.out_features
    if 2 * len(coords) * columns * coords.element_size() > budget:
        return coords, net.encoding
    inputs = coords.new_empty(len(coords), columns)
    for rows in chunks(len(coords), cached_rows(columns, coords)):
        inputs[rows] = net.encoding(coords[rows])
    return inputs, None
