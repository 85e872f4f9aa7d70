"""The whole engine: autograd over all points of a batch at once, for every network and loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from inrfast.errors import MemoryBudgetError
from inrfast.memory import over_budget, told
from inrfast.snapshot import twin
from inrfast.training.engines.autograd import MARGIN, PAIRS, PROBE_ROWS, AutogradGradient, kept_bytes
from inrfast.training.engines.normed import NormedGradient
from inrfast.training.engines.peaks import FRAGMENTS, Peak, held, holdable, peak_of
from inrfast.training.engines.task import MEASURED, Task, against_formula, has_hooks
from inrfast.training.objective import Batch, Objective, batch_of, blamed
from inrfast.training.stack import Stack

BESIDE = 3
"""Tensors like the largest that is kept which a pass has at hand beside what autograd keeps: the gradients on their way
back, and what an operation makes of them."""

SUSPECT = 32
"""Times what a forward pass keeps that a loss may make of it: a batch that could take its budget so is looked at."""


class WholeGradient(AutogradGradient):
    """Autograd over all points of the batch at once, exact for every network and loss.

    What a loss of the user's own takes, second derivatives and pairs of points among it, steps over few points show
    where a whole one might come near a budget that was asked for. Elsewhere, and where they cannot, the first step is
    watched, and ends where what autograd keeps would exceed the budget: a loss may count how often it is called.
    """

    name: ClassVar[str] = "whole"
    whole: ClassVar[bool] = True
    coupled: bool = True
    draws: ClassVar[bool] = True

    def __init__(self, stack: Stack, task: Task) -> None:
        super().__init__(stack, task)
        self.objective, self.trials = task.objective, task.trials
        self.parameters = [stack.owner(name) for name in stack.trainable if name not in stack.beside]
        # The share of an evaluation that has buffers of its own.
        self.beside, self.share = task.beside, MEASURED if _measured_apart(task) else 0
        self.room = self.budget - (self.budget // self.share if self.share else 0)
        self.batch = task.points
        self.watched = self._require()
        if self.batch < self.data.points:
            # Refuses before the first step what could not be measured after it.
            self._evaluation_rows(self.data.coords[0])

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`: none, for every network and loss."""
        return None

    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        index = slice(None) if batch is None else batch[0]
        self._zero_gradients()
        own = batch_of(self.data, self.net, self.objective, index, step, self.parameters)
        if self.watched:
            return self._step(own)
        modules = (self.net, *self.objective.modules)
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        graph = Graph(self.room, (own.coords, own.target, own.weight, *tensors))
        with graph.watched():
            value = self._step(own)
        self.watched = True
        if graph.ended:
            for parameter, _, _ in self.gradients:
                parameter.grad = None
            raise self._over_budget(self._peak())
        return value

    def _step(self, batch: Batch, inputs: Sequence[Tensor] | None = None) -> Tensor:
        with torch.enable_grad():
            own = self._predicted(batch)
            value = self.objective.value(own)
            try:
                value.backward(inputs=inputs)
            except RuntimeError as error:
                parameters = [parameter for parameter, _, _ in self.gradients]
                raise blamed(error, self.objective.terms, lambda: self._predicted(batch), parameters) from error
        return value.detach().double().reshape(1).cpu()

    def _predicted(self, batch: Batch) -> Batch:
        """Return a batch with its predictions, and without parameters that change in every forward pass."""
        versions = [own._version for own in batch.watched]
        prediction = self._predict(batch.coords, batch.net)
        still = [own for own, version in zip(batch.watched, versions, strict=True) if own._version == version]
        return replace(batch, prediction=prediction, watched=still)

    def _require(self) -> bool:
        """Refuse a batch that would take more than the budget; return whether one is known to take less."""
        coords = self.data.coords[0]
        few, more = min(PROBE_ROWS, self.batch), min(2 * PROBE_ROWS, self.batch)
        try:
            base, twice = (kept_bytes(self.called, coords[:count]).values() for count in (few, more))
        except Exception:  # a network that takes nothing but its full grid: the first step tells
            return False
        row = (sum(twice) - sum(base)) / (more - few) if more > few else sum(base) / few
        row += 3 * coords.element_size()
        suspect = max(SUSPECT * row * self.batch, PAIRS * coords.element_size() * self.batch**2) > self.room
        peak = self._peak() if self.trials and suspect and not has_hooks(self.net) else None
        taken = row * self.batch if peak is None else held(peak(self.batch))
        if taken > self.room:
            raise self._over_budget(self._peak() if peak is None else peak)
        return peak is not None

    def _peak(self, drawn: bool = False) -> Peak | None:
        """Return what a step takes, from steps over few points; network, loss and generators stay as they were.

        With ``drawn`` it is a step of a mini-batch, whose points are copies.
        """
        net, before = twin(self.net), [buffer.clone() for buffer in self.stack.buffers]
        inputs, kept = [parameter for parameter, _, _ in self.gradients], self.objective

        def step(count: int) -> None:
            index = self._spread(count, 0 if drawn else self.batch)
            self._step(batch_of(self.data, net, kept, index, 0), inputs)

        try:
            self.objective = kept.twin()
            return peak_of(step, self.batch, holdable(self.room))
        finally:
            self.objective = kept
            for buffer, old in zip(self.stack.buffers, before, strict=True):
                buffer.copy_(old)

    def _over_budget(self, peak: Peak | None) -> MemoryBudgetError:
        """Return the error of a step that takes more than the budget, with the size that would fit."""
        what, room = f"a step over {self.batch} points at once", holdable(self.room / MARGIN)
        smaller = peak if peak is None or self.batch < self.data.points else self._peak(drawn=True)
        fits = 0 if smaller is None else smaller.most(room, self.batch)
        if peak is None or fits == self.batch:  # it takes nothing but its full batch, or more there than few let expect
            return MemoryBudgetError(
                f"{what} exceeds the budget of {told(self.budget + self.beside)}; a smaller batch_size, a narrower "
                "network or a larger memory_budget would fit"
            )
        needed = math.ceil(MARGIN * max(held(peak(self.batch)), self.room))
        whole = self.beside + (-(-needed * self.share // (self.share - 1)) if self.share else needed) + 1
        advice = f"batch_size={fits} would fit" if fits > 0 else "a smaller network would fit"
        try:
            self._evaluation_rows(self.data.coords[0])
        except MemoryBudgetError as error:
            return over_budget(max(whole, error.needed or 0), self.budget + self.beside, what, error.instead)
        return over_budget(whole, self.budget + self.beside, what, advice)


def _measured_apart(task: Task) -> bool:
    """Return whether an evaluation has buffers of its own: an engine that is not this one takes it."""
    measured = replace(task, objective=Objective(), narrow=False)
    return against_formula(task.described) is None or NormedGradient.reason_against(measured) is None


class Graph:
    """What autograd keeps in a block, counted as it is kept; the block ends where that exceeds a budget.

    Parameters
    ----------
    budget
        Bytes that may be kept, with :data:`BESIDE` times the largest tensor.
    known
        Tensors that were there before, and do not count.
    """

    def __init__(self, budget: int, known: Iterable[Tensor | None]) -> None:
        self.budget = budget
        self.ended = False
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known if tensor is not None}
        self._kept = self._largest = 0

    @property
    def taken(self) -> int:
        """Bytes at the peak, about."""
        return int(FRAGMENTS * (self._kept + BESIDE * self._largest))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count in this block, and leave it where the budget is exceeded: then :attr:`ended` is true."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, _unchanged):
                yield
        except Exception:  # an error that passes through autograd may come out as another
            if not self.ended:
                raise

    def _keep(self, tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._seen:
            self._seen.add(place)
            self._kept += size
            self._largest = max(self._largest, size)
            if self.taken > self.budget:
                self.ended = True
                raise MemoryBudgetError("a step exceeds its budget")
        return tensor, tensor._version


def _unchanged(kept: tuple[Tensor, int]) -> Tensor:
    """Return what was kept, if it is as it was: where there are hooks, torch does not look."""
    tensor, version = kept
    if tensor._version != version:
        raise RuntimeError("a tensor needed for the gradient was changed by an inplace operation")
    return tensor
