"""The engines of ``K V``: each agrees with the dense kernel, and says why it is not taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, networks, random_coords

import inrfast as inr
from inrfast.tangent import cost, products


def multiplied(name, kernel, V):
    """Return ``K V`` by one engine, whether it would be taken or not."""
    engine = next(engine for engine in products.ENGINES if engine.name == name)
    return engine.product(kernel.sides, V, lambda part: part)


def scale(diagonal):
    """sqrt(K_ii K_jj), the size of an entry by Cauchy and Schwarz."""
    return torch.outer((diagonal + 1e-30).sqrt(), (diagonal + 1e-30).sqrt())


@settings(max_examples=5)
@given(networks(max_width=24, max_depth=3), st.integers(1, 23), st.integers(1, 60), st.integers(0, 10**6))
def test_every_engine_agrees_with_the_exact_kernel_and_the_first_without_a_reason_is_taken(net, n, k, seed):
    coords = random_coords(n, net.in_features, seed)
    jacobian = exact_jacobian(net, coords)
    for output in ("trace", "full", 0):
        K = inr.ntk(net, coords, output=output, precision="highest")
        truth = exact_kernel(jacobian, jacobian, output)
        V = torch.randn(K.shape[0], k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        bound = scale(truth.diagonal())
        able = [engine for engine in products.ENGINES if engine.name != "operands"]  # those need the Triton backend
        for engine in able:
            found = engine.product(K.sides, V, lambda part: part)
            assert ((found - truth @ V).abs() <= 1e-10 * (bound @ V.abs())).all()
        for most in (1, 7):  # few columns at a time are the same product
            found = products.product(K.sides, V, lambda part: part, most)
            assert ((found - truth @ V).abs() <= 1e-10 * (bound @ V.abs())).all()
        taken = next(engine for engine in products.ENGINES if engine.reason_against(K.sides, k) is None)
        assert taken.name == ("tiles" if k >= K.cost().break_even_columns else "factors")
        assert torch.equal(K @ V, taken.product(K.sides, V, lambda part: part))


def test_reasons_name_what_is_missing():
    K = inr.ntk(inr.INR(2, 1, width=64, hidden_layers=2), random_coords(600, 2, 3))
    least = K.cost().break_even_columns
    tiles, operands, factors = products.ENGINES
    assert f"from {least} columns on" in tiles.reason_against(K.sides, least - 1)
    assert tiles.reason_against(K.sides, least) is None
    assert "backend is torch" in operands.reason_against(K.sides, 1)
    assert factors.reason_against(K.sides, 1) is None
    wide = inr.ntk(inr.INR(2, 1, width=1), random_coords(600, 2, 3))
    assert (wide.cost().break_even_columns == cost.NEVER) == ("tiles" not in str(wide.cost()).split("K @ v")[1])


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("output", ["trace", "full", 1])
def test_tiles_of_many_points_agree_with_products(precision, output):
    """More than one tile a side, sizes no multiple of the tile: dense, columns and products are one kernel."""
    net = inr.INR(2, 2, width=8, hidden_layers=2, activation="sine", init="siren")
    coords = random_coords(1201, 2, 3)
    K = inr.ntk(net, coords, output=output, precision=precision)
    dense = K.to_dense()
    assert torch.equal(dense, dense.t())
    V = torch.randn(K.shape[1], 4, dtype=K.dtype)
    tol = 1e-12 if precision == "highest" else 2e-5
    for product in (K @ V, multiplied("tiles", K, V), multiplied("factors", K, V)):
        torch.testing.assert_close(product, dense @ V, rtol=0, atol=tol * float((dense @ V).abs().max()))
    torch.testing.assert_close(K.columns([7, 1100, 3]), dense[:, [7, 1100, 3]], rtol=0, atol=tol * float(dense.max()))


@pytest.mark.parametrize("output", ["trace", "full", 1])
def test_quadratic_forms_of_many_columns_go_by_tiles(output):
    """Both ways, and more than one tile a side; by factors no eigenvalue is below fp64 rounding."""
    net = inr.INR(2, 2, width=64, hidden_layers=2)
    K = inr.ntk(net, random_coords(600, 2, 3), output=output, precision="high")
    exact = inr.ntk(net, random_coords(600, 2, 3), output=output, precision="highest").to_dense()
    few = 3
    assert few < K.cost().break_even_columns <= 200
    Y = torch.randn(K.shape[0], 200, generator=torch.Generator().manual_seed(1))
    many = K.quadratic_form(Y)
    assert torch.equal(many, many.t())
    truth = Y.double().t() @ exact @ Y.double()
    size = Y.double().abs().t() @ scale(exact.diagonal()) @ Y.double().abs()
    assert ((many - truth).abs() <= 1e-6 * size).all()
    form = K.quadratic_form(Y[:, :few])
    assert ((form - truth[:few, :few]).abs() <= 1e-6 * size[:few, :few]).all()
    wide = products.ByFactors().form(K.sides, Y, lambda part: part)
    assert torch.linalg.eigvalsh(wide).min() >= -1e-13 * wide.trace()
