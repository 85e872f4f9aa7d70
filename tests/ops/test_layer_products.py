"""Inner products of layers' kernels against dense matrices in fp64, of every form of factors and of outputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.ops import gram, layer_products
from inrfast.ops.layer_products import layer_products_reference

OUTPUTS = 2
FORMS = {"both": (3, 5), "rows": (0, 7), "head": (6, 0), "wide": (9, 4)}


def factors(n, forms, seed, dtype, size=1.0):
    rng = torch.Generator().manual_seed(seed)
    found = []
    for form in forms:
        a, b = FORMS[form]
        z = size * torch.randn(n, a, generator=rng, dtype=dtype) if a else None
        s = torch.randn(n, OUTPUTS, b, generator=rng, dtype=dtype) / (size if a else 1.0) if b else None
        found.append((z, s))
    return found


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=4),
    st.sampled_from(["trace", "full", 0, 1]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2),
)
def test_sums_are_those_of_dense_kernels(n, m, forms, output, symmetric, dtype, gates):
    tiles, gram.TILE, layer_products.TILE = gram.TILE, 16, 16  # several tiles of these few points
    try:
        rows, others = factors(n, forms, 0, dtype), factors(m, forms, 1, dtype)
        columns = None if symmetric else others
        single = [torch.randn(n, 3, dtype=dtype) for _ in range(gates)]
        other = None if symmetric else [torch.randn(m, 3, dtype=dtype) for _ in range(gates)]
        seen = []
        found = layer_products.layer_products(
            rows, columns, output, OUTPUTS, dtype, (single, other), advance=seen.append
        )
    finally:
        gram.TILE = layer_products.TILE = tiles
    truth = layer_products_reference(rows, columns, output, OUTPUTS, (single, other))
    size = truth.products.diagonal().sqrt()
    eps = 2e-6 if dtype == torch.float32 else 1e-13
    sizes = torch.outer(size, size), truth.features.abs(), truth.sensitivities.abs(), truth.single
    for own, exact, scale in zip(found, truth, sizes, strict=True):
        assert own.dtype == torch.float64 and own.shape == exact.shape
        assert torch.equal(own.isnan(), exact.isnan())
        assert ((own - exact).abs().nan_to_num() <= eps * scale.nan_to_num() + 1e-300).all()
    assert sum(seen) >= (n * (n + 1) // 2 if symmetric else n * m)


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_squares_of_features_do_not_leave_the_range_of_fp32(size):
    rows, plain = (factors(60, ["wide", "both"], 0, torch.float64, own) for own in (size, 1.0))
    narrow = [(z.float(), s.float()) for z, s in rows]
    found = layer_products.layer_products(narrow, None, "trace", OUTPUTS, torch.float32)
    truth = layer_products_reference(plain, None, "trace", OUTPUTS)
    for own, exact in zip(found, truth, strict=True):
        assert ((own - exact).abs() <= 1e-5 * exact.abs()).all() or own is found.products
    assert torch.allclose(found.products, truth.products, rtol=1e-5, atol=1e-5 * float(truth.products.amax()))


def test_many_threads_and_one_give_the_same_sums():
    """Up to the rounding of the matrix library, which may depend on its threads and on where memory lies."""
    rows = factors(1300, ["both", "wide", "head"], 0, torch.float32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(layer_products.layer_products(rows, None, "trace", OUTPUTS, torch.float32))
    for one, two in zip(*(map(torch.nan_to_num, each) for each in found), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7 * float(one.abs().sum()))


def test_tiles_of_many_layers_share_a_bounded_memory():
    cpu = torch.device("cpu")
    for layers in (1, 4, 60, 1000):
        side = layer_products.tile_side(layers, 1, torch.float32, cpu)
        held = (layers + 2) * side**2 * 4
        assert side <= gram.TILE and (held <= layer_products.TILE_BYTES or side == layer_products.LEAST_TILE)
