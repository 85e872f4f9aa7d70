"""Products with one layer's Jacobian block, written with its factors: rows, ``J p``, ``J^T v`` and blocks of them.

A block's row of point n and output m is ``S[n, m] (x) Z[n]`` (row-wise Khatri-Rao product, Slyusar's face-splitting
product), reshaped to the (b, a) matrix of the layer's parameters. ``features`` is Z (n, a), None for a column of
ones; ``sensitivities`` is S (n, M, b), None for the identity (b = M).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from inrfast.memory import chunks
from inrfast.ops.gemm import addmm_, mm

CACHE_ELEMENTS = 1 << 18
"""Scratch of a scaled factor in elements: 1 MiB of fp32, half the second-level cache of a current core."""


def rows(features: Tensor | None, sensitivities: Tensor | None, outputs: int) -> Tensor:
    """Return the Jacobian block itself, shape (n, M, b, a)."""
    given = features if features is not None else sensitivities
    assert given is not None
    n = len(given)
    z = given.new_ones(n, 1) if features is None else features
    s = torch.eye(outputs, dtype=given.dtype, device=given.device).expand(n, -1, -1)
    s = s if sensitivities is None else sensitivities
    return s.unsqueeze(-1) * z[:, None, None, :]


def jvp(features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor) -> Tensor:
    """Return ``J p`` (n, M, k) of one block for k parameter blocks (k, b, a)."""
    k, b, _ = parameters.shape
    if features is None:
        assert sensitivities is not None
        return sensitivities @ parameters.reshape(k, b).t()
    if sensitivities is None:
        return torch.stack([features @ p.t() for p in parameters], dim=-1)
    return torch.stack([((features @ p.t()).unsqueeze(1) * sensitivities).sum(-1) for p in parameters], dim=-1)


def vjp(features: Tensor | None, sensitivities: Tensor | None, cotangents: Tensor) -> Tensor:
    """Return ``J^T v`` (k, b, a) of one block for k cotangents (n, M, k): outputs are summed before the product."""
    v = cotangents.permute(2, 0, 1)  # (k, n, M)
    weighted = v if sensitivities is None else torch.einsum("knm,nmb->knb", v, sensitivities)
    if features is None:
        return weighted.sum(1).unsqueeze(-1)
    return torch.stack([w.t() @ features for w in weighted])


def scratch_for(n: int, widths: Iterable[tuple[int, int]], like: Tensor) -> Tensor:
    """Return the scratch of the two functions below for chunks of n points and factors of the given widths (a, b)."""
    smaller = max((min(a, b) for a, b in widths), default=1)
    return like.new_empty(max(CACHE_ELEMENTS, n * smaller))


def block_vjp_(out: Tensor, features: Tensor | None, sensitivities: Tensor | None, v: Tensor, scratch: Tensor) -> None:
    """Add ``J_m^T V`` to ``out`` (k, b, a) for one output: ``sensitivities`` (n, b) or None (b = 1), ``v`` (n, k).

    The smaller factor is scaled by the columns of v, a few columns at a time so that the scratch stays in cache;
    the rest is matrix products.
    """
    k, b, a = out.shape
    n = len(v)
    if features is None or sensitivities is None:
        (factor,) = [f for f in (features, sensitivities) if f is not None]
        addmm_(out.view(k, -1), v.t(), factor)
        return
    small, large = (features, sensitivities) if a < b else (sensitivities, features)
    width = small.shape[1]
    # Scaled features give (k, a, b): gathered there and turned over at the end.
    product = out.new_zeros(k, a, b) if a < b else out
    for columns in chunks(k, max(1, len(scratch) // (n * width))):
        count = columns.stop - columns.start
        scaled = scratch[: n * count * width].view(n, count, width)
        torch.mul(v[:, columns].unsqueeze(2), small.unsqueeze(1), out=scaled)
        addmm_(product[columns].view(count * width, -1), scaled.view(n, -1).t(), large)
    if product is not out:
        out.add_(product.transpose(1, 2))


def block_jvp_(
    out: Tensor, features: Tensor | None, sensitivities: Tensor | None, parameters: Tensor, scratch: Tensor
) -> None:
    """Add ``J_m P`` to ``out`` (n, k) for one output and k parameter blocks (k, b, a); the mirror of the above."""
    k, b, a = parameters.shape
    n = len(out)
    if features is None or sensitivities is None:
        (factor,) = [f for f in (features, sensitivities) if f is not None]
        addmm_(out, factor, parameters.reshape(k, -1).t())
        return
    if a < b:
        small, large, weights = features, sensitivities, parameters.transpose(1, 2).reshape(k * a, b)
    else:
        small, large, weights = sensitivities, features, parameters.reshape(k * b, a)
    width = small.shape[1]
    for columns in chunks(k, max(1, len(scratch) // (n * width))):
        count = columns.stop - columns.start
        mixed = scratch[: n * count * width].view(n, count * width)
        mm(large, weights[columns.start * width : columns.stop * width].t(), mixed)
        out[:, columns].add_(mixed.view(n, count, width).mul_(small.unsqueeze(1)).sum(-1))
