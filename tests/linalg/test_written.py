"""An operator that is written down is the same operator, and counts by it are the same."""

import pytest
import torch
from known_spectra import matrix_with

from inrfast.linalg import block_ldl, written
from inrfast.linalg.counted import counted_spectrum, counts_bytes
from inrfast.linalg.demands import Ranks
from inrfast.linalg.operators import DenseOperator
from inrfast.linalg.written import WrittenOperator, written_bytes


class Costly(DenseOperator):
    """A matrix whose products are dear, as those of a kernel are."""

    entry_flops = 0.0
    product_flops = 1e12
    products = 0

    def __matmul__(self, V):
        """Return the product, and count it."""
        Costly.products += 1
        return super().__matmul__(V)


@pytest.mark.parametrize("order", [1, 5, 128, 300, 389])
def test_a_written_operator_is_the_operator(order, monkeypatch):
    monkeypatch.setattr(block_ldl, "PANEL", 128)
    matrix = matrix_with(torch.rand(order, dtype=torch.float64), order)
    kept = WrittenOperator(Costly(matrix))
    V = torch.randn(order, 3, dtype=torch.float64)
    torch.testing.assert_close(kept @ V, matrix @ V, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(kept.diagonal(), matrix.diagonal())
    for start in range(0, order, 64):
        index = torch.arange(start, min(start + 64, order))
        for dtype in (torch.float32, torch.float64):
            out = torch.full((order - start, len(index)), torch.nan, dtype=dtype)
            parts = [(out[:10], slice(start, min(start + 10, order))), (out[10:], slice(min(start + 10, order), order))]
            kept.blocks_(parts, index, dtype)
            assert torch.equal(out, matrix[start:, index].to(dtype))


def test_counts_by_entries_take_no_product_of_the_operator_and_keep_to_the_budget():
    order = 400
    values = torch.logspace(0, -6, order, dtype=torch.float64)
    operator, least = Costly(matrix_with(values, 1)), counts_bytes(DenseOperator(torch.eye(order)), 0.0)
    for budget, by_entries in ((least + written_bytes(order, operator.device), True), (least, False)):
        Costly.products = 0
        found = counted_spectrum(operator, Ranks((1e-3,)), order, budget, progress=False)
        truth = int((values > 1e-3).sum())
        assert found.rank(1e-3).lower <= truth <= found.rank(1e-3).upper
        assert (Costly.products == 0) == by_entries
    cheap = DenseOperator(operator.matrix)
    assert written.written(cheap, 1 << 40, 0) == (cheap, 1 << 40)
