"""Products ``K v = J (J^T v)`` of a tangent kernel in fp32, with a bound on their errors in terms of J.

The factors are rounded to fp32 and multiplied there; sums over points are added up in fp64 from chunk to chunk, and so
are the products of a row of J with the parameters over the narrower factor. What the rounding of a product costs a
certificate is worked out in :mod:`inrfast.linalg.complement`.
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inrfast.layers import Factors
from inrfast.linalg.operators import INDEPENDENT, SINGLE_UNIT
from inrfast.ops import gemm
from inrfast.tangent.jacobian import LayerwiseJacobian
from inrfast.tangent.sides import Sides
from inrfast.threads import together

if TYPE_CHECKING:
    from inrfast.tangent.kernel import TangentKernel

ROWS = 512
"""Points per chunk: a scaled factor stays in the second-level cache, and sums in fp32 are no longer than this."""

LARGEST = (1e-12, 1e12)
"""Sizes of a factor's largest entry for which fp32 holds all products and sums with all digits."""


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

        def held(share: slice) -> bool:
            for _, factors in self.sides.left.chunks(ROWS, share):
                for factor in (f for layer in factors for f in layer if f is not None and f.is_floating_point()):
                    size = float(factor.abs().max())
                    if not (size <= high and (size == 0 or size >= low)):
                        return False
            return True

        shares = self.sides.left.store.shares(ROWS)
        here = all(together([partial(held, share) for share in shares]))
        return self.partition.sum(float(not here), self._diagonal.device) == 0

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return these rows of ``K v`` in fp64 for these rows of v (n, 1), which is rounded to fp32."""
        sides, vector = self.sides, v.to(torch.float32)
        sums = [[self.partition.total(block) for block in layers] for layers in self._gathered(sides.summed, vector)]
        if sides.output == "full":  # outputs share their parameters, all but the head's
            for index, (_, b) in enumerate(sides.widths):
                if b > 0:
                    whole = torch.stack([layers[index] for layers in sums]).sum(0)
                    for layers in sums:
                        layers[index] = whole
        blocks = [[block.to(torch.float32) for block in layers] for layers in sums]
        out = torch.zeros(len(vector), dtype=torch.float64, device=v.device)
        shares = sides.left.store.shares(ROWS)
        together([partial(self._spread, sides.left, blocks, out, share) for share in shares])
        return out.unsqueeze(1)

    def _gathered(self, side: LayerwiseJacobian, vector: Tensor) -> list[list[Tensor]]:
        """Return ``J_m^T v`` of every picked output and layer, (b, a) each, in fp64."""
        sides = self.sides
        by_output = vector.reshape(-1, sides.fold)

        def gather(share: slice) -> list[list[Tensor]]:
            shapes = [(max(b, 1), max(a, 1)) for a, b in sides.widths]
            sums = [[vector.new_zeros(shape, dtype=torch.float64) for shape in shapes] for _ in sides.picked]
            for points, factors in side.chunks(ROWS, share):
                rounded = [layer.to(torch.float32) for layer in factors]
                for m, layers in zip(sides.picked, sums, strict=True):
                    v = by_output[points, m if sides.fold > 1 else 0].unsqueeze(1)
                    for layer, total in zip(rounded, layers, strict=True):
                        total += _transposed(layer, m, v, total.shape)
            return sums

        first, *others = together([partial(gather, share) for share in side.store.shares(ROWS)])
        for more in others:
            for layers, parts in zip(first, more, strict=True):
                for total, part in zip(layers, parts, strict=True):
                    total += part
        return first

    def _spread(self, side: LayerwiseJacobian, blocks: list[list[Tensor]], out: Tensor, share: slice) -> None:
        """Add ``J P`` at some points to ``out``."""
        fold = self.sides.fold
        for points, factors in side.chunks(ROWS, share):
            rounded = [layer.to(torch.float32) for layer in factors]
            rows = out[points.start * fold : points.stop * fold].view(-1, fold)
            for m, layers in zip(self.sides.picked, blocks, strict=True):
                into = rows[:, m if fold > 1 else 0]
                for layer, block in zip(rounded, layers, strict=True):
                    into += _applied(layer, m, block)


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
