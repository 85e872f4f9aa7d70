"""Which candidates of a block become pivots, and their Cholesky factor: one program that walks them in their order.

Accepting is sequential: a candidate is judged by what those kept before have left of its diagonal. Candidates are
taken in panels. A panel's own residual is a small matrix product with the factor so far; in it, the program goes from
one kept candidate to the next; then all rows after the panel get their entries of the new columns, again by products.
So the steps that wait for each other are as many as pivots, and touch nothing but the panel, which is in registers.
The same call gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inrfast.kernels import tiles

PANEL, ROWS, DEPTH, WARPS, STAGES = tiles.SIZES["accept_pivots", "fp64", "any"][0]
"""Candidates at once, rows after the panel that are brought up to date at once, columns of the factor that a product
takes at once, warps, loads in flight."""

SHARED = 50 * 1024
"""Bytes of shared memory that the program may take; every supported GPU has more."""


@triton.jit
def _column(matrix, at, SIZE: tl.constexpr):
    """Return column ``at`` of a square matrix in registers."""
    return tl.sum(tl.where(tl.arange(0, SIZE)[None, :] == at, matrix, 0.0), 1)


@triton.jit
def _row(matrix, at, SIZE: tl.constexpr):
    """Return row ``at`` of a square matrix in registers."""
    return tl.sum(tl.where(tl.arange(0, SIZE)[:, None] == at, matrix, 0.0), 0)


@triton.jit
def _product(factor, stride, rows, others, depth, ROWS: tl.constexpr, OTHERS: tl.constexpr, DEPTH: tl.constexpr,
             STAGES: tl.constexpr):  # fmt: skip
    """Return ``F[rows, :depth] F[others, :depth]^T``; every row is there, columns from ``depth`` on are not."""
    columns = tl.arange(0, DEPTH)
    total = tl.zeros((ROWS, OTHERS), tl.float64)
    for start in tl.range(0, depth, DEPTH, num_stages=STAGES):
        here = tl.cast(start, tl.int64) + columns
        left = tl.load(factor + rows[:, None] * stride + here[None, :], mask=(here < depth)[None, :], other=0.0)
        right = tl.load(factor + others[None, :] * stride + here[:, None], mask=(here < depth)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total


@triton.jit(do_not_specialize=["count", "wanted"])
def accept_pivots(
    kept,
    order,
    factor,
    left,
    block,
    candidates,
    weights,
    lots,
    count,
    wanted,
    LEAST: tl.constexpr,
    PANEL: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the places of the candidates kept, in their order, to ``order``, and their number to ``kept``.

    ``block`` (count, count) is the residual at the candidates, ``left`` (count,) its diagonal, which is used up.
    ``factor`` (count, wanted) gets the columns of the kept ones at all rows from their own panel on; rows before are
    left alone, and what stands in a kept row after its own column is rounding.
    """
    members = tl.arange(0, PANEL)
    size = tl.cast(count, tl.int64)
    stride = tl.cast(wanted, tl.int64)
    identity = tl.where(members[:, None] == members[None, :], 1.0, 0.0).to(tl.float64)
    taken = 0
    start = 0
    while (start < count) & (taken < wanted):
        rows = tl.cast(start, tl.int64) + members
        inside = rows < size
        held = tl.minimum(rows, size - 1)
        names = tl.load(candidates + held)
        weight = tl.load(weights + held)
        lot = tl.load(lots + held)
        rest = tl.where(inside, tl.load(left + held), 0.0)
        panel = tl.load(block + held[:, None] * size + held[None, :])
        panel -= _product(factor, stride, held, held, taken, PANEL, PANEL, DEPTH, STAGES)

        # The kept ones of the panel: their places, their rows of the factor, and the inverse of its corner.
        places = tl.zeros((PANEL,), tl.int64)
        columns = tl.zeros((PANEL, PANEL), tl.float64)
        corner = identity
        inverse = identity
        new = 0
        last = -1
        searching = True
        while searching:
            share = tl.where(weight > 0, rest / tl.where(weight > 0, weight, 1.0), 0.0)
            good = inside & (members > last) & (share > LEAST) & (lot < share)
            at = tl.min(tl.where(good, members, PANEL), 0)
            searching = (at < PANEL) & (taken + new < wanted)
            if searching:
                chosen = members == at
                root = tl.sqrt(tl.sum(tl.where(chosen, rest, 0.0), 0))
                column = tl.where(chosen, root, _column(panel, at, PANEL) / root)
                panel -= column[:, None] * column[None, :]
                name = tl.sum(tl.where(chosen, names, 0), 0)
                rest = tl.where(names == name, 0.0, rest - column * column)
                next_column = tl.cast(taken, tl.int64) + new
                tl.store(factor + held * stride + next_column, column, mask=inside)
                tl.store(order + next_column, tl.cast(start + at, tl.int64))
                columns = tl.where(members[None, :] == new, column[:, None], columns)
                own = _row(columns, at, PANEL)
                corner = tl.where(members[:, None] == new, own[None, :], corner)
                before = tl.where(members < new, own, 0.0)
                unit = tl.where(members == new, 1.0, 0.0)
                solved = (unit - tl.sum(before[:, None] * inverse, 0)) / root
                inverse = tl.where(members[:, None] == new, solved[None, :], inverse)
                places = tl.where(members == new, start + at, places)
                new += 1
                last = at
        tl.debug_barrier()

        if new > 0:
            # Unused members repeat the first one; their columns are left out where it counts.
            used = members < new
            first = tl.sum(tl.where(members == 0, places, 0), 0)
            places = tl.where(used, places, first)
            chosen_names = tl.load(candidates + places)
            for begin in range(start + PANEL, count, ROWS):
                later = tl.cast(begin, tl.int64) + tl.arange(0, ROWS)
                there = later < size
                rows_held = tl.minimum(later, size - 1)
                wide = tl.load(block + rows_held[:, None] * size + places[None, :])
                wide -= _product(factor, stride, rows_held, places, taken, ROWS, PANEL, DEPTH, STAGES)
                wide = tl.where(used[None, :], wide, 0.0)
                # A product with the inverse, and a step of refinement, which makes it as exact as a substitution.
                turned = tl.trans(inverse)
                found = tl.dot(wide, turned, input_precision="ieee", out_dtype=tl.float64)
                missing = wide - tl.dot(found, tl.trans(corner), input_precision="ieee", out_dtype=tl.float64)
                found += tl.dot(missing, turned, input_precision="ieee", out_dtype=tl.float64)
                into = factor + rows_held[:, None] * stride + (tl.cast(taken, tl.int64) + members)[None, :]
                tl.store(into, found, mask=there[:, None] & used[None, :])
                remaining = tl.load(left + rows_held) - tl.sum(found * found, 1)
                later_names = tl.load(candidates + rows_held)
                again = tl.max(((later_names[:, None] == chosen_names[None, :]) & used[None, :]).to(tl.int32), 1) > 0
                tl.store(left + rows_held, tl.where(again, 0.0, remaining), mask=there)
            tl.debug_barrier()
        taken += new
        start += PANEL
    tl.store(kept, tl.cast(taken, tl.int64))


def constants(least: float) -> dict[str, Any]:
    """Return the compile-time arguments, for the least share that is kept."""
    return {"LEAST": least, "PANEL": PANEL, "ROWS": ROWS, "DEPTH": DEPTH, "STAGES": STAGES}


def launch(
    block: Tensor, candidates: Tensor, weights: Tensor, lots: Tensor, wanted: int, least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of the candidates kept (wanted,), zero after the last; their number, and the columns they make.

    See :func:`inrfast.ops.pivots.accept_pivots` for the arguments. The columns (candidates, wanted) are zero after the
    last one kept.
    """
    count = len(block)
    order = torch.zeros(wanted, dtype=torch.int64, device=block.device)
    kept = torch.zeros((), dtype=torch.int64, device=block.device)
    factor = block.new_zeros(count, wanted)
    left = block.diagonal().clone()
    accept_pivots[(1,)](
        kept, order, factor, left, block, candidates, weights, lots, count, wanted,
        **constants(least), num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return order, kept, factor
