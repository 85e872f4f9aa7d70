"""Dense kernels on the CPU in fp32 by native blocks of columns, with their own matrix products.

The two factors of a tile meet in the first-level cache, where :mod:`inrfast.ops.gram` writes both, reads both and adds
their product to a third; of a symmetric kernel no more than 64 columns are computed beyond the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inrfast.extension import load_extension
from inrfast.memory import chunks, scratch
from inrfast.ops import mlp_step
from inrfast.threads import MOST_THREADS, share

Pair = tuple[Tensor | None, Tensor | None]
Output = str | int

COLUMNS = 64
"""Columns of the narrowest block."""

BLOCK, PACKED = 256, 2**20
"""Columns of a block at most, and numbers of its packed factors, which meet every row of the others (4 MiB)."""

LEAST = 2**25
"""Products of numbers per thread below which further threads cost more than they save."""


def reason_against(
    rows: Sequence[Pair], columns: Sequence[Pair] | None, output: Output, outputs: int, out: Tensor
) -> str | None:
    """Return why the native blocks do not take a kernel, or None."""
    if output == "full" and outputs > 1:
        return "pairs of outputs are blocks of their own"
    for tensor in (out, *(factor for side in (rows, columns or ()) for pair in side for factor in pair)):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"native blocks take fp32 on a CPU, not {tensor.dtype} on {tensor.device}"
        if tensor is not out and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return "the numbers of a point are not next to each other"
        if tensor.ndim == 3 and output == "trace" and tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]:
            return "the outputs of a point are not next to each other"
    if (reason := mlp_step.missing()) is not None:
        return reason
    if not hasattr(load_extension(), "gram_block"):
        return "this build of the extension has no blocks of kernels"
    return None


def fill_(out: Tensor, rows: Sequence[Pair], columns: Sequence[Pair] | None, output: Output, outputs: int) -> Tensor:
    """Write a kernel that :func:`reason_against` has nothing against into ``out`` (n, m), as ``gram.fill_`` does."""
    native, instructions = load_extension(), mlp_step.instructions()
    n, m = out.shape
    layers = [
        (
            *_factors(pair, output),
            *_factors(pair if columns is None else columns[index], output),
            float(outputs) if output == "trace" and pair[1] is None else 1.0,
        )
        for index, pair in enumerate(rows)
    ]
    depth = sum(factor.shape[1:].numel() for pair in rows for factor in pair if factor is not None)
    threads = max(1, min(torch.get_num_threads(), MOST_THREADS, n * m * depth // LEAST))
    size = min(BLOCK, PACKED // max(1, depth * COLUMNS) * COLUMNS)
    size = max(COLUMNS, min(size, -(-m // (4 * threads * COLUMNS)) * COLUMNS) if threads > 1 else size)
    numbers, place = native.gram_workspace(layers, min(size, m)), (out.data_ptr(), *out.stride())

    def compute(part: slice) -> None:
        memory = scratch("gram", numbers, torch.float32)
        native.gram_block(instructions, layers, n, part.start, part.stop, columns is None, *place, memory)

    blocks = list(chunks(m, size))
    share(reversed(blocks), [compute] * min(threads, len(blocks)))
    return out


def _factors(pair: Pair, output: Output) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return where a layer's factors are, what is between two points, and their columns; zeros for ones."""
    z, s = pair
    features = (0, 0, 0) if z is None else (z.data_ptr(), z.stride(0), z.shape[1])
    if s is None:
        return features, (0, 0, 0)
    if isinstance(output, int):
        s = s[:, output]
        return features, (s.data_ptr(), s.stride(0), s.shape[1])
    return features, (s.data_ptr(), s.stride(0), s.shape[1] * s.shape[2])
