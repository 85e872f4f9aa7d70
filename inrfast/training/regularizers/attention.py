"""Softmax attention ``softmax(q k^T) v`` in tiles: a large matrix of weights is never whole, nor kept for the gradient.

The forward pass goes over tiles of keys with the largest logit so far, as FlashAttention does (arXiv 2205.14135), and
keeps the logarithm of each row's sum; the backward pass makes the weights of each tile anew. A small matrix of weights
is kept, which saves one product of four.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inrfast.memory import chunks

ROWS, KEYS = 256, 1024
"""Rows and keys of a tile: 1 MiB in fp32, which stays in cache, in products that are large enough."""

LEAST_ROWS, LEAST_KEYS = 16, 64
"""The smallest tile that a memory budget may ask for."""

KEPT = 2**22
"""Weights up to so many are kept for the gradient: 16 MiB in fp32."""

HEADROOM = 8.0
"""Logits are kept below the largest number of their dtype by this factor."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, left_out: tuple[Tensor, Tensor] | None = None, tile: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``softmax(q k^T) v`` and which rows have a key.

    Parameters
    ----------
    q, k, v
        Shapes (R, r), (K, r), (K, M); one dtype, fp32 or fp64, and device.
    left_out
        Row numbers, ascending, and key numbers (P,), int64: weights that are zero.
    tile
        Rows and keys at a time, and no weights kept; None: what stays in cache, and few weights are kept.

    Returns
    -------
    tuple
        (R, M), zero in rows without a key; a mask (R,), True where a row has one.

    Raises
    ------
    RuntimeError
        Of the backward pass: its gradient is asked to be differentiated again (``create_graph=True``).
    """
    rows, keys = left_out if left_out is not None else (q.new_empty(0, dtype=torch.int64),) * 2
    if tile is None and len(q) * len(k) <= KEPT:
        out, found = _Kept.apply(q, k, v, rows, keys)
    else:
        out, found = _Attention.apply(q, k, v, rows, keys, tile or (ROWS, KEYS))
    return out, found


def attend_bytes(rows: int, keys: int, features: int, outputs: int, item: int, tile: tuple[int, int] | None) -> int:
    """Return the bytes that :func:`attend` takes with its gradient beside what it is given, at most."""
    kept = rows * keys if tile is None and rows * keys <= KEPT else 0
    largest = (min((tile or (ROWS, KEYS))[0], rows)) * (keys if kept else min((tile or (ROWS, KEYS))[1], keys))
    # The products' own buffers; gradients of q, k and v; output, tops, sums and their like.
    return item * (kept + 3 * largest + (rows + keys) * features + keys * outputs + rows * (3 * outputs + 6))


def _once() -> None:
    """Refuse a second derivative."""
    if torch.is_grad_enabled():
        raise RuntimeError("attention in tiles has no second derivatives; take its gradient without create_graph=True")


class _Tiles:
    """The logits of a query block and a key block, with the weights that are left out at minus infinity."""

    def __init__(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, tile: tuple[int, int]) -> None:
        self.tile = min(tile[0], len(q)), min(tile[1], len(k))
        # Of logits that would leave the dtype's range, the products are taken of q scaled by a power of two.
        largest = max(float(q.abs().max()) * float(k.abs().max()) * q.shape[1], 1e-300)
        most = torch.finfo(q.dtype).max / HEADROOM
        self.scale = 1.0
        if most < largest < math.inf:
            self.scale = 2.0 ** (math.floor(math.log2(most / largest)))
        self.q = q if self.scale == 1.0 else q * self.scale
        self.k, self.rows, self.keys = k, rows.contiguous(), keys
        self.buffer: Tensor | None = None

    def logits(self, block: slice, part: slice, out: Tensor | None = None) -> Tensor:
        """Return scaled logits of some rows and keys, in ``out`` or in a buffer that the next call overwrites."""
        a, b = self.q[block], self.k[part]
        if out is None:
            self.buffer = a.new_empty(self.tile) if self.buffer is None else self.buffer
            out = self.buffer.view(-1)[: len(a) * len(b)].view(len(a), len(b))
        torch.mm(a, b.t(), out=out)
        if len(self.rows):
            lo, hi = torch.searchsorted(self.rows, torch.tensor([block.start, block.stop]).to(self.rows)).tolist()
            rows, keys = self.rows[lo:hi] - block.start, self.keys[lo:hi] - part.start
            inside = (keys >= 0) & (keys < len(b))
            out[rows[inside], keys[inside]] = -math.inf
        return out

    def weighed(self, logits: Tensor, top: Tensor, log_sum: Tensor | None = None) -> Tensor:
        """Return ``exp(logits - top - log_sum)`` in place; ``top`` (rows, 1) is scaled as logits are."""
        logits.sub_(top)
        if self.scale != 1.0:
            logits.div_(self.scale)
        if log_sum is not None:
            logits.sub_(log_sum)
        return logits.exp_()


class _Kept(torch.autograd.Function):
    """The operation with its gradient, whose weights are kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(q, k, rows, keys, (ROWS, len(k)))
        weights, found = q.new_empty(len(q), len(k)), torch.ones(len(q), dtype=torch.bool, device=q.device)
        for block in chunks(len(q), ROWS):
            logits = tiles.logits(block, slice(0, len(k)), weights[block])
            top = logits.amax(1, keepdim=True)
            tiles.weighed(logits, torch.where(top == -math.inf, torch.zeros_like(top), top))
            total = logits.sum(1, keepdim=True)
            found[block] = (total > 0).squeeze(1)
            logits.div_(total.clamp_min_(torch.finfo(q.dtype).tiny))
        out = weights @ v
        ctx.save_for_backward(q, k, v, out, weights)
        ctx.mark_non_differentiable(found)
        return out, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _once()
        q, k, v, out, weights = ctx.saved_tensors
        of_q, of_k, of_v = ctx.needs_input_grad[:3]
        slope = None
        if of_q or of_k:
            slope = torch.addmm(-(grad * out).sum(1, keepdim=True), grad, v.t()).mul_(weights)
        found_q = slope @ k if slope is not None and of_q else None
        found_k = slope.t() @ q if slope is not None and of_k else None
        return found_q, found_k, weights.t() @ grad if of_v else None, None, None


class _Attention(torch.autograd.Function):
    """The operation with its gradient, whose weights are made anew."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, tile: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(q, k, rows, keys, tile)
        out, tops, sums = v.new_empty(len(q), v.shape[1]), q.new_empty(len(q), 1), q.new_empty(len(q), 1)
        for block in chunks(len(q), tiles.tile[0]):
            own = len(q[block])
            top, total, value = q.new_full((own, 1), -math.inf), q.new_zeros(own, 1), v.new_zeros(own, v.shape[1])
            for part in chunks(len(k), tiles.tile[1]):
                logits = tiles.logits(block, part)
                higher = torch.maximum(top, logits.amax(1, keepdim=True))
                # Where all so far are left out there is nothing to subtract.
                level = torch.where(higher == -math.inf, torch.zeros_like(higher), higher)
                weights = tiles.weighed(logits, level)
                fade = ((top - level) / tiles.scale).exp_()
                total = total.mul_(fade).add_(weights.sum(1, keepdim=True))
                value = value.mul_(fade).addmm_(weights, v[part])
                top = higher
            empty = total == 0
            out[block] = torch.where(empty, torch.zeros_like(value), value / total)
            tops[block] = torch.where(empty, torch.zeros_like(top), top)
            sums[block] = torch.where(empty, torch.full_like(total, math.inf), total.log())
        ctx.save_for_backward(q, k, v, rows, keys, out, tops, sums)
        ctx.tile = tile
        found = (sums < math.inf).squeeze(1)
        ctx.mark_non_differentiable(found)
        return out, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _once()
        q, k, v, rows, keys, out, tops, sums = ctx.saved_tensors
        tiles = _Tiles(q, k, rows, keys, ctx.tile)
        if tiles.scale == 1.0:
            tops, sums = tops + sums, None
        of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad = grad.contiguous()
        mean = (grad * out).sum(1, keepdim=True)
        attends = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        for block in chunks(len(q), tiles.tile[0]):
            own = grad[block]
            for part in chunks(len(k), tiles.tile[1]):
                weights = tiles.weighed(tiles.logits(block, part), tops[block], None if sums is None else sums[block])
                of_v[part].addmm_(weights.t(), own)
                if attends:
                    slope = torch.addmm(-mean[block], own, v[part].t()).mul_(weights)
                    of_q[block].addmm_(slope, k[part])
                    of_k[part].addmm_(slope.t(), q[block])
        needed = ctx.needs_input_grad
        found = [own if wanted else None for own, wanted in zip((of_q, of_k, of_v), needed[:3], strict=True)]
        return (*found, None, None, None)
