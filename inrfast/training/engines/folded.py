"""The folded engine: batch norms by torch's operations over all points of a batch on a GPU, one network or many."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from inrfast.memory import cached_rows, over_budget
from inrfast.mlp import MLP
from inrfast.norms.batch import BatchNorm
from inrfast.ops import gemm
from inrfast.training.engines.batch_norms import Position, against_norms, norms_of
from inrfast.training.engines.layerwise import Pass, Plan
from inrfast.training.engines.task import Task, against_formula
from inrfast.training.engines.tensor import DEVICE_POINTS, ENCODING_BUFFERS, TensorGradient, TensorPass
from inrfast.training.stack import Stack


class FoldedGradient(TensorGradient):
    """Gradient of a named loss of INRs with batch norms in train mode, one or several of one shape.

    With the statistics ``mu, sigma^2`` of a batch of n points, ``r = 1 / sqrt(sigma^2 + eps)``, a norm maps z to
    ``y = s z + t`` with ``s = scale r`` and ``t = shift - s mu``. After an activation it needs no pass over the points:
    the next layer takes ``W' = W diag(s)`` and ``b' = b + W t``. From that layer's error E, the product
    ``G = E^T Z`` and ``g = sum_n E`` follow ``dW = G diag(s) + g t^T``, ``dshift_j = sum_i W_ij g_i``,
    ``dscale_j = r_j (sum_i W_ij G_ij - mu_j dshift_j)`` and ``dZ = E W' - c - d Z`` with ``d = s r dscale / n`` and
    ``c = s dshift / n - d mu`` (batch norm: Ioffe and Szegedy, ICML 2015, whose backward pass this is). Before an
    activation the same formula takes the error behind the norm to that before it.

    Each gradient updates the running statistics, as a forward pass in train mode does; :meth:`mean_square` takes them.
    On a GPU, ``narrow`` allows TF32 in products; elsewhere these are in the networks' own dtype.

    Raises
    ------
    ValueError
        A batch of one point, which has no variance.
    MemoryBudgetError
        One network's features at all points of a batch do not fit the budget.
    """

    name: ClassVar[str] = "folded"
    coupled: bool = True

    def __init__(self, stack: Stack, task: Task) -> None:
        if task.points < 2 and not task.measuring:
            raise ValueError(f"a batch norm in train mode takes at least 2 points per step, got {task.points}")
        self.tf32 = task.narrow and task.data.coords.device.type == "cuda"
        self.norms = {position.layer: position for position in norms_of(stack.nets[0])}
        super().__init__(stack, replace(task, narrow=False))

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = against_formula(task.described, (BatchNorm,)) or task.objective.reason_against_parts()
        reason = reason or against_norms(task.nets[0])
        on_cpu = task.data.coords.device.type == "cpu"
        return reason or ("norms are folded on a GPU alone" if on_cpu else None)

    def _plan(self, task: Task, budget: int) -> Plan:
        mlp, like, networks = self.mlp, self.data.target, len(self.stack)
        row_bytes = like.element_size() * (FoldedPass.columns(mlp) + mlp.outputs)
        if self.encodings is not None:
            row_bytes += ENCODING_BUFFERS * like.element_size() * mlp.columns
        affordable = budget // row_bytes
        widest = max(*mlp.widths, mlp.outputs)
        rows = task.points
        if task.measuring:
            rows = max(1, min(rows, cached_rows(widest, like), affordable))
        instead = f"batch_size={affordable} would fit" if affordable > 1 else "a narrower network would fit"
        if rows * row_bytes > budget:
            what = f"a step over {rows} points at once of a batch norm"
            raise over_budget(task.budget_for(rows * row_bytes - budget), task.budget, what, instead)
        block = max(1, min(networks, DEVICE_POINTS // rows, affordable // rows))
        return Plan(rows, block, 1, True)

    def _pass(self) -> Pass:
        return FoldedPass(self)

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return {**super().layout, "gradient": self.name, **({"products": "tf32"} if self.tf32 else {})}

    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        with gemm.products_chosen(self.tf32):
            return super().__call__(batch, step)


class Map(NamedTuple):
    """What a norm does to values: ``y = factor z + offset``, each (k, 1, D), with the statistics it comes from."""

    factor: Tensor
    offset: Tensor
    mean: Tensor
    inverse_std: Tensor

    def slopes(self, scale_slope: Tensor, shift_slope: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return ``c`` and ``d`` of the gradient in the values, ``factor g - c - d z``, of both numbers' own."""
        d = self.factor * self.inverse_std * scale_slope / count
        return self.factor * shift_slope / count - d * self.mean, d


class FoldedPass(TensorPass):
    """One thread's part, with its own buffers: all points of a batch, some networks at once."""

    def __init__(self, of: FoldedGradient) -> None:
        self.norms, self.statistics = of.norms, of.stack.statistics
        super().__init__(of)
        like, size = of.data.target, of.block * of.rows * max(self.widths)
        # What enters a norm before the activation; where it stands after, the features are that.
        self.inner = {layer: like.new_empty(size) for layer, norm in self.norms.items() if not norm.after}
        self.maps: dict[int, Map] = {}
        self.folded: list[Tensor] = []
        self.block, self.training = slice(None), False

    @staticmethod
    def columns(mlp: MLP) -> int:
        """Return the numbers that a pass keeps per point, of its two errors too."""
        kept = [
            1 + (layer.activation.kind.keeps != "mask") + (layer.norm is not None and not layer.norm_after)
            for layer in mlp.hidden
        ]
        return (2 + sum(kept)) * max(mlp.widths)

    def _lowest(self) -> int:
        """See :class:`TensorPass`: the gradient of a norm after an activation is taken at the layer above."""
        grads = self.of.stack.grads
        places = [i for i, names in enumerate(self.names) if any(name in grads for name in names)]
        trained = [norm for norm in self.norms.values() if norm.weight in grads or norm.bias in grads]
        return min([*places, *(norm.layer + norm.after for norm in trained)])

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """See :class:`Pass`: with ``scales`` by the statistics of the batch, which move the running ones."""
        self.block, self.training = block, scales is not None
        return super().over(block, rows, batch, scales, sums)

    def _forward(self, x: Tensor, weights: list[Tensor], biases: list[Tensor | None], k: int) -> Tensor:
        self.maps.clear()
        self.folded = list(weights)  # those that were given are of other chunks too
        return super()._forward(x, self.folded, list(biases), k)

    def _hidden(self, index: int, features: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor:
        norm, inner = self.norms.get(index), self.inner.get(index)
        if norm is None:
            return super()._hidden(index, features, weights, biases)
        if inner is None:
            value = super()._hidden(index, features, weights, biases)
            self.maps[index] = own = self._map(norm, value)
            weight, bias = weights[index + 1], biases[index + 1]
            moved = gemm.bmm(own.offset, weight.mT, torch.empty_like(weight[:, :, 0]).unsqueeze(1))
            weights[index + 1] = weight * own.factor
            biases[index + 1] = moved if bias is None else moved + bias
            return value
        activation, slope = self.activations[index], self.slopes[index]
        shape = (features.shape[0], features.shape[1], self.widths[index])
        value, scratch = self._view(self.features[index], *shape), self._view(self.errors[0], *shape)
        u = self._linear(features, weights[index], biases[index], self._view(inner, *shape))
        self.maps[index] = own = self._map(norm, u)
        if slope is None:
            activation.value_in_place(torch.addcmul(own.offset, u, own.factor, out=value), scratch)
        else:
            normed = torch.addcmul(own.offset, u, own.factor, out=self._view(slope, *shape))
            activation.in_place(normed, value, scratch)
        return value

    def _map(self, norm: Position, values: Tensor) -> Map:
        """Return what a norm does to its values (k, n, D), by their statistics or, in an evaluation, the running."""
        running = [self.statistics[f"{norm.name}.{name}"][self.block] for name in ("running_mean", "running_var")]
        if self.training:
            var, mean = torch.var_mean(values, 1, correction=0, keepdim=True)
            count = self.statistics[f"{norm.name}.num_batches_tracked"][self.block].add_(1)
            share = (1 / count).unsqueeze(1).to(mean) if norm.momentum is None else norm.momentum
            n = values.shape[1]
            for old, now in zip(running, (mean, var * (n / (n - 1))), strict=True):
                old.lerp_(now.squeeze(1), share)
        else:
            mean, var = (statistic.unsqueeze(1) for statistic in running)
        inverse_std = (var + norm.eps).rsqrt()
        scale, shift = (
            None if name is None else self.of.stack.parameters[name][self.block].unsqueeze(1)
            for name in (norm.weight, norm.bias)
        )
        factor = inverse_std if scale is None else inverse_std * scale
        offset = -factor * mean if shift is None else shift - factor * mean
        return Map(factor, offset, mean, inverse_std)

    def _backward(self, x: Tensor, weights: list[Tensor], error: Tensor, sums: dict[str, Tensor]) -> None:
        """Add the gradients of all points, from the error at the head down to the lowest layer that needs its own."""
        k, n = x.shape[:2]
        for index in range(len(weights) - 1, self.lowest - 1, -1):
            if index == 0:
                self._add(0, error, x, sums)
                break
            norm, own, below = self.norms.get(index - 1), self.maps.get(index - 1), self.widths[index - 1]
            features = self._view(self.features[index - 1], k, n, below)
            slopes = None
            if norm is not None and own is not None and norm.after:
                slopes = self._add_through(index, norm, own, error, features, sums)
            else:
                self._add(index, error, features, sums)
            if index == self.lowest:
                break
            out, other = self.errors[index % 2], self.errors[1 - index % 2]
            error = gemm.bmm(error, self.folded[index], self._view(out, k, n, below))
            if slopes is not None:
                error.addcmul_(features, slopes[1], value=-1).sub_(slopes[0])
            error = self._times_slope(error, index - 1, error)
            if norm is not None and own is not None and not norm.after:
                self._before_norm(index - 1, norm, own, error, self._view(other, k, n, below), sums)

    def _add_through(
        self, index: int, norm: Position, own: Map, error: Tensor, features: Tensor, sums: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a layer and of the norm before it; return ``c`` and ``d`` of :meth:`Map.slopes`."""
        weight = self.weights[index][self.block]
        product = gemm.summed_over_rows(error, features)
        total = error.sum(1)
        weight_sum, bias_sum = (None if name is None else sums.get(name) for name in self.names[index])
        if weight_sum is not None:
            weight_sum.addcmul_(product, own.factor).addcmul_(total.unsqueeze(2), own.offset)
        if bias_sum is not None:
            bias_sum.add_(total)
        shift_slope = (weight * total.unsqueeze(2)).sum(1, keepdim=True)
        scale_slope = own.inverse_std * (product.mul_(weight).sum(1, keepdim=True) - own.mean * shift_slope)
        _add_to(sums, norm, scale_slope, shift_slope)
        return own.slopes(scale_slope, shift_slope, features.shape[1])

    def _before_norm(
        self, index: int, norm: Position, own: Map, error: Tensor, scratch: Tensor, sums: dict[str, Tensor]
    ) -> None:
        """Take an error behind the norm before an activation to that before the norm, in place."""
        u = self._view(self.inner[index], *error.shape)
        shift_slope = error.sum(1, keepdim=True)
        scale_slope = torch.sub(u, own.mean, out=scratch).mul_(error).sum(1, keepdim=True).mul_(own.inverse_std)
        _add_to(sums, norm, scale_slope, shift_slope)
        c, d = own.slopes(scale_slope, shift_slope, error.shape[1])
        error.mul_(own.factor).addcmul_(u, d, value=-1).sub_(c)


def _add_to(sums: dict[str, Tensor], norm: Position, scale_slope: Tensor, shift_slope: Tensor) -> None:
    for name, slope in zip((norm.weight, norm.bias), (scale_slope, shift_slope), strict=True):
        if name is not None and name in sums:
            sums[name].add_(slope.squeeze(1))
