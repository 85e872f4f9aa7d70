"""Fused steps of a fit: gradients by Triton kernels, and many steps at once, with no word from the host in between."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrfast import backends
from inrfast.losses import BoundLoss
from inrfast.memory import format_bytes
from inrfast.mlp import MLP
from inrfast.norms.batch import BatchNorm
from inrfast.ops.fused_mlp import FEW, MEAN_SQUARE, OPERANDS, RATES, Draws, FusedMLP, Points, Shape, reason_against
from inrfast.ops.fused_norms import NormPlace, Statistics, reason_against_norms
from inrfast.training.batches import Batches
from inrfast.training.engines.batch_norms import against_norms, norms_of
from inrfast.training.engines.layerwise import encoded
from inrfast.training.engines.task import Task, against_formula
from inrfast.training.optimizers import Optimizer
from inrfast.training.stack import Stack

MOST_STEPS = 64
"""Steps at most between two looks at the losses."""

MOST_GRAPHS = 4
"""CUDA graphs kept, each of another number of steps."""

EVALUATED_ROWS = 2**16
"""Points at most of one launch of an evaluation: enough to fill a GPU."""

MOST_COORDINATE = 2**15
"""Largest coordinate that two numbers of 16 bits hold."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Names of a batch norm's buffers."""

DRAWN_SHARE = 16
"""One part in so many of the budget may hold the points drawn for the next steps."""

BACKOFFS, BACKOFF = 3, 2.0**-8
"""How often a gradient that overflows 16 bits is taken again, and by what its errors are scaled down each time."""


def _against(task: Task) -> str | None:
    """Return why networks of one shape whose backpropagation is written out cannot take fused steps, or None."""
    mlp, data = task.mlp, task.data
    reason = reason_against(mlp, data.target.dtype)
    if reason is not None:
        return reason
    if mlp.norms:
        reason = against_norms(task.nets[0]) or reason_against_norms(mlp, task.points)
        if reason is None and any(own.weight is None or own.bias is None for own in norms_of(task.nets[0])):
            reason = "its norms have no weight and bias of their own"
        if reason is not None:
            return reason
        kept = len(task.nets) * task.points * 2 * len(mlp.hidden) * max(mlp.widths) * data.target.dtype.itemsize
        if 4 * kept > task.budget:  # and slopes, and half of the budget is for the evaluation
            what = "its features and errors at all points of a step"
            return f"{what} need {format_bytes(kept)}, over a quarter of the budget {format_bytes(task.budget)}"
    if mlp.columns > FEW:
        needed = len(task.nets) * data.points * mlp.columns * data.target.dtype.itemsize
        if 4 * needed > task.budget:
            budget = format_bytes(task.budget)
            return f"its encoded points need {format_bytes(needed)}, over a quarter of the budget {budget}"
    elif task.narrow and float(data.coords.abs().max()) > MOST_COORDINATE:
        return f"coordinates beyond {MOST_COORDINATE} do not fit precision='medium'"
    return None


def _shape(stack: Stack, mlp: MLP) -> Shape:
    names = [(layer.weight_name, layer.bias_name) for layer in mlp.layers]
    places = tuple((stack.places[weight], -1 if bias is None else stack.places[bias]) for weight, bias in names)
    kind, numbers = mlp.activations[0].kind, tuple(activation.numbers for activation in mlp.activations)
    norms = tuple(
        NormPlace(own.layer, stack.places[own.weight or ""], stack.places[own.bias or ""], own.eps, own.momentum)
        for own in norms_of(stack.nets[0])
    )
    return Shape(mlp.columns, mlp.widths[0], len(mlp.hidden), mlp.outputs, kind, numbers, places, norms)


def _statistics(stack: Stack) -> list[Statistics]:
    names = [own.name for own in norms_of(stack.nets[0])]
    return [Statistics(*(stack.statistics[f"{name}.{own}"] for own in STATISTICS)) for name in names]


def _engine(
    stack: Stack, task: Task, rows: int, kind: str, steps: int, budget: int, loss: BoundLoss | None
) -> FusedMLP:  # fmt: skip
    """Return kernels and their memory for the networks of a flat stack; without a loss, for evaluations alone."""
    assert stack.flat is not None
    mlp, data = task.mlp, task.data
    dtype = OPERANDS[kind] if mlp.columns > FEW else data.coords.dtype
    inputs, encodings = encoded(stack.nets, mlp, data.coords, budget, dtype)
    assert encodings is None, "checked by reason_against"
    trained = torch.zeros(stack.flat.shape[1], dtype=torch.uint8, device=stack.flat.device)
    for name in stack.trainable:
        stack.view_of(trained.unsqueeze(0), name).fill_(1)
    points = Points(inputs.contiguous(), data.target, data.weight)
    kept = inputs.numel() * inputs.element_size() if inputs is not data.coords else 0
    return FusedMLP(
        _shape(stack, mlp), stack.flat, trained, points, rows, kind, steps, budget - kept, loss is not None,
        loss or MEAN_SQUARE, _statistics(stack),
    )  # fmt: skip


def _wide(stack: Stack) -> str:
    """Return the kind of product in the networks' own dtype."""
    assert stack.flat is not None
    return "fp64" if stack.flat.dtype == torch.float64 else "tf32x3"


class FusedEvaluation:
    """Mean squared errors of the networks of a flat stack, in their own dtype."""

    def __init__(self, stack: Stack, task: Task) -> None:
        rows = min(task.data.points, EVALUATED_ROWS)
        self.engine = _engine(stack, task, rows, _wide(stack), 1, task.budget, None)

    def mean_square(self) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return self.engine.mean_square().cpu()


class FusedGradient:
    """Gradient of a named loss of INRs, without norms or with batch norms behind activations, by fused kernels.

    Parameters
    ----------
    stack
        Flat; each call overwrites its gradients.
    task
        What is wanted: see :class:`inrfast.training.engines.task.Task`. ``narrow``: features, errors and weights of the
        products between hidden layers in fp16; sums, weights and updates in fp32.
    steps
        Most steps at once.

    Raises
    ------
    MemoryBudgetError
        Not even one tile of points fits the budget.
    """

    name: ClassVar[str] = "fused"
    backend: ClassVar[str] = "triton"
    flat: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    several: ClassVar[bool] = True
    measures = True
    one_core = False

    def __init__(self, stack: Stack, task: Task, steps: int = MOST_STEPS) -> None:
        self.stack, self.task, self.points, self.narrow = stack, task, task.points, task.narrow
        self.steps, self.coupled = steps, bool(task.mlp.norms)
        # Half for the step: in "medium" an evaluation in full precision has buffers of its own.
        kind = "fp16" if self.narrow else _wide(stack)
        self.engine = _engine(stack, task, self.points, kind, steps, task.budget // 2, task.objective.named)
        self.evaluation: FusedEvaluation | None = None

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        if task.backend != "triton":
            return "fused steps are those of backend='triton'"
        objective = task.objective
        reason = objective.reason_against_parts()
        if reason is not None:
            return reason
        if objective.named is None or objective.named.kind.triton is None:
            return f"the loss {objective.config()['loss']!r} has no fused step"
        if objective.modules:
            return "modules are trained beside the network"
        return against_formula(task.described, (BatchNorm,)) or _against(task)

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return {"gradient": self.name, **self.engine.describe()}

    @torch.no_grad()
    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        engine = self.engine
        engine.refresh()
        draws = None if batch is None else Draws(batch.contiguous(), batch.shape[1])
        grads = self.stack.flat_grads
        for attempt in range(BACKOFFS):
            engine.gradients(self.points, draws, track=attempt == 0)
            engine.update(grads, grads, grads, None, True, 0)
            overflown = engine.losses[0].isfinite() & ~grads.sum(1).isfinite()
            if not self.narrow or not bool(overflown.any()):
                break
            engine.scales[0, overflown] *= BACKOFF
        engine.scales[0] = engine.scales[1]
        return engine.losses[0].double().cpu()

    def mean_square(self) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        if not self.narrow and self.points == self.task.data.points:
            return self.engine.mean_square().cpu()
        if self.evaluation is None:
            self.evaluation = FusedEvaluation(self.stack, replace(self.task, budget=self.task.budget // 2))
        return self.evaluation.mean_square()

    def state(self) -> Tensor:
        """Return what the next gradient depends on beside the weights: the scales of its errors."""
        return self.engine.scales[0].clone()

    def load(self, state: Tensor) -> None:
        """Take over a state."""
        self.engine.scales[0] = state.to(self.engine.scales)


class FusedOptimizer(Optimizer):
    """An optimiser by the kernels, on all parameters at once; its state has the form of the one it stands for.

    Parameters
    ----------
    stack
        Flat.
    kind
        What it stands for, of a :attr:`inrfast.training.optimizers.Optimizer.kernel`.
    """

    def __init__(self, stack: Stack, kind: type[Optimizer], weight_decay: float = 0.0) -> None:
        assert stack.flat is not None
        assert kind.kernel is not None
        super().__init__(stack, weight_decay)
        self.update_kind, self.names, self.done = kind.kernel, kind.keeps, 0
        self.moments = [torch.zeros_like(stack.flat) for _ in self.names]
        self.engine: FusedMLP | None = None

    def fill(self, rates: Sequence[Sequence[float]]) -> None:
        """Write the learning rates (steps, networks) of the next steps where the kernels read them."""
        assert self.engine is not None
        rows, kind = [], self.update_kind
        for step, own in enumerate(rates, self.done + 1):
            first, second = 1 - kind.beta1**step, math.sqrt(1 - kind.beta2**step)
            rows.append([(rate, rate / first, second, self.weight_decay) for rate in own])
        table = torch.tensor(rows, dtype=torch.float64).to(self.engine.rates.dtype)
        assert table.shape[2] == RATES
        self.engine.rates[: len(rows)].copy_(table, non_blocking=True)

    def update(self, step: int, reduce: bool) -> None:
        """Update the parameters from partial sums (``reduce``) or from the gradients of the stack."""
        assert self.engine is not None
        means, squares = self.moments or [self.stack.flat_grads] * 2
        self.engine.update(self.stack.flat_grads, means, squares, self.update_kind, reduce, step)

    def step(self, rates: Sequence[float], again: Callable[[], float]) -> None:
        """See :class:`inrfast.training.optimizers.Optimizer`."""
        self.fill([rates])
        self.update(0, reduce=False)
        self.done += 1

    def keep(self, stack: Stack, index: Sequence[int]) -> None:
        """See :class:`inrfast.training.optimizers.Optimizer`."""
        self.take(stack)
        self.engine = None
        self.moments = [moment[list(index)] for moment in self.moments]

    def copy(self) -> list[Tensor]:
        """Return a copy of what :meth:`restore` takes."""
        return [moment.clone() for moment in self.moments]

    def restore(self, kept: Sequence[Tensor], done: int) -> None:
        """Go back to where the moments were ``kept``, after ``done`` steps."""
        for moment, old in zip(self.moments, kept, strict=True):
            moment.copy_(old)
        self.done = done

    def state(self) -> dict[str, Any]:
        """See :class:`inrfast.training.optimizers.Optimizer`."""
        if not self.moments:
            return {}
        named = {name: {n: self.stack.view_of(m, n) for n in self.stack.grads} for name, m in self._named()}
        steps = {name: torch.tensor(float(self.done), dtype=torch.float32) for name in self.stack.grads}
        return {**named, "steps": steps}

    def load(self, state: dict[str, Any]) -> None:
        """See :class:`inrfast.training.optimizers.Optimizer`."""
        for key, moment in self._named():
            for name in self.stack.grads:
                self.stack.view_of(moment, name).copy_(state[key][name])
        if self.moments:
            self.done = round(float(next(iter(state["steps"].values()))))

    def _named(self) -> list[tuple[str, Tensor]]:
        return list(zip(self.names, self.moments, strict=True))


class FusedSteps:
    """Many steps at once: on a GPU one CUDA graph, with rates, batches and losses in the GPU's memory.

    The first steps are launched kernel by kernel, which compiles them; from then on every number of steps is captured
    when it first comes.

    Attributes
    ----------
    most
        How many steps at most.
    compiled
        Whether steps were taken.
    """

    def __init__(self, gradient: FusedGradient, optimizer: FusedOptimizer, batches: Batches) -> None:
        self.gradient, self.optimizer, self.batches = gradient, optimizer, batches
        self.engine = optimizer.engine = gradient.engine
        self.draws: Draws | None = None
        drawn = 0 if batches.rows(0) is None else gradient.points * len(batches.seeds)
        self.most = max(1, min(gradient.steps, gradient.task.budget // max(DRAWN_SHARE * 8 * drawn, 1)))
        self.graphs: dict[int, Any] = {}
        self.compiled = False
        self.capture = self.engine.device.type == "cuda"

    @torch.no_grad()
    def take(self, first: int, rates: Sequence[Sequence[float]]) -> tuple[Tensor, bool]:
        """Take the steps from ``first`` on, with learning rates (steps, B); wait for the GPU once.

        Returns their losses (steps, B), fp64 on the CPU, and whether these and the parameters they led to are finite.
        """
        count = len(rates)
        self.engine.refresh()
        self.optimizer.fill(rates)
        self._draw(first, count)
        self._run(count)
        self.optimizer.done += count
        parameters = self.engine.parameters.sum().double().reshape(1)  # NaN or Inf where one of them is
        found = torch.cat([self.engine.losses[:count].double().flatten(), parameters]).cpu()
        return found[:-1].view(count, -1), bool(found.isfinite().all())

    def _draw(self, first: int, count: int) -> None:
        """Draw the points of all steps on their device."""
        drawn = [self.batches.rows(step) for step in range(first, first + count)]
        rows = [own for own in drawn if own is not None]
        if not rows:
            return
        size = self.gradient.points
        if self.draws is None:
            self.draws = Draws(rows[0].new_empty(len(rows[0]), size * self.most), size)
        self.draws.order[:, : count * size].copy_(torch.cat(rows, 1))

    def _run(self, count: int) -> None:
        if not self.capture or not self.compiled:
            self._launch(count)
            self.compiled = True
            return
        graph = self.graphs.get(count) or self._captured(count)
        if graph is None:
            self._launch(count)
        else:
            graph.replay()

    def _captured(self, count: int) -> Any:
        """Return a CUDA graph of so many steps, or None where none can be made: nothing of them was done then."""
        if len(self.graphs) == MOST_GRAPHS:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with backends.capturing(graph, self.engine.device):
                self._launch(count)
        except RuntimeError as error:
            self.capture = False
            warnings.warn(f"steps are launched one by one, not as a CUDA graph: {error}", RuntimeWarning, stacklevel=2)
            return None
        self.graphs[count] = graph
        return graph

    def _launch(self, count: int) -> None:
        for step in range(count):
            self.engine.gradients(self.gradient.points, self.draws, step)
            self.optimizer.update(step, reduce=True)
        self.engine.scales[0].copy_(self.engine.scales[count])
