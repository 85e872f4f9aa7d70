"""The training step of coordinate MLPs in four launches, each for all networks at once: the kernels and their tiles.

1. :func:`mlp_forward`: each program takes a tile of points through all layers, to the error at the head. It stores the
   features of every hidden layer in 16 bits (or fp32, fp64), and their slopes: one bit per slope for ReLU.
2. :func:`mlp_backward`: takes the errors back through all layers, stores them too, and sums the gradients that are
   thin: of biases, of a first layer that takes coordinates, and of the head.
3. :func:`mlp_weight_gradients`: one grouped product for the weights between hidden layers, its points split in ranges.
4. :func:`mlp_update`: sums what tiles and ranges left, in a fixed order, and takes the optimiser's step on the fp32
   weights. It leaves a copy of them in 16 bits for the next step.

For narrow layers in 16 bits, features and errors stay on the chip between layers, while the next weight is loaded from
the cache; otherwise they pass through the second-level cache. The networks' shape is a compile-time choice: offsets are
then constants, where run-time widths would take more registers than there are.

No sum depends on which program comes first: a step repeats bit for bit. Errors in 16 bits are scaled by a power of two
that follows their mean square, step by step, so that they do not underflow (the idea of loss scaling: Micikevicius et
al., Mixed precision training, ICLR 2018). Coordinates, and the weights of the head and of the first layer that takes
coordinates, go through products of 16 bits as two halves each: next to nothing of fp32 is lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from inrfast.kernels.activations import HEAVY, NUMBERS
from inrfast.kernels.fused_linear import Config
from inrfast.kernels.mlp_backward import LARGEST_SCALE, mlp_backward
from inrfast.kernels.mlp_forward import mlp_forward
from inrfast.kernels.mlp_norms import mlp_norm_backward, mlp_norm_fold, mlp_norm_maps
from inrfast.kernels.mlp_update import mlp_update
from inrfast.kernels.mlp_weight_gradients import mlp_weight_gradients
from inrfast.kernels.tiles import SIZES, STEPS, ProductRow

__all__ = [
    "BLOCK",
    "LARGEST_SCALE",
    "LARGE_SHARED",
    "NORM_COLUMNS",
    "NORM_PARTS",
    "NORM_ROWS",
    "NUMBERS",
    "SLOPE_COLUMNS",
    "SLOPE_REGISTERS",
    "SMALL_SHARED",
    "mlp_backward",
    "mlp_forward",
    "mlp_norm_backward",
    "mlp_norm_fold",
    "mlp_norm_maps",
    "mlp_update",
    "mlp_weight_gradients",
    "passes_configs",
    "update_constants",
    "weight_gradients_config",
]

LARGE_SHARED = 200 * 1024
"""Bytes of shared memory that a program may have on GPUs that take the large tiles."""

SMALL_SHARED = 99 * 1024
"""Bytes of shared memory that a program may have on other GPUs: every GPU since sm_86 has them."""

RAGGED_ROWS = 64
"""Rows of tiles on the chip where a layer is wide and no power of two: the masks of its columns take registers."""

HEAVY_ON_CHIP = 64
"""Most columns of a layer whose features stay on the chip where the activation leaves fewer registers."""

BLOCK, PARTS, UPDATE_WARPS = SIZES["mlp_update", "any", "any"][0]
"""Parameters per program of the update, partial sums that it takes at once, and warps."""

NORM_ROWS, NORM_COLUMNS, NORM_PARTS = 16, 32, 16
"""Rows and columns of weights that a program of the norms takes at once, and tiles or partial sums."""

SLOPE_COLUMNS, SLOPE_REGISTERS = 16, 128
"""Columns of a program of ``mlp_norm_backward``, and its registers: with more columns, or none named, some spill."""


def passes_configs(kind: str, width: int, activation: str, large: bool) -> tuple[Config, Config, bool]:
    """Return the tiles of the forward and the backward pass for a width, and whether features stay on the chip.

    ``large``: a GPU since sm_90 with :data:`LARGE_SHARED` bytes per program.
    """
    columns = max(16, triton.next_power_of_2(width))
    size = "large" if large else "small"
    on_chip = _config("mlp_on_chip", kind, size)
    heavy = activation in HEAVY
    if on_chip is not None and columns <= (HEAVY_ON_CHIP if heavy else on_chip.columns):
        ragged = width < columns and columns > RAGGED_ROWS
        on_chip = replace(on_chip, rows=RAGGED_ROWS if ragged else on_chip.rows, columns=columns)
        return on_chip, on_chip, True
    forward = _as_config(STEPS["mlp_forward", kind, size])
    if heavy:
        forward = _config("mlp_forward_heavy", kind, size) or forward
    backward = _config("mlp_backward", kind, size) or forward
    forward = replace(forward, columns=min(forward.columns, columns))
    return forward, replace(backward, columns=min(backward.columns, columns)), False


def _config(kernel: str, kind: str, size: str) -> Config | None:
    """Return the tile of a pass, or None where the table has no row for it."""
    row = STEPS.get((kernel, kind, size))
    return None if row is None else _as_config(row)


def _as_config(row: ProductRow) -> Config:
    return Config(*row[:-1])


def weight_gradients_config(kind: str, width: int, encoded: bool) -> Config:
    """Return the tile of :func:`mlp_weight_gradients` for a width; ``encoded``: its first layer takes encodings."""
    config = _as_config(STEPS["mlp_weight_gradients" + "_encoded" * encoded, kind, "any"])
    side = max(16, triton.next_power_of_2(width))
    return replace(config, rows=min(config.rows, side), columns=min(config.columns, side))


def update_constants(kind: str) -> dict[str, Any]:
    """Return the compile-time choices and resources of :func:`mlp_update`.

    Products are not fused with sums, so that an update has the same bits whether or not the gradient was stored first.
    """
    return {
        "ACCUMULATOR": tl.float64 if kind == "fp64" else tl.float32,
        "BLOCK": BLOCK,
        "PARTS": PARTS,
        "num_warps": UPDATE_WARPS,
        "enable_fp_fusion": False,
    }
