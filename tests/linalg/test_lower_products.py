"""Products in fp64 with rows kept in fp32 or fp64: exact in fp64 whatever the pieces and threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.linalg import lower_products
from inrfast.linalg.lower_products import add_transposed_, sharing, terms, times
from inrfast.threads import cores

CPU = torch.device("cpu")


@given(
    st.integers(0, 300),
    st.integers(0, 1100),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_both_products_are_those_of_the_matrix_in_fp64(rows, columns, count, dtype, absolute, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower_products, "SHARED", 100)
        check_products(rows, columns, count, dtype, absolute, seed)


def check_products(rows, columns, count, dtype, absolute, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns + 3, generator=generator, dtype=dtype)[:, 1 : columns + 1]
    exact = matrix.double().abs() if absolute else matrix.double()
    right = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    left = torch.randn(count, rows, generator=generator, dtype=torch.float64)
    for threads in (1, 2):
        with cores(threads), sharing(CPU) as found:
            assert found == threads and torch.get_num_threads() == 1
            assert torch.allclose(times(matrix, right, absolute, threads), right @ exact.t(), rtol=0, atol=1e-11)
            sums = torch.ones(count, columns, dtype=torch.float64)
            add_transposed_(sums, matrix, left, absolute, threads)
            assert torch.allclose(sums, 1 + left @ exact, rtol=0, atol=1e-11)
    assert matrix.dtype == dtype


@pytest.mark.parametrize("order", [1, 100, 512, 513, 65536])
def test_a_sum_in_pieces_has_fewer_additions_in_a_row_than_terms(order):
    assert min(order, 128) <= terms(order, CPU) <= order + 1
    assert terms(65536, CPU) < 2000
