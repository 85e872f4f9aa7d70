"""Tiles and resources of every kernel's launches: one table, plain data, for hosts too.

An entry is found by kernel, number format and class of GPU. ``"large"`` are GPUs with a copy engine and much shared
memory (data-centre GPUs since sm_90), ``"small"`` all others since sm_80, ``"any"`` both. A row ends with its origin:
``"reasoned"`` (registers, shared memory and traffic allow it; no GPU has timed it) or ``"measured: GPU, date"``. All
tables are literals, so that a program can rewrite them from measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """Tile and resources of one launch.

    Attributes
    ----------
    block
        Points per side of a tile.
    warps, stages
        Warps per program, and slabs in flight.
    copy_engine
        Whether slabs come through tensor descriptors (sm_90 and newer).
    shared
        Bytes of shared memory it may take; the ahead-of-time check holds the compiler to it.
    design
        ``"tile"``: one program per tile, one loop per factor. ``"stream"``: as many programs as the GPU holds at a
        time, each of them one loop over the slabs of all its tiles.
    """

    block: int
    warps: int
    stages: int
    copy_engine: bool
    shared: int
    design: str = "tile"


Key = tuple[str, str, str]
"""Kernel, format and class of GPU."""

Row = tuple[int, int, int, bool, int, str, str]
"""Block, warps, stages, copy engine, KiB of shared memory, design, origin."""

ProductRow = tuple[int, int, int, int, int, int | None, str]
"""Three sides of a tile, warps, stages, registers, origin; registers: the most per thread, named where the assembler,
left to itself, would spill a few to fit more programs."""

SizesRow = tuple[tuple[int, ...], str]
"""Sizes and resources in an order of the kernel's own, origin."""

TILES: dict[Key, Row] = {
    ("gram_tile", "fp16", "large"): (128, 8, 3, True, 100, "tile", "reasoned"),
    ("gram_tile", "fp16x3", "large"): (128, 8, 3, True, 196, "tile", "reasoned"),
    ("gram_tile", "tf32x3", "large"): (64, 4, 3, True, 50, "tile", "reasoned"),
    ("gram_tile", "fp64", "large"): (64, 8, 3, True, 34, "tile", "reasoned"),
    ("gram_tile", "fp16", "small"): (64, 4, 3, False, 34, "tile", "reasoned"),
    ("gram_tile", "fp16x3", "small"): (64, 4, 2, False, 34, "tile", "reasoned"),
    ("gram_tile", "tf32x3", "small"): (32, 4, 3, False, 34, "tile", "reasoned"),
    ("gram_tile", "fp64", "small"): (64, 8, 3, False, 34, "tile", "reasoned"),
    # The dense kernel where sizes, strides and address are multiples of 16, which has machine code of its own. Only
    # these may be streams: of other sizes one of fp16 needs 48 to 72 bytes of stack to mirror.
    ("gram_aligned", "fp16", "large"): (128, 8, 3, True, 100, "tile", "reasoned"),
    ("gram_aligned", "fp16x3", "large"): (128, 8, 3, True, 196, "tile", "reasoned"),
    ("gram_aligned", "tf32x3", "large"): (64, 4, 3, True, 50, "tile", "reasoned"),
    ("gram_aligned", "fp64", "large"): (64, 8, 3, True, 34, "tile", "reasoned"),
    # The product of tiles with V: a piece of V lies beside the slabs. Where registers are short it has more warps or
    # smaller tiles, or it would spill.
    ("gram_product", "fp16", "large"): (128, 8, 3, True, 100, "tile", "reasoned"),
    ("gram_product", "fp16x3", "large"): (128, 8, 3, True, 196, "tile", "reasoned"),
    ("gram_product", "tf32x3", "large"): (64, 4, 3, True, 50, "tile", "reasoned"),
    ("gram_product", "fp64", "large"): (64, 8, 3, True, 48, "tile", "reasoned"),
    ("gram_product", "fp16", "small"): (64, 8, 3, False, 32, "tile", "reasoned"),
    ("gram_product", "fp16x3", "small"): (32, 4, 3, False, 34, "tile", "reasoned"),
    ("gram_product", "tf32x3", "small"): (32, 4, 3, False, 16, "tile", "reasoned"),
    ("gram_product", "fp64", "small"): (64, 8, 3, False, 40, "tile", "reasoned"),
}
"""What is launched by the Gram kernels. ``gram_norm`` takes the tiles of ``gram_tile``; where there is no
``gram_aligned``, so does the dense kernel of every size."""

JACOBIANS: dict[Key, ProductRow] = {
    ("jacobian_product", "fp32", "any"): (64, 64, 32, 8, 3, None, "reasoned"),
    ("jacobian_product", "fp64", "any"): (64, 64, 16, 8, 3, 255, "reasoned"),
    ("jacobian_transposed_product", "fp32", "any"): (32, 64, 64, 8, 3, None, "reasoned"),
    ("jacobian_transposed_product", "fp64", "any"): (16, 64, 64, 8, 3, 255, "reasoned"),
}
"""Products with a layer's Jacobian: points, columns of the sensitivities and of the features."""

TANGENTS: dict[Key, ProductRow] = {
    # Wide layers where none has more than 64 columns of B, and where one has: 64 let two programs share a
    # multiprocessor; 128 take 10.7 FLOP for a byte from the second-level cache, about what an H100 has of both.
    ("transposed_product", "fp64", "any"): (16, 64, 64, 8, 3, None, "reasoned"),
    ("transposed_product_wide", "fp64", "any"): (16, 128, 64, 8, 3, None, "reasoned"),
    ("transposed_product_narrow", "fp64", "any"): (16, 16, 64, 4, 3, None, "reasoned"),
    ("product", "fp64", "any"): (128, 64, 16, 8, 3, None, "reasoned"),
}
"""Products with a tangent kernel through its factors: points, columns of B and of A. All transposed ones have the same
points, and the narrow one the most columns of B that a narrow layer may have."""

LAYERS: dict[Key, ProductRow] = {
    ("fused_linear", "fp16", "any"): (128, 128, 64, 8, 3, None, "reasoned"),
    ("fused_linear", "tf32", "any"): (128, 64, 32, 8, 3, None, "reasoned"),
    ("fused_linear", "tf32x3", "any"): (64, 64, 32, 4, 2, None, "reasoned"),
    ("fused_linear", "fp64", "any"): (64, 32, 16, 8, 2, 128, "reasoned"),
    # Few columns of x: multiply-adds take more registers than tensor cores.
    ("fused_linear_few", "fp16", "any"): (64, 128, 64, 8, 3, None, "reasoned"),
    ("fused_linear_few", "tf32", "any"): (128, 64, 32, 8, 3, None, "reasoned"),
    ("fused_linear_few", "tf32x3", "any"): (64, 64, 32, 4, 2, None, "reasoned"),
    ("fused_linear_few", "fp64", "any"): (64, 32, 16, 8, 2, 128, "reasoned"),
}
"""The fused layer: rows, columns, terms taken at once. By kind of product; bf16 is as fp16."""

STEPS: dict[Key, ProductRow] = {
    ("mlp_forward", "fp16", "large"): (128, 128, 64, 8, 3, None, "reasoned"),
    ("mlp_forward", "tf32x3", "large"): (64, 128, 16, 8, 2, None, "reasoned"),
    ("mlp_forward", "fp64", "large"): (64, 32, 16, 8, 2, 255, "reasoned"),
    ("mlp_forward", "fp16", "small"): (64, 128, 32, 8, 2, 255, "reasoned"),
    ("mlp_forward", "tf32x3", "small"): (32, 32, 16, 4, 2, 255, "reasoned"),
    ("mlp_forward", "fp64", "small"): (32, 32, 16, 4, 2, 255, "reasoned"),
    # Activations that leave fewer registers: both passes.
    ("mlp_forward_heavy", "fp16", "large"): (64, 128, 64, 8, 3, None, "reasoned"),
    # The way back where its sums leave fewer registers; rows are those of the way forward.
    ("mlp_backward", "tf32x3", "large"): (64, 32, 32, 4, 2, None, "reasoned"),
    ("mlp_backward", "fp16", "small"): (64, 64, 32, 8, 3, None, "reasoned"),
    # Both passes where features stay on the chip; columns are the most that a layer may have.
    ("mlp_on_chip", "fp16", "large"): (128, 128, 64, 8, 2, None, "reasoned"),
    ("mlp_on_chip", "fp16", "small"): (64, 64, 64, 4, 2, None, "reasoned"),
    # Rows and columns are those of a weight, terms are points.
    ("mlp_weight_gradients", "fp16", "any"): (128, 128, 32, 8, 3, None, "reasoned"),
    ("mlp_weight_gradients", "tf32x3", "any"): (64, 64, 32, 8, 2, None, "reasoned"),
    ("mlp_weight_gradients", "fp64", "any"): (32, 32, 16, 4, 2, None, "reasoned"),
    # Where the first layer's inputs, gathered, take registers too.
    ("mlp_weight_gradients_encoded", "fp16", "any"): (64, 128, 32, 8, 3, None, "reasoned"),
    ("mlp_weight_gradients_encoded", "tf32x3", "any"): (64, 64, 32, 8, 2, None, "reasoned"),
    ("mlp_weight_gradients_encoded", "fp64", "any"): (32, 32, 16, 4, 2, None, "reasoned"),
}
"""The training step: rows, columns, terms taken at once. The passes of "large" serve data-centre GPUs since sm_90;
where a kind has no row of its own, it takes that of ``mlp_forward``."""

SIZES: dict[Key, SizesRow] = {
    # Columns of a block of rows: for parameters that have no more, and for others; points, warps.
    ("jacobian_rows", "any", "any"): ((256, 1024, 16, 4), "reasoned"),
    # Points, columns, warps.
    ("layer_errors", "any", "any"): ((16, 256, 8), "reasoned"),
    # Parameters of a program, partial sums at once, warps.
    ("mlp_update", "any", "any"): ((64, 16, 4), "reasoned"),
    # Candidates at once, rows after them at once, columns of a product at once, warps, stages.
    ("accept_pivots", "fp64", "any"): ((16, 64, 32, 8, 3), "reasoned"),
    # Points, columns of a product at most, terms, warps, stages, registers.
    ("mlp_slabs", "any", "any"): ((32, 64, 16, 8, 2, 255), "reasoned"),
}
"""Kernels whose tiles are no product's."""

CANDIDATES: dict[Key, tuple[Row, ...]] = {
    ("gram_aligned", "fp16", "large"): (
        (128, 8, 4, True, 148, "stream", "reasoned"),
        (128, 8, 3, True, 116, "stream", "reasoned"),
    ),
    ("gram_aligned", "fp16x3", "large"): (
        (128, 8, 3, True, 212, "stream", "reasoned"),
        (128, 8, 2, True, 148, "stream", "reasoned"),
    ),
    ("gram_aligned", "tf32x3", "large"): ((64, 4, 3, True, 52, "stream", "reasoned"),),
    ("gram_aligned", "fp64", "large"): (
        (64, 8, 3, True, 52, "stream", "reasoned"),
        (64, 8, 4, True, 68, "stream", "reasoned"),
    ),
}
"""What a GPU should time beside it; nothing here spills."""

PRODUCT_CANDIDATES: dict[Key, tuple[ProductRow, ...]] = {
    ("transposed_product_wide", "fp64", "any"): (
        (16, 64, 64, 8, 3, None, "reasoned"),
        (16, 64, 128, 8, 3, None, "reasoned"),
    ),
    ("transposed_product_narrow", "fp64", "any"): ((16, 16, 128, 4, 3, None, "reasoned"),),
    ("product", "fp64", "any"): (
        (64, 64, 16, 8, 3, None, "reasoned"),
        (64, 128, 16, 8, 3, None, "reasoned"),
    ),
    ("fused_linear", "fp16", "any"): (
        (128, 128, 64, 8, 2, None, "reasoned"),
        (64, 128, 64, 4, 4, None, "reasoned"),
    ),
    ("mlp_forward", "fp16", "large"): (
        (128, 128, 64, 8, 2, None, "reasoned"),
        (128, 128, 64, 8, 4, None, "reasoned"),
        (128, 64, 64, 8, 3, None, "reasoned"),
        (64, 128, 64, 8, 3, None, "reasoned"),
    ),
    ("mlp_on_chip", "fp16", "large"): (
        (128, 128, 64, 8, 1, None, "reasoned"),
        (64, 128, 64, 8, 2, None, "reasoned"),
    ),
    ("mlp_weight_gradients", "fp16", "any"): (
        (128, 128, 64, 8, 3, None, "reasoned"),
        (128, 128, 32, 8, 4, None, "reasoned"),
        (64, 128, 64, 4, 3, None, "reasoned"),
    ),
}
"""The same of the tables of products: nothing here spills, or takes more shared memory than every GPU of its class
has."""

LARGE_SHARED = 200 * 1024
"""Bytes of shared memory per program from which on a GPU counts as large."""

SMALLEST_SHARED = 64 * 1024
"""Bytes of shared memory per program without which no GPU is taken; what is compiled for small ones keeps within it."""


def config(kernel: str, format: str, kind: str) -> Config:
    """Return what is launched."""
    return as_config(TILES[kernel, format, kind])


def candidates(kernel: str, format: str, kind: str) -> list[Config]:
    """Return what is launched, and what may be instead."""
    return [as_config(row) for row in (TILES[kernel, format, kind], *CANDIDATES.get((kernel, format, kind), ()))]


@contextmanager
def chosen(key: Key, row: Any) -> Iterator[None]:
    """Have the table of a key hold another row meanwhile: what is launched inside takes it."""
    table: dict[Key, Any] = next(t for t in (TILES, JACOBIANS, TANGENTS, LAYERS, STEPS) if key in t)
    in_use = table[key]
    table[key] = row
    try:
        yield
    finally:
        table[key] = in_use


def as_config(row: Row) -> Config:
    """Return a row of the table as what a launch takes."""
    block, warps, stages, copy_engine, kibibytes, design, _ = row
    return Config(block, warps, stages, copy_engine, kibibytes * 1024, design)


def kind_of(capability: tuple[int, int], shared: int) -> str:
    """Return the class of a GPU from its compute capability and bytes of shared memory per program."""
    return "large" if capability >= (9, 0) and shared >= LARGE_SHARED else "small"
