"""Backpropagation of coordinate MLPs written out: chunks that stay in cache, buffers reused, one thread a core."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from inrfast.memory import CACHED_BYTES, cached_rows, chunks, require
from inrfast.nn import INR
from inrfast.ops import gemm
from inrfast.ops.in_place import IN_PLACE
from inrfast.threads import share, together
from inrfast.training.data import Data
from inrfast.training.stack import Stack

LEAST_ROWS = 256
"""Fewest rows that are worth a thread."""

SMALL = 2**15
"""Entries of features up to which an operation is over before a second core has joined in: torch's own grain."""

LEAST_WORK, MOST_BYTES = 2**26, 2**22
"""FLOP of a product between hidden layers from which threads no longer wait for their turns at Python, and the size of
a buffer up to which narrow layers get there: larger than the cache is dear too."""

NARROW = torch.bfloat16


class LayerwiseGradient:
    """Gradient of the mean squared error of INRs without norms, one or several of one shape; a ``Gradient`` of a fit.

    With ``u_l = Z_{l-1} W_l^T + b_l``, ``Z_l = act(u_l)`` and the error ``E_L = 2 w (f - y) / sum w`` at the head:
    ``dW_l = E_l^T Z_{l-1}``, ``db_l = sum_n E_l``, ``E_{l-1} = (E_l W_l) * act'(u_{l-1})``, each added up over chunks
    of rows. Several networks of few points share a chunk, as a batch of matrices.

    On a CPU each thread takes its own networks or, of a single one, its own share of the rows, so that threads wait
    for each other once a step and not once an operation. Shares and sums have a fixed order: a step can be repeated
    bit by bit.

    Parameters
    ----------
    stack
        Networks without norms; each call overwrites their gradients.
    data
        Their points, values and weights.
    points
        Most points of a step.
    budget
        Bytes for the buffers, and for the encoded points if they fit half of it.
    cores
        Threads at most; None takes as many as torch may use now and the matrix library leaves free.
    narrow
        Products between hidden layers take operands in bfloat16 and round results to it; what meets the coordinates,
        predictions, weights and their gradients stays as it is. A gradient then has a relative error near 1e-2.

    Raises
    ------
    MemoryBudgetError
        Not even one row fits the budget.
    """

    name = "layerwise"

    def __init__(
        self, stack: Stack, data: Data, points: int, budget: int, narrow: bool = False, cores: int | None = None
    ) -> None:
        self.stack, self.data, self.narrow = stack, data, narrow
        net = stack.nets[0]
        assert isinstance(net, INR)
        self.net = net
        like = data.target
        self.encoded, self.encodings = _encoded(stack, data.coords, budget, narrow)
        widest = max(net.width, net.out_features)
        row_bytes = like.element_size() * ((2 * net.hidden_layers + 2) * net.width + net.out_features)
        require(row_bytes, budget, "one row of a training step", "a narrower network would fit")
        affordable = budget // row_bytes
        size = min(max(CACHED_BYTES, LEAST_WORK * like.element_size() // (2 * widest)), MOST_BYTES)
        self.rows = min(cached_rows(widest, like, size), points, affordable)
        cores = gemm.threads(like.dtype, like.device) if cores is None else cores
        together_fit = max(1, min(size // (points * widest * like.element_size()), affordable // points))
        self.block = min(together_fit, math.ceil(len(stack) / (2 * cores))) if self.rows == points else 1
        blocks = math.ceil(len(stack) / self.block)
        self.by_networks = blocks >= 2 * cores > 2
        shares = blocks if self.by_networks else max(1, points // LEAST_ROWS)
        threads = max(1, min(cores, shares, affordable // (self.block * self.rows)))
        self.passes = [_Pass(self) for _ in range(threads)]
        self.one_core = threads > 1 or self.block * self.rows * widest <= SMALL
        # The first thread adds straight to the gradients; where threads share the rows, the others have their own sums.
        own = 1 if self.by_networks else threads
        self.sums = [stack.grads, *({n: torch.zeros_like(g) for n, g in stack.grads.items()} for _ in range(own - 1))]

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits of a gradient, beside the matrix library."""
        return {
            "gradient": self.name,
            "rows": self.rows,
            "networks": self.block,
            "threads": len(self.passes),
            "encoded": self.encodings is None,
            "products": "bf16" if self.narrow else str(self.data.target.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def __call__(self, batch: Tensor | None) -> Tensor:
        """Fill the gradients and return the losses (B,) of these rows, (B or 1, n) (None: all), in fp64."""
        scales = 1 / self._weights(batch)
        for sums in self.sums:
            for total in sums.values():
                total.zero_()
        squares = self._each_share(batch, self._count(batch), scales)
        for sums in self.sums[1 : 1 if self.by_networks else self._threads(self._count(batch))]:
            for name, total in sums.items():
                self.stack.grads[name].add_(total)
        return squares * scales.cpu()

    @torch.no_grad()
    def mean_square(self) -> Tensor:
        """Return the mean squared errors (B,) over all points, unweighted, in fp64."""
        return self._each_share(None, self.data.points, None) / self.data.target[0].numel()

    def _count(self, batch: Tensor | None) -> int:
        return self.data.points if batch is None else batch.shape[1]

    def _threads(self, count: int) -> int:
        """Return how many threads share so many rows."""
        return min(len(self.passes), max(1, count // LEAST_ROWS))

    def _weights(self, batch: Tensor | None) -> Tensor:
        """Return the sum of weights (B,) of a batch over its points and outputs."""
        weight, outputs = self.data.weight, self.net.out_features
        if weight is None:
            total = torch.full((1,), float(self._count(batch) * outputs), dtype=torch.float64)
        else:
            some = weight if batch is None else _gathered(weight, slice(None), batch)
            total = some.double().sum((1, 2)) * (outputs / some.shape[2])
        return total.expand(len(self.stack))

    def _each_share(self, batch: Tensor | None, count: int, scales: Tensor | None) -> Tensor:
        """Let each thread pass over its share of networks or rows; return the squared errors (B,), weighted for a step.

        ``scales`` are the factors of the losses; None: predictions alone, no gradient.
        """
        blocks = list(chunks(len(self.stack), self.block))
        found: list[Tensor] = [torch.zeros(0)] * len(blocks)
        if self.by_networks:

            def take(one: _Pass, number: int) -> None:
                found[number] = one.over(blocks[number], range(count), batch, scales, self.sums[0])

            share(range(len(blocks)), [functools.partial(take, one) for one in self.passes])
            return torch.cat(found)
        threads = self._threads(count)
        parts = [range(rows.start, rows.stop) for rows in chunks(count, -(-count // threads))]
        jobs = [
            functools.partial(one.over_all, blocks, part, batch, scales, sums)
            for one, part, sums in zip(self.passes, parts, self.sums, strict=False)
        ]
        return torch.stack(together(jobs)).sum(0)


class _Pass:
    """What one thread needs: buffers for a chunk of rows of one or several networks."""

    def __init__(self, of: LayerwiseGradient) -> None:
        self.of, net, stack, like = of, of.net, of.stack, of.data.target
        self.activations, self.omegas, self.width = net.activations, net.omegas, net.width
        layers = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
        self.weights = [stack.of(layer.weight) for layer in layers]
        self.biases = [None if layer.bias is None else stack.of(layer.bias).unsqueeze(1) for layer in layers]
        self.names = [
            (stack.names[layer.weight], None if layer.bias is None else stack.names[layer.bias]) for layer in layers
        ]
        trainable = [any(name in stack.grads for name in names if name) for names in self.names]
        self.lowest = trainable.index(True)
        size = of.block * of.rows * net.width
        kind = NARROW if of.narrow else like.dtype
        # ReLU needs no slopes of its own: they are where its values are above 0.
        self.features = [like.new_empty(size, dtype=kind) for _ in self.activations]
        self.slopes = [None if name == "relu" else like.new_empty(size, dtype=kind) for name in self.activations]
        self.errors = [like.new_empty(size, dtype=kind) for _ in range(2)]
        self.wide = [like.new_empty(size) for _ in range(3)] if of.narrow else self.errors
        self.views: dict[tuple[int, int, int], Tensor] = {}
        self.outputs = like.new_empty(of.block * of.rows * net.out_features)
        # Only with an encoding are the first layer's inputs as bounded as features: coordinates stay as they are.
        self.narrow_from = 0 if net.encoding is not None else 1

    @torch.no_grad()  # grad mode belongs to a thread
    def over_all(
        self, blocks: list[slice], rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """Pass over all networks, block by block."""
        return torch.cat([self.over(block, rows, batch, scales, sums) for block in blocks])

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """Return the squared errors of these networks on these rows; with ``scales``, add the gradients to ``sums``."""
        k = block.stop - block.start
        squares = torch.zeros(k, dtype=torch.float64)
        weights, biases = self._narrowed(block)
        some = {name: total[block] for name, total in sums.items()}
        for part in chunks(len(rows), self.of.rows):
            index: Tensor | slice = slice(rows.start + part.start, rows.start + part.stop)
            if batch is not None:
                index = batch[_own(batch, block), index]
            x, target = self._inputs(block, index), _gathered(self.of.data.target, block, index)
            error = self._forward(x, weights, biases, k).sub_(target)
            weight = self.of.data.weight if scales is not None else None
            weighted = error if weight is None else error * _gathered(weight, block, index)
            squares += (error * weighted).sum((1, 2)).double().cpu()
            if scales is not None:
                scale = 2 * scales[block].to(error)[:, None, None]
                self._backward(x, weights, weighted.mul_(scale), some)
        return squares

    def _inputs(self, block: slice, index: Tensor | slice) -> Tensor:
        """Return the encoded points (k, n, columns) of some networks."""
        x = _gathered(self.of.encoded, block, index)
        k = block.stop - block.start
        if self.of.encodings is not None:
            encodings = self.of.encodings[block]
            x = torch.stack([encode(x[i % len(x)]) for i, encode in enumerate(encodings)])
            x = x.to(NARROW) if self.of.narrow else x
        return x.expand(k, -1, -1)

    def _narrowed(self, block: slice) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the weights and biases of some networks, those of products between hidden layers in their dtype."""
        weights = [weight[block] for weight in self.weights]
        biases: list[Tensor | None] = [bias if bias is None else bias[block] for bias in self.biases]
        if self.of.narrow:
            for index in range(self.narrow_from, len(weights) - 1):
                bias = biases[index]
                weights[index], biases[index] = weights[index].to(NARROW), None if bias is None else bias.to(NARROW)
        return weights, biases

    def _view(self, buffer: Tensor, k: int, n: int) -> Tensor:
        """Return the start of a buffer as (k, n, width)."""
        key = id(buffer), k, n
        if key not in self.views:  # a few shapes come again and again, and making a view takes as long as small work
            self.views[key] = buffer[: k * n * self.width].view(k, n, self.width)
        return self.views[key]

    def _forward(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None], k: int) -> Tensor:
        """Return the predictions at ``x``; features and slopes (derivatives of the activations) stay in the buffers."""
        n, features = x.shape[1], x
        for index, name in enumerate(self.activations):
            value, slope = self._view(self.features[index], k, n), self.slopes[index]
            if slope is None:
                u = self._linear(features, weights[index], biases[index], value)
                (u if u is value else value.copy_(u)).clamp_min_(0)
            else:
                self._activate(index, name, features, weights[index], biases[index], value, self._view(slope, k, n))
            features = value
        if self.of.narrow:
            features = self._view(self.wide[0], k, n).copy_(features)
        # Column-major, since BLAS is several times faster on a few long columns than on many short rows.
        outputs = self.outputs[: k * n * self.of.net.out_features]
        outputs = outputs.view(1, -1, n).mT if k == 1 else outputs.view(k, n, -1)
        return self._linear(features, weights[-1], biases[-1], outputs)

    def _activate(
        self, index: int, name: str, features: Tensor, weight: Tensor, bias: Tensor | None, value: Tensor, slope: Tensor
    ) -> None:
        """Write an activation and its slope; in the network's own dtype, whatever the buffers have."""
        k, n, _ = value.shape
        scratch = self._view(self.wide[0], k, n)
        u = self._linear(features, weight, bias, slope)
        if not self.of.narrow:
            return IN_PLACE[name](u, self.omegas[index], value, scratch)
        if u is slope:
            u = self._view(self.wide[1], k, n).copy_(u)
        wide = self._view(self.wide[2], k, n)
        IN_PLACE[name](u, self.omegas[index], wide, scratch)
        value.copy_(wide)
        slope.copy_(u)
        return None

    def _linear(self, features: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """Return ``features W^T + b`` in ``out``, or beside it if that has another dtype."""
        if weight.dtype != out.dtype:
            out = self._view(self.wide[1], len(out), out.shape[1])
        gemm.bmm(features, weight.mT, out)
        return out if bias is None else out.add_(bias)

    def _backward(self, x: Tensor, weights: list[Tensor], error: Tensor, sums: dict[str, Tensor]) -> None:
        """Add the gradients of one chunk, from the error at the head down to the lowest trainable layer."""
        k, n, last = x.shape[0], x.shape[1], len(weights) - 1
        for index in range(last, self.lowest - 1, -1):
            features = self._view(self.features[index - 1], k, n) if index > 0 else x
            if self.of.narrow and index == last:
                features = self._view(self.wide[0], k, n)  # where the forward pass left them
            self._add(index, error, features, sums)
            if index > self.lowest:
                into = self.wide[1] if error.dtype != NARROW and self.of.narrow else self.errors[index % 2]
                below = gemm.bmm(error, weights[index], self._view(into, k, n))
                error = self._times_slope(below, index - 1, self._view(self.errors[index % 2], k, n))

    def _times_slope(self, error: Tensor, index: int, out: Tensor) -> Tensor:
        """Return an error behind an activation from that before it, in ``out``, of the buffers' dtype."""
        k, n, _ = error.shape
        slope = self.slopes[index]
        if error.dtype != out.dtype:
            error = out.copy_(error)
        if slope is not None:
            return error.mul_(self._view(slope, k, n))
        value = self._view(self.features[index], k, n)
        return torch.ops.aten.threshold_backward.grad_input(error, value, 0, grad_input=error)

    def _add(self, index: int, error: Tensor, features: Tensor, sums: dict[str, Tensor]) -> None:
        """Add the gradients of one layer's weight and bias."""
        weight, bias = (None if name is None else sums.get(name) for name in self.names[index])
        if bias is not None:
            bias.add_(error.sum(1, dtype=bias.dtype))
        if weight is None:
            return
        if error.dtype != features.dtype:  # the first layer of coordinates: its error is as narrow as all others
            error = self._view(self.wide[0], *error.shape[:2]).copy_(error)
        if error.dtype == weight.dtype:
            gemm.baddbmm_(weight, error.mT, features)
        else:
            weight.add_(gemm.bmm(error.mT, features, torch.empty_like(weight, dtype=error.dtype)))


def _own(shared: Tensor, block: slice) -> slice:
    """Return where a block of networks finds its part on the first axis of a tensor that all may share."""
    return slice(0, 1) if len(shared) == 1 else block


def _gathered(source: Tensor, block: slice, index: Tensor | slice) -> Tensor:
    """Return rows of (B or 1, N, c) for some networks, (k or 1, n, c); an index (k or 1, n) may have rows for each."""
    some = source[_own(source, block)]
    if isinstance(index, slice):
        return some[:, index]
    if len(some) == 1:
        return some[0][index]
    if len(index) == 1:
        return some[:, index[0]]
    return some[torch.arange(len(some), device=index.device).unsqueeze(1), index]


@torch.no_grad()
def _encoded(stack: Stack, coords: Tensor, budget: int, narrow: bool) -> tuple[Tensor, list[nn.Module] | None]:
    """Return the encoded points, or the points and the encodings if keeping them would take over half the budget."""
    nets = [net for net in stack.nets if isinstance(net, INR)]
    encodings = [net.encoding for net in nets if net.encoding is not None]
    if not encodings:
        return coords, None
    columns = encodings[0].out_features
    alike = len(coords) == 1 and all(_equal(encodings[0], other) for other in encodings[1:])
    dtype = NARROW if narrow else coords.dtype
    count = 1 if alike else len(nets)
    if 2 * count * coords.shape[1] * columns * dtype.itemsize > budget:
        return coords, list(encodings)
    inputs = coords.new_empty(count, coords.shape[1], columns, dtype=dtype)
    for own, encode, points in zip(inputs, encodings, coords.expand(len(nets), -1, -1), strict=False):
        for rows in chunks(len(points), cached_rows(columns, coords)):
            own[rows] = encode(points[rows])
    return inputs, None


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two encodings of one class have the same numbers."""
    return all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
