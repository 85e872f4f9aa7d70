"""One thread's part of a layerwise gradient: forward and backward over a share of the rows, or of the networks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from inrfast.activations import BoundActivation
from inrfast.memory import chunks
from inrfast.nn import INR
from inrfast.ops import gemm, mlp_step
from inrfast.training.data import Data
from inrfast.training.stack import Stack

NARROW = torch.bfloat16


class Work(Protocol):
    """What all threads share: see :class:`inrfast.training.engines.layerwise.LayerwiseGradient`.

    Attributes
    ----------
    net, stack, data
        The first of the networks, all of them, and their data.
    encoded, encodings
        Inputs (B or 1, N, columns) of the first layer; points, where encodings are taken anew each time.
    rows, block
        Points and networks of a chunk.
    narrow
        Whether products between hidden layers are in bfloat16.
    """

    net: INR
    stack: Stack
    data: Data
    encoded: Tensor
    encodings: list[nn.Module] | None
    rows: int
    block: int
    narrow: bool


class Pass(Protocol):
    """What one thread needs, its own buffers among it."""

    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """Return the squared errors of these networks on these rows; with ``scales``, add the gradients to ``sums``."""
        ...


class NativePass:
    """By one native call a block of networks: see :mod:`inrfast.ops.mlp_step`."""

    def __init__(self, of: Work) -> None:
        self.of, self.instructions = of, mlp_step.instructions()
        self.memory = of.data.target.new_empty(mlp_step.workspace(self._layers(slice(None), {}), of.rows))

    @staticmethod
    def applies(net: INR, stack: Stack, inputs: Tensor, data: Data) -> bool:
        """Return whether the native step takes these networks and data."""
        return mlp_step.applies(
            net.bound_activations, [*stack.parameters.values(), *stack.grads.values(), inputs, data.target, data.weight]
        )

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """See :class:`Pass`."""
        data = self.of.data
        chosen: Tensor | range = rows
        if batch is not None:
            chosen = batch[_own(batch, block), rows.start : rows.stop]
        weight = None if data.weight is None or scales is None else data.weight[_own(data.weight, block)]
        inputs, target = (own[_own(own, block)] for own in (self.of.encoded, data.target))
        return mlp_step.steps(
            self._layers(block, sums),
            mlp_step.Points(inputs, target, weight, chosen),
            None if scales is None else scales[block],
            block.stop - block.start,
            self.of.rows,
            self.memory,
            self.instructions,
        )

    def _layers(self, block: slice, sums: dict[str, Tensor]) -> list[mlp_step.Layer]:
        """Return the layers of some networks, with the sums for their gradients."""
        stack, net = self.of.stack, self.of.net

        def pair(parameter: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if parameter is None:
                return None, None
            total = sums.get(stack.names[parameter])
            return stack.of(parameter)[block], None if total is None else total[block]

        layers = []
        for layer, activation in zip(net.layers, [*net.bound_activations, None], strict=True):
            assert isinstance(layer, nn.Linear)
            (weight, weight_grad), (bias, bias_grad) = pair(layer.weight), pair(layer.bias)
            assert weight is not None
            layers.append(mlp_step.Layer(activation, weight, bias, weight_grad, bias_grad))
        return layers


class TensorPass:
    """By torch's operations, for all activations and dtypes; networks of few points share a chunk as a batch."""

    def __init__(self, of: Work) -> None:
        self.of, net, stack, like = of, of.net, of.stack, of.data.target
        self.activations, self.width = net.bound_activations, net.width
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
        # Where a slope is 0 or 1, and 1 where the value is above 0, it needs no memory of its own.
        self.features = [like.new_empty(size, dtype=kind) for _ in self.activations]
        self.slopes = [
            None if act.kind.keeps == "mask" else like.new_empty(size, dtype=kind) for act in self.activations
        ]
        self.errors = [like.new_empty(size, dtype=kind) for _ in range(2)]
        self.wide = [like.new_empty(size) for _ in range(3)] if of.narrow else self.errors
        self.views: dict[tuple[int, int, int], Tensor] = {}
        self.outputs = like.new_empty(of.block * of.rows * net.out_features)
        # Only with an encoding are the first layer's inputs as bounded as features: coordinates stay as they are.
        self.narrow_from = 0 if net.encoding is not None else 1

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """See :class:`Pass`."""
        k = block.stop - block.start
        squares = torch.zeros(k, dtype=torch.float64)
        weights, biases = self._narrowed(block)
        some = {name: total[block] for name, total in sums.items()}
        for part in chunks(len(rows), self.of.rows):
            index: Tensor | slice = slice(rows.start + part.start, rows.start + part.stop)
            if batch is not None:
                index = batch[_own(batch, block), index]
            x, target = self._inputs(block, index), gathered(self.of.data.target, block, index)
            error = self._forward(x, weights, biases, k).sub_(target)
            weight = self.of.data.weight if scales is not None else None
            weighted = error if weight is None else error * gathered(weight, block, index)
            squares += (error * weighted).sum((1, 2)).double().cpu()
            if scales is not None:
                scale = 2 * scales[block].to(error)[:, None, None]
                self._backward(x, weights, weighted.mul_(scale), some)
        return squares

    def _inputs(self, block: slice, index: Tensor | slice) -> Tensor:
        """Return the encoded points (k, n, columns) of some networks."""
        x = gathered(self.of.encoded, block, index)
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
        for index, activation in enumerate(self.activations):
            value, slope = self._view(self.features[index], k, n), self.slopes[index]
            if slope is None:
                u = self._linear(features, weights[index], biases[index], value)
                activation.value_in_place(u if u is value else value.copy_(u), self._view(self.errors[0], k, n))
            else:
                self._activate(activation, features, weights[index], biases[index], value, self._view(slope, k, n))
            features = value
        if self.of.narrow:
            features = self._view(self.wide[0], k, n).copy_(features)
        # Column-major, since BLAS is several times faster on a few long columns than on many short rows.
        outputs = self.outputs[: k * n * self.of.net.out_features]
        outputs = outputs.view(1, -1, n).mT if k == 1 else outputs.view(k, n, -1)
        return self._linear(features, weights[-1], biases[-1], outputs)

    def _activate(
        self,
        activation: BoundActivation,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        value: Tensor,
        slope: Tensor,
    ) -> None:
        """Write an activation and its slope; in the network's own dtype, whatever the buffers have."""
        k, n, _ = value.shape
        scratch = self._view(self.wide[0], k, n)
        u = self._linear(features, weight, bias, slope)
        if not self.of.narrow:
            activation.in_place(u, value, scratch)
            return
        if u is slope:
            u = self._view(self.wide[1], k, n).copy_(u)
        wide = self._view(self.wide[2], k, n)
        activation.in_place(u, wide, scratch)
        value.copy_(wide)
        slope.copy_(u)

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
        times_slope = self.activations[index].kind.times_slope
        assert times_slope is not None
        return times_slope(error, value, error)

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


def gathered(source: Tensor, block: slice, index: Tensor | slice) -> Tensor:
    """Return rows of (B or 1, N, c) for some networks, (k or 1, n, c); an index (k or 1, n) may have rows for each."""
    some = source[_own(source, block)]
    if isinstance(index, slice):
        return some[:, index]
    if len(some) == 1:
        return some[0][index]
    if len(index) == 1:
        return some[:, index[0]]
    return some[torch.arange(len(some), device=index.device).unsqueeze(1), index]
