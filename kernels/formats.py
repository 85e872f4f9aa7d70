"""Number formats of the Gram kernel's operands, and the tiles each is computed in; plain data, for hosts too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """How operands are stored and multiplied.

    Attributes
    ----------
    dtype
        Of the slabs, as Triton writes it: ``"fp16"``, ``"fp32"`` or ``"fp64"``.
    planes
        1, or 2 for a number split in a high and a low half; three products then make one.
    slab
        Columns of a slab: 128 bytes.
    precision
        Triton's ``input_precision`` of a product.
    accumulator
        Of the sums and scales: ``"fp32"`` or ``"fp64"``.
    """

    dtype: str
    planes: int
    slab: int
    precision: str
    accumulator: str

    @property
    def corrected(self) -> bool:
        """Whether rows are rescaled after rounding, so that the kernel's diagonal is exact."""
        return self.dtype == "fp16" and self.planes == 1


FORMATS = {
    "fp16": Format("fp16", 1, 64, "ieee", "fp32"),
    "fp16x3": Format("fp16", 2, 64, "ieee", "fp32"),
    "tf32x3": Format("fp32", 1, 32, "tf32x3", "fp32"),
    "fp64": Format("fp64", 1, 16, "ieee", "fp64"),
}


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
    """

    block: int
    warps: int
    stages: int
    copy_engine: bool
    shared: int


LARGE_SHARED = 200 * 1024
"""Bytes of shared memory a program, from which on the large configurations are taken (data-centre GPUs since sm_90)."""

LARGE = {
    "fp16": Config(128, 8, 3, True, 100 * 1024),
    "fp16x3": Config(128, 8, 3, True, 196 * 1024),
    "tf32x3": Config(64, 4, 3, True, 50 * 1024),
    "fp64": Config(64, 8, 3, True, 34 * 1024),
}

SMALL = {
    "fp16": Config(128, 8, 3, False, 64 * 1024),
    "fp16x3": Config(64, 4, 2, False, 34 * 1024),
    "tf32x3": Config(64, 4, 3, False, 34 * 1024),
    "fp64": Config(64, 8, 3, False, 34 * 1024),
}

LARGE_PRODUCT = LARGE | {"fp64": Config(64, 8, 3, True, 40 * 1024)}
"""The product of tiles with V: a piece of V lies beside the slabs."""

SMALL_PRODUCT = {
    "fp16": Config(64, 8, 3, False, 32 * 1024),
    "fp16x3": Config(64, 8, 2, False, 32 * 1024),
    "tf32x3": Config(32, 4, 3, False, 16 * 1024),
    "fp64": Config(64, 8, 3, False, 40 * 1024),
}
"""The same where registers are short: more warps or smaller tiles, or it would spill."""

SMALLEST_SHARED = max(config.shared for config in SMALL.values())
"""Bytes of shared memory a program without which no configuration runs."""

PADDING = 128
"""Operands hold a multiple of so many points, so that no load of a tile needs a mask."""


TOP = 13
"""Binary exponent of the largest scaled number of a row: fp16 ends below 16, and rounding up must not pass it."""

LARGEST_EXPONENT = 60
"""Largest exponent of a scale: within it, products of two scales are ordinary fp32 numbers."""


def config_for(name: str, capability: tuple[int, int], shared: int, product: bool = False) -> Config:
    """Return the configuration of a format on a GPU of this compute capability and shared memory a program.

    ``product``: that of the kernel that multiplies tiles with V.
    """
    if capability >= (9, 0) and shared >= LARGE_SHARED:
        return (LARGE_PRODUCT if product else LARGE)[name]
    return (SMALL_PRODUCT if product else SMALL)[name]


def product_precision(name: str) -> str:
    """Return Triton's ``input_precision`` in which tiles of a format are multiplied with V.

    Rounding them to TF32 once would cost ``"medium"`` more than its fp16 operands do.
    """
    return "ieee" if FORMATS[name].accumulator == "fp64" else "tf32x3"


def product_width(config: Config) -> int:
    """Return how many columns of V a tile is multiplied with at a time: as many as the registers hold."""
    return 32 if config.copy_engine else 16
