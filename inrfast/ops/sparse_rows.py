"""Sparse rows of a Jacobian: of tables that a point reads at a few places, whatever their length.

They take the place of a layer's two factors: ``columns`` (n, q) int64 where the features stand, and the ``entries``
(n, M, q) in these columns where the sensitivities stand. Outputs share their columns. A column that stands twice in a
row holds its entry once and zeros beside it, so that squares add up to the row's norm.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def is_sparse(features: Tensor | None) -> bool:
    """Return whether what stands for features are the columns of sparse rows."""
    return features is not None and not features.is_floating_point()


def coalesced(columns: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns (n, q) in order and their entries (n, M, q), those of one column added up in its first place."""
    columns, order = columns.sort(dim=1)
    entries = entries.gather(2, order.unsqueeze(1).expand_as(entries))
    repeated = columns[:, 1:] == columns[:, :-1]
    if not bool(repeated.any()):
        return columns, entries
    places = torch.arange(columns.shape[1], device=columns.device).expand_as(columns).clone()
    places[:, 1:].masked_fill_(repeated, 0)
    first = places.cummax(1).values.unsqueeze(1).expand_as(entries)
    return columns, torch.zeros_like(entries).scatter_add_(2, first, entries)


def write_(out: Tensor, columns: Tensor, entries: Tensor) -> None:
    """Write dense rows into ``out`` (n, M, P), any strides."""
    out.zero_().scatter_add_(2, columns.unsqueeze(1).expand_as(entries), entries)


def product(columns: Tensor, entries: Tensor, parameters: Tensor) -> Tensor:
    """Return ``J p`` (n, M, k) for parameters (k, P)."""
    found = [(entries * p[columns].unsqueeze(1)).sum(2) for p in parameters]
    return torch.stack(found, dim=2) if found else entries.new_empty(*entries.shape[:2], 0)


def add_transposed_product_(out: Tensor, columns: Tensor, entries: Tensor, cotangents: Tensor) -> None:
    """Add ``J^T v`` to ``out`` (k, P) for cotangents (n, M, k)."""
    places = columns.flatten()
    for into, v in zip(out, cotangents.unbind(2), strict=True):
        into.index_add_(0, places, (entries * v.unsqueeze(2)).sum(1).flatten())


def add_gram_(out: Tensor, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> None:
    """Add the inner products of two sets of rows to ``out`` (rows, rows').

    Each is (columns (n, q), entries): entries (n, q) of one output, (n, M q) of all of them side by side, or (n M, q)
    of all below each other. As sparse matrices: on a CPU by SciPy, whose products are the faster ones.
    """
    bound = 1 + max(int(columns.max()) for columns, _ in (left, right))
    (z, s), (z2, s2) = (_spread(*side, bound) for side in (left, right))
    width = bound * max(1, s.shape[1] // left[0].shape[1])
    if out.device.type == "cpu":
        out += torch.from_numpy(_by_scipy(z, s, z2, s2, width))
        return
    first = torch.sparse_coo_tensor(_places(z), s.flatten(), (len(z), width), check_invariants=False)
    second = torch.sparse_coo_tensor(_places(z2).flip(0), s2.flatten(), (width, len(z2)), check_invariants=False)
    out += torch.sparse.mm(first, second).to_dense()


def _spread(columns: Tensor, entries: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return columns of the same shape as the entries: each output beside another has columns of its own."""
    outputs, copies = entries.shape[1] // columns.shape[1], len(entries) // len(columns)
    if outputs > 1:
        offsets = bound * torch.arange(outputs, device=columns.device).view(1, -1, 1)
        columns = (columns.unsqueeze(1) + offsets).flatten(1)
    return columns.repeat_interleave(copies, 0) if copies > 1 else columns, entries


def _places(columns: Tensor) -> Tensor:
    rows = torch.arange(len(columns), device=columns.device).unsqueeze(1).expand_as(columns)
    return torch.stack([rows.flatten(), columns.flatten()])


def _by_scipy(z: Tensor, s: Tensor, z2: Tensor, s2: Tensor, width: int) -> np.ndarray:
    """Return the dense product as a NumPy array."""
    from scipy.sparse import csr_matrix  # costs a fifth of the whole import, and few need it

    matrices = []
    for columns, entries in ((z, s), (z2, s2)):
        ends = np.arange(0, columns.numel() + 1, columns.shape[1])
        parts = entries.reshape(-1).numpy(), columns.reshape(-1).numpy(), ends
        matrices.append(csr_matrix(parts, shape=(len(columns), width)))
    dense: np.ndarray = (matrices[0] @ matrices[1].T).toarray()
    return dense
