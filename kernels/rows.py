"""A layer's Jacobian from its factors: its rows, and products with it that write no row.

The row of point n and output m is ``S[n, m, b] Z[n, a]`` in the weight's layout (b, a), a fast; a column of ones after
the features stands for the bias. Points, outputs, columns and models are all run-time numbers. Sums are taken in a
fixed order and nothing is added atomically: the same call gives the same bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from inrfast.kernels import tiles

*COLUMNS, POINTS, ROW_WARPS = tiles.SIZES["jacobian_rows", "any", "any"][0]
"""Columns of a block of rows that a program of :func:`jacobian_rows` takes, the smaller for parameters that have no
more, such as a bias; points over which it walks with its columns; warps."""


@dataclass(frozen=True)
class Tile:
    """Tile of a product: ``points`` by ``outer`` entries, or the points summed over; warps, and stages in flight.

    Attributes
    ----------
    points
        Points at once.
    units, features
        Columns of the sensitivities and of the features at once.
    warps, stages
        Warps per program, and loads in flight.
    registers
        Most a thread; named where the assembler, left to itself, would spill a few to fit more programs.
    """

    points: int
    units: int
    features: int
    warps: int
    stages: int
    registers: int | None = None


PRECISION = {"fp32": "tf32x3", "fp64": "ieee"}

SHARED = 50 * 1024
"""Bytes of shared memory that a program may take; every supported GPU has more."""

PROGRAMS = 1024
"""Programs among which :func:`jacobian_transposed_product` splits the points: a few for each multiprocessor."""


# Rows of any stride are written alike, neighbouring threads neighbouring entries: were strides known to be aligned,
# a thread would store four entries at once and read its four features far from its neighbours'.
@triton.jit(
    do_not_specialize=[
        "n", "b", "a", "chunks", "feature_stride", "point_stride", "output_stride", "out_point_stride",
        "out_output_stride",
    ]
)  # fmt: skip
def jacobian_rows(
    out,
    features,
    sensitivities,
    n,
    outputs,
    b,
    a,
    chunks,
    feature_stride,
    point_stride,
    output_stride,
    out_point_stride,
    out_output_stride,
    FEATURES: tl.constexpr,
    IDENTITY: tl.constexpr,
    COLUMNS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Write ``out[n, m, (b, a)] = S[n, m, b] Z[n, a]``, a program the same columns of several points.

    Without ``FEATURES`` Z is a column of ones (a = 1); with ``IDENTITY`` S is the identity (b = M). Which b and a a
    column has is computed once per program: the walk over points divides nothing.
    """
    program = tl.program_id(0).to(tl.int64)
    first = program // chunks * POINTS
    start = program % chunks * COLUMNS
    places = tl.arange(0, COLUMNS)
    inside = start + places < tl.cast(b, tl.int64) * a
    before = start // a
    index = (start - before * a).to(tl.int32) + places
    unit = index // a
    index = (index - unit * a).to(tl.int64)
    unit = before + unit
    for p in range(first, tl.minimum(first + POINTS, n)):
        point = tl.cast(p, tl.int64)
        if FEATURES:
            z = tl.load(features + point * feature_stride + index, mask=inside, other=0.0)
        else:
            z = tl.full((COLUMNS,), 1.0, out.dtype.element_ty)
        for m in range(0, outputs):
            output = tl.cast(m, tl.int64)
            if IDENTITY:
                row = tl.where(unit == output, z, tl.zeros_like(z))
            else:
                s = sensitivities + point * point_stride + output * output_stride
                row = tl.load(s + unit, mask=inside, other=0.0) * z
            tl.store(out + point * out_point_stride + output * out_output_stride + start + places, row, mask=inside)


@triton.jit
def _weighted_sums(tile, weights, there, left, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sums over columns of a tile times ``weights`` (pointers to its rows), ``left`` columns of which are
    there; a few columns at a time: all addresses at once would not fit the registers."""
    if COLUMNS > 16:
        one, two = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        first = _weighted_sums(one, weights, there, left, ROWS, COLUMNS // 2)
        return first + _weighted_sums(two, weights + COLUMNS // 2, there, left - COLUMNS // 2, ROWS, COLUMNS // 2)
    else:
        column = tl.arange(0, COLUMNS)
        w = tl.load(weights[:, None] + column[None, :], mask=there[:, None] & (column < left)[None, :], other=0.0)
        return tl.sum(tile * w, 1)


@triton.jit
def _store_columns(places, tile, there, left, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store ``left`` columns of a tile ``step`` entries apart, each row from its place on; a few columns at a time."""
    if COLUMNS > 16:
        one, two = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        _store_columns(places, one, there, left, step, ROWS, COLUMNS // 2)
        beyond = places + tl.cast(step, tl.int64) * (COLUMNS // 2)
        _store_columns(beyond, two, there, left - COLUMNS // 2, step, ROWS, COLUMNS // 2)
    else:
        column = tl.arange(0, COLUMNS)
        apart = tl.cast(column, tl.int64) * step
        tl.store(places[:, None] + apart[None, :], tile, mask=there[:, None] & (column < left)[None, :])


@triton.jit(do_not_specialize=["n", "blocks", "columns"])
def jacobian_product(
    out,
    features,
    sensitivities,
    parameters,
    n,
    outputs,
    b,
    a,
    blocks,
    columns,
    feature_model,
    feature_stride,
    sensitivity_model,
    point_stride,
    output_stride,
    parameter_model,
    parameter_column,
    parameter_unit,
    FEATURES: tl.constexpr,
    BIAS: tl.constexpr,
    IDENTITY: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    POINTS: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add ``sum_b S[n, m, b] (Z[n] . P[k, b] + p[k, b])`` to ``out`` (models, n, M, k): a program some points of one k.

    The product over a is tiled; the sum over b is its epilogue, block by block into the program's own entries of
    ``out``. ``parameters`` (models, k, b, a): the column after the features is p, with ``BIAS``.
    """
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    k = program // blocks % columns
    model = program // blocks // columns
    point = block * POINTS + tl.arange(0, POINTS)
    there = point < n
    units = tl.arange(0, UNITS)
    width = tl.arange(0, WIDTH)
    features += model * feature_model
    sensitivities += model * sensitivity_model
    parameters += model * parameter_model + k * parameter_column
    own = out + (model * n + point) * outputs * columns + k

    for first in range(0, b, UNITS):
        top = tl.cast(first, tl.int64)
        unit = top + units
        known = unit < b
        total = tl.zeros((POINTS, UNITS), ACCUMULATOR)
        if BIAS:
            total += tl.load(parameters + unit * parameter_unit + tl.cast(a, tl.int64), mask=known, other=0.0)[None, :]
        if FEATURES:
            for start in tl.range(0, a, WIDTH, num_stages=STAGES):
                left = tl.cast(start, tl.int64)
                inside = (left + width < a)[None, :]
                z = (features + left) + (point * feature_stride)[:, None] + width[None, :]
                z = tl.load(z, mask=there[:, None] & inside, other=0.0)
                p = (parameters + left) + (unit * parameter_unit)[:, None] + width[None, :]
                p = tl.load(p, mask=known[:, None] & inside, other=0.0)
                total = tl.dot(z, p.T, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        if IDENTITY:
            _store_columns(own + top * columns, total, there, b - first, columns, POINTS, UNITS)
        else:
            for m in range(0, outputs):
                output = tl.cast(m, tl.int64)
                weights = (sensitivities + output * output_stride + top) + point * point_stride
                sums = _weighted_sums(total, weights, there, b - first, POINTS, UNITS)
                places = own + output * columns
                so_far = tl.load(places, mask=there, other=0.0)
                # An entry is held by several threads, one of which writes it: all have read it before.
                tl.debug_barrier()
                tl.store(places, so_far + sums, mask=there)
            tl.debug_barrier()


@triton.jit(do_not_specialize=["n", "columns", "splits", "steps"])
def jacobian_transposed_product(
    partial,
    features,
    sensitivities,
    cotangents,
    n,
    outputs,
    b,
    a,
    columns,
    splits,
    steps,
    feature_model,
    feature_stride,
    sensitivity_model,
    point_stride,
    output_stride,
    cotangent_model,
    cotangent_point,
    cotangent_output,
    cotangent_column,
    FEATURES: tl.constexpr,
    BIAS: tl.constexpr,
    IDENTITY: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    POINTS: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write sums over ranges of points, ``partial`` (models, k, splits, b, a): a program one tile (b, a) of one range.

    ``sum_n w[n, b] Z[n, a]`` with ``w[n, b] = sum_m v[n, m, k] S[n, m, b]`` made in registers; with ``BIAS`` the
    column after the features is ``sum_n w[n, b]``. A range is ``steps`` blocks of points.
    """
    program = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(a, WIDTH) if FEATURES else 1
    left = program % across * WIDTH
    program = program // across
    down = tl.cdiv(b, UNITS)
    top = program % down * UNITS
    program = program // down
    part = program % splits
    k = program // splits % columns
    model = program // splits // columns

    units = tl.arange(0, UNITS)
    width = tl.arange(0, WIDTH)
    known = top + units < b
    inside = left + width < a
    features += model * feature_model + left
    sensitivities += model * sensitivity_model + top
    cotangents += model * cotangent_model + k * cotangent_column

    total = tl.zeros((UNITS, WIDTH), ACCUMULATOR)
    alone = tl.zeros((POINTS, UNITS), ACCUMULATOR)
    for step in tl.range(0, steps, num_stages=STAGES):
        point = (part * steps + step) * POINTS + tl.arange(0, POINTS)
        there = point < n
        both = there[:, None] & known[None, :]
        v = cotangents + point * cotangent_point
        if IDENTITY:
            weighted = tl.load(v[:, None] + ((top + units) * cotangent_output)[None, :], mask=both, other=0.0)
        else:
            weighted = tl.zeros((POINTS, UNITS), ACCUMULATOR)
            for m in range(0, outputs):
                output = tl.cast(m, tl.int64)
                s = (sensitivities + output * output_stride) + (point * point_stride)[:, None] + units[None, :]
                scale = tl.load(v + output * cotangent_output, mask=there, other=0.0)
                weighted += tl.load(s, mask=both, other=0.0) * scale[:, None]
        if FEATURES:
            z = features + (point * feature_stride)[:, None] + width[None, :]
            z = tl.load(z, mask=there[:, None] & inside[None, :], other=0.0)
            total = tl.dot(weighted.T, z, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        if BIAS:
            alone += weighted

    stride = tl.cast(a, tl.int64) + 1 if BIAS else tl.cast(a, tl.int64)
    own = partial + (((model * columns + k) * splits + part) * b + top + units) * stride
    if FEATURES:
        tl.store((own + left)[:, None] + width[None, :], total, mask=known[:, None] & inside[None, :])
    if BIAS:
        first_alone = top + units < tl.where(left == 0, b, 0)
        tl.store(own + tl.cast(a, tl.int64), tl.sum(alone, 0), mask=first_alone)


def launch_rows(out: Any, features: Any, sensitivities: Any) -> None:
    """Run :func:`jacobian_rows`: ``out`` (n, M, b, a), (b, a) contiguous in each row; a factor may be None."""
    n, outputs, b, a = out.shape
    if out.numel() == 0:
        return
    columns = COLUMNS[b * a > COLUMNS[0]]
    chunks = triton.cdiv(b * a, columns)
    jacobian_rows[(chunks * triton.cdiv(n, POINTS),)](
        out,
        out if features is None else features,
        out if sensitivities is None else sensitivities,
        n,
        outputs,
        b,
        a,
        chunks,
        0 if features is None else features.stride(0),
        *((0, 0) if sensitivities is None else sensitivities.stride()[:2]),
        *out.stride()[:2],
        FEATURES=features is not None,
        IDENTITY=sensitivities is None,
        COLUMNS=columns,
        POINTS=POINTS,
        num_warps=ROW_WARPS,
    )


def launch_product(out: Any, features: Any, sensitivities: Any, parameters: Any, bias: bool) -> None:
    """Run :func:`jacobian_product`: ``out`` (models, n, M, k) contiguous and zero, the others' last stride 1.

    Features (models, n, a) and sensitivities (models, n, M, b) may be None; parameters are (models, k, b, a + bias).
    """
    models, n, outputs, k = out.shape
    _, _, b, width = parameters.shape
    if out.numel() == 0:
        return
    name = _name(out)
    tile = tile_of("jacobian_product", name)
    blocks = triton.cdiv(n, tile.points)
    jacobian_product[(blocks * k * models,)](
        out,
        *_factors(features, sensitivities, out),
        parameters,
        n,
        outputs,
        b,
        width - bias,
        blocks,
        k,
        *_factor_strides(features, sensitivities),
        *parameters.stride()[:3],
        **constants(name, tile, features is not None, sensitivities is None, bias),
        **resources(tile),
    )


def splits_for(n: int, programs: int, tile: Tile) -> tuple[int, int]:
    """Return in how many ranges n points are split beside so many programs, and the blocks of points of each."""
    blocks = triton.cdiv(n, tile.points)
    steps = max(1, triton.cdiv(blocks * programs, PROGRAMS))
    return triton.cdiv(blocks, steps), steps


def launch_transposed_product(features: Any, sensitivities: Any, cotangents: Any, bias: bool) -> Any:
    """Run :func:`jacobian_transposed_product` and return its partial sums (models, k, splits, b, a + bias).

    Features (models, n, a) and sensitivities (models, n, M, b) may be None, their last stride is 1; cotangents are
    (models, n, M, k) of any strides.
    """
    models, n, outputs, k = cotangents.shape
    a = 0 if features is None else features.shape[2]
    b = outputs if sensitivities is None else sensitivities.shape[3]
    name = _name(cotangents)
    tile = tile_of("jacobian_transposed_product", name)
    programs = triton.cdiv(b, tile.units) * max(1, triton.cdiv(a, tile.features)) * k * models
    splits, steps = splits_for(n, programs, tile)
    partial = cotangents.new_empty(models, k, splits, b, a + bias)
    if partial.numel() == 0:
        return partial
    jacobian_transposed_product[(programs * splits,)](
        partial,
        *_factors(features, sensitivities, partial),
        cotangents,
        n,
        outputs,
        b,
        a,
        k,
        splits,
        steps,
        *_factor_strides(features, sensitivities),
        *cotangents.stride(),
        **constants(name, tile, features is not None, sensitivities is None, bias),
        **resources(tile),
    )
    return partial


def tile_of(kernel: str, name: str) -> Tile:
    """Return the tile of a product in fp32 or fp64."""
    return _as_tile(tiles.JACOBIANS[kernel, name, "any"])


@functools.cache
def _as_tile(row: tiles.ProductRow) -> Tile:
    return Tile(*row[:-1])


def _name(tensor: Any) -> str:
    return f"fp{8 * tensor.itemsize}"


def _factors(features: Any, sensitivities: Any, instead: Any) -> tuple[Any, Any]:
    """Return the factors, a pointer that is not read in place of one that is None."""
    return instead if features is None else features, instead if sensitivities is None else sensitivities


def _factor_strides(features: Any, sensitivities: Any) -> tuple[int, ...]:
    return (
        *((0, 0) if features is None else features.stride()[:2]),
        *((0, 0, 0) if sensitivities is None else sensitivities.stride()[:3]),
    )


def constants(name: str, tile: Tile, features: bool, identity: bool, bias: bool) -> dict[str, Any]:
    """Return the compile-time choices of both products."""
    return {
        "FEATURES": features,
        "BIAS": bias,
        "IDENTITY": identity,
        "PRECISION": PRECISION[name],
        "ACCUMULATOR": tl.float64 if name == "fp64" else tl.float32,
        "POINTS": tile.points,
        "UNITS": tile.units,
        "WIDTH": tile.features,
        "STAGES": tile.stages,
    }


def resources(tile: Tile) -> dict[str, int]:
    """Return the options of a launch of either product."""
    most = {} if tile.registers is None else {"maxnreg": tile.registers}
    return {"num_warps": tile.warps, "num_stages": tile.stages, **most}
