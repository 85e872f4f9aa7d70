"""The native engine: one call per block of networks and share of the rows, in fp32 on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.memory import format_bytes
from inrfast.mlp import MLP
from inrfast.modulations import Modulation
from inrfast.norms.topk import ROWWISE
from inrfast.ops import mlp_step
from inrfast.ops.mlp_step import MEAN_SQUARE
from inrfast.threads import MOST_THREADS
from inrfast.training.engines.layerwise import LayerwiseGradient, Pass, Plan, encoded_bytes, is_kept, own, planned
from inrfast.training.engines.task import Task, against_formula
from inrfast.training.stack import Stack


class NativeGradient(LayerwiseGradient):
    """The layerwise gradient by native steps: see :mod:`inrfast.ops.mlp_step`.

    Attributes
    ----------
    inputs_grad
        Where the gradient of the encoded points is written; None: it is not wanted.
    """

    inputs_grad: Tensor | None = None

    def __init__(self, stack: Stack, task: Task) -> None:
        self.native = mlp_step.instructions()
        super().__init__(stack, task)

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = against_formula(task.described, ROWWISE, modulated=True) or against_filters(task.mlp)
        return reason or against_native(task) or _against_memory(task)

    def _plan(self, task: Task, budget: int) -> Plan:
        return _plan(task)

    def _pass(self) -> Pass:
        return NativePass(self)


def against_filters(mlp: MLP) -> str | None:
    """Return why native steps do not multiply layers by the filters of a network; None if they do."""
    if mlp.modulations and mlp.encoding is not None:
        return "its filters take raw coordinates, and native steps hold the encoded ones"
    for layer in mlp.hidden:
        own = layer.modulation
        if own is None:
            continue
        assert isinstance(own, Modulation)
        found = {name: tuple(tensor.shape) for name, tensor in own.named_parameters(remove_duplicate=False)}
        plain = all(type(part) is nn.Linear for part in own.children())
        if not plain or found != own.state(mlp.inputs, layer.linear.outputs):
            return "its filters have been changed"
    return None


def against_native(task: Task) -> str | None:
    """Return why a task whose backpropagation is written out has no native step; None if it has."""
    reason = task.objective.reason_against_parts()
    if reason is not None:
        return reason
    if task.objective.named is None or task.objective.named.kind.native is None:
        return f"the loss {task.objective.config()['loss']!r} has no native step"
    if task.narrow:
        return "products in 16 bits are those of the matrix library"
    data = task.data
    # Of several networks the stack has copies, which are contiguous.
    parameters = [parameter.unsqueeze(0) for parameter in task.nets[0].parameters()] if len(task.nets) == 1 else []
    tensors = [*parameters, data.coords, data.target, data.weight]
    return mlp_step.reason_against(task.mlp.activations, tensors, task.mlp.norms, task.mlp.modulations)


def _plan(task: Task) -> Plan:
    mlp = task.mlp
    cores = min(torch.get_num_threads() if task.cores is None else task.cores, MOST_THREADS)
    widest = max(*mlp.widths, mlp.outputs, mlp.columns)
    rows = mlp_step.chunk_rows(widest, task.points)
    return planned(len(task.nets), task.points, rows, math.ceil(len(task.nets) / (4 * cores)), cores)


def _against_memory(task: Task) -> str | None:
    """Return why encoded points and buffers do not fit the budget; None if they do."""
    budget, coords = task.buffers, task.data.coords
    size = encoded_bytes(task.nets, task.mlp, coords, coords.dtype)
    if not is_kept(size, budget):
        return f"the encoded points ({format_bytes(size)}) take over half of the budget {format_bytes(budget)}"
    needed = native_bytes(task)
    if needed > budget - size:
        return f"its buffers ({format_bytes(needed)}) exceed the budget {format_bytes(budget - size)}"
    return None


def native_bytes(task: Task) -> int:
    """Return the bytes of the buffers of all threads."""
    plan = _plan(task)
    layers = _layers(task.mlp, lambda parameter: (None if parameter is None else parameter.detach()[None], None))
    return plan.threads * mlp_step.workspace(layers, plan.rows) * task.data.coords.element_size()


Found = Callable[[Tensor | None], tuple[Tensor | None, Tensor | None]]
"""What gives a parameter of the first network side by side with those of the others, and the sums of its gradients."""


def _layers(mlp: MLP, found: Found) -> list[mlp_step.Layer]:
    """Return what native steps are told of the layers."""
    behind: list[dict[str, Any]] = [
        {
            "activation": own.activation,
            "norm": own.norm,
            "norm_after": own.norm_after,
            "filter": None if own.modulation is None else _filter(own.modulation, found),
        }
        for own in mlp.hidden
    ]
    layers = []
    for layer, kinds in zip(mlp.layers, [*behind, {"activation": None}], strict=True):
        (weight, weight_grad), (bias, bias_grad) = found(layer.weight), found(layer.bias)
        assert weight is not None
        layers.append(mlp_step.Layer(weight=weight, bias=bias, weight_grad=weight_grad, bias_grad=bias_grad, **kinds))
    return layers


def _filter(own: nn.Module, found: Found) -> mlp_step.Filter:
    """Return what native steps are told of a filter."""
    assert isinstance(own, Modulation) and own.native is not None
    pairs = [found(own.get_parameter(name)) for name in own.state(1, 1)]
    parameters = [parameter for parameter, _ in pairs if parameter is not None]
    return mlp_step.Filter(own.native, parameters, [grad for _, grad in pairs])


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
            mlp_step.Points(inputs, target, weight, chosen, None if scales is None else self.of.inputs_grad),
            None if scales is None else scales[block],
            block.stop - block.start,
            self.of.rows,
            self.memory,
            self.of.native,
            MEAN_SQUARE if scales is None else self.of.loss,
        )

    def _layers(self, block: slice, sums: dict[str, Tensor]) -> list[mlp_step.Layer]:
        """Return the layers of some networks, with the sums for their gradients."""
        stack = self.of.stack

        def found(parameter: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if parameter is None:
                return None, None
            name = stack.names[parameter]
            total = sums.get(name)
            return stack.parameters[name][block], None if total is None else total[block]

        return _layers(self.of.mlp, found)
