"""What both engines by autograd share: sizes of a network's graph, the probe of its coupling, evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inrfast.calling import Called
from inrfast.memory import cached_rows, chunks, require
from inrfast.modes import modes_kept
from inrfast.pointwise import dependence, stirred_
from inrfast.snapshot import snapshot, twin
from inrfast.tangent.side_effects import changed, numbers_of
from inrfast.training.engines.layerwise import NARROW, SMALL
from inrfast.training.engines.peaks import held, holdable, peak_of
from inrfast.training.engines.task import Task, has_hooks
from inrfast.training.stack import Stack

PROBE_ROWS = 16
"""Points of a forward pass that shows what a network keeps."""

EVALUATION_BUFFERS = 3
"""Buffers of the widest layer that a forward pass without gradients is counted with."""

PAIRS = 8
"""Matrices of all pairs of points that a step may have at hand: a batch that could take its budget so is looked at."""

MARGIN = 1.05
"""Factor by which a size that is named exceeds what few points let expect."""


class AutogradGradient:
    """What both engines by autograd share: one network, measured in eval mode."""

    name: ClassVar[str] = "autograd"
    backend: ClassVar[str] = "torch"
    flat: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    coupled: bool = False
    draws: ClassVar[bool] = False
    several: ClassVar[bool] = False

    def __init__(self, stack: Stack, task: Task) -> None:
        self.stack, self.net, self.data, self.narrow = stack, stack.nets[0], task.data, task.narrow
        self.measures, self.link = not (self.whole or task.narrow), task.link
        self.budget = task.budget if task.measuring else task.room
        self.evaluation_rows: int | None = None
        self.gradients = [(stack.owner(name), grad, grad[0]) for name, grad in stack.grads.items()]
        if not task.measuring:
            self._attach()
        self.called = Called(self.net, self.data.calling)
        self.sizes = sizes_of(self.called, self.data.coords[0])
        self.one_core = task.points * self.sizes.widest <= SMALL

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return {"gradient": self.name, "products": "bf16" if self.narrow else str(self.data.target.dtype)[6:]}

    def _rows(self, batch: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.data.rows(slice(None) if batch is None else batch[0])

    def _predict(self, coords: Tensor, net: nn.Module | None = None) -> Tensor:
        with torch.autocast(coords.device.type, NARROW, enabled=self.narrow):
            return self.data.calling.predicted(net or self.net, coords).to(coords.dtype)

    def _spread(self, count: int, points: int) -> Tensor | slice:
        """Return rows from everywhere, as many as ``count``, the way a batch of ``points`` is taken."""
        stride = self.data.points // count
        if points == self.data.points:
            return slice(0, count * stride, stride)
        return torch.arange(0, count * stride, stride, device=self.data.coords.device)

    def _attach(self) -> None:
        for parameter, _, own in self.gradients:
            parameter.grad = own  # an optimiser or a loss may have put another one there

    def _zero_gradients(self) -> None:
        for _, grad, _ in self.gradients:
            grad.zero_()
        self._attach()

    @torch.no_grad()
    def mean_square(self) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        coords, target, _ = self._rows(None)
        calling = self.data.calling
        with modes_kept(self.net):
            self.net.eval()
            squares = 0.0
            for some in pieces(len(coords), self._evaluation_rows(coords)):
                values = calling.predicted(self.net, coords[some])
                values = values if self.link is None else self.link(values)
                squares += float((values - target[some]).double().square().sum())
        return torch.tensor([squares / target.numel()], dtype=torch.float64)

    def state(self) -> None:
        """See :class:`inrfast.training.engines.task.Gradient`: nothing."""

    def load(self, state: Tensor) -> None:
        """See :class:`inrfast.training.engines.task.Gradient`."""

    def _evaluation_rows(self, coords: Tensor) -> int:
        """Return how many points are measured at once: all, if the network couples them in eval mode too."""
        if self.evaluation_rows is None:
            alone = not has_hooks(self.net) and coupling(self.called, coords, training=False) is None
            if not alone:
                self._require_evaluation(coords)
            self.evaluation_rows = self._cached_rows() if alone else len(coords)
        return self.evaluation_rows

    @torch.no_grad()
    def _require_evaluation(self, coords: Tensor) -> None:
        """Refuse to measure all points at once where that would take more than the budget."""
        points, item = len(coords), coords.element_size()
        taken, pairs = EVALUATION_BUFFERS * math.ceil(self.sizes.widest) * item * points, PAIRS * item * points**2
        if pairs > self.budget and not has_hooks(self.net):
            net = twin(self.called).eval()
            peak = peak_of(lambda count: net(coords[self._spread(count, points)]), points, holdable(self.budget))
            taken = max(taken, 0 if peak is None else math.ceil(MARGIN * held(peak(points))))
        what = f"measuring a network that couples its points, or has hooks, at all {points} of them at once,"
        require(taken, self.budget, what, "fit fewer points or raise memory_budget")

    def _cached_rows(self) -> int:
        return min(cached_rows(math.ceil(self.sizes.widest), self.data.coords), self.data.points)


@torch.no_grad()
def coupling(net: nn.Module, coords: Tensor, training: bool = True) -> str | None:
    """Return what a prediction depends on beside its own point: in train mode, and as in eval mode, or in that.

    Or what a pass in train mode changes, a count of passes for instance: more of them than one a step would be another
    training. Copies are probed, so that buffers and whatever else the network keeps stay as they were, and random
    generators too; one of them with other parameters, since the fit changes them.
    """
    devices = [coords.device] if coords.device.type == "cuda" else []
    few = coords[:PROBE_ROWS]
    try:
        with torch.random.fork_rng(devices):
            copied = snapshot(net).train(training)
            before = numbers_of(copied)
            found = dependence(copied, coords, exact=True, number=len(coords))
            moved = changed(copied, before, parameters=False) or changed(copied, before, parameters=True)
            if found is None and training and moved is not None:
                return f"each of its passes in train mode changes {moved!r}"
            other = stirred_(snapshot(net)).train(training)
            found = found or dependence(other, coords, exact=True, number=len(coords))
            if found is not None or not training or torch.equal(copied(few), copied.eval()(few)):
                return found
            return "its predictions in train mode are not those in eval mode"
    except Exception as error:  # a network may take nothing but its full grid: then it is differentiated as a whole
        return f"it takes nothing but its full grid ({type(error).__name__})"


def _predicted(net: nn.Module, points: Tensor) -> Any:
    """Return predictions without a trace in the network's buffers."""
    return functional_call(net, {name: buffer.clone() for name, buffer in net.named_buffers()}, (points,))


@dataclass(frozen=True)
class Sizes:
    """What a network keeps for its backward pass, in numbers, and what it trains without keeping.

    Attributes
    ----------
    widest, kept
        Of one tensor at most, and of all, per point.
    tables
        Entries of trained parameters that the backward pass does not need: those of embeddings and hash grids, of which
        a point reads a few rows, and beside them biases and the first layer, which are small.
    """

    widest: float
    kept: float
    tables: int


def sizes_of(net: nn.Module, coords: Tensor) -> Sizes:
    """Return the sizes of a network in train mode, from forward passes over a few points (n, d)."""
    item, net = coords.element_size(), twin(net)
    parameters = {p.untyped_storage().data_ptr(): p.numel() for p in net.parameters() if p.requires_grad}
    few, more = min(PROBE_ROWS, len(coords)), min(2 * PROBE_ROWS, len(coords))
    try:
        first, second = kept_bytes(net, coords[:few]), kept_bytes(net, coords[:more])
    except Exception:  # a network that takes nothing but its full grid: by the width of its layers then
        widest = max((p.shape[-1] for p in net.parameters() if p.ndim > 0), default=1)
        return Sizes(widest, widest, 0)
    kept = [[size for place, size in own.items() if place not in parameters] for own in (first, second)]
    rows = more - few
    if rows and len(kept[0]) == len(kept[1]):
        grown = [(two - one) / rows / item for one, two in zip(*kept, strict=True)]
    else:
        grown = [size / more / item for size in kept[1]]
    return Sizes(
        max((1.0, *grown)),
        max(1.0, sum(grown)),
        sum(size for place, size in parameters.items() if place not in second),
    )


def kept_bytes(net: nn.Module, coords: Tensor) -> dict[int, int]:
    """Return the bytes that autograd keeps after a forward pass, by storage, in the order in which they came."""
    kept: dict[int, int] = {}
    held = []  # or a storage that is freed would lend its address to another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    devices = [coords.device] if coords.device.type == "cuda" else []
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks, torch.random.fork_rng(devices):
        value = _predicted(net, coords.clone())
        (value * value).sum()
    return kept


def pieces(n: int, size: int) -> Iterator[slice]:
    """Yield the slices of :func:`inrfast.memory.chunks`, none of one row alone: ``squeeze()`` would take its axis."""
    if n % size == 1 and n > size > 1:
        yield from chunks(n - size - 1, size)
        yield slice(n - size - 1, n)
    else:
        yield from chunks(n, size)
