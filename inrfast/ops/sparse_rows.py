"""Sparse rows of a Jacobian: of tables that a point reads at a few places, whatever their length.

They take the place of a layer's two factors: ``columns`` (n, q) int64 where the features stand, and the ``entries``
(n, M, q) in these columns where the sensitivities stand. Outputs share their columns. A column that stands twice in a
row holds its entry once and zeros beside it, so that squares add up to the row's norm.
"""

from __future__ import annotations

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
    """Add the inner products of two sets of rows to ``out`` (rows, rows'), each summed in fp64.

    Each set is (columns (n, q), entries): entries (n, q) of one output, (n, M q) of all of them side by side, or
    (n M, q) of all below each other. It is a product of sparse matrices with the columns that the right one has; on a
    CPU SciPy computes it, whose products are the faster ones.
    """
    bound = 1 + max(int(columns.max()) for columns, _ in (left, right))
    (z, s), (z2, s2) = (_flat(*side, bound) for side in (left, right))
    keys, order = z2.flatten().sort()
    known, counts = torch.unique_consecutive(keys, return_counts=True)
    places = torch.searchsorted(known, z).clamp_(max=len(known) - 1)
    met = known[places] == z
    first = met.sum(1), places[met], s[met]
    second = counts, order // z2.shape[1], s2.reshape(-1)[order]
    shapes = (len(z), len(known)), (len(known), len(z2))
    if out.device.type == "cpu":
        from scipy.sparse import csr_matrix  # costs a fifth of the whole import, and few need it

        a, b = (
            csr_matrix((entries.double().numpy(), columns.numpy(), _ends(count).numpy()), shape=shape)
            for (count, columns, entries), shape in zip((first, second), shapes, strict=True)
        )
        out += torch.from_numpy((a @ b).toarray())
        return
    a, b = (
        torch.sparse_csr_tensor(_ends(count), columns, entries.double(), size=shape, check_invariants=False)
        for (count, columns, entries), shape in zip((first, second), shapes, strict=True)
    )
    out += (a @ b).to_dense()


def _ends(counts: Tensor) -> Tensor:
    """Return where each row of a sparse matrix ends, after a zero, from its number of entries."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _flat(columns: Tensor, entries: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return columns of the same shape as the entries: each output beside another has columns of its own."""
    outputs, copies = entries.shape[1] // columns.shape[1], len(entries) // len(columns)
    if outputs > 1:
        offsets = bound * torch.arange(outputs, device=columns.device).view(1, -1, 1)
        columns = (columns.unsqueeze(1) + offsets).flatten(1)
    return columns.repeat_interleave(copies, 0) if copies > 1 else columns, entries
