"""Tiles and resources of every kernel's launches: one table, plain data, for hosts too.

An entry is found by kernel, number format and class of GPU. ``"large"`` are GPUs with a copy engine and much shared
memory (data-centre GPUs since sm_90), ``"small"`` all others since sm_80. The origin of an entry is ``"reasoned"``
(registers, shared memory and traffic allow it; no GPU has timed it) or ``"measured: GPU, date"``. ``TILES`` and
``CANDIDATES`` are literals, so that a program can rewrite them from measurements.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Tile and resources of one launch.

    Attributes
    ----------
    block
        Points a side of a tile.
    warps, stages
        Warps a program, and slabs in flight.
    copy_engine
        Whether slabs come through tensor descriptors (sm_90 and newer).
    shared
        Bytes of shared memory it may take; the ahead-of-time check holds the compiler to it.
    design
        ``"tile"``: a program a tile, a loop a factor. ``"stream"``: as many programs as the GPU holds at a time, each
        of them one loop over the slabs of all its tiles.
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

LARGE_SHARED = 200 * 1024
"""Bytes of shared memory a program from which on a GPU counts as large."""

SMALLEST_SHARED = 64 * 1024
"""Bytes of shared memory a program without which no GPU is taken; what is compiled for small ones keeps within it."""


def config(kernel: str, format: str, kind: str) -> Config:
    """Return what is launched."""
    return as_config(TILES[kernel, format, kind])


def candidates(kernel: str, format: str, kind: str) -> list[Config]:
    """Return what is launched, and what may be instead."""
    return [as_config(row) for row in (TILES[kernel, format, kind], *CANDIDATES.get((kernel, format, kind), ()))]


def as_config(row: Row) -> Config:
    """Return a row of the table as what a launch takes."""
    block, warps, stages, copy_engine, kibibytes, design, _ = row
    return Config(block, warps, stages, copy_engine, kibibytes * 1024, design)


def kind_of(capability: tuple[int, int], shared: int) -> str:
    """Return the class of a GPU from its compute capability and bytes of shared memory a program."""
    return "large" if capability >= (9, 0) and shared >= LARGE_SHARED else "small"
