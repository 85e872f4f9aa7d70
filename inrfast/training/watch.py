"""The tangent kernel watched in a training loop of the user's own, at a stated share of the loop's time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inrfast import notebook
from inrfast.analysis.diagnosis import RTOLS
from inrfast.arrays import ArrayLike
from inrfast.boxes import warn_of_other_box
from inrfast.calling import Select
from inrfast.errors import (
    RangeError,
    check_coords,
    check_float,
    check_int,
    check_module,
    check_seed,
    check_tensor,
    tells_arguments,
    warn,
)
from inrfast.linalg.spectrum import RankInterval
from inrfast.modes import own_modes
from inrfast.records import Record, brief, in_a_line, plain
from inrfast.snapshot import snapshot
from inrfast.training.tracked import KernelSource, check_rtols, numbers_of, subset
from inrfast.training.units import dead_units
from inrfast.wrapped import refuse_pieces, unwrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "inrfast.watch/1"

COST = 0.05
"""Share of the loop's time that watching takes where neither ``every`` nor ``cost`` is given."""

SHOWN = 12
"""Records that are printed: the first one and the last ones."""


@dataclass(frozen=True)
class WatchRecord(Record):
    """What was seen of a network after ``step`` steps of its training; the kernel is that of all outputs, summed.

    Attributes
    ----------
    step
        Steps done.
    loss
        What the loop told, or None.
    ranks
        Numbers of eigenvalues of the kernel above ``rtol lambda_1``, one interval a tolerance.
    eigenvalues
        The largest ones, descending.
    effective_rank, stable_rank
        ``exp`` of the entropy of ``lambda / trace`` (None where the computed eigenvalues do not tell it), and
        ``trace / lambda_1``; 0 for a kernel of zeros.
    trace
        Of the kernel.
    layer_shares
        The share of the trace that is each layer's own kernel's, by the layer's name; they add up to 1.
    dead_units
        The share of units that are zero at every point, of each layer with outputs of 0 and none below, as ReLU has:
        see :func:`inrfast.training.units.dead_units`. On all of the points, not only those of the kernel.
    weights_change
        ``|theta - theta_0| / |theta_0|`` over the differentiated parameters, theta_0 those of the first record; None
        where they have other shapes, or theta_0 is 0.
    seconds
        What this record took.
    """

    step: int
    loss: float | None
    ranks: tuple[RankInterval, ...]
    eigenvalues: tuple[float, ...]
    effective_rank: float | None
    stable_rank: float
    trace: float
    layer_shares: Mapping[str, float]
    dead_units: Mapping[str, float]
    weights_change: float | None
    seconds: float

    def __repr__(self) -> str:
        parts = [f"step={self.step}", f"loss={brief(self.loss)}"]
        parts.append("ranks " + ", ".join(f"{rank} at {rank.rtol:.3g}" for rank in self.ranks))
        return in_a_line("WatchRecord", [*parts, f"weights_change={brief(self.weights_change)}"])


class Watch:
    """Records of a network in training; made by :func:`watch`.

    Attributes
    ----------
    history
        The records, the first one of step 0.
    steps
        Calls of :meth:`step`.
    coords, points
        All of the points (N, d), and those of the kernel (n, d).
    rtols
        The tolerances of the ranks.
    probed
        How many times the network had to be probed in full: once, unless more than its numbers changes.
    """

    def __init__(
        self,
        net: nn.Module,
        coords: Tensor,
        points: Tensor,
        every: int | None,
        cost: float | None,
        rtols: tuple[float, ...],
        head: int,
        params: Iterable[str] | None,
        select: Select,
        given: Tensor,
    ) -> None:
        self.net, self.coords, self.points = net, coords, points
        self.every, self.cost, self.rtols, self.head = every, cost, rtols, head
        self.steps = 0
        self.history: list[WatchRecord] = []
        self._source = KernelSource(points, params, select, given)
        self._start: dict[str, Tensor] = {}
        self._diverged = False  # and said so
        self._taken, self._beside = 0.0, 0.0  # seconds of records, and of the loop's own steps
        self._record(None)
        self._last: float | None = time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # of this process's clock

    def step(self, loss: float | Tensor | None = None) -> WatchRecord | None:
        """Count a step of the loop, and return a record if it is time for one, else None.

        Between records nothing is computed, and ``loss`` is not looked at: a tensor on a GPU is not waited for. A
        network that has diverged (NaN or Inf in its parameters, or a kernel beyond fp64) has no kernel: no
        record is made, a warning says so once, and records go on when it is finite again.

        Parameters
        ----------
        loss
            The loss of this step, a number or a tensor of one.

        Raises
        ------
        UnsupportedModuleError, ValueError
            The network has become one that :func:`inrfast.ntk` refuses.
        TypeError
            The loss of a step with a record is not one number.
        """
        self.steps += 1
        now = time.perf_counter()
        self._beside += 0.0 if self._last is None else now - self._last
        record = self._record_if_finite(loss) if self._due() else None
        self._last = now if record is None else time.perf_counter()
        return record

    def _due(self) -> bool:
        if self.every is not None:
            return self.steps % self.every == 0
        assert self.cost is not None
        return self._taken + self.history[-1].seconds <= self.cost * self._beside

    @property
    def seconds(self) -> float:
        """Time taken by all records, the probes of the first one included."""
        return self._taken

    @property
    def share(self) -> float:
        """:attr:`seconds` over those of the loop's own steps until the last one; NaN before the first step."""
        return self._taken / self._beside if self._beside > 0 else math.nan

    @property
    def probed(self) -> int:
        """How many times the network was probed in full."""
        return self._source.probed

    # ---- a record ----------------------------------------------------------------------------------------------

    def _record_if_finite(self, loss: float | Tensor | None) -> WatchRecord | None:
        """Return a record, or None with a warning, once, of a network that has no finite kernel."""
        start = time.perf_counter()
        try:
            return self._record(loss)
        except RangeError as error:
            why = str(error)
        except ValueError as error:
            if type(error) is not ValueError or all(bool(own.isfinite().all()) for own in self.net.parameters()):
                raise
            why = str(error)
        self._taken += time.perf_counter() - start
        if not self._diverged:
            self._diverged = True
            warn(f"no record of the watched network after step {self.steps}, nor of others like it: {why}")
        return None

    def _record(self, loss: float | Tensor | None) -> WatchRecord:
        """Append and return a record of the network as it is now."""
        devices = [self.coords.device] if self.coords.device.type == "cuda" else []
        for device in devices:
            torch.cuda.synchronize(device)  # what waits there is the loop's own time
        start = time.perf_counter()
        with own_modes(), torch.random.fork_rng(devices):
            found = self._seen(None if loss is None else _number(loss))
        seconds = time.perf_counter() - start
        record = WatchRecord(**found, step=self.steps, seconds=seconds)
        self._taken += seconds
        self.history.append(record)
        return record

    def _seen(self, loss: float | None) -> dict[str, Any]:
        # A copy with the parameters of the network itself, for modes and buffers.
        copied = snapshot(self.net, parameters=False).eval()
        warn_of_other_box(self.net, self.coords, [copied])
        kernel = self._source.kernel(copied)
        numbers = numbers_of(kernel, self.rtols)
        traces = {name: own.trace() for name, own in kernel.layers.items()}
        total = math.fsum(traces.values())
        return {
            "loss": loss,
            "ranks": numbers.ranks,
            "eigenvalues": tuple(numbers.eigenvalues[: self.head].tolist()),
            "effective_rank": None if math.isnan(numbers.effective_rank) else numbers.effective_rank,
            "stable_rank": numbers.stable_rank,
            "trace": numbers.trace,
            "layer_shares": {name: trace / total if total > 0 else 0.0 for name, trace in traces.items()},
            "dead_units": dead_units(kernel.capture, self.points, self.coords),
            "weights_change": self._change([name for layer in kernel.specs for name in layer.parameters]),
        }

    def _change(self, names: Sequence[str]) -> float | None:
        tensors = {name: p.detach() for name, p in self.net.named_parameters() if name in names}
        if not self._start:
            self._start = {name: tensor.clone() for name, tensor in tensors.items()}
        before = self._start
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in before.items()}:
            return None
        size = _norm(before.values())
        return _norm(t.double() - before[n].double() for n, t in tensors.items()) / size if size > 0 else None

    # ---- what is told of it ------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        parts = [f"{len(self.history)} record{'s' * (len(self.history) != 1)} of {self.steps:,} steps"]
        parts.append(f"{len(self.points):,} of {len(self.coords):,} points")
        last = self.history[-1] if self.history else None
        parts += [] if last is None else [f"rank {own} at {own.rtol:.3g}" for own in (last.ranks[0], last.ranks[-1])]
        return in_a_line("Watch", parts)

    @notebook.shown
    def _repr_html_(self) -> notebook.Page:
        def figure() -> Figure:
            from inrfast.training.watch_figure import ranks

            return ranks(self)

        of = f"{len(self.points):,} of {len(self.coords):,} points, {self.seconds:.2f} s"
        return notebook.Page(f"Watched tangent kernel: {of}", _rows(self), figure=figure)

    def __str__(self) -> str:
        return _table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the records and what they are of as nested dicts and lists of plain values, fit for JSON."""
        return {
            "schema": SCHEMA,
            "points": len(self.points),
            "grid_points": len(self.coords),
            "rtols": list(self.rtols),
            "every": self.every,
            "cost": self.cost,
            "steps": self.steps,
            "seconds": self.seconds,
            "share": plain(self.share),
            "records": [record.to_dict() for record in self.history],
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a figure of the records over the steps; with ``path`` (.png, .pdf, .svg), also write it there.

        From the left: ranks at each tolerance, the largest eigenvalues, the layers' shares of the trace, and dead units
        with the change of the weights.
        """
        from inrfast.training.watch_figure import draw  # most draw nothing

        return draw(self, path)


@tells_arguments
def watch(
    net: nn.Module,
    coords: ArrayLike,
    every: int | None = None,
    cost: float | None = None,
    points: int = 512,
    rtols: Sequence[float] = RTOLS,
    head: int = 16,
    params: Iterable[str] | None = None,
    select: Select = None,
    seed: int = 0,
) -> Watch:
    """Watch the tangent kernel of a network in a training loop of your own: call ``step()`` after every update.

    The loop is left alone: records are made of a copy of the network in eval mode (batch norms with their running
    statistics, as they are), without the modes of the caller (autocast, ``no_grad``, inference mode). Gradients,
    buffers, modes, hooks and random generators stay as they are, so that training gives the same weights bit by bit.
    (Forward hooks of your own are copied with the network and see the passes of the copy.)

    A record at n points with M outputs takes ``n^2 sum(D_in + M D_out)`` FLOP, summed over layers, and some ``4/3 n^3``
    for the eigenvalues, in fp64: at 512 points of a network of four layers of width 256 about as much time as two
    steps on 4,096 points on a CPU. The probes of :func:`inrfast.ntk` are made for the first record, and once more
    only if more than numbers changes. While a unit is idle at the kernel's points, forward passes over all other points
    follow. :attr:`Watch.share` says what watching takes.

    Parameters
    ----------
    net
        Any network that :func:`inrfast.ntk` takes, in any mode. ``DistributedDataParallel`` and ``torch.compile`` are
        looked through, and names are those of the network inside.
    coords
        The points (N, d) it is trained on, or others of interest; copied.
    every
        Steps between two records.
    cost
        In place of ``every``: the largest share of the loop's own time that watching may take (0.05: 5 %), the first
        record and its probes included. A record is made as soon as it and those before fit in, if it takes no longer
        than the last one. When that is depends on the machine. Neither of the two: 0.05.
    points
        Points of the kernel at most: a subset, drawn once. Above 4,096 only the ranks are computed, as proven counts.
    rtols
        Tolerances of the ranks, relative to the largest eigenvalue.
    head
        Eigenvalues that a record keeps.
    params, select
        As in :func:`inrfast.ntk`.
    seed
        Of the subset.

    Returns
    -------
    Watch
        With the first record in :attr:`Watch.history`, that of the network as it is given.

    Raises
    ------
    UnsupportedModuleError
        What :func:`inrfast.ntk` refuses in eval mode: coupled points, random numbers, batch norms that have seen no
        batch (``inrfast.calibrate_batchnorm_``), a network in pieces (FSDP).
    ValueError, TypeError
        Both ``every`` and ``cost``; numbers out of range; other bad arguments.

    Examples
    --------
    >>> import inrfast as inr
    >>> net, coords = inr.INR(2, 1, width=16), inr.grid((8, 8))
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> watch = inr.watch(net, coords, every=5)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     loss = (net(coords) - coords.prod(1, keepdim=True)).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     record = watch.step(loss)
    >>> [record.step for record in watch.history], len(watch.history[0].ranks)
    ([0, 5, 10], 5)
    """
    check_module("net", net)
    if every is not None and cost is not None:
        raise ValueError(f"give every or cost, not both: got every={every!r} and cost={cost!r}")
    every = None if every is None else check_int("every", every, minimum=1)
    share = check_float("cost", COST if cost is None else cost, minimum=0.0, exclusive=True)
    points, head = check_int("points", points, minimum=1), check_int("head", head, minimum=1)
    rtols, seed = check_rtols(rtols), check_seed("seed", seed)
    refuse_pieces(net)
    net = unwrapped(net)
    where = next((parameter.device for parameter in net.parameters()), None)
    given = check_tensor("coords", coords, finite=False, device=where).detach()
    with own_modes():
        given = given.clone()  # the caller may reuse its memory
        flat = check_coords("coords", given)
        chosen = subset(flat, points, seed)
    return Watch(net, flat, chosen, every, share if every is None else None, rtols, head, params, select, given)


def _number(loss: Any) -> float:
    """Return a loss as a number, which may be NaN."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        loss = loss.detach()
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError):
        shape = f" of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else ""
        raise TypeError(f"loss must be one number, got {type(loss).__name__}{shape}") from None


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors))


def _table(seen: Watch) -> str:
    """Return the records as a table."""
    rows = _rows(seen)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(rows) - 1 < len(seen.history):
        lines.insert(2, f"... {len(seen.history) - len(rows) + 1} more")
    shares = ", ".join(
        f"{name or type(seen.net).__name__} {100 * share:.1f} %"
        for name, share in seen.history[-1].layer_shares.items()
    )
    of = f"{len(seen.points):,} of {len(seen.coords):,} points, {len(seen.history):,} records, {seen.seconds:.2f} s"
    told = "" if math.isnan(seen.share) else f", {100 * seen.share:,.1f} % of the time of {seen.steps:,} steps"
    return "\n".join([f"tangent kernel: {of}{told}", *lines, f"shares of the trace: {shares}"])


def _rows(seen: Watch) -> list[list[str]]:
    """Return the rows of the table, its head first: those of the first record and of the last ones."""
    head = ["step", "loss", *(f"rank {rtol:.0e}" for rtol in seen.rtols), "eff. rank", "lambda_1", "trace", "dead"]
    records = seen.history if len(seen.history) <= SHOWN else [seen.history[0], *seen.history[1 - SHOWN :]]
    return [[*head, "change", "ms"], *map(_row, records)]


def _row(record: WatchRecord) -> list[str]:
    def told(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    dead = None if not record.dead_units else max(record.dead_units.values())
    return [
        f"{record.step:,}",
        told(record.loss),
        *map(str, record.ranks),
        told(record.effective_rank),
        told(record.eigenvalues[0]),
        told(record.trace),
        told(dead, ".1%"),
        told(record.weights_change, ".2e"),
        f"{1e3 * record.seconds:.0f}",
    ]
