"""The kernels of products through a kernel's factors: ranges of rows, and sums of a fixed order."""

import pytest
import torch

from inrfast.kernels import tangent_product as kernel
from inrfast.kernels import tiles
from inrfast.ops import tangent_product
from inrfast.ops.operands import LayerShape, Layout, Plan, pack


@pytest.mark.parametrize("n", [1, 100, 65_536, 10_000_000])
@pytest.mark.parametrize("programs", [0, 1, 16, 5000])
def test_ranges_of_rows_cover_them(n, programs):
    splits, steps = kernel.splits_for(n, programs)
    blocks = -(-n // kernel.tile_of("transposed_product_narrow").points)
    assert (splits - 1) * steps < blocks <= splits * steps
    assert splits == 1 or splits * programs <= kernel.PROGRAMS + programs


def test_all_tiles_sum_over_the_same_blocks_of_rows():
    for tables in ([*tiles.TANGENTS.items()], [*tiles.PRODUCT_CANDIDATES.items()]):
        for (name, *_), found in tables:
            for points, units, *_ in found if isinstance(found[0], tuple) else (found,):
                assert points == 16 or not name.startswith("transposed_product")
                assert units == kernel.NARROW_UNITS or name != "transposed_product_narrow"
    assert kernel.transposed_tile(64).units == 64
    assert kernel.transposed_tile(65).units == 128


def test_the_same_call_gives_the_same_bits(device):
    """Several ranges of rows, and one and several tiles of units, in the larger tile too."""
    width = 70
    layout = Layout((LayerShape(2, width, True), LayerShape(width, width, False)), "trace", 2, "fp64")
    rng = torch.Generator().manual_seed(0)
    factors = [
        tuple(torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((400, a), (400, 2, width)))
        for a in (2, width)
    ]
    operands = pack(Plan(layout, (0, 0)), [tuple(f.to(device) for f in pair) for pair in factors])
    v = torch.randn(400, 2, generator=rng, dtype=torch.float64).to(device)
    one, two = (tangent_product.product(operands, tangent_product.transposed_product(operands, v)) for _ in range(2))
    assert torch.equal(one, two)
    z, s = factors[1][0], factors[1][1].flatten(1)
    first = (factors[0][0] @ factors[0][0].t() + 1) * (factors[0][1].flatten(1) @ factors[0][1].flatten(1).t())
    exact = (first + (z @ z.t()) * (s @ s.t())) @ v.cpu()
    torch.testing.assert_close(one.cpu(), exact, rtol=0, atol=1e-12 * float(exact.abs().max()))
