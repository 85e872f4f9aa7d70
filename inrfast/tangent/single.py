"""Products ``K v = J (J^T v)`` of a tangent kernel in fp32, with a bound on their errors in terms of J.

The factors are rounded to fp32 and multiplied there; sums over points are added up in fp64 from chunk to chunk, and so
are the products of a row of J with the parameters over the narrower factor. What the rounding of a product costs a
certificate is worked out in :mod:`inrfast.linalg.complement`. For many products the factors are rounded once, and held
in place of those in fp64: half of a product's time goes into rounding otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inrfast.layers import Factors
from inrfast.linalg.operators import INDEPENDENT, SINGLE_UNIT
from inrfast.memory import chunks
from inrfast.ops import gemm
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.sides import Sides
from inrfast.threads import together

if TYPE_CHECKING:
    from inrfast.tangent.kernel import TangentKernel

ROWS = 512
"""Points per chunk: a scaled factor stays in the second-level cache, and sums in fp32 are no longer than this."""

RELEASED = 1 << 26
"""Bytes of factors in fp32 for which those in fp64 are given back meanwhile: to compute them anew takes less than ten
products. Fewer have room beside them."""

LARGEST = (1e-12, 1e12)
"""Sizes of a factor's largest entry for which fp32 holds all of them with all digits."""

LARGEST_OF_J = (1e-10, 1e10)
"""Sizes of the largest product of a layer's factors, about the largest entry of J, for which fp32 holds what is made
of J twice: a product with K is of the size of its square."""


class SingleProducts:
    """Products of a symmetric kernel ``K = J J^T`` in this process with single vectors, in fp32.

    Parameters
    ----------
    kernel
        The kernel in fp64.
    single
        The same kernel in fp32: its factors are read if they are kept, else those of ``kernel`` are rounded as they
        are read.

    Attributes
    ----------
    sides
        Whose factors are read.
    """

    def __init__(self, kernel: TangentKernel, single: TangentKernel) -> None:
        self.partition, self._diagonal = kernel.partition, kernel._diagonal
        self.sides: Sides = single.sides if single.left.store.kept else kernel.sides
        store = self.sides.left.store
        self._held: list[Factors] | None = store.rounded(self.sides.left.indices) if store.in_single else None

    @contextmanager
    def held(self, room: int) -> Iterator[None]:
        """Hold the factors in fp32 in this block, if they fit ``room`` bytes or come in place of those in fp64."""
        left, before = self.sides.left, self._held
        store, capture = left.store, left.capture
        size = store.bytes_rounded(left.indices if store.fits else store.layers)
        replaced = capture.plain and store.fits and left.indices == store.layers and size >= RELEASED
        possible = before is None and left.dtype == torch.float64 and self.sides.summed.store is store
        try:
            if possible and (replaced or size <= room):
                self._held = store.rounded(left.indices, release=replaced)
            yield
        finally:
            self._held = before

    def _chunks(self, side: LayerwiseJacobian, within: slice) -> Iterator[tuple[slice, list[Factors]]]:
        """Yield the factors of a range of points in fp32, chunk by chunk."""
        if self._held is None:
            for points, factors in side.chunks(ROWS, within):
                yield points, [layer.to(torch.float32) for layer in factors]
            return
        for part in chunks(within.stop - within.start, ROWS):
            points = slice(within.start + part.start, within.start + part.stop)
            yield points, [layer.at(points) for layer in self._held]

    def _shares(self, side: LayerwiseJacobian) -> list[slice]:
        """Return one range of points a worker."""
        if self._held is None:
            return side.store.shares(ROWS)
        n = len(side.coords)
        return list(chunks(n, ROWS * max(1, -(-n // (ROWS * gemm.threads(torch.float32, side.device))))))

    @cached_property
    def noise(self) -> float:
        """Bound e on the errors of the two halves of a product: ``|d(J^T v)| <= e |v|`` and ``|d(J w)| <= e |w|``.

        Single rounding errors are taken as independent and of mean zero (Higham and Mary, SIAM J. Sci. Comput. 41(5),
        2019); e is twice the root mean square of what they add up to. Rounding the factors moves J by
        ``sqrt(2) u |J|_F``, and rounding what is multiplied with them by no more than twice as much; a product of a
        row's features (a) with the parameters is off by ``u sqrt(a) |J_n| |w|``. In a sum over L points they are not
        independent where points repeat: L equal terms round alike each time, by ``u L / 4`` of their sum, which is at
        most ``sqrt(L) max_n |J_n|`` for a unit vector.
        """
        trace = self.partition.sum(float(self._diagonal.sum()), self._diagonal.device)
        largest = float(self.partition.largest(self._diagonal.max()))
        longest = max(max(a, b, 1) for a, b in self.sides.widths)
        sums = ROWS**1.5 / 4 * math.sqrt(largest)
        return INDEPENDENT * SINGLE_UNIT * ((4 + math.sqrt(longest)) * math.sqrt(trace) + sums)

    @cached_property
    def in_range(self) -> bool:
        """Whether fp32 holds all factors, and all that is computed from them."""
        low, high = LARGEST

        def sizes(share: slice) -> list[list[float]]:
            """Return the largest entries of every layer's factors; NaN where fp32 does not hold a chunk's."""
            found = [[0.0, 0.0] for _ in self.sides.widths]
            left = self.sides.left
            for _, layers in left.chunks(ROWS, share) if self._held is None else self._chunks(left, share):
                for layer, largest in zip(layers, found, strict=True):
                    for number, factor in enumerate(layer):
                        if factor is not None and factor.is_floating_point():
                            size = float(factor.abs().max())
                            fine = size == 0 or low <= size <= high
                            largest[number] = max(largest[number], size) if fine else math.nan
                        else:
                            largest[number] = 1.0
            return found

        shares = self.sides.left.store.shares(ROWS)
        parts = torch.tensor(together([partial(sizes, share) for share in shares]), dtype=torch.float64)
        entries = parts.amax(0).prod(1)  # NaN stays
        held = not bool(entries.isnan().any()) and LARGEST_OF_J[0] <= float(entries.max()) <= LARGEST_OF_J[1]
        return self.partition.sum(float(not held), self._diagonal.device) == 0

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return these rows of ``K v`` in fp64 for these rows of v (n, 1), which is rounded to fp32."""
        sums = [[self.partition.total(block) for block in layers] for layers in self._gathered(v.to(torch.float32))]
        return self._spread(self._shared(sums))

    def random(self, seed: int) -> Tensor:
        """Return these rows of ``J g`` (n, 1) in fp64, g of independent normal numbers: a vector of covariance K."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [(max(b, 1), max(a, 1)) for a, b in self.sides.widths]
        drawn = [
            [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]
            for _ in self.sides.picked
        ]
        if self.sides.output == "full":
            for index, (_, b) in enumerate(self.sides.widths):
                if b > 0:
                    for layers in drawn:
                        layers[index] = drawn[0][index]
        return self._spread(drawn)

    def _shared(self, sums: list[list[Tensor]]) -> list[list[Tensor]]:
        """Return the products of every output with J's transpose in fp32, added up where outputs share parameters."""
        if self.sides.output == "full":  # all but the head's
            for index, (_, b) in enumerate(self.sides.widths):
                if b > 0:
                    whole = torch.stack([layers[index] for layers in sums]).sum(0)
                    for layers in sums:
                        layers[index] = whole
        return [[block.to(torch.float32) for block in layers] for layers in sums]

    def _gathered(self, vector: Tensor) -> list[list[Tensor]]:
        """Return ``J_m^T v`` of every picked output and layer, (b, a) each, in fp64."""
        sides, side = self.sides, self.sides.summed
        by_output = vector.reshape(-1, sides.fold)

        def gather(share: slice) -> list[list[Tensor]]:
            shapes = [(max(b, 1), max(a, 1)) for a, b in sides.widths]
            sums = [[vector.new_zeros(shape, dtype=torch.float64) for shape in shapes] for _ in sides.picked]
            for points, factors in self._chunks(side, share):
                for m, layers in zip(sides.picked, sums, strict=True):
                    v = by_output[points, m if sides.fold > 1 else 0].unsqueeze(1)
                    for layer, total in zip(factors, layers, strict=True):
                        total += _transposed(layer, m, v, total.shape)
            return sums

        first, *others = together([partial(gather, share) for share in self._shares(side)])
        for more in others:
            for layers, parts in zip(first, more, strict=True):
                for total, part in zip(layers, parts, strict=True):
                    total += part
        return first

    def _spread(self, blocks: list[list[Tensor]]) -> Tensor:
        """Return ``J P`` (n, 1) in fp64 for a block (b, a) of every picked output and layer in fp32."""
        sides, side, fold = self.sides, self.sides.left, self.sides.fold
        out = torch.zeros(sides.height, dtype=torch.float64, device=sides.device)

        def spread(share: slice) -> None:
            for points, factors in self._chunks(side, share):
                rows = out[points.start * fold : points.stop * fold].view(-1, fold)
                for m, layers in zip(sides.picked, blocks, strict=True):
                    into = rows[:, m if fold > 1 else 0]
                    for layer, block in zip(factors, layers, strict=True):
                        into += _applied(layer, m, block)

        together([partial(spread, share) for share in self._shares(side)])
        return out.unsqueeze(1)


def _transposed(layer: Factors, output: int, v: Tensor, shape: torch.Size) -> Tensor:
    """Return ``J_m^T v`` (b, a) of one layer at some points, v (n, 1)."""
    z, s = layer.features, None if layer.sensitivities is None else layer.sensitivities[:, output]
    if z is None or s is None:
        factor = z if s is None else s
        assert factor is not None
        return (factor.t() @ v).view(shape)
    if shape[1] < shape[0]:
        return gemm.product((z * v).t(), s).t()
    return gemm.product((s * v).t(), z)


def _applied(layer: Factors, output: int, block: Tensor) -> Tensor:
    """Return ``J_m p`` (n,) of one layer at some points in fp64, for a block p (b, a)."""
    z, s = layer.features, None if layer.sensitivities is None else layer.sensitivities[:, output]
    if z is None or s is None:
        factor = z if s is None else s
        assert factor is not None
        return (factor @ block.reshape(-1, 1)).squeeze(1).double()
    small, mixed = (z, gemm.product(s, block)) if block.shape[1] < block.shape[0] else (s, gemm.product(z, block.t()))
    return mixed.mul_(small).sum(1, dtype=torch.float64)
