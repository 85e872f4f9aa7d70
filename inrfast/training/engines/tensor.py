"""The tensor engine: torch's operations on chunks that stay in cache, for all activations, dtypes and devices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inrfast.activations import BoundActivation
from inrfast.losses import BoundLoss
from inrfast.memory import CACHED_BYTES, cached_rows, chunks, require
from inrfast.norms.topk import ROWWISE
from inrfast.ops import gemm
from inrfast.ops.mlp_step import MEAN_SQUARE
from inrfast.threads import cores as torch_cores
from inrfast.training.engines.layerwise import NARROW, LayerwiseGradient, Pass, Plan, gathered, own, planned
from inrfast.training.engines.task import Task, against_formula

ENCODING_BUFFERS = 5
"""Buffers of an encoding's columns that it takes to make them: phases, cosines and sines, both together, a copy."""

NORM_BUFFERS = 4
"""Buffers of a layer's units that a norm keeps for its way back, and that its passes take besides."""

DEVICE_POINTS = 2**20
"""Points of all networks of a chunk on other devices than CPUs."""

LEAST_WORK, MOST_BYTES = 2**26, 2**22
"""Minimum FLOP of a product between hidden layers that hides contention for Python's lock, and the size of a buffer up
to which narrow layers get there: larger than the cache costs time too."""


class TensorGradient(LayerwiseGradient):
    """The layerwise gradient by torch's operations; networks of few points share a chunk as a batch."""

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = against_formula(task.described, ROWWISE) or task.objective.reason_against_parts()
        if reason is None and task.narrow and task.mlp.norms:
            return "products in 16 bits are those of networks without norms"
        return reason

    def _plan(self, task: Task, budget: int) -> Plan:
        mlp, like, networks, points = self.mlp, self.data.target, len(self.stack), task.points
        widest = max(*mlp.widths, mlp.outputs)
        row_bytes = like.element_size() * ((2 * len(mlp.hidden) + 2) * max(mlp.widths) + mlp.outputs)
        row_bytes += NORM_BUFFERS * like.element_size() * max(mlp.widths) * (len(mlp.norms) + bool(mlp.norms))
        if self.encodings is not None:
            row_bytes += ENCODING_BUFFERS * like.element_size() * mlp.columns
        require(row_bytes, budget, "one row of a training step", "a narrower network would fit")
        affordable = budget // row_bytes
        size = min(max(CACHED_BYTES, LEAST_WORK * like.element_size() // (2 * widest)), MOST_BYTES)
        rows = min(cached_rows(widest, like, size), points, affordable)
        with torch_cores(torch.get_num_threads() if task.cores is None else task.cores):
            cores = gemm.threads(like.dtype, like.device)
        together_fit = max(1, min(size // (points * widest * like.element_size()), affordable // points))
        block = min(together_fit, math.ceil(networks / (2 * cores))) if rows == points else 1
        if like.device.type != "cpu":  # each launch costs the host as much as 2^16 points cost a GPU
            rows = min(points, affordable, DEVICE_POINTS)
            block = max(1, min(networks, min(affordable, DEVICE_POINTS) // rows))
        plan = planned(networks, points, rows, block, cores)
        return plan._replace(threads=min(plan.threads, max(1, affordable // (block * rows))))

    def _pass(self) -> Pass:
        return TensorPass(self)


class TensorPass:
    """One thread's part, with its own buffers."""

    def __init__(self, of: TensorGradient) -> None:
        self.of, mlp, stack, like = of, of.mlp, of.stack, of.data.target
        self.activations, self.widths = mlp.activations, mlp.widths
        self.names = [(layer.weight_name, layer.bias_name) for layer in mlp.layers]
        self.weights = [stack.parameters[weight] for weight, _ in self.names]
        self.biases = [None if bias is None else stack.parameters[bias].unsqueeze(1) for _, bias in self.names]
        self.lowest = self._lowest()
        size = of.block * of.rows * max(self.widths)
        kind = NARROW if of.narrow else like.dtype
        # Where a slope is 0 or 1, and 1 where the value is above 0, it needs no memory of its own.
        self.features = [like.new_empty(size, dtype=kind) for _ in self.activations]
        self.slopes = [
            None if act.kind.keeps == "mask" else like.new_empty(size, dtype=kind) for act in self.activations
        ]
        self.errors = [like.new_empty(size, dtype=kind) for _ in range(2)]
        self.wide = [like.new_empty(size) for _ in range(3)] if of.narrow else self.errors
        # Norms of single points, and what each keeps for its way back.
        self.rowwise = [layer.norm if isinstance(layer.norm, ROWWISE) else None for layer in mlp.hidden]
        self.after = [layer.norm_after for layer in mlp.hidden]
        self.states: list[Any] = [None] * len(mlp.hidden)
        self.views: dict[tuple[int, int, int, int], Tensor] = {}
        self.outputs = like.new_empty(of.block * of.rows * mlp.outputs)
        # Only with an encoding are the first layer's inputs as bounded as features: coordinates stay as they are.
        self.narrow_from = 0 if mlp.encoding is not None else 1

    def _lowest(self) -> int:
        """Return the lowest layer whose error is needed."""
        return next(i for i, names in enumerate(self.names) if any(name in self.of.stack.grads for name in names))

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """See :class:`Pass`."""
        k = block.stop - block.start
        losses = torch.zeros(k, dtype=torch.float64, device=self.of.data.target.device)
        weights, biases = self._narrowed(block)
        some = {name: total[block] for name, total in sums.items()}
        for part in chunks(len(rows), self.of.rows):
            index: Tensor | slice = slice(rows.start + part.start, rows.start + part.stop)
            if batch is not None:
                index = batch[own(batch, block), index]
            x, target = self._inputs(block, index), gathered(self.of.data.target, block, index)
            weight, loss = (None, MEAN_SQUARE) if scales is None else (self.of.data.weight, self.of.loss)
            weight = None if weight is None else gathered(weight, block, index)
            prediction = self._forward(x, weights, biases, k)
            if self.of.link is not None:  # of an evaluation: steps have none
                prediction = self.of.link(prediction)
            values, error = at_head(loss, prediction, target, weight)
            losses += values.sum((1, 2)).double()
            if scales is not None:
                self._backward(x, weights, error.mul_(scales[block].to(error)[:, None, None]), some)
        return losses.cpu()  # on a GPU the host waits here, once per block

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

    def _view(self, buffer: Tensor, k: int, n: int, width: int) -> Tensor:
        """Return the start of a buffer as (k, n, width)."""
        key = id(buffer), k, n, width
        if key not in self.views:  # a few shapes come again and again, and making a view takes as long as small work
            self.views[key] = buffer[: k * n * width].view(k, n, width)
        return self.views[key]

    def _forward(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None], k: int) -> Tensor:
        """Return the predictions at ``x``; features and slopes (derivatives of the activations) stay in the buffers."""
        n, features = x.shape[1], x
        for index in range(len(self.activations)):
            features = self._hidden(index, features, weights, biases)
        if self.of.narrow:
            features = self._view(self.wide[0], k, n, self.widths[-1]).copy_(features)
        # Column-major, since BLAS is several times faster on a few long columns than on many short rows.
        outputs = self.outputs[: k * n * self.of.mlp.outputs]
        outputs = outputs.view(1, -1, n).mT if k == 1 else outputs.view(k, n, -1)
        return self._linear(features, weights[-1], biases[-1], outputs)

    def _hidden(self, index: int, features: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        """Return the features of one hidden layer from those below; slopes stay in their buffer."""
        activation, slope = self.activations[index], self.slopes[index]
        shape = (*features.shape[:2], self.widths[index])
        value = self._view(self.features[index], *shape)
        u = self._linear(features, weights[index], biases[index], value if slope is None else self._view(slope, *shape))
        self._normalise(index, u, after=False)
        if slope is None:
            activation.value_in_place(u if u is value else value.copy_(u), self._view(self.errors[0], *shape))
        else:
            self._activate(activation, u, value, self._view(slope, *shape))
        self._normalise(index, value, after=True)
        return value

    def _normalise(self, index: int, values: Tensor, after: bool) -> None:
        """Take values through the layer's norm, if that stands here; they are overwritten."""
        norm = self.rowwise[index]
        if norm is not None and self.after[index] == after:
            normalised, self.states[index] = norm.forward(values.flatten(0, 1))
            values.copy_(normalised.view_as(values))

    def _normalise_back(self, index: int, error: Tensor, after: bool) -> None:
        """Take an error behind the layer's norm to the place before it, if it stands here; it is overwritten."""
        norm = self.rowwise[index]
        if norm is not None and self.after[index] == after:
            error.copy_(norm.backward(error.flatten(0, 1).unsqueeze(1), self.states[index])[0].view_as(error))

    def _activate(self, activation: BoundActivation, u: Tensor, value: Tensor, slope: Tensor) -> None:
        """Write an activation and its slope; in the network's own dtype, whatever the buffers have."""
        k, n, width = value.shape
        scratch = self._view(self.wide[0], k, n, width)
        if not self.of.narrow:
            activation.in_place(u, value, scratch)
            return
        if u is slope:
            u = self._view(self.wide[1], k, n, width).copy_(u)
        wide = self._view(self.wide[2], k, n, width)
        activation.in_place(u, wide, scratch)
        value.copy_(wide)
        slope.copy_(u)

    def _linear(self, features: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """Return ``features W^T + b`` in ``out``, or beside it if that has another dtype."""
        if weight.dtype != out.dtype:
            out = self._view(self.wide[1], *out.shape)
        gemm.bmm(features, weight.mT, out)
        return out if bias is None else out.add_(bias)

    def _backward(self, x: Tensor, weights: list[Tensor], error: Tensor, sums: dict[str, Tensor]) -> None:
        """Add the gradients of one chunk, from the error at the head down to the lowest trainable layer."""
        k, n, last = x.shape[0], x.shape[1], len(weights) - 1
        for index in range(last, self.lowest - 1, -1):
            below = self.widths[index - 1]
            features = self._view(self.features[index - 1], k, n, below) if index > 0 else x
            if self.of.narrow and index == last:
                features = self._view(self.wide[0], k, n, below)  # where the forward pass left them
            self._add(index, error, features, sums)
            if index > self.lowest:
                into = self.wide[1] if error.dtype != NARROW and self.of.narrow else self.errors[index % 2]
                error = gemm.bmm(error, weights[index], self._view(into, k, n, below))
                self._normalise_back(index - 1, error, after=True)
                error = self._times_slope(error, index - 1, self._view(self.errors[index % 2], k, n, below))
                self._normalise_back(index - 1, error, after=False)

    def _times_slope(self, error: Tensor, index: int, out: Tensor) -> Tensor:
        """Return an error behind an activation from that before it, in ``out``, of the buffers' dtype."""
        k, n, width = error.shape
        slope = self.slopes[index]
        if error.dtype != out.dtype:
            error = out.copy_(error)
        if slope is not None:
            return error.mul_(self._view(slope, k, n, width))
        value = self._view(self.features[index], k, n, width)
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
            error = self._view(self.wide[0], *error.shape).copy_(error)
        if error.dtype == weight.dtype and error.device.type == "cpu":
            gemm.baddbmm_(weight, error.mT, features)
        else:
            weight.add_(gemm.summed_over_rows(error, features))


def at_head(loss: BoundLoss, prediction: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weighted losses and slopes (k, n, M); the predictions are overwritten."""
    if not loss.is_mean_square:
        target = target.expand_as(prediction)  # networks of a stack may have one in common
        values, slope = loss.value(prediction, target), loss.slope(prediction, target)
        return (values, slope) if weight is None else (values * weight, slope * weight)
    error = prediction.sub_(target)
    weighted = error if weight is None else error * weight
    values = error * weighted
    return values, weighted.mul_(2)
