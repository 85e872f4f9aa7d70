"""The native engine: one call per block of networks and share of the rows, in fp32 on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inrfast.memory import format_bytes
from inrfast.nn import INR
from inrfast.ops import mlp_step
from inrfast.ops.mlp_step import MEAN_SQUARE
from inrfast.threads import MOST_THREADS
from inrfast.training.engines.layerwise import LayerwiseGradient, Pass, Plan, encoded_bytes, is_kept, own, planned
from inrfast.training.engines.task import Task, against_formula
from inrfast.training.stack import Stack


class NativeGradient(LayerwiseGradient):
    """The layerwise gradient by native steps: see :mod:`inrfast.ops.mlp_step`."""

    def __init__(self, stack: Stack, task: Task) -> None:
        self.native = mlp_step.instructions()
        super().__init__(stack, task)

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = against_formula(task.nets[0])
        if reason is not None:
            return reason
        reason = task.objective.reason_against_parts()
        if reason is not None:
            return reason
        if task.objective.named is None or task.objective.named.kind.native is None:
            return f"the loss {task.objective.config()['loss']!r} has no native step"
        if task.narrow:
            return "products in 16 bits are those of the matrix library"
        net = task.nets[0]
        assert isinstance(net, INR)
        # Of several networks the stack has copies, which are contiguous.
        parameters = [parameter.unsqueeze(0) for parameter in net.parameters()] if len(task.nets) == 1 else []
        data = task.data
        reason = mlp_step.reason_against(net.activations, [*parameters, data.coords, data.target, data.weight])
        return reason or _against_memory(task, net)

    def _plan(self, task: Task, budget: int) -> Plan:
        return _plan(task, self.net)

    def _pass(self) -> Pass:
        return NativePass(self)


def _plan(task: Task, net: INR) -> Plan:
    cores = min(torch.get_num_threads() if task.cores is None else task.cores, MOST_THREADS)
    widest = max(net.width, net.out_features, _inputs(net))
    rows = mlp_step.chunk_rows(widest, task.points)
    return planned(len(task.nets), task.points, rows, math.ceil(len(task.nets) / (4 * cores)), cores)


def _inputs(net: INR) -> int:
    return net.in_features if net.encoding is None else int(net.encoding.out_features)


def _against_memory(task: Task, net: INR) -> str | None:
    """Return why encoded points and buffers do not fit the budget; None if they do."""
    budget, coords = task.buffers, task.data.coords
    size = encoded_bytes(task.nets, coords, coords.dtype)
    if not is_kept(size, budget):
        return f"the encoded points ({format_bytes(size)}) take over half of the budget {format_bytes(budget)}"
    plan = _plan(task, net)
    kinds = zip(_linears(net), [*net.activations, "relu"], strict=True)
    layers = [mlp_step.Layer(name, 1.0, layer.weight.unsqueeze(0), None) for layer, name in kinds]
    needed = plan.threads * mlp_step.workspace(layers, plan.rows) * coords.element_size()
    if needed > budget - size:
        return f"its buffers ({format_bytes(needed)}) exceed the budget {format_bytes(budget - size)}"
    return None


def _linears(net: INR) -> Sequence[nn.Linear]:
    return [layer for layer in net.layers if isinstance(layer, nn.Linear)]


class NativePass:
    """By one native call a block of networks: see :mod:`inrfast.ops.mlp_step`."""

    def __init__(self, of: NativeGradient) -> None:
        self.of = of
        self.memory = of.data.target.new_empty(mlp_step.workspace(self._layers(slice(None), {}), of.rows))

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """See :class:`Pass`."""
        data = self.of.data
        chosen: Tensor | range = rows
        if batch is not None:
            chosen = batch[own(batch, block), rows.start : rows.stop]
        weight = None if data.weight is None or scales is None else data.weight[own(data.weight, block)]
        inputs, target = (one[own(one, block)] for one in (self.of.encoded, data.target))
        return mlp_step.steps(
            self._layers(block, sums),
            mlp_step.Points(inputs, target, weight, chosen),
            None if scales is None else scales[block],
            block.stop - block.start,
            self.of.rows,
            self.memory,
            self.of.native,
            MEAN_SQUARE if scales is None else self.of.loss,
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
        for layer, name, omega in zip(net.layers, [*net.activations, "relu"], [*net.omegas, 1.0], strict=True):
            assert isinstance(layer, nn.Linear)
            (weight, weight_grad), (bias, bias_grad) = pair(layer.weight), pair(layer.bias)
            assert weight is not None
            layers.append(mlp_step.Layer(name, omega, weight, bias, weight_grad, bias_grad))
        return layers
