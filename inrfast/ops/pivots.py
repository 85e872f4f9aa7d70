"""Accepting pivots: which of a block's candidates a randomly pivoted Cholesky factorisation keeps, and their factor.

Rejection sampling (Epperly, Tropp and Webber, arXiv 2410.03969, algorithm 2.2): a candidate was drawn with probability
proportional to its weight, its residual's diagonal before the block; it is kept with the share of that weight which
the candidates kept before it have left. So those kept are as if drawn one after another.

On a GPU one Triton program accepts a block without the host's knowing which, or how many; elsewhere NumPy does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from inrfast import backends

LEAST_SHARE = 1e-8
"""Share of its weight from which a candidate may be kept: less may be rounding, and would make the factor
ill-conditioned."""


def accept_pivots(
    block: Tensor, candidates: Tensor, weights: Tensor, lots: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the candidates kept, their Cholesky factor, and how many they are.

    Parameters
    ----------
    block
        Rows and columns of the residual at the candidates (c, c), symmetric, fp64.
    candidates
        Their rows in the operator (c,), int64: one that was kept has nothing left the second time.
    weights
        In proportion to which they were drawn (c,); without weight none is kept.
    lots
        Uniform numbers in [0, 1) (c,).
    wanted
        How many are kept at most.

    Returns
    -------
    places
        Places among the candidates of those kept, in their order (wanted,), int64; the first one again after the last.
    factor
        Lower triangular (wanted, wanted), ``L L^T`` the block's rows and columns ``places``; after the last one kept
        rows of the identity.
    count
        How many are kept, 0-dimensional, int64.
    """
    if type(block) is Tensor and block.device.type == "cpu":
        entries, names, sizes, numbers = (tensor.numpy() for tensor in (block, candidates, weights, lots))
        return reference(entries, names, sizes, numbers, wanted)
    return _accept_pivots(block, candidates, weights, lots, wanted)


@torch.library.custom_op("inrfast::accept_pivots", mutates_args=())
def _accept_pivots(
    block: Tensor, candidates: Tensor, weights: Tensor, lots: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    if block.device.type == "cuda" and backends.reason_against_triton(block.device) is None:
        from inrfast.kernels import pivots as kernel  # imports triton

        with backends.launching_on(block.device):
            given = (block.contiguous(), candidates.contiguous(), weights.contiguous(), lots.contiguous())
            places, count, columns = kernel.launch(*given, wanted, LEAST_SHARE)
        return from_columns(places, count, columns)
    entries, names, sizes, numbers = (tensor.cpu().numpy() for tensor in (block, candidates, weights, lots))
    places, factor, count = reference(entries, names, sizes, numbers, wanted)
    return places.to(block.device), factor.to(block.device), count.to(block.device)


@_accept_pivots.register_fake
def _(block: Tensor, candidates: Tensor, weights: Tensor, lots: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        candidates.new_empty(wanted),
        block.new_empty(wanted, wanted),
        candidates.new_empty(()),
    )


def from_columns(places: Tensor, count: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`accept_pivots` does, from the kernel's result; nothing is read from a GPU."""
    wanted = len(places)
    number = torch.arange(wanted, device=places.device)
    used = number < count
    places = torch.where(used, places, places[0])
    factor = torch.where(used.unsqueeze(1), columns[places], 0.0).tril_()
    factor.diagonal().add_((~used).to(factor.dtype))
    return places, factor, count


def reference(
    block: np.ndarray, candidates: np.ndarray, weights: np.ndarray, lots: np.ndarray, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`accept_pivots` does, by the definition: one candidate after another."""
    left = block.diagonal().copy()
    kept: list[int] = []
    columns = np.empty((len(block), wanted))
    with np.errstate(invalid="ignore", over="ignore"):  # of an operator that is none; others look for that
        for i, (name, weight, lot) in enumerate(zip(candidates, weights, lots, strict=True)):
            share_left = left[i] / weight if weight > 0 else 0.0
            if not (share_left > LEAST_SHARE and lot < share_left):
                continue
            j, root = len(kept), math.sqrt(left[i])
            column = (block[:, i] - columns[:, :j] @ columns[i, :j]) / root
            column[i] = root
            columns[:, j] = column
            left -= column * column
            left[candidates == name] = 0
            kept.append(i)
            if j + 1 == wanted:
                break
    count = len(kept)
    places = torch.full((wanted,), kept[0] if kept else 0, dtype=torch.int64)
    places[:count] = torch.tensor(kept, dtype=torch.int64)
    factor = torch.eye(wanted, dtype=torch.float64)
    factor[:count, :count] = torch.from_numpy(np.tril(columns[kept, :count]))
    return places, factor, torch.tensor(count)
