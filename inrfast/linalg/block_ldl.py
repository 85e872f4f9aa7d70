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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from inrfast.errors import RangeError, check_float, check_int
from inrfast.linalg.lower_products import add_transposed_, terms, times
from inrfast.linalg.lower_rows import LowerRows, require_room
from inrfast.linalg.operators import ASYMMETRY, UNIT, SymmetricOperator, shape_of
from inrfast.linalg.transfer import fetched, sent
from inrfast.memory import chunks
from inrfast.ops import gemm

WINDOW, WINDOW_GPU = 256, 128
"""Rows per window."""

PANEL, PANEL_GPU = 1024, 128
"""Rows per panel, a multiple of the window."""

HEIGHT_GPU = 4096
"""Rows of a block of W on a GPU, a multiple of the panel; on a CPU it is the panel."""

DEPTH = 4096
"""Directions per product of an update on a CPU: a scaled piece of the panel's rows stays in the last level of cache."""

DELAY = 0.1
"""Directions whose eigenvalue is below this share of ``|shift|`` are passed on."""

ENTRY = 4000
"""FLOP that an entry of the operator is taken to cost, for the time left."""


@dataclass(frozen=True)
class Step:
    """One window's elimination.

    Attributes
    ----------
    rows
        The operator's rows that enter.
    carried
        Directions m that earlier windows passed on, which come before the rows.
    start, kept
        The eliminated directions are numbers ``start`` to ``start + kept`` of all.
    basis
        Orthogonal (m + rows, m + rows), fp64: eliminated directions first.
    defect
        Bound on ``|basis^T basis - I|_2``.
    through
        Bound on the norm of the block of the basis from the carried directions to those passed on.
    """

    rows: slice
    carried: int
    start: int
    kept: int
    basis: Tensor
    defect: float
    through: float


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


class BlockLDL:
    """``M = G D G^T`` near ``K - shift I``.

    Attributes
    ----------
    shift
        The shift.
    pivots
        The diagonal of D (n,), fp64; no entry is zero.
    steps
        The eliminations in order.
    lower
        Blocks of rows of ``W = L D``: the rows of a window have as many columns as directions were eliminated before,
        then zeros.
    delayed
        How often a direction was passed on.
    """

    def __init__(self, shift: float, pivots: Tensor, steps: list[Step], lower: LowerRows) -> None:
        self.shift, self.pivots, self.steps, self.lower = shift, pivots, steps, lower
        self.size, self.dtype = len(pivots), lower.dtype
        self.delayed = sum(step.carried for step in steps)

    @cached_property
    def positive(self) -> int:
        """Number of positive eigenvalues of M, exact."""
        return int((self.pivots > 0).sum())

    @property
    def negative(self) -> int:
        """Number of negative eigenvalues of M, exact."""
        return self.size - self.positive

    @property
    def nbytes(self) -> int:
        """Bytes of W, of the bases and of the pivots."""
        return self.lower.nbytes + self.pivots.nbytes + sum(step.basis.nbytes for step in self.steps)

    # ---- products ----------------------------------------------------------------------------------------------

    def product(self, V: Tensor) -> Tensor:
        """Return ``M V`` for V (n, k), fp64."""
        vectors = V.t().contiguous()
        scaled = self._transposed(vectors) + self._from_rows(vectors) * self.pivots  # D G^T V
        out = self._to_rows(scaled)
        inner = scaled / self.pivots
        for rows, matrix in self._strips():
            out[:, rows] += times(matrix, inner[:, : matrix.shape[1]])
        return out.t().contiguous()

    def inverse(self, V: Tensor) -> Tensor:
        """Return ``M^-1 V`` for V (n, k), fp64."""
        vectors = V.t().contiguous()
        found, carried = torch.empty_like(vectors), vectors[:, :0]  # D^-1 G^-1 V
        for steps, before in self._groups():
            rows = slice(steps[0].rows.start, steps[-1].rows.stop)
            own = vectors[:, rows] - times(before, found[:, : before.shape[1]])
            for step in steps:
                here = slice(step.rows.start - rows.start, step.rows.stop - rows.start)
                between = slice(before.shape[1], step.start)
                mine = own[:, here] - times(self._strip(step)[:, between], found[:, between])
                turned = torch.cat([carried, mine], 1) @ step.basis
                new = slice(step.start, step.start + step.kept)
                found[:, new] = turned[:, : step.kept] / self.pivots[new]
                carried = turned[:, step.kept :]
        sums, out, carried = torch.zeros_like(vectors), torch.empty_like(vectors), vectors[:, :0]
        for steps, before in reversed(list(self._groups())):
            for step in reversed(steps):
                new = slice(step.start, step.start + step.kept)
                mine = found[:, new] - sums[:, new] / self.pivots[new]
                turned = torch.cat([mine, carried], 1) @ step.basis.t()
                carried, out[:, step.rows] = turned[:, : step.carried], turned[:, step.carried :]
                between = slice(before.shape[1], step.start)
                add_transposed_(sums[:, between], self._strip(step)[:, between], out[:, step.rows])
            rows = slice(steps[0].rows.start, steps[-1].rows.stop)
            add_transposed_(sums[:, : before.shape[1]], before, out[:, rows])
        return out.t().contiguous()

    def rounding(self) -> float:
        """Return a bound on the 2-norm of the error of :meth:`product` on a unit vector, and on a change of M (not
        symmetric, another one for every vector) for which :meth:`inverse` is exact.

        With ``w^2 >= | |W| |D|^-1 |W|^T |_2`` (the largest row sum), ``q^2 = max |D|`` and hence
        ``|G |D|^(1/2)|_2 <= q + w``, the sums over W add ``gamma w (q + w)`` on either side of D, the products with
        the bases ``e q (q + w)``, other operations a few units of ``(q + w)^2``; gamma is Higham's
        ``s u / (1 - s u)`` for sums of s additions (Accuracy and Stability of Numerical Algorithms, 2002, sections
        3.1 and 8.1). A basis of order m adds ``gamma_m sqrt(m)`` and its defect; how directions that were passed on
        gather the errors of several bases is bounded by the norms of the blocks between them (block Gershgorin).
        """
        return self._rounding

    @cached_property
    def _rounding(self) -> float:
        ones = self.pivots.new_ones(1, self.size)
        sums = self._transposed(ones, absolute=True) / self.pivots.abs()
        largest = self.pivots.new_zeros(())
        for _, matrix in self._strips():
            largest = torch.maximum(largest, times(matrix, sums[:, : matrix.shape[1]], absolute=True).max())
        below, top = torch.stack([largest.clamp_min(0), self.pivots.abs().max()]).sqrt().tolist()
        gamma = _gamma(terms(self.size, self.lower.device) + len(self.steps) + 4)
        turning = max(_gamma(len(s.basis)) * (1 + s.defect) * len(s.basis) ** 0.5 + s.defect for s in self.steps)
        turning *= _gathered(self.steps)
        whole = top + below
        # 1.01: second-order terms, and the rounding of this bound itself.
        bound = 2.02 * whole * (gamma * below + turning * top + 4 * UNIT * whole)
        return bound if math.isfinite(bound) else math.inf

    def _transposed(self, vectors: Tensor, absolute: bool = False) -> Tensor:
        """Return ``W^T`` times vectors (k, n)."""
        sums = torch.zeros_like(vectors)
        for rows, matrix in self._strips():
            add_transposed_(sums[:, : matrix.shape[1]], matrix, vectors[:, rows], absolute)
        return sums

    def _from_rows(self, vectors: Tensor) -> Tensor:
        """Return ``O^T`` times vectors (k, n)."""
        out, carried = torch.empty_like(vectors), vectors[:, :0]
        for step in self.steps:
            turned = torch.cat([carried, vectors[:, step.rows]], 1) @ step.basis
            out[:, step.start : step.start + step.kept] = turned[:, : step.kept]
            carried = turned[:, step.kept :]
        return out

    def _to_rows(self, vectors: Tensor) -> Tensor:
        """Return ``O`` times vectors (k, n)."""
        out, carried = torch.empty_like(vectors), vectors[:, :0]
        for step in reversed(self.steps):
            new = vectors[:, step.start : step.start + step.kept]
            turned = torch.cat([new, carried], 1) @ step.basis.t()
            carried, out[:, step.rows] = turned[:, : step.carried], turned[:, step.carried :]
        return out

    def _strip(self, step: Step) -> Tensor:
        """Return the rows of a window of W (rows, start)."""
        _, view = next(_views(self.lower, self.size, step.rows))
        return view[:, : step.start]

    def _groups(self) -> Iterator[tuple[list[Step], Tensor]]:
        """Yield the windows of every block of rows, and its rows of W up to where its first window starts."""
        height = len(self.lower[0])
        index = 0
        for rows in chunks(self.size, height):
            group = []
            while index < len(self.steps) and self.steps[index].rows.start < rows.stop:
                group.append(self.steps[index])
                index += 1
            yield group, self.lower[rows.start // height][:, : group[0].start]

    def _strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows and their part of W; the rows of their first windows end in zeros."""
        for steps, _ in self._groups():
            rows = slice(steps[0].rows.start, steps[-1].rows.stop)
            yield rows, self.lower[rows.start // len(self.lower[0])][:, : steps[-1].start]


def _gamma(additions: int) -> float:
    """Return Higham's gamma, the relative error of a sum of products after so many additions."""
    return additions * UNIT / (1 - additions * UNIT)


def _gathered(steps: list[Step]) -> float:
    """Return how much larger than at one basis the errors at all of them may be together.

    That is the largest row sum of ``|T_j^T T_k|`` for the isometries ``T_k`` that take an error at step k to where it
    ends: 0 where nothing is passed on from one to the other, else at most the product of ``through`` between them.
    """
    linked = [float(step.carried > 0) for step in steps]
    before, behind = [0.0], [0.0]
    for k in range(1, len(steps)):
        before.append(linked[k] * (1 + steps[k - 1].through * before[-1]))
    for k in reversed(range(len(steps) - 1)):
        behind.append(linked[k + 1] * (1 + steps[k + 1].through * behind[-1]))
    return max(1 + b + a for b, a in zip(before, reversed(behind), strict=True))


# ---- elimination -----------------------------------------------------------------------------------------------------


def sizes(
    order: int, device: torch.device, window: int | None = None, panel: int | None = None
) -> tuple[int, int, int]:
    """Return the rows of a window, of a panel and of a block of W; None: what suits the device."""
    cpu = device.type == "cpu"
    window = (WINDOW if cpu else WINDOW_GPU) if window is None else check_int("window", window, minimum=1)
    if panel is None:
        panel = window * max(1, (PANEL if cpu else PANEL_GPU) // window)
    if check_int("panel", panel, minimum=1) % window:
        raise ValueError(f"panel must be a multiple of the window, got {panel} rows and a window of {window}")
    height = panel if cpu else panel * max(1, HEIGHT_GPU // panel)
    whole = -(-order // window) * window  # a small operator needs no more
    return window, min(panel, whole), min(height, whole)


def shapes(order: int, height: int) -> list[tuple[int, int]]:
    """Return the shapes of the blocks of rows of W: as many columns as there are rows up to the last of a block."""
    return [(rows.stop - rows.start, rows.stop) for rows in chunks(order, height)]


def room(
    order: int, dtype: torch.dtype, device: torch.device, window: int | None = None, panel: int | None = None
) -> tuple[int, int]:
    """Return how many bytes a factorisation takes at most: W; the bases at their largest, and what it works in."""
    window, panel, height = sizes(order, device, window, panel)
    lower = sum(rows * columns for rows, columns in shapes(order, height)) * dtype.itemsize
    steps, widest = -(-order // window), min(2 * window, order)
    bases = (1 if steps == 1 else 4) * order * window * 8
    scaled = panel * (min(order, DEPTH) if device.type == "cpu" else order) * (dtype.itemsize + 8)
    return lower, bases + scaled + height * max(panel, widest) * dtype.itemsize + 4 * widest**2 * 8 + 8 * order


def bytes_needed(
    order: int, dtype: torch.dtype, device: torch.device, window: int | None = None, panel: int | None = None
) -> int:
    """Return how many bytes a factorisation takes at most, :func:`room` in all."""
    return sum(room(order, dtype, device, window, panel))


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
        Whether to show a bar; None: on terminals.
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
    order = shape_of(operator)
    window, panel, height = sizes(order, operator.device, window, panel)
    if out is None:
        if budget is not None:
            require_room(order, dtype, budget, lambda n, kind: room(n, kind, operator.device, window, panel))
        out = LowerRows(shapes(order, height), dtype, operator.device)
    elimination = Elimination(operator, shift, delay, window, panel, out, state)
    costs = list(_costs(order, window, panel))
    hidden = None if progress is None else not progress
    with tqdm(total=sum(costs), desc="factor", unit="FLOP", unit_scale=True, disable=hidden, leave=False) as bar:
        bar.update(sum(costs[: len(elimination.steps)]))
        while elimination.row < order:
            for _ in elimination.windows_of_a_panel():
                bar.update(costs[len(elimination.steps) - 1])
            if save is not None and elimination.row < order:
                save(elimination.state())
    return BlockLDL(shift, elimination.pivots, elimination.steps, out)


def _costs(order: int, window: int, panel: int) -> Iterator[float]:
    """Yield the FLOP of every window, with those of its panel at the first one."""
    for rows in chunks(order, panel):
        for start in range(rows.start, rows.stop, window):
            stop = min(start + window, rows.stop)
            entering = 0.0
            if start == rows.start:
                entering = (ENTRY + 2.0 * start) * (rows.stop - rows.start) * (order - start)
            own = 2.0 * (start - rows.start) * (stop - start) * (order - start)
            yield entering + own + 2.0 * (stop - start) ** 2 * (order - stop) + 50.0 * (stop - start) ** 3


def _views(lower: LowerRows, order: int, rows: slice) -> Iterator[tuple[slice, Tensor]]:
    """Yield the parts of some rows that lie in one block of W each, and their view (part, columns)."""
    height = len(lower[0])
    for block in range(rows.start // height, -(-rows.stop // height)):
        part = slice(max(rows.start, block * height), min(rows.stop, (block + 1) * height, order))
        yield part, lower[block][part.start - block * height : part.stop - block * height]


class Elimination:
    """A block LDL^T on its way.

    Attributes
    ----------
    row
        Rows that have entered.
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
        self.operator, self.shift, self.window, self.panel, self.lower = operator, shift, window, panel, lower
        self.order, self.device = shape_of(operator), operator.device
        self.unit = torch.finfo(lower.dtype).eps / 2
        largest = float(operator.diagonal().abs().max())
        if not math.isfinite(largest):
            raise ValueError("the operator must be finite, got NaN or Inf on its diagonal")
        self.delay = max(DELAY * abs(shift), self.unit * largest) if delay is None else delay
        self.row, self.start = 0, 0
        self.pivots = torch.ones(self.order, dtype=torch.float64, device=self.device)
        self.steps: list[Step] = []
        self.values = torch.empty(0, dtype=torch.float64)
        self._memory = torch.empty(0, dtype=lower.dtype, device=self.device)
        if state is not None:
            self._restore(state)

    def state(self) -> State:
        """Return all that a later run needs beside the final columns of W."""
        rest = [view[:, self.start : self.row] for _, view in self._views(self.row, self.order)]
        pivots = self.pivots[: self.start].clone()
        return State(self.row, self.start, pivots, list(self.steps), self.values, torch.cat(rest))

    def _restore(self, state: State) -> None:
        """Go on from a state."""
        self.row, self.start, self.steps, self.values = state.row, state.start, list(state.steps), state.values
        self.pivots[: self.start] = state.pivots
        for part, view in self._views(self.row, self.order):
            view[:, self.start : self.row] = state.passed[part.start - self.row : part.stop - self.row]

    def windows_of_a_panel(self) -> Iterator[None]:
        """Eliminate the next panel, one window whenever it is asked.

        The rows of a window are updated first; while they travel to the host and are diagonalised there, a GPU updates
        the rows below: one wait per window.
        """
        rows = slice(self.row, min(self.row + self.panel, self.order))
        before = self.start
        faults = self._fill(rows)
        for window in chunks(rows.stop - rows.start, self.window):
            entering = slice(rows.start + window.start, rows.start + window.stop)
            columns, depth = (entering, slice(before, self.start)) if window.start else (rows, slice(0, before))
            self._update(slice(columns.start, columns.stop), columns, depth)
            strip = next(self._views(entering.start, entering.stop))[1][:, self.start : entering.stop]
            arrived = fetched(strip) if window.start else fetched(strip, faults)
            self._update(slice(columns.stop, self.order), columns, depth)
            strip, *told = arrived()
            if told:
                _raise_faults(told[0])
            self._eliminate(entering, strip)
            yield

    def _views(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the parts of some rows that lie in one block of W each, and their view."""
        return _views(self.lower, self.order, slice(start, stop))

    def _fill(self, rows: slice) -> Tensor:
        """Write ``K - shift I`` into the columns of a panel, from its rows on; return the faults of its windows."""
        index = torch.arange(rows.start, rows.stop, device=self.device)
        targets = [(view[:, rows], part) for part, view in self._views(rows.start, self.order)]
        self.operator.blocks_(targets, index, self.lower.dtype)
        own = next(self._views(rows.start, rows.stop))[1][:, rows]
        faults = [_faults(own[part, part], self.unit) for part in chunks(len(own), self.window)]
        own.diagonal().sub_(self.shift)
        return torch.stack(faults)

    def _update(self, rows: slice, columns: slice, depth: slice) -> None:
        """Subtract what some eliminated directions contribute to the Schur complement in these rows and columns.

        The columns lie in one block of W. Rows among them are updated up to their window's diagonal block.
        """
        if rows.start >= rows.stop or depth.start >= depth.stop:
            return
        own = next(self._views(columns.start, columns.stop))[1]
        deepest = DEPTH if self.device.type == "cpu" else self.order
        for part in chunks(depth.stop - depth.start, deepest):
            some = slice(depth.start + part.start, depth.start + part.stop)
            scaled = (own[:, some].double() / -self.pivots[some]).to(self.lower.dtype).t()
            for piece, view in self._views(rows.start, rows.stop):
                inside = piece.start < columns.stop
                for these in chunks(len(view), self.window if inside else len(view)):
                    stop = min(columns.stop, piece.start + these.stop) if inside else columns.stop
                    target = view[these, columns.start : stop]
                    gemm.addmm_(target, view[these, some], scaled[:, : stop - columns.start])

    def _eliminate(self, rows: slice, strip: Tensor) -> None:
        """Diagonalise a window and eliminate its large directions.

        ``strip``: its rows (rows, m + rows) of the columns passed on and of its own, on the host.
        """
        carried, last = len(self.values), rows.stop == self.order
        count = carried + len(strip)
        corner = torch.zeros(count, count, dtype=torch.float64)
        corner[:carried].diagonal().copy_(self.values)
        corner[carried:] = strip
        if not bool(torch.isfinite(corner).all()):
            raise RangeError(
                f"the factor of K - {self.shift:g} I has NaN or Inf in rows {rows.start} to {rows.stop}: the operator "
                f"has, or entries exceed {torch.finfo(self.lower.dtype).max:.1e}; scale it, or factor it in fp64"
            )
        found, basis = torch.linalg.eigh(corner)  # reads the lower triangle
        order = found.abs().argsort(descending=True)
        found, basis = found[order], basis[:, order]
        kept = count if last else max(int((found.abs() >= self.delay).sum()), count - self.window)
        pivots = self._away_from_zero(found, last)[:kept]
        defect = float(torch.linalg.matrix_norm(basis.t() @ basis - torch.eye(count, dtype=torch.float64)))
        through = _norm_above(basis[:carried, kept:])
        step = Step(rows, carried, self.start, kept, sent(basis, self.device), defect, through)
        self.steps.append(step)
        self.pivots[self.start : self.start + kept] = sent(pivots, self.device)
        self._turn(step)
        next(self._views(rows.start, rows.stop))[1][:, self.start :].zero_()
        self.row, self.start, self.values = rows.stop, self.start + kept, found[kept:].clone()

    def _away_from_zero(self, pivots: Tensor, last: bool) -> Tensor:
        """Return a window's pivots, none smaller than rounding; what that changes of M counts in its distance to A.

        Pivots are small where too many directions would have been passed on (static pivoting: Li and Demmel, SC98), or
        in the last window, where A is singular to rounding. Zero becomes positive.
        """
        sizes = pivots.abs()
        least = max(UNIT * float(sizes.max()), torch.finfo(torch.float64).tiny ** 0.5)
        if not last:
            least = max(least, 16 * self.unit * abs(self.shift))
        return torch.where(pivots < 0, -1.0, 1.0) * sizes.clamp_min(least)

    def _turn(self, step: Step) -> None:
        """Turn the columns of a window in the rows below into its basis."""
        basis = step.basis.to(self.lower.dtype)
        for _, view in self._views(step.rows.stop, self.order):
            target = view[:, step.start : step.rows.stop]
            if self._memory.numel() < target.numel():
                self._memory = self._memory.new_empty(target.numel())
            target.copy_(gemm.mm(target, basis, self._memory[: target.numel()].view(target.shape)))


def _faults(block: Tensor, unit: float) -> Tensor:
    """Return whether a diagonal block has NaN or Inf, and whether it is not symmetric: booleans (2,)."""
    sizes = block.diagonal().abs().sqrt()
    scale = torch.maximum(torch.outer(sizes, sizes), block.abs())
    mirrored = ((block - block.t()).abs() > max(ASYMMETRY, 128 * unit) * scale).any()
    return torch.stack([~torch.isfinite(block).all(), mirrored])


def _raise_faults(faults: Tensor) -> None:
    """Raise a ValueError for what :func:`_faults` found in the windows of a panel."""
    broken, mirrored = faults.any(0).tolist()
    if broken:
        raise ValueError("the operator must be finite, got NaN or Inf among its entries")
    if mirrored:
        raise ValueError("the operator is not symmetric: its entries (i, j) and (j, i) differ")


def _norm_above(block: Tensor) -> float:
    """Return an upper bound on the 2-norm of a block of an orthogonal matrix."""
    if block.numel() == 0:
        return 0.0
    gram = block @ block.t() if block.shape[0] < block.shape[1] else block.t() @ block
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0) + 1e-12) ** 0.5
