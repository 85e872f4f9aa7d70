"""The gradient of a fit's loss in four ways that give the same numbers: fused, layerwise, chunked, whole.

- :class:`FusedGradient`: forward and backward of INRs of one shape by Triton kernels
  (:mod:`inrfast.training.engines.fused`).
- :class:`LayerwiseGradient`: forward and backward of an :class:`inrfast.INR`, or of several of one shape, written out
  over chunks of rows that stay in cache, on a CPU natively (:mod:`inrfast.training.engines.layerwise`).
- :class:`ChunkedGradient`: autograd over such chunks, for any other network that treats its points one by one.
- :class:`WholeGradient`: autograd over the full batch, for networks that couple points (batch norm in train mode),
  draw random numbers (dropout) or carry hooks, and for losses that need all predictions at once. A mini-batch couples
  its own points only, as a loop in PyTorch does; errors and PSNR are of all points at once.

:func:`gradient_of` picks the first that is exact and runs there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inrfast.encodings import is_own
from inrfast.errors import MemoryBudgetError
from inrfast.memory import cached_rows, chunks, over_budget, require, told
from inrfast.nn import INR
from inrfast.pointwise import dependence, stirred_
from inrfast.snapshot import snapshot, twin
from inrfast.training.data import Data
from inrfast.training.engines.fused import FusedEvaluation, FusedGradient, why_not
from inrfast.training.engines.layerwise import SMALL, LayerwiseGradient
from inrfast.training.engines.passes import NARROW
from inrfast.training.engines.peaks import FRAGMENTS, Peak, held, holdable, peak_of
from inrfast.training.stack import Stack, modes_kept

Loss = str | Callable[..., Tensor]
LOSSES = ("mse",)
"""Losses known by name; all of them are means over points and outputs."""

PROBE_ROWS = 16

EVALUATION_BUFFERS = 3
"""Buffers of the widest layer that a forward pass without gradients is counted with."""

BESIDE = 3
"""Tensors like the largest that is kept which a pass has at hand beside what autograd keeps: the gradients on their way
back, and what an operation makes of them."""

SUSPECT = 32
"""Times what a forward pass keeps that a loss may make of it: a batch that could take its budget so is looked at."""

PAIRS = 8
"""Matrices of all pairs of points that a step may have at hand: likewise."""

MARGIN = 1.05
"""Factor by which a size that is named exceeds what few points let expect."""

COPIES = 6
"""Copies of a network's parameters that a fit makes: gradients, the last good weights, the best ones twice, and the two
moments of Adam."""

UNCOUNTED = 2**22
"""Bytes of such copies, and of drawn batches, that are taken as nothing beside those of the process itself."""

MEASURED = 4
"""One part in so many of the budget is for the evaluation, where it has buffers of its own."""

DRAWN_BYTES = 48
"""Bytes a point of a permutation, with what drawing it takes."""

TABLE_SHARE = 8
"""Numbers kept in a chunk per entry of tables: then adding up dense gradients takes a small part of the time."""


class Gradient(Protocol):
    """What a fit asks for: called with the rows of a batch (None: all), it fills the gradients of a stack."""

    name: str
    one_core: bool
    """Whether the calling thread's own operations are best kept to one core: they are small, or beside workers."""

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits of a gradient, beside the matrix library."""
        ...

    def __call__(self, batch: Tensor | None) -> Tensor:
        """Fill the gradients and return the losses (B,) of these rows, (B or 1, n), in fp64 on the CPU."""
        ...

    def mean_square(self) -> Tensor:
        """Return the mean squared errors (B,) of the predictions in eval mode over all points, unweighted."""
        ...


def gradient_of(
    stack: Stack,
    data: Data,
    loss: Loss = "mse",
    budget: int = 2**62,
    points: int | None = None,
    narrow: bool = False,
    cores: int | None = None,
    trials: bool = True,
) -> Gradient:
    """Return the fastest gradient that is exact for these networks and this loss.

    Parameters
    ----------
    stack
        Networks in train mode: one, or several for which :func:`is_plain` holds, of one shape; flat ones if
        :func:`against_fused` has nothing against it.
    data
        Their points, values and weights.
    loss
        ``"mse"`` or a callable of (predictions, targets) or (predictions, targets, coordinates).
    budget
        Bytes that buffers and cached encodings may take.
    points
        Most points of a step; None: all.
    narrow
        Products in bfloat16 where that is what takes the time.
    cores
        Threads at most; None takes those that torch may use now.
    trials
        Whether a loss of the user's own may be called for few points, to know what a step takes before it is taken.

    Raises
    ------
    MemoryBudgetError
        Not even one row fits; or a step over the whole batch does not, and the message says how many points would.
    """
    points = data.points if points is None else points
    net = stack.nets[0]
    if stack.flat is not None:
        return FusedGradient(stack, data, points, budget, narrow)
    beside = _copied_bytes(stack) + (DRAWN_BYTES * data.points * len(stack) if points < data.points else 0)
    beside = max(0, beside - UNCOUNTED)
    require(beside, budget - 1, "what a fit keeps beside its steps", "a smaller network or a larger memory_budget")
    budget -= beside
    if not callable(loss) and is_plain(net):
        return LayerwiseGradient(stack, data, points, budget - budget // MEASURED, narrow, cores)
    for name, grad in stack.grads.items():
        net.get_parameter(name).grad = grad[0]
    if not callable(loss) and not _has_hooks(net) and _is_pointwise(net, data.coords[0]):
        return ChunkedGradient(stack, data, points, narrow, budget)
    return WholeGradient(stack, data, loss, budget, points, narrow, beside, trials)


def _copied_bytes(stack: Stack) -> int:
    """Return the bytes of the copies that a fit makes of its networks."""
    return COPIES * sum(tensor.numel() * tensor.element_size() for tensor in stack.state)


def evaluation_of(stack: Stack, data: Data, budget: int, cores: int | None = None) -> Callable[[], Tensor]:
    """Return what measures the mean squared errors (B,) on these points, in eval mode and the networks' own dtype."""
    if stack.flat is not None:
        return FusedEvaluation(stack, data, budget).mean_square
    if is_plain(stack.nets[0]):
        budget = max(1, (budget - max(0, _copied_bytes(stack) - UNCOUNTED)) // MEASURED)
        return LayerwiseGradient(stack, data, data.points, budget, cores=cores).mean_square
    return _AutogradGradient(stack, data, data.points, narrow=False, budget=budget).mean_square


def against_fused(nets: Sequence[nn.Module], data: Data, loss: Loss, budget: int, narrow: bool) -> str | None:
    """Return why the kernels do not take these networks, stacked, and this loss; None if they do."""
    if callable(loss):
        return "the loss is no 'mse'"
    if not is_plain(nets[0]):
        return "the network is no inrfast.INR without norms, hooks and changed parts"
    return why_not(nets, data, budget, narrow)


def _has_hooks(net: nn.Module) -> bool:
    """Return whether hooks watch or change the passes: they expect the whole batch, once a step."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(module, kind, None) for module in net.modules() for kind in kinds) or any(
        getattr(parameter, kind, None) for parameter in net.parameters() for kind in on_parameters
    )


def is_plain(net: nn.Module) -> bool:
    """Return whether ``net`` is an INR without norms whose parts are the library's own, so its formula is known."""
    return (
        type(net) is INR
        and all(type(layer) is nn.Linear for layer in net.layers)
        and all(type(norm) is nn.Identity for norm in net.norms)
        and is_own(net.encoding)
        and (net.encoding is None or not any(p.requires_grad for p in net.encoding.parameters()))
        and len({(p.dtype, p.device) for p in net.parameters()}) == 1
        and not any("forward" in vars(module) or "activate" in vars(module) for module in net.modules())
        and not _has_hooks(net)
    )


@torch.no_grad()
def _is_pointwise(net: nn.Module, coords: Tensor, training: bool = True) -> bool:
    """Return whether each prediction depends on its own point alone: in train mode, and as in eval mode, or in that.

    Copies are probed, so that buffers and whatever else the network keeps stay as they were, and random generators too;
    one of them with other parameters, since the fit changes them.
    """
    devices = [coords.device] if coords.device.type == "cuda" else []
    few = coords[:PROBE_ROWS]
    try:
        with torch.random.fork_rng(devices):
            copied = snapshot(net).train(training)
            if dependence(copied, coords, exact=True, number=len(coords)) is not None:
                return False
            if dependence(stirred_(snapshot(net)).train(training), coords, exact=True) is not None:
                return False
            return not training or torch.equal(copied(few), copied.eval()(few))
    except Exception:  # a network may take nothing but its full grid: then it is differentiated as a whole
        return False


def _predicted(net: nn.Module, points: Tensor) -> Any:
    """Return predictions without a trace in the network's buffers."""
    return functional_call(net, {name: buffer.clone() for name, buffer in net.named_buffers()}, (points,))


class _AutogradGradient:
    """What both ways by autograd share: one network, measured in eval mode."""

    name: str

    def __init__(self, stack: Stack, data: Data, points: int, narrow: bool, budget: int = 2**62) -> None:
        self.stack, self.net, self.data, self.narrow, self.budget = stack, stack.nets[0], data, narrow, budget
        self.evaluation_rows: int | None = None
        self.gradients = [(self.net.get_parameter(name), grad, grad[0]) for name, grad in stack.grads.items()]
        self.sizes = sizes_of(self.net, data.coords[0])
        self.one_core = points * self.sizes.widest <= SMALL

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`Gradient`."""
        return {"gradient": self.name, "products": "bf16" if self.narrow else str(self.data.target.dtype)[6:]}

    def _rows(self, batch: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.data.rows(slice(None) if batch is None else batch[0])

    def _predict(self, coords: Tensor, net: nn.Module | None = None) -> Tensor:
        with torch.autocast(coords.device.type, NARROW, enabled=self.narrow):
            return (net or self.net)(coords).to(coords.dtype)

    def _spread(self, count: int, points: int) -> Tensor | slice:
        """Return rows from everywhere, as many as ``count``, the way a batch of ``points`` is taken."""
        stride = self.data.points // count
        if points == self.data.points:
            return slice(0, count * stride, stride)
        return torch.arange(0, count * stride, stride, device=self.data.coords.device)

    def _zero_gradients(self) -> None:
        for parameter, grad, own in self.gradients:
            grad.zero_()
            parameter.grad = own  # an optimiser or a loss may have put another one there

    @torch.no_grad()
    def mean_square(self) -> Tensor:
        """See :class:`Gradient`."""
        coords, target, _ = self._rows(None)
        with modes_kept(self.net):
            self.net.eval()
            squares = 0.0
            for some in pieces(len(coords), self._evaluation_rows(coords)):
                squares += float((self.net(coords[some]) - target[some]).double().square().sum())
        return torch.tensor([squares / target.numel()], dtype=torch.float64)

    def _evaluation_rows(self, coords: Tensor) -> int:
        """Return how many points are measured at once: all, if the network couples them in eval mode too."""
        if self.evaluation_rows is None:
            alone = not _has_hooks(self.net) and _is_pointwise(self.net, coords, training=False)
            if not alone:
                self._require_evaluation(coords)
            self.evaluation_rows = self._cached_rows() if alone else len(coords)
        return self.evaluation_rows

    @torch.no_grad()
    def _require_evaluation(self, coords: Tensor) -> None:
        """Refuse to measure all points at once where that would take more than the budget."""
        points, item = len(coords), coords.element_size()
        taken, pairs = EVALUATION_BUFFERS * math.ceil(self.sizes.widest) * item * points, PAIRS * item * points**2
        if pairs > self.budget and not _has_hooks(self.net):
            net = twin(self.net).eval()
            peak = peak_of(lambda count: net(coords[self._spread(count, points)]), points, holdable(self.budget))
            taken = max(taken, 0 if peak is None else math.ceil(MARGIN * held(peak(points))))
        what = f"measuring a network that couples its points, or has hooks, at all {points} of them at once,"
        require(taken, self.budget, what, "fit fewer points or raise memory_budget")

    def _cached_rows(self) -> int:
        return min(cached_rows(math.ceil(self.sizes.widest), self.data.coords), self.data.points)


class ChunkedGradient(_AutogradGradient):
    """Autograd of the mean squared error over chunks of rows, exact for networks that treat points one by one."""

    name = "chunked"

    def __init__(self, stack: Stack, data: Data, points: int, narrow: bool = False, budget: int = 2**62) -> None:
        super().__init__(stack, data, points, narrow)
        self.rows = self.evaluation_rows = self._cached_rows()
        # A table's gradient is dense, and added once a chunk, however few of its rows the chunk has read.
        wanted = math.ceil(TABLE_SHARE * self.sizes.tables / self.sizes.kept)
        # Twice: the backward pass has the gradients of what was kept beside it.
        affordable = max(self.rows, int(budget // (2 * self.sizes.kept * data.target.element_size())))
        rows = min(max(self.rows, wanted), affordable)
        # Two chunks gain nothing: a batch that small is at home in the caches beyond.
        self.rows = min(data.points if points <= 2 * rows and points <= affordable else rows, data.points)

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`Gradient`."""
        return {**super().layout, "rows": self.rows}

    def __call__(self, batch: Tensor | None) -> Tensor:
        """See :class:`Gradient`."""
        coords, target, weight = self._rows(batch)
        self._zero_gradients()
        total = target.numel() if weight is None else float(weight.double().expand_as(target).sum())
        squares = 0.0
        for rows in pieces(len(coords), self.rows):
            with torch.enable_grad():
                errors = (self._predict(coords[rows]) - target[rows]).square()
                square = (errors if weight is None else errors * weight[rows]).sum()
                (square / total).backward()
            squares += float(square.detach())
        return torch.tensor([squares / total], dtype=torch.float64)


class WholeGradient(_AutogradGradient):
    """Autograd over all points of the batch at once, exact for every network and loss.

    What a loss of the user's own takes, second derivatives and pairs of points among it, steps over few points show
    where a whole one might come near a budget that was asked for. Elsewhere, and where they cannot, the first step is
    watched, and ends where what autograd keeps would exceed the budget: a loss may count how often it is called.
    """

    name = "whole"

    def __init__(
        self,
        stack: Stack,
        data: Data,
        loss: Loss,
        budget: int,
        points: int,
        narrow: bool = False,
        beside: int = 0,
        trials: bool = True,
    ) -> None:
        super().__init__(stack, data, points, narrow, budget)
        self.trials = trials
        self.loss: Callable[..., Tensor] = loss if callable(loss) else nn.functional.mse_loss
        self.weighted, self.with_coords = not callable(loss), callable(loss) and takes_coords(loss)
        self.beside, self.share = beside, MEASURED if is_plain(self.net) else 0  # of an evaluation with own buffers
        self.room = budget - (budget // self.share if self.share else 0)
        self.batch = points
        self.watched = self._require()
        if points < data.points:
            self._evaluation_rows(data.coords[0])  # refuses before the first step what could not be measured after it

    def __call__(self, batch: Tensor | None) -> Tensor:
        """See :class:`Gradient`."""
        coords, target, weight = self._rows(batch)
        self._zero_gradients()
        if self.watched:
            return self._step(coords, target, weight)
        graph = Graph(self.room, (coords, target, weight, *self.net.parameters(), *self.net.buffers()))
        with graph.watched():
            value = self._step(coords, target, weight)
        self.watched = True
        if graph.ended:
            for parameter, _, _ in self.gradients:
                parameter.grad = None
            raise self._over_budget(self._peak())
        return value

    def _step(
        self,
        coords: Tensor,
        target: Tensor,
        weight: Tensor | None,
        net: nn.Module | None = None,
        inputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        with torch.enable_grad():
            if self.with_coords:
                coords = coords.detach().requires_grad_()
            arguments = (self._predict(coords, net), target, *((coords,) if self.with_coords else ()))
            if weight is not None:
                value = self.loss(*arguments, weight=weight.expand_as(target))
            else:
                value = self.loss(*arguments)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"loss must return a tensor of one element that depends on the predictions, got {got}")
            value.backward(inputs=inputs)
        return value.detach().double().reshape(1).cpu()

    def _require(self) -> bool:
        """Refuse a batch that would take more than the budget; return whether one is known to take less."""
        coords = self.data.coords[0]
        few, more = min(PROBE_ROWS, self.batch), min(2 * PROBE_ROWS, self.batch)
        try:
            base, twice = (_kept(self.net, coords[:count]).values() for count in (few, more))
        except Exception:  # a network that takes nothing but its full grid: the first step tells
            return False
        row = (sum(twice) - sum(base)) / (more - few) if more > few else sum(base) / few
        row += 3 * coords.element_size()
        suspect = max(SUSPECT * row * self.batch, PAIRS * coords.element_size() * self.batch**2) > self.room
        peak = self._peak() if self.trials and suspect and not _has_hooks(self.net) else None
        taken = row * self.batch if peak is None else held(peak(self.batch))
        if taken > self.room:
            raise self._over_budget(self._peak() if peak is None else peak)
        return peak is not None

    def _peak(self) -> Peak | None:
        """Return what a step takes, from steps over few points; network, loss and generators stay as they were."""
        net, before = twin(self.net), {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        inputs, kept = [parameter for parameter, _, _ in self.gradients], self.loss

        def step(count: int) -> None:
            self._step(*self.data.rows(self._spread(count, self.batch)), net, inputs)

        try:
            self.loss = twin(kept) if isinstance(kept, nn.Module) else kept
            return peak_of(step, self.batch, holdable(self.room))
        finally:
            self.loss = kept
            for name, buffer in self.net.named_buffers():
                buffer.copy_(before[name])

    def _over_budget(self, peak: Peak | None) -> MemoryBudgetError:
        """Return the error of a step that takes more than the budget, with the size that would fit."""
        what, room = f"a step over {self.batch} points at once", holdable(self.room / MARGIN)
        fits = 0 if peak is None else peak.most(room, self.batch)
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
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        except Exception:  # an error that passes through autograd may come out as another
            if not self.ended:
                raise

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._seen:
            self._seen.add(place)
            self._kept += size
            self._largest = max(self._largest, size)
            if self.taken > self.budget:
                self.ended = True
                raise MemoryBudgetError("a step exceeds its budget")
        return tensor


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
        first, second = _kept(net, coords[:few]), _kept(net, coords[:more])
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


def _kept(net: nn.Module, coords: Tensor) -> dict[int, int]:
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


def takes_coords(loss: Callable[..., Any]) -> bool:
    """Return whether a loss asks for a third argument, the coordinates."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # some callables of C have no signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) >= 3
