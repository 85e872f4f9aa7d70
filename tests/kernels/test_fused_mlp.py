"""What the launches of the fused step rely on: tiles that fit each other; sums of partial sums in any number."""

import pytest
import torch

from inrfast.activations import ACTIVATIONS
from inrfast.kernels import fused_mlp as kernels
from inrfast.kernels.mlp_backward import _total

KINDS = ("fp16", "tf32x3", "fp64")
WIDTHS = (1, 16, 17, 64, 100, 128, 129, 256, 512)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("activation", ["relu", "finer"])
def test_tiles_fit_the_width_and_each_other(kind, large, activation):
    for width in WIDTHS:
        tile, back, on_chip = kernels.passes_configs(kind, width, ACTIVATIONS[activation].device_name, large)
        assert tile.rows == back.rows
        for columns in (tile.columns, back.columns):
            assert columns % 16 == 0
            assert not on_chip or columns >= width
        for encoded in (True, False):
            weights = kernels.weight_gradients_config(kind, width, encoded)
            # Points beyond the last one are read up to the end of a range's last block: they must lie in a tile.
            assert tile.rows % weights.terms == 0
            assert weights.rows <= max(16, 2 * width)


@pytest.mark.parametrize("count", [1, 5, 1024, 3000])
def test_totals_are_sums_in_fixed_order(device, count):
    """Many tiles' squares make one loss: more than one block of them, and the last block short."""
    import triton
    import triton.language as tl

    @triton.jit
    def total(values, out, count):
        tl.store(out, _total(values, count))

    values = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    found = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(2)]
    for out in found:
        total[(1,)](values, out, count)
    assert float(found[0]) == float(found[1])
    assert float(found[0]) == pytest.approx(float(values.sum()), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("parts", [1, 63, 200])
def test_any_number_of_partial_sums(device, parts):
    """Two networks, columns that lie apart, more parts than are taken at once; the factor is each network's own."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = 7, 11
    size = rows * columns
    partials = torch.randn(2, parts * 100, generator=generator, dtype=torch.float64).to(device)
    gradients = torch.zeros(2, 96, dtype=torch.float64, device=device)
    firsts = range(0, size, kernels.BLOCK)
    table = torch.tensor([(16, first, size, columns, 3, 1, rows, 100, parts) for first in firsts]).to(device)
    factors = torch.tensor([0.5, 2.0], dtype=torch.float64, device=device)
    trained = torch.ones(96, dtype=torch.uint8, device=device)
    kernels.mlp_update[(len(table), 2)](
        gradients, gradients, gradients, gradients, gradients, trained, partials, table, partials, factors, 0, 96,
        parts * 100, REDUCE=True, OPTIMIZER="none", BETA1=0.0, BETA2=0.0, EPSILON=0.0, COPY=False,
        **kernels.update_constants("fp64"),
    )  # fmt: skip
    sums = partials.view(2, parts, 100).sum(1)[:, 3 : 3 + size].view(2, columns, rows).mT.flatten(1)
    assert torch.allclose(gradients[:, 16 : 16 + size], sums * factors[:, None], rtol=1e-12, atol=1e-12)
    assert not gradients[:, :16].any()
    assert not gradients[:, 16 + size :].any()
