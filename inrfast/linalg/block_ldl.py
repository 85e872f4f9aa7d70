"""Block LDL^T of a shifted symmetric operator with delayed directions: its inertia, products and inverse.

Windows of rows are taken in order. The Schur complement of a window, with the directions that earlier windows passed
on, is diagonalised in fp64; directions with a large eigenvalue are eliminated, the others passed on to the next window
(delayed pivots, as in sparse indefinite solvers: Duff and Reid, ACM Trans. Math. Softw. 9(3), 1983). What was computed
is ``M = G D G^T`` with D diagonal and ``G = O + W D^-1``, O the product of the windows' orthogonal bases, W below them.
G is nonsingular. So by Sylvester's law M has exactly as many positive eigenvalues as D has positive entries, whatever
was rounded on the way; how far M is from ``K - shift I`` is measured afterwards (:mod:`inrfast.linalg.inertia`).

The columns of several windows, a panel, are filled from the operator at once and updated by all earlier directions in
large products; then every window is updated by those of its own panel. All of it happens where W will lie: the columns
``start`` to ``row`` of the rows to come hold what was passed on, the next ones the panel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from inrfast.errors import RangeError, check_float, check_int
from inrfast.linalg.ldl_factor import BlockLDL, Step, views_of
from inrfast.linalg.lower_rows import LowerRows, require_room
from inrfast.linalg.operators import ASYMMETRY, UNIT, SymmetricOperator, shape_of, shifted_name
from inrfast.linalg.partition import Window
from inrfast.linalg.transfer import fetched, sent
from inrfast.memory import chunks
from inrfast.ops import gemm
from inrfast.progress import progress_bar

WINDOW = 128
"""Rows per window: on a CPU twice as many spend more on eigenvectors, half as many more on small products."""

PANEL, PANEL_GPU = 1024, 128
"""Rows per panel at most, a multiple of the window."""

PANELS = 8
"""Smallest number of panels on a CPU, where there are as many windows: fewer, and W takes much more than half of the
matrix, as its blocks of rows are squares at the end."""

HEIGHT_GPU = 4096
"""Rows of a block of W on a GPU, whole panels: one product with a block should fill it. At most half of a process's
rows, or W would take much more than half of the matrix. On a CPU it is the panel."""

DEPTH = 4096
"""Directions per product of an update on a CPU: a scaled piece of the panel's rows stays in the last level of cache."""

DELAY = 0.1
"""Directions whose eigenvalue is below this share of ``|shift|`` are passed on."""

FAULTS = (
    "the operator must be finite, got NaN or Inf among its entries",
    "the operator is not symmetric: its entries (i, j) and (j, i) differ",
)
"""What a diagonal block may show of an operator."""

OVERFLOW = len(FAULTS)
"""The fault of a window whose entries are beyond the range of W."""

RANGE_SINGLE = (1e-30, 1e37)
"""Sizes that the largest entry of a factor in fp32 may have: small ones and sums keep all their digits."""

ENTRY = 4000
"""FLOP that an entry of the operator is taken to cost, for the time left."""


@dataclass
class State:
    """A factorisation after a whole number of panels.

    Attributes
    ----------
    row
        Rows that have entered.
    start
        Directions eliminated. The columns before of all rows of W are final.
    pivots
        Their entries of D (start,), fp64.
    steps
        The eliminations.
    values
        Entries of D (m,), fp64, on the host, of the directions passed on.
    passed
        Their columns (n - row, m) in the rows to come, in the dtype of W.
    """

    row: int
    start: int
    pivots: Tensor
    steps: list[Step]
    values: Tensor
    passed: Tensor


@dataclass(frozen=True)
class Directions:
    """The eigenvectors of a window.

    Attributes
    ----------
    values, basis
        Eigenvalues (m,), the largest in size first, and eigenvectors (m, m), fp64, on the host.
    kept
        So many of them are eliminated.
    defect, through
        As in :class:`Step`.
    fault
        The number of what was wrong: one of :data:`FAULTS`, or :data:`OVERFLOW`; -1: nothing.
    """

    values: Tensor
    basis: Tensor
    kept: int
    defect: float
    through: float
    fault: int = -1

    def packed(self) -> Tensor:
        """Return everything as one tensor, to be sent."""
        numbers = self.values.new_tensor([self.kept, self.defect, self.through, self.fault])
        return torch.cat([self.values, self.basis.flatten(), numbers])

    @classmethod
    def unpacked(cls, numbers: Tensor) -> Directions:
        """Return what was packed."""
        count = math.isqrt(len(numbers) - 4)  # m^2 + m numbers lie between m^2 and (m + 1)^2
        values, basis, rest = numbers.split([count, count * count, 4])
        kept, defect, through, fault = rest.tolist()
        return cls(values, basis.view(count, count), int(kept), defect, through, int(fault))


def sizes(
    order: int, device: torch.device, window: int | None = None, panel: int | None = None, processes: int = 1
) -> tuple[int, int, int]:
    """Return the rows of a window, of a panel and of a block of W; None: what suits the device."""
    cpu = device.type == "cpu"
    window = WINDOW if window is None else check_int("window", window, minimum=1)
    if panel is None:
        most = min(PANEL, order // PANELS) if cpu else PANEL_GPU
        panel = window * max(1, most // window)
    if check_int("panel", panel, minimum=1) % window:
        raise ValueError(f"panel must be a multiple of the window, got {panel} rows and a window of {window}")
    height = panel if cpu else panel * max(1, min(HEIGHT_GPU, order // (2 * processes)) // panel)
    whole = -(-order // window) * window  # a small operator needs no more
    return window, min(panel, whole), min(height, whole)


def shapes(order: int, height: int) -> list[tuple[int, int]]:
    """Return the shapes of the blocks of rows of W: as many columns as there are rows up to the last of a block."""
    return [(rows.stop - rows.start, rows.stop) for rows in chunks(order, height)]


def shapes_here(panels: Sequence[Window], rank: int, height: int) -> list[tuple[int, int]]:
    """Return the same of one of several processes, where rows enter by panels of theirs."""
    before = [0, *accumulate(map(len, panels))]
    columns = {each.rows.stop: end for each, end in zip(panels, before[1:], strict=True) if each.owner == rank}
    blocks = chunks(max(columns), height)
    return [(rows.stop - rows.start, columns[rows.stop]) for rows in blocks]


def room(
    order: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None = None,
    panel: int | None = None,
    processes: int = 1,
) -> tuple[int, int]:
    """Return how many bytes a factorisation takes at most: W; the bases at their largest, and what it works in.

    Where processes share the rows, it is what all of them take.
    """
    window, panel, height = sizes(order, device, window, panel, processes)
    lower = sum(rows * columns for rows, columns in shapes(order, processes * height)) * dtype.itemsize
    steps, widest = -(-order // window), min(2 * window, order)
    bases = (1 if steps == 1 else 4) * order * window * 8
    scaled = panel * (min(order, DEPTH) if device.type == "cpu" else order) * (dtype.itemsize + 8)
    rest = bases + scaled + height * max(panel, widest) * dtype.itemsize + 4 * widest**2 * 8 + 8 * order
    received = 0 if processes == 1 else scaled + 2 * widest**2 * 8
    return lower, processes * (rest + received)


def bytes_needed(
    order: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None = None,
    panel: int | None = None,
    processes: int = 1,
) -> int:
    """Return how many bytes a factorisation takes at most, :func:`room` in all."""
    return sum(room(order, dtype, device, window, panel, processes))


def block_ldl(
    operator: SymmetricOperator,
    shift: float,
    dtype: torch.dtype,
    delay: float | None = None,
    window: int | None = None,
    panel: int | None = None,
    out: LowerRows | None = None,
    budget: int | None = None,
    progress: bool | None = None,
    state: State | None = None,
    save: Callable[[State], None] | None = None,
) -> BlockLDL:
    """Factor ``K - shift I``, its entries rounded to ``dtype``.

    An interrupt leaves what was saved as it is: later panels write only what was not final.

    Parameters
    ----------
    operator
        K, symmetric; each pair of rows is asked for once, through ``blocks_``.
    shift
        Any finite number.
    dtype
        Of the factor: fp32 or fp64.
    delay
        Directions with a smaller eigenvalue are passed on, at most a window's number of them; None: :data:`DELAY` of
        ``|shift|``, and not below the rounding of the largest entry.
    window
        Rows per window; None: what suits the device.
    panel
        Rows per panel, a multiple of the window; None: what suits the device.
    out
        Blocks of the shapes of :func:`shapes` that W is written to; None: new memory.
    budget
        Bytes that :func:`bytes_needed` may not exceed, where ``out`` is None.
    progress
        Whether to show a bar; None: on a terminal and in a notebook.
    state
        What ``save`` was given by a run with the same arguments that wrote to ``out``: goes on from there.
    save
        Called after every panel but the last.

    Raises
    ------
    MemoryBudgetError
        More bytes are needed than ``budget``.
    ValueError
        The operator has NaN or Inf entries, or is not symmetric.
    RangeError
        Entries of the factor are beyond the range of ``dtype``.
    """
    check_float("shift", shift)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    order, partition = shape_of(operator), operator.partition
    window, panel, height = sizes(order, operator.device, window, panel, partition.processes)
    if out is None:
        if budget is not None:
            shared = partition.processes
            bytes_of = partial(room, device=operator.device, window=window, panel=panel, processes=shared)
            require_room(order, dtype, budget, bytes_of)
        with partition.all_or_none():
            blocks = shapes_here(partition.windows(panel), partition.rank, height)
            out = LowerRows(blocks, dtype, operator.device)
    elimination = Elimination(operator, shift, delay, window, panel, out, state)
    costs = list(_costs(order, window, elimination.panels))
    with progress_bar(
        total=sum(costs), desc="factor", unit="FLOP", unit_scale=True, progress=progress, leave=False
    ) as bar:
        bar.update(sum(costs[: len(elimination.steps)]))
        while elimination.row < order:
            for _ in elimination.windows_of_a_panel():
                bar.update(costs[len(elimination.steps) - 1])
            if save is not None and elimination.row < order:
                save(elimination.state())
    return BlockLDL(shift, elimination.pivots, elimination.steps, out, partition)


def _costs(order: int, window: int, panels: Sequence[Window]) -> Iterator[float]:
    """Yield the FLOP of every window, with those of its panel at the first one."""
    for begin, panel in zip(accumulate(map(len, panels), initial=0), panels, strict=False):
        for part in chunks(len(panel), window):
            start, stop = begin + part.start, begin + part.stop
            entering = (ENTRY + 2.0 * start) * len(panel) * (order - start) if start == begin else 0.0
            own = 2.0 * (start - begin) * (stop - start) * (order - start)
            yield entering + own + 2.0 * (stop - start) ** 2 * (order - stop) + 50.0 * (stop - start) ** 3


class Elimination:
    """A block LDL^T on its way.

    Rows enter in the order of the partition's windows: those of one process as they are numbered, those of several in
    turn. Columns of W are numbered as rows enter.

    Attributes
    ----------
    panels
        The panels in order, each of rows of one process.
    row
        Rows that have entered.
    entered
        Those of them that are here, the first ones of this process.
    start
        Directions eliminated.
    pivots
        The diagonal of D (n,), fp64: one where nothing was eliminated yet.
    steps
        The eliminations.
    values
        Entries of D (m,), fp64, on the host, of the directions passed on; ``start + m = row``.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        shift: float,
        delay: float | None,
        window: int,
        panel: int,
        lower: LowerRows,
        state: State | None,
    ) -> None:
        self.operator, self.shift, self.window, self.lower = operator, shift, window, lower
        self.order, self.device, self.partition = shape_of(operator), operator.device, operator.partition
        self.panels = self.partition.windows(panel)
        self.height = self.partition.stop - self.partition.start
        self.unit = torch.finfo(lower.dtype).eps / 2
        largest = largest_entry(operator, shift, lower.dtype)
        self.delay = max(DELAY * abs(shift), self.unit * largest) if delay is None else delay
        self.row = self.entered = self.start = 0
        self.pivots = torch.ones(self.order, dtype=torch.float64, device=self.device)
        self.steps: list[Step] = []
        self.values = torch.empty(0, dtype=torch.float64)
        self._memory = torch.empty(0, dtype=lower.dtype, device=self.device)
        if state is not None:
            self._restore(state)

    def state(self) -> State:
        """Return all that a later run needs beside the final columns of W; of a run of one process."""
        rest = [view[:, self.start : self.row] for _, view in self._views(self.entered, self.height)]
        pivots = self.pivots[: self.start].clone()
        return State(self.row, self.start, pivots, list(self.steps), self.values, torch.cat(rest))

    def _restore(self, state: State) -> None:
        """Go on from a state."""
        self.row = self.entered = state.row
        self.start, self.steps, self.values = state.start, list(state.steps), state.values
        self.pivots[: self.start] = state.pivots
        for part, view in self._views(self.entered, self.height):
            view[:, self.start : self.row] = state.passed[part.start - self.row : part.stop - self.row]

    def windows_of_a_panel(self) -> Iterator[None]:
        """Eliminate the next panel, one window whenever it is asked.

        The rows of a window are updated first; while they travel to the host and are diagonalised there, a GPU updates
        the rows below: one wait per window.
        """
        ends = accumulate(map(len, self.panels))
        panel = next(each for each, end in zip(self.panels, ends, strict=True) if end > self.row)
        first, before, mine = self.row, self.start, panel.owner == self.partition.rank
        told = self._fill(panel)
        for window in chunks(len(panel), self.window):
            columns = slice(self.row, first + (window.stop if window.start else len(panel)))
            depth = slice(before, self.start) if window.start else slice(0, before)
            own = slice(self.entered, self.entered + (columns.stop - columns.start if mine else 0))
            arrived = None
            for some in self._pieces(depth):
                scaled = self._scaled(panel.owner, own, columns, some)
                self._update(own, columns, some, scaled, inside=True)
                if mine:
                    strip = self._view(own.start, own.start + window.stop - window.start)
                    arrived = fetched(strip[:, self.start : first + window.stop], *told)
                self._update(slice(own.stop, self.height), columns, some, scaled)
            rows = slice(panel.index.start + window.start, panel.index.start + window.stop)
            found = None if arrived is None else self._diagonalised(*arrived())
            self._eliminate(rows, panel.owner, self._agreed(rows, panel.owner, found))
            told = ()
            yield

    def _views(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the parts of some rows here that lie in one block of W each, and their view."""
        return views_of(self.lower, slice(start, stop))

    def _view(self, start: int, stop: int) -> Tensor:
        """Return the view of some rows here that lie in one block of W."""
        return next(self._views(start, stop))[1]

    def _pieces(self, depth: slice) -> list[slice]:
        """Return parts of some directions that are taken together in an update; an empty one where there are none."""
        deepest = DEPTH if self.device.type == "cpu" else self.order
        parts = chunks(depth.stop - depth.start, deepest)
        return [slice(depth.start + p.start, depth.start + p.stop) for p in parts] or [depth]

    def _fill(self, panel: Window) -> tuple[Tensor, ...]:
        """Write ``K - shift I`` into the columns of a panel, from its rows on.

        Its owner gets the faults of its windows.
        """
        columns = slice(self.row, self.row + len(panel))
        index = torch.arange(panel.index.start, panel.index.stop, device=self.device)
        targets = [(view[:, columns], part) for part, view in self._views(self.entered, self.height)]
        self.operator.blocks_(targets, index, self.lower.dtype)
        if panel.owner != self.partition.rank:
            return ()
        own = self._view(panel.rows.start, panel.rows.stop)[:, columns]
        faults = [_faults(own[part, part], self.unit) for part in chunks(len(own), self.window)]
        own.diagonal().sub_(self.shift)
        return (torch.stack(faults).any(0),)

    def _scaled(self, owner: int, own: slice, columns: slice, some: slice) -> Tensor:
        """Return minus the rows of W at some columns, in some eliminated directions, divided by the pivots: transposed.

        They are sent by their owner, where they are the rows ``own``.
        """
        shape = columns.stop - columns.start, some.stop - some.start
        if owner == self.partition.rank:
            rows = self._view(own.start, own.stop)[:, some]
        else:
            rows = torch.empty(shape, dtype=self.lower.dtype, device=self.device)
        if some.start < some.stop:
            rows = self.partition.from_owner(owner, rows)
        return (rows * self.pivots[some].reciprocal().neg_().to(self.lower.dtype)).t()

    def _update(self, rows: slice, columns: slice, some: slice, scaled: Tensor, inside: bool = False) -> None:
        """Subtract what some eliminated directions contribute to the Schur complement in these rows and columns.

        Rows that are the columns themselves, ``inside``, are updated up to their window's diagonal block.
        """
        if rows.start >= rows.stop or some.start >= some.stop:
            return
        for piece, view in self._views(rows.start, rows.stop):
            for these in chunks(len(view), self.window if inside else len(view)):
                end = columns.start + piece.start - rows.start + these.stop
                stop = min(columns.stop, end) if inside else columns.stop
                target = view[these, columns.start : stop]
                gemm.addmm_(target, view[these, some], scaled[:, : stop - columns.start])

    def _diagonalised(self, strip: Tensor, faults: Tensor | None = None) -> Directions:
        """Diagonalise a window.

        ``strip``: its rows (rows, m + rows) of the columns passed on and of its own, on the host; ``faults``: whether
        the operator has NaN or Inf there, or is not symmetric.
        """
        carried = len(self.values)
        count = carried + len(strip)
        corner = torch.zeros(count, count, dtype=torch.float64)
        corner[:carried].diagonal().copy_(self.values)
        corner[carried:] = strip
        told = [] if faults is None else faults.nonzero()[:, 0].tolist()
        fault = told[0] if told else OVERFLOW
        if told or not bool(torch.isfinite(corner).all()):
            return Directions(self.values.new_zeros(count), corner.zero_(), 0, 0.0, 0.0, fault)
        found, basis = torch.linalg.eigh(corner)  # reads the lower triangle
        order = found.abs().argsort(descending=True)
        found, basis = found[order], basis[:, order]
        last = self.row + len(strip) == self.order
        kept = count if last else max(int((found.abs() >= self.delay).sum()), count - self.window)
        defect = float(torch.linalg.matrix_norm(basis.t() @ basis - torch.eye(count, dtype=torch.float64)))
        return Directions(found, basis, kept, defect, _norm_above(basis[:carried, kept:]))

    def _agreed(self, rows: slice, owner: int, found: Directions | None) -> Directions:
        """Return what the owner of some rows found, in every process; raise its faults in all of them."""
        if not self.partition.whole:
            count = len(self.values) + rows.stop - rows.start
            numbers = torch.empty(count * count + count + 4, dtype=torch.float64) if found is None else found.packed()
            numbers = self.partition.from_owner(owner, numbers.to(self.device)).cpu()
            found = Directions.unpacked(numbers)
        assert found is not None
        fault = found.fault
        if fault == 0 and self.lower.dtype == torch.float32:
            index = torch.arange(rows.start, rows.stop, device=self.device)
            fault = OVERFLOW if bool(torch.isfinite(self.operator.submatrix(index)).all()) else 0
        if fault == OVERFLOW:
            single = self.lower.dtype == torch.float32
            instead = 'factor it in fp64 (precision="highest")' if single else "scale it"
            raise RangeError(
                f"the factor of {shifted_name(self.shift)} has NaN or Inf in rows {rows.start} to {rows.stop}: the "
                f"operator has, or entries exceed {torch.finfo(self.lower.dtype).max:.1e}; {instead}"
            )
        if fault >= 0:
            raise ValueError(FAULTS[fault])
        return found

    def _eliminate(self, rows: slice, owner: int, found: Directions) -> None:
        """Eliminate the large directions of a window."""
        carried, kept, count = len(self.values), found.kept, rows.stop - rows.start
        pivots = self._away_from_zero(found.values, self.row + count == self.order)[:kept]
        basis = sent(found.basis, self.device)
        step = Step(rows, carried, self.start, kept, basis, found.defect, found.through, owner)
        self.steps.append(step)
        self.pivots[self.start : self.start + kept] = sent(pivots, self.device)
        if owner == self.partition.rank:
            self._view(self.entered, self.entered + count)[:, self.start :].zero_()
            self.entered += count
        self.row += count
        self._turn(step)
        self.start, self.values = self.start + kept, found.values[kept:].clone()

    def _away_from_zero(self, pivots: Tensor, last: bool) -> Tensor:
        """Return a window's pivots, none smaller than rounding; what that changes of M counts in its distance to A.

        Pivots are small where too many directions would have been passed on (static pivoting: Li and Demmel, SC98), or
        in the last window, where A is singular to rounding. Zero becomes positive.
        """
        sizes = pivots.abs()
        least = max(UNIT * float(sizes.max()), torch.finfo(torch.float64).tiny ** 0.5)
        least = max(least, torch.finfo(self.lower.dtype).tiny)  # its reciprocal is in range
        if not last:
            least = max(least, 16 * self.unit * abs(self.shift))
        return torch.where(pivots < 0, -1.0, 1.0) * sizes.clamp_min(least)

    def _turn(self, step: Step) -> None:
        """Turn the columns of a window in the rows below into its basis."""
        basis = step.basis.to(self.lower.dtype)
        for _, view in self._views(self.entered, self.height):
            target = view[:, step.start : self.row]
            if self._memory.numel() < target.numel():
                self._memory = self._memory.new_empty(target.numel())
            target.copy_(gemm.mm(target, basis, self._memory[: target.numel()].view(target.shape)))


def largest_entry(operator: SymmetricOperator, shift: float, dtype: torch.dtype) -> float:
    """Return the largest size on the diagonal of K, if a factor of ``K - shift I`` in this dtype may hold it.

    Raises
    ------
    ValueError
        NaN or Inf is there.
    RangeError
        With the shift, it is outside the range of fp32, and that is the dtype.
    """
    largest = float(operator.partition.largest(operator.diagonal().abs().max()))
    if not math.isfinite(largest):
        raise ValueError("the operator must be finite, got NaN or Inf on its diagonal")
    size, (least, most) = max(largest, abs(shift)), RANGE_SINGLE
    if dtype == torch.float32 and (0 < size < least or size > most):
        raise RangeError(
            f"the factor of {shifted_name(shift)} would hold fp32 numbers near {size:.1e}, outside the range from "
            f'{least:g} to {most:g} in which fp32 has all its digits; factor it in fp64 (precision="highest")'
        )
    return largest


def _faults(block: Tensor, unit: float) -> Tensor:
    """Return whether a diagonal block has NaN or Inf, and whether it is not symmetric: booleans (2,)."""
    sizes = block.diagonal().abs().sqrt()
    scale = torch.maximum(torch.outer(sizes, sizes), block.abs())
    mirrored = ((block - block.t()).abs() > max(ASYMMETRY, 128 * unit) * scale).any()
    return torch.stack([~torch.isfinite(block).all(), mirrored])


def _norm_above(block: Tensor) -> float:
    """Return an upper bound on the 2-norm of a block of an orthogonal matrix."""
    if block.numel() == 0:
        return 0.0
    gram = block @ block.t() if block.shape[0] < block.shape[1] else block.t() @ block
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0) + 1e-12) ** 0.5
