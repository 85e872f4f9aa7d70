"""Multi-resolution hash grid: trained tables of features at the corners of grids, interpolated linearly."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inrfast.encodings.base import Encoding, Shape, register
from inrfast.errors import check_int
from inrfast.grids import check_bounds
from inrfast.memory import counted, require_free

PRIMES = (1, 2654435761, 805459861, 3674653429)
"""Factors of the hash, one per coordinate, as in the source."""

START = 1e-4
"""Largest initial value, as in the source."""

MOST_LEVELS, MOST_CELLS = 64, 2**20
"""Levels, and cells per axis, at most: finer cells than these are those of fp32 coordinates."""

MOST_TABLE = 2**24
"""Largest table size of the source."""


@register
class HashGrid(Encoding):
    """Features that are trained at the corners of ``levels`` grids, each interpolated linearly between its corners.

    Level ``l`` has ``N_l = floor(coarsest * b^l)`` cells per axis, with ``b`` such that the last has ``finest``. A
    level whose ``(N_l + 1)^d`` corners fit ``table_size`` has a row of its own for each of them; in a finer one they
    share ``table_size`` rows by a hash, ``xor_k(i_k * prime_k) mod table_size``. The columns are those of the levels,
    coarse to fine, ``features`` of each.

    It is continuous and piecewise linear: at the faces of cells, derivatives in the coordinates are one-sided. Outside
    of ``bounds`` it has the value of the nearest point inside. On a GPU, gradients of the table are summed by atomic
    operations, whose order, and rounding, differ from run to run.

    Parameters
    ----------
    levels, features
        Number of grids, and of features per corner.
    table_size
        Rows of a level at most, a power of two.
    coarsest, finest
        Cells per axis of the first and the last level.
    bounds
        ``(low, high)`` of every coordinate, or one pair per coordinate: the box that the grids divide.

    Attributes
    ----------
    table
        The parameter, shape ``(rows of all levels, features)``, initially uniform in ``+-1e-4``.

    Raises
    ------
    ValueError, TypeError
        Numbers out of range; more than four coordinates.
    MemoryBudgetError
        The tables would take more than half of what is free; raised before they are allocated.

    Source: Mueller et al., Instant neural graphics primitives with a multiresolution hash encoding, SIGGRAPH 2022,
    equations 2 to 4 and section 3.

    Examples
    --------
    >>> from inrfast import INR
    >>> INR(2, 3, width=64, hidden_layers=2, encoding=HashGrid(levels=4, finest=64)).encoding.cells
    [16, 25, 40, 64]
    """

    spelling = "hashgrid"
    numbers: ClassVar = {"levels": 16, "features": 2, "table_size": 2**19, "coarsest": 16, "finest": 512}

    table: Tensor
    counts: Tensor
    starts: Tensor
    factors: Tensor

    def __init__(
        self,
        levels: int = 16,
        features: int = 2,
        table_size: int = 2**19,
        coarsest: int = 16,
        finest: int = 512,
        bounds: Any = (-1, 1),
    ) -> None:
        super().__init__()
        self.levels = _up_to("levels", levels, MOST_LEVELS)
        self.features = check_int("features", features, minimum=1)
        self.table_size = _up_to("table_size", table_size, MOST_TABLE)
        if self.table_size & (self.table_size - 1):
            raise ValueError(f"table_size must be a power of two, got {table_size}")
        self.coarsest = _up_to("coarsest", coarsest, MOST_CELLS)
        self.finest = _up_to("finest", finest, MOST_CELLS)
        if self.finest < self.coarsest:
            raise ValueError(f"finest must be at least coarsest = {self.coarsest}, got {finest}")
        several = isinstance(bounds, Sequence) and len(bounds) > 0 and isinstance(bounds[0], Sequence)
        pairs = check_bounds(bounds, len(bounds) if several else 1)
        self.bounds: list[Any] = [list(pair) for pair in pairs] if several else list(pairs[0])
        self.out_features = self.levels * self.features
        growth = (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1))
        self.box: list[tuple[float, float]] = []
        self.cells = [math.floor(self.coarsest * growth**level + 1e-6) for level in range(self.levels)]

    def columns(self, in_features: int) -> int:
        """Return ``levels * features``."""
        return self.out_features

    def rows(self, in_features: int) -> list[int]:
        """Return the number of rows of every level."""
        return [min((cells + 1) ** in_features, self.table_size) for cells in self.cells]

    def shapes(self, in_features: int) -> dict[str, Shape]:
        """Return that of the table."""
        if in_features > len(PRIMES):
            raise ValueError(f"a hash grid takes at most {len(PRIMES)} coordinates, got {counted(in_features)}")
        return {"table": (sum(self.rows(in_features)), self.features)}

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> HashGrid:
        """Draw the tables on the CPU, so that every device gets the same ones."""
        count = math.prod(self.shapes(in_features)["table"])
        what = f"a hash grid of {counted(count)} numbers"
        for where, size in (("cpu", 8 + dtype.itemsize), (device, dtype.itemsize)):  # the draw in fp64; the table
            require_free(size * count, what, "take a smaller table_size, or fewer levels or features", where)
        built = HashGrid(self.levels, self.features, self.table_size, self.coarsest, self.finest, self.bounds)
        built.in_features = in_features
        built.box = check_bounds(self.bounds, in_features)
        built._lay_out(in_features, device)
        draw = torch.rand(count // self.features, self.features, generator=generator, dtype=torch.float64, device="cpu")
        table = draw.mul_(2 * START).sub_(START).to(device=device, dtype=dtype)
        built.register_parameter("table", nn.Parameter(table))
        return built

    def _lay_out(self, d: int, device: torch.device) -> None:
        """Fix where the rows of each level start, and by what corner numbers are multiplied to find them."""
        rows = self.rows(d)
        self.listed = sum((cells + 1) ** d <= self.table_size for cells in self.cells)
        # The last bits of a product depend on those of its factors alone: with small ones, 32 bits do.
        small = sum(rows) < 2**31 and (self.finest + 1) * self.table_size < 2**31
        whole = torch.int32 if small else torch.int64
        factors = [
            [
                (cells + 1) ** (d - 1 - axis) if level < self.listed else PRIMES[axis] % self.table_size
                for level, cells in enumerate(self.cells)
            ]
            for axis in range(d)
        ]
        numbers = {"counts": self.cells, "starts": [0, *itertools.accumulate(rows[:-1])], "factors": factors}
        for name, own in numbers.items():
            tensor = torch.tensor(own, dtype=whole, device=device).unsqueeze(-1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, coords: Tensor) -> Tensor:
        places, weights = self._corners(coords.reshape(-1, coords.shape[-1]))
        # Feature by feature: torch reads and adds up single numbers far faster than short rows.
        read = (column.index_select(0, places.flatten()).view(places.shape) for column in self.table.unbind(1))
        values = [(column * weights).sum(0) for column in read]
        return torch.stack(values).permute(2, 1, 0).reshape(*coords.shape[:-1], self.out_features)

    def reads(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the table that each point (n, d) reads, and their weights: both ``(n, levels, 2^d)``.

        Column ``l * features + f`` of the point ``n`` is ``sum_c weights[n, l, c] * table[rows[n, l, c], f]``.
        """
        places, weights = self._corners(coords)
        return places.permute(2, 1, 0).long(), weights.permute(2, 1, 0)

    def _corners(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the corners around each point (n, d) stand in the table, and their weights: (2^d, levels, n)."""
        fine = torch.promote_types(coords.dtype, torch.float32)  # 16 bits do not hold a place among 512 cells
        counts = self.counts.to(fine)
        terms: list[tuple[Tensor, Tensor]] = []
        shares: list[tuple[Tensor, Tensor]] = []
        for axis, ((low, high), factor) in enumerate(zip(self.box, self.factors, strict=True)):
            unit = ((coords[:, axis].to(fine) - low) / (high - low)).clamp(0, 1)
            place = unit * counts
            corner = torch.minimum(place.detach().to(self.counts.dtype), self.counts - 1)
            share = (place - corner).to(coords.dtype)
            shares.append((1 - share, share))
            term = corner * factor
            terms.append((term, term + factor))
        places: list[Tensor] = []
        weights: list[Tensor] = []
        for sides in itertools.product((0, 1), repeat=len(terms)):
            first, *others = (term[side] for term, side in zip(terms, sides, strict=True))
            listed, hashed = first[: self.listed], first[self.listed :]
            for other in others:
                listed, hashed = listed + other[: self.listed], hashed ^ other[self.listed :]
            places.append(torch.cat([listed, hashed & (self.table_size - 1)]) + self.starts)
            factors = [share[side] for share, side in zip(shares, sides, strict=True)]
            weights.append(functools.reduce(torch.mul, factors))
        return torch.stack(places), torch.stack(weights)

    def config(self) -> dict[str, Any]:
        entries = {name: getattr(self, name) for name in self.numbers}
        return {"name": "HashGrid", **entries, "bounds": self.bounds}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in (*self.numbers, "bounds"))


def _up_to(argument: str, got: Any, most: int) -> int:
    value = check_int(argument, got, minimum=1)
    if value > most:
        raise ValueError(f"{argument} must be at most {most}, got {counted(value)}")
    return value
