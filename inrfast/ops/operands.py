"""Operands of the Gram kernel: the factors of all layers as slabs, in the numbers that the tensor cores multiply.

A *slab* is 128 bytes of columns of a factor for all points, one contiguous piece of memory
(:mod:`inrfast.kernels.gram_tiles` says why). In a *narrow* layer one factor has a few columns or none; it is kept in
full precision and summed without tensor cores.

Half-precision formats scale by powers of two, which is exact. Features of layer l are scaled by one ``2^p`` for all
points, so that their bias, 1, has one scale as well. Sensitivities of row i are scaled by ``2^(e_i - p)``, so that all
layers add up in units of ``2^(e_i + e_j)``, and a row however small keeps its digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from inrfast.kernels.formats import FORMATS, LARGEST_EXPONENT, PADDING, TOP, Format
from inrfast.memory import chunks

NARROW = 8
"""Columns up to which a factor is summed by multiply-adds: padding it to a slab would cost more."""

MEDIUM = 64
"""Columns of the narrowest factor from which fp16 alone keeps the error of ``"medium"``: rounding errors then average
out. Measured for ReLU, sine and Gaussian networks (``tests/ops/test_operands.py``)."""

CHUNK = 1 << 16
"""Points converted at once."""

Output = str | int


@dataclass(frozen=True)
class LayerShape:
    """A layer's factors: ``features`` columns of Z (0: none, a one in their place), without the column of ones that
    ``bias`` stands for; ``sensitivities`` columns of S an output (0: the identity)."""

    features: int
    sensitivities: int
    bias: bool


@dataclass(frozen=True)
class Place:
    """Where a layer lies in an operand.

    Attributes
    ----------
    layer
        Its index in the order of the network.
    features, sensitivities
        First slab of each factor (first narrow column, where it is the narrow one).
    narrow
        ``"features"``, ``"sensitivities"`` or None for a wide layer.
    weight
        Number that multiplies the layer: M for the trace of identity sensitivities.
    """

    layer: int
    features: int
    sensitivities: int
    narrow: str | None
    weight: float


@dataclass(frozen=True)
class Layout:
    """Where every column of every factor lies; narrow layers come first, so that a tile needs fewer registers."""

    shapes: tuple[LayerShape, ...]
    output: Output
    outputs: int
    format: str

    @property
    def numbers(self) -> Format:
        """The format's numbers."""
        return FORMATS[self.format]

    @property
    def fold(self) -> int:
        """Rows of the kernel per point."""
        return self.outputs if self.output == "full" else 1

    @property
    def blocks(self) -> int:
        """Outputs whose sensitivities stand side by side in a row."""
        return self.outputs if self.output == "trace" else 1

    def slabs_of(self, columns: int) -> int:
        """Return the number of slabs that so many columns fill."""
        return -(-columns // self.numbers.slab)

    def sensitivity_columns(self, shape: LayerShape) -> int:
        """Return the columns of a row's sensitivities: 0 for a constant, M for the unit vectors of ``"full"``."""
        if shape.sensitivities == 0:
            return self.outputs if self.output == "full" else 0
        return shape.sensitivities * self.blocks

    def _narrow(self, shape: LayerShape) -> str | None:
        if shape.features <= NARROW:
            return "features"
        return "sensitivities" if self.sensitivity_columns(shape) <= NARROW else None

    @cached_property
    def _measured(self) -> tuple[tuple[Place, ...], int, int]:
        places, slabs, columns = [], 0, 0
        order = sorted(range(len(self.shapes)), key=lambda k: self._narrow(self.shapes[k]) is None)
        for index in order:
            shape = self.shapes[index]
            narrow = self._narrow(shape)
            constant = shape.sensitivities == 0
            weight = float(self.outputs) if constant and self.output == "trace" else 1.0
            # A constant that must be a slab is a column of ones.
            b = shape.sensitivities or max(self.sensitivity_columns(shape), 1)
            s_slabs = self.slabs_of(b) * (1 if constant else self.blocks)
            if narrow == "features":
                places.append(Place(index, columns, slabs, narrow, weight))
                columns += shape.features + (shape.bias or shape.features == 0)
                slabs += s_slabs
            elif narrow == "sensitivities":
                places.append(Place(index, slabs, columns, narrow, weight))
                columns += max(self.sensitivity_columns(shape), 1)
                slabs += self.slabs_of(shape.features)
            else:
                start = slabs
                slabs += self.slabs_of(shape.features)
                places.append(Place(index, start, slabs, None, weight))
                slabs += s_slabs
        return tuple(places), slabs, columns

    @property
    def places(self) -> tuple[Place, ...]:
        """Every layer's place, in the order of the operand."""
        return self._measured[0]

    @property
    def slabs(self) -> int:
        """Number of slabs of one plane."""
        return self._measured[1]

    @property
    def columns(self) -> int:
        """Number of narrow columns."""
        return self._measured[2]

    @property
    def narrow_layers(self) -> int:
        """Number of narrow layers; they come first."""
        return sum(place.narrow is not None for place in self.places)

    @property
    def segments(self) -> tuple[int, ...]:
        """The kernel's table (layers, 2): where each layer's two factors end, in slabs or in narrow columns."""
        ends = []
        for index, place in enumerate(self.places):
            later = self.places[index + 1 :]
            slab = min((p.sensitivities if p.narrow == "features" else p.features for p in later), default=self.slabs)
            if place.narrow is None:
                ends += [place.sensitivities, slab]
            else:
                columns = [p.features if p.narrow == "features" else p.sensitivities for p in later if p.narrow]
                ends += [slab, min(columns, default=self.columns)]
        return tuple(ends)

    @property
    def narrowest(self) -> int:
        """Fewest columns of a factor that is multiplied in the format's precision."""
        found = [MEDIUM]
        for place in self.places:
            shape = self.shapes[place.layer]
            if place.narrow != "features":
                found.append(shape.features)
            if place.narrow != "sensitivities" and shape.sensitivities:
                found.append(self.sensitivity_columns(shape))
        return min(found)

    def bytes_per_point(self) -> int:
        """Return the bytes of one point's operand."""
        numbers = self.numbers
        accumulator = 8 if numbers.accumulator == "fp64" else 4
        return self.fold * (self.slabs * numbers.planes * 128 + (self.columns + 1) * accumulator)


@dataclass(frozen=True)
class Plan:
    """What all operands of one kernel share: the layout, its format chosen, and p of every layer's features.

    ``exponents`` are in the order of the network, 0 where the features are narrow or the format has no scales.
    """

    layout: Layout
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class Operands:
    """One side of a kernel, ready for its products; the first axis counts models.

    Attributes
    ----------
    plan
        Where the columns lie, in which numbers.
    rows
        Rows of the kernel; the tensors hold ``padded`` of them, the rest zero.
    slabs
        (models, planes, slabs, padded, columns of a slab).
    narrow
        (models, narrow columns, padded), in the accumulator's precision.
    scale
        (models, padded): ``2^-e_i``, with a correction near 1 where the format has one.
    """

    plan: Plan
    rows: int
    slabs: Tensor
    narrow: Tensor
    scale: Tensor

    def part(self, start: int, stop: int) -> Operands:
        """Return some rows, from a multiple of the padding on, as views of these."""
        assert start % PADDING == 0
        end = min(-(-stop // PADDING) * PADDING, self.slabs.shape[3])
        cut = slice(start, end)
        return replace(
            self,
            rows=min(stop, self.rows) - start,
            slabs=self.slabs[:, :, :, cut],
            narrow=self.narrow[:, :, cut],
            scale=self.scale[:, cut],
        )

    def of_layer(self, layer: int) -> Operands:
        """Return one layer of one model as views of these; only in fp64, which has no scales that all layers share."""
        layout = self.plan.layout
        assert layout.format == "fp64" and len(self.slabs) == 1
        (place,) = [place for place in layout.places if place.layer == layer]
        own = replace(layout, shapes=(layout.shapes[layer],))
        slab, column = (
            (place.sensitivities, place.features)
            if place.narrow == "features"
            else (place.features, place.sensitivities)
        )
        return replace(
            self,
            plan=Plan(own, (0,)),
            slabs=self.slabs[:, :, slab : slab + own.slabs],
            narrow=self.narrow[:, column : column + own.columns],
        )

    def at(self, index: Tensor) -> Operands:
        """Return some rows, any of them and in any order, as operands of their own; a GPU is not waited for."""
        parts = self.slabs.index_select(3, index), self.narrow.index_select(2, index), self.scale.index_select(1, index)
        count = len(index)
        if more := _padded(count) - count:
            slabs, narrow, scale = parts
            padded = nn.functional.pad(slabs, (0, 0, 0, more)), nn.functional.pad(narrow, (0, more))
            parts = (*padded, nn.functional.pad(scale, (0, more), value=1.0))
        return replace(self, rows=count, slabs=parts[0], narrow=parts[1], scale=parts[2])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.slabs.nbytes + self.narrow.nbytes + self.scale.nbytes


def _padded(rows: int) -> int:
    return -(-rows // PADDING) * PADDING


def allocate(plan: Plan, models: int, rows: int, device: torch.device) -> Operands:
    """Return operands of zeros, unscaled."""
    layout = plan.layout
    numbers = layout.numbers
    dtype = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}[numbers.dtype]
    wide = torch.float64 if numbers.accumulator == "fp64" else torch.float32
    padded = _padded(rows)
    return Operands(
        plan,
        rows,
        torch.zeros(models, numbers.planes, layout.slabs, padded, numbers.slab, dtype=dtype, device=device),
        torch.zeros(models, layout.columns, padded, dtype=wide, device=device),
        torch.ones(models, padded, dtype=wide, device=device),
    )


Ranges = Sequence[tuple[float, float]]
"""Of each layer's features: the largest number, and the smallest of the rows' largest ones (zeros left out)."""


def make_plan(precision: str, layout: Layout, ranges: Ranges) -> Plan:
    """Return the plan whose error keeps what ``precision`` promises; the layout's own format does not matter.

    Half-precision formats take ranges in which the smallest row keeps its digits; beside a bias of 1 it need not.
    ``"medium"`` needs factors wide enough for its rounding errors to average out. ``ranges`` may be empty for
    ``"highest"``.
    """
    plain = Plan(replace(layout, format="fp64"), (0,) * len(layout.shapes))
    if precision == "highest":
        return plain
    wide = [place.layer for place in layout.places if place.narrow != "features"]
    for layer in wide:
        largest, smallest = ranges[layer]
        if layout.shapes[layer].bias:
            smallest = max(smallest, 1.0)
        if not largest < 2.0 ** (TOP + 1) * max(smallest, 2.0**-LARGEST_EXPONENT):
            return replace(plain, layout=replace(layout, format="tf32x3"))
    name = "fp16" if precision == "medium" and layout.narrowest >= MEDIUM else "fp16x3"
    exponents = [0] * len(layout.shapes)
    for layer in wide:
        exponents[layer] = feature_exponent(ranges[layer][0], layout.shapes[layer].bias)
    return Plan(replace(layout, format=name), tuple(exponents))


def joint(several: Sequence[Ranges]) -> Ranges:
    """Return the ranges of several sets of points together."""
    return [(max(top for top, _ in layer), min(low for _, low in layer)) for layer in zip(*several, strict=True)]


def feature_exponent(largest: float, bias: bool) -> int:
    """Return p, for which ``2^p largest`` is just below ``2^(TOP + 1)``; beside a bias no larger than its own scale."""
    if not largest > 0:
        return 0
    return max(-LARGEST_EXPONENT, min(TOP - math.frexp(largest)[1] + 1, TOP + 1 if bias else LARGEST_EXPONENT))


def ranges_of(features: Sequence[Tensor | None]) -> Ranges:
    """Return the ranges of one network's features (n, a), None for a column of ones."""
    return [(1.0, 1.0) if z is None or z.numel() == 0 else row_range(z.abs().amax(1)) for z in features]


def row_range(largest: Tensor) -> tuple[float, float]:
    """Return the largest of the rows' largest numbers, and the smallest that is not zero."""
    top = float(largest.amax())
    return top, float(largest.masked_fill(largest == 0, top).amin())


def pack(plan: Plan, factors: Sequence[tuple[Tensor | None, Tensor | None]]) -> Operands:
    """Return the operands of given factors, one model's, in plain torch: any layers, any device.

    ``factors`` are pairs (Z (n, a) without a column of ones, or None; S (n, M, b), or None) as the plan's shapes say.
    """
    given = next(f for pair in factors for f in pair if f is not None)
    n, fold = len(given), plan.layout.fold
    result = allocate(plan, 1, n * fold, given.device)
    for points in chunks(n, max(1, CHUNK // fold)):
        part = [tuple(None if f is None else f[points].to(torch.float64) for f in pair) for pair in factors]
        _pack_points(result, part, slice(points.start * fold, points.stop * fold))
    return result


def _pack_points(result: Operands, factors: Sequence[tuple[Tensor | None, ...]], rows: slice) -> None:
    layout, exponents = result.plan.layout, result.plan.exponents
    count = rows.stop - rows.start
    chosen = [
        (
            None if z is None else z.repeat_interleave(layout.fold, 0),
            _unit(layout, count, result.slabs.device) if s is None else _of_rows(layout, s),
        )
        for z, s in factors
    ]
    up = torch.ones(count, dtype=torch.float64, device=result.slabs.device)
    if layout.numbers.dtype == "fp16":
        largest = torch.zeros_like(up)
        for (_, s), p in zip(chosen, exponents, strict=True):
            largest = torch.maximum(largest, s.abs().flatten(1).amax(1) * 2.0**-p)
        shift = (TOP + 1 - torch.frexp(largest).exponent).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        up = torch.ldexp(up, torch.where(largest > 0, shift, 0))
    exact, rounded = torch.zeros_like(up), torch.zeros_like(up)
    for place in layout.places:
        z, s = chosen[place.layer]
        power = 2.0 ** exponents[place.layer]
        scaled = s * (up / power).view(-1, 1, 1)
        one = z is None or layout.shapes[place.layer].bias
        if place.narrow == "features":
            columns = ([] if z is None else [z]) + [up.new_ones(count, 1)] * one
            _write_narrow(result, place.features, torch.cat(columns, 1), rows)
        else:
            assert z is not None
            write_slabs(result, 0, place.features, (z * power).unsqueeze(1), rows)
        if place.narrow == "sensitivities":
            _write_narrow(result, place.sensitivities, scaled.flatten(1), rows)
        else:
            write_slabs(result, 0, place.sensitivities, scaled, rows)
        if layout.numbers.corrected:
            half = result.slabs.dtype
            held_z = z if z is None or place.narrow == "features" else (z * power).to(half).to(z.dtype) / power
            held_s = scaled if place.narrow == "sensitivities" else scaled.to(half).to(s.dtype)
            exact += place.weight * _square(z, one) * _square(s.flatten(1), False)
            rounded += place.weight * _square(held_z, one) * _square(held_s.flatten(1), False) * (power / up) ** 2
    correction = torch.where(rounded > 0, exact / torch.where(rounded > 0, rounded, 1), 1).sqrt()
    result.scale[0, rows] = (correction / up).to(result.scale.dtype)


def _square(t: Tensor | None, one: bool) -> Tensor | float:
    """Return each row's sum of squares, and 1 for a column of ones."""
    return float(one) if t is None else t.square().sum(1) + float(one)


def _write_narrow(result: Operands, start: int, columns: Tensor, rows: slice) -> None:
    result.narrow[0, start : start + columns.shape[1], rows] = columns.t().to(result.narrow.dtype)


def _unit(layout: Layout, count: int, device: torch.device) -> Tensor:
    """Return the identity's sensitivities of so many rows: a one, or for ``"full"`` the unit vector of its output."""
    if layout.output != "full":
        return torch.ones(count, 1, 1, dtype=torch.float64, device=device)
    unit = torch.eye(layout.outputs, dtype=torch.float64, device=device)
    return unit.repeat(count // layout.outputs, 1).unsqueeze(1)


def _of_rows(layout: Layout, s: Tensor) -> Tensor:
    """Return the sensitivities (rows, blocks, b) of each row of the kernel, from those of the points (n, M, b)."""
    if layout.output == "full":
        return s.reshape(-1, 1, s.shape[2])
    return s if layout.output == "trace" else s[:, int(layout.output)].unsqueeze(1)


def write_slabs(result: Operands, model: int, start: int, values: Tensor, rows: slice) -> None:
    """Write one model's scaled numbers (rows, blocks, columns), every block from a slab of its own on."""
    layout = result.plan.layout
    width = layout.numbers.slab
    for block in range(values.shape[1]):
        for index, columns in enumerate(chunks(values.shape[2], width)):
            target = result.slabs[model, :, start + block * layout.slabs_of(values.shape[2]) + index, rows]
            part = values[:, block, columns]
            high = part.to(target.dtype)
            target[0, :, : part.shape[1]] = high
            if layout.numbers.planes == 2:
                target[1, :, : part.shape[1]] = (part - high.to(part.dtype)).to(target.dtype)
