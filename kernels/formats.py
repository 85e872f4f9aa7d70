"""Number formats of the Gram kernel's operands; plain data, for hosts too."""

from __future__ import annotations

from dataclasses import dataclass

from inrfast.kernels import tiles
from inrfast.kernels.tiles import Config


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

    @property
    def promoted(self) -> bool:
        """Whether sums leave the tensor cores after every slab, or the truncation of a long chain would break the
        format's promise: ``"medium"`` loses more by its operands, and fp64 rounds."""
        return self.accumulator == "fp32" and (self.planes == 2 or self.dtype == "fp32")


FORMATS = {
    "fp16": Format("fp16", 1, 64, "ieee", "fp32"),
    "fp16x3": Format("fp16", 2, 64, "ieee", "fp32"),
    "tf32x3": Format("fp32", 1, 32, "tf32x3", "fp32"),
    "fp64": Format("fp64", 1, 16, "ieee", "fp64"),
}


PADDING = 128
"""Operands hold a multiple of so many points, so that no load of a tile needs a mask."""


TOP = 13
"""Binary exponent of the largest scaled number of a row: fp16 ends below 16, and rounding up must not pass it."""

LARGEST_EXPONENT = 60
"""Largest exponent of a scale: within it, products of two scales are ordinary fp32 numbers."""


def config_for(
    name: str, capability: tuple[int, int], shared: int, product: bool = False, aligned: bool = False
) -> Config:
    """Return the configuration of a format on a GPU of this compute capability and shared memory per program.

    ``product``: that of the kernel that multiplies tiles with V; ``aligned``: that of the dense kernel where every size
    is a multiple of 16.
    """
    kind = tiles.kind_of(capability, shared)
    if aligned and ("gram_aligned", name, kind) in tiles.TILES:
        return tiles.config("gram_aligned", name, kind)
    return tiles.config("gram_product" if product else "gram_tile", name, kind)


def product_precision(name: str) -> str:
    """Return Triton's ``input_precision`` in which tiles of a format are multiplied with V.

    Rounding them to TF32 once would cost ``"medium"`` more than its fp16 operands do.
    """
    return "ieee" if FORMATS[name].accumulator == "fp64" else "tf32x3"


def product_width(config: Config) -> int:
    """Return how many columns of V a tile is multiplied with at a time: as many as the registers hold."""
    return 32 if config.copy_engine else 16
