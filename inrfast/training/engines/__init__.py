"""The engines of a fit: ways to take the gradient of its loss that give the same numbers, in order of speed.

- :class:`FusedGradient`: forward and backward of INRs of one shape by Triton kernels.
- :class:`NativeGradient`: the same on a CPU, by one native call per chunk of points.
- :class:`EncodedGradient`: the same behind a trained encoding, of which autograd takes the gradient.
- :class:`TensorGradient`: the same by torch's operations, over chunks of points that stay in cache.
- :class:`FoldedGradient`: the same on a GPU for networks with batch norms in train mode, over all points at once.
- :class:`NormedGradient`: by torch's operations too, for networks with batch norms in train mode, whose statistics are
  those of the whole batch.
- :class:`ChunkedGradient`: autograd over such chunks, for any other network that treats its points one by one.
- :class:`WholeGradient`: autograd over the full batch, for networks that couple points in another way,
  draw random numbers (dropout) or carry hooks, and for losses that need all predictions at once. A mini-batch couples
  its own points only, as a loop in PyTorch does; errors and PSNR are of all points at once.

Each answers one question, ``reason_against(task)``; the first that answers None is taken. Of an objective with
regularisers it takes the gradient of the loss, and :class:`RegularizedGradient` adds autograd's of the regularisers;
where one of these asks for the predictions, autograd takes all of it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from inrfast import backends
from inrfast.errors import NotAvailableError
from inrfast.training.engines.autograd import AutogradGradient
from inrfast.training.engines.chunked import ChunkedGradient
from inrfast.training.engines.encoded import EncodedGradient
from inrfast.training.engines.folded import FoldedGradient
from inrfast.training.engines.fused import FusedEvaluation, FusedGradient
from inrfast.training.engines.native import NativeGradient
from inrfast.training.engines.normed import NormedGradient
from inrfast.training.engines.regularized import RegularizedGradient
from inrfast.training.engines.task import Gradient, Task
from inrfast.training.engines.tensor import TensorGradient
from inrfast.training.engines.whole import WholeGradient
from inrfast.training.objective import Objective
from inrfast.training.stack import Stack

__all__ = [
    "ENGINES",
    "Gradient",
    "RegularizedGradient",
    "Taken",
    "Task",
    "engine_of",
    "evaluation_of",
    "gradient_of",
    "require_single",
]

Taken = Gradient | RegularizedGradient
"""What a fit takes its gradients from."""

ENGINES: tuple[type[Gradient], ...] = (
    FusedGradient,
    NativeGradient,
    EncodedGradient,
    TensorGradient,
    FoldedGradient,
    NormedGradient,
    ChunkedGradient,
    WholeGradient,
)
"""The fastest first."""


def engine_of(task: Task) -> tuple[type[Gradient], str | None]:
    """Return the fastest engine whose gradient is exact for a task, and why it is no faster one.

    The reason is that against the engine before it in :data:`ENGINES`; None where no other of its backend is faster.

    Raises
    ------
    NotAvailableError
        The backend was named, and its engine does not take this task; the reason is given.
    """
    slower: str | None = None
    for engine in ENGINES:
        reason = engine.reason_against(task)
        if reason is None:
            return engine, slower
        slower = reason if engine.backend in (task.backend, "torch") else None
        if engine.backend == task.backend != "torch":
            if task.named:
                raise NotAvailableError(
                    f"backend={task.backend!r} has no fused step here: {reason}; use 'torch' or 'auto'"
                )
            backends.warn_once(f"backend='auto' takes 'torch' for a fit: {reason}")
    raise AssertionError("the last engine takes every task")


def gradient_of(stack: Stack, task: Task, engine: type[Gradient] | None = None) -> Taken:
    """Return the gradient of a stack's objective by an engine; None: the fastest one that is exact.

    Regularisers that do not need the batch's predictions are differentiated beside it. A flat stack is for fused steps.
    """
    gradient: Gradient = (engine or engine_of(task)[0])(stack, task)
    if task.objective.regularizers and not isinstance(gradient, WholeGradient):
        return RegularizedGradient(gradient, stack, task)
    return gradient


def evaluation_of(stack: Stack, task: Task) -> Callable[[], Tensor]:
    """Return what measures the mean squared errors (B,) on a task's points, in eval mode and the networks' own dtype.

    It takes a share of the budget of its own, beside the steps. A link of the loss is taken first, by torch's
    operations.
    """
    link = task.objective.link
    measured = replace(task, objective=Objective(), batch=None, narrow=False, measuring=True, link=link)
    if stack.flat is not None and link is None:
        return FusedEvaluation(stack, measured).mean_square
    native: tuple[type[Gradient], ...] = (NativeGradient, EncodedGradient)
    others: tuple[type[Gradient], ...] = (TensorGradient, FoldedGradient, NormedGradient)
    for engine in (*native, *others) if link is None else others:
        if engine.reason_against(measured) is None:
            return engine(stack, measured).mean_square
    require_single(task, "evaluations")
    return AutogradGradient(stack, measured).mean_square


def require_single(task: Task, what: str) -> None:
    """Raise ``NotAvailableError`` if there are several networks where autograd takes steps or evaluations."""
    if len(task.nets) > 1:
        raise NotAvailableError(
            f"{what} of these {len(task.nets)} networks side by side, as the fit began, are native ones, which are "
            f"missing here: {NativeGradient.reason_against(task)}"
        )
