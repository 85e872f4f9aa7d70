"""Products with a kernel through its operands, against the kernel of the same numbers, entry by entry, in fp64."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from inrfast.ops import gram, tangent_product
from inrfast.ops.operands import LayerShape, Layout, Plan, allocate

UNIT = 2.0**-53

SHAPES = st.builds(
    LayerShape, st.sampled_from([0, 2, 8, 9, 20, 70]), st.sampled_from([0, 1, 3, 20, 70]), st.booleans()
).map(lambda s: dataclasses.replace(s, bias=s.bias and s.features > 0))

LAYOUTS = st.builds(
    lambda shapes, output, outputs: Layout(tuple(shapes), output, outputs, "fp64"),
    st.lists(SHAPES, min_size=1, max_size=4),
    st.sampled_from(["trace", "full", 0]),
    st.integers(1, 3),
)


def filled(layout, models, rows, seed, device):
    """Operands of random numbers; rows beyond the last point hold some too, which must not reach the result."""
    made = allocate(Plan(layout, (0,) * len(layout.shapes)), models, rows, torch.device("cpu"))
    rng = torch.Generator().manual_seed(seed)
    for t in (made.slabs, made.narrow):
        t.copy_(torch.randn(t.shape, generator=rng))
    return dataclasses.replace(made, **{name: getattr(made, name).to(device) for name in ("slabs", "narrow", "scale")})


def kernels(rows, columns):
    """Kernels (models, n, m), and the root of their entries' largest size, ``|J_i| |J_j|``."""
    sides, tables = gram.operator_arguments(rows, columns)
    exact = gram.gram_reference(*sides, *tables)[:, : rows.rows, : columns.rows]
    norms = [
        gram.gram_reference(*gram.operator_arguments(side, side)[0], *tables).diagonal(dim1=1, dim2=2)[:, : side.rows]
        for side in (rows, columns)
    ]
    return exact, norms[0].sqrt().unsqueeze(2) * norms[1].sqrt().unsqueeze(1)


def bound(layout, n):
    """The number of roundings of a product: see the module's first page; slabs add zeros, which round nothing."""
    widths = (s.features + 1 + max(layout.sensitivity_columns(s), 1) for s in layout.shapes)
    return (n + max(widths) + len(layout.shapes) + 2) * UNIT


EVERY_KIND = Layout((LayerShape(2, 70, True), LayerShape(70, 70, True), LayerShape(70, 0, True)), "trace", 2, "fp64")


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    LAYOUTS, st.sampled_from([0, 1, 131]), st.sampled_from([0, 1, 37]), st.integers(1, 2), st.sampled_from([0, 1, 8])
)
@example(EVERY_KIND, 300, 700, 1, 2)
def test_products_against_the_kernel(device, layout, n, m, models, k):
    rows, columns = filled(layout, models, n, 0, device), filled(layout, models, m, 1, device)
    V = torch.randn(models, m, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    exact, size = kernels(rows, columns)
    sums = tangent_product.transposed_product(columns, V)
    found = tangent_product.product(rows, sums)
    assert found.shape == (models, n, k)
    assert ((found - exact @ V).abs() <= bound(layout, m) * (size @ V.abs())).all()
    if models == 1:
        own, _ = kernels(columns, columns)
        form = tangent_product.inner_products(layout, sums[0])
        scale = (own[0].diagonal().sqrt() @ V[0].abs()).square().sum()
        assert ((form - V[0].t() @ own[0] @ V[0]).abs() <= 2 * bound(layout, m) * scale).all()
        torch.testing.assert_close(tangent_product.diagonal(columns), own[0].diagonal(), rtol=1e-13, atol=0)


def test_parts_and_layers_are_read_where_they_lie(device):
    """Some rows, and one layer, as views: the same numbers as of copies."""
    whole = filled(EVERY_KIND, 1, 300, 3, device)
    V = torch.randn(162, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(device)
    total = torch.zeros(300, 2, dtype=torch.float64, device=device)
    some = whole.part(128, 290)
    for layer in range(len(EVERY_KIND.shapes)):
        part = some.of_layer(layer)
        copy = dataclasses.replace(part, slabs=part.slabs.contiguous(), narrow=part.narrow.contiguous())
        sums = tangent_product.transposed_product(part, V)
        assert torch.equal(sums, tangent_product.transposed_product(copy, V))
        total += tangent_product.product(whole.of_layer(layer), sums)
    found = tangent_product.product(whole, tangent_product.transposed_product(some, V))
    torch.testing.assert_close(total, found, rtol=0, atol=1e-12 * float(found.abs().max()))


def operator_arguments(device, models=1):
    made = filled(EVERY_KIND, models, 20, 0, device)
    (slabs, narrow, *_), (segments, values, narrow_layers) = gram.operator_arguments(made, made)
    rng = torch.Generator().manual_seed(1)
    vectors = torch.randn(models, 20, 2, generator=rng, dtype=torch.float64).to(device)
    sums = tangent_product.transposed_product_op(slabs, narrow, vectors, segments, narrow_layers)
    return slabs, narrow, vectors, sums, segments, values, narrow_layers


def test_a_batch_is_more_models(device):
    slabs, narrow, vectors, _, segments, values, narrow_layers = operator_arguments(device, models=2)

    def both(slabs, narrow, vectors):
        found = tangent_product.transposed_product_op(slabs, narrow, vectors, segments, narrow_layers)
        return tangent_product.product_op(slabs, narrow, found, 20, segments, values, narrow_layers)

    many = torch.vmap(both, (0, 0, None))(slabs.unsqueeze(1), narrow.unsqueeze(1), vectors[:1])
    for model in range(2):
        one = both(slabs[model : model + 1], narrow[model : model + 1], vectors[:1])
        torch.testing.assert_close(many[model], one, rtol=1e-12, atol=1e-12)


def test_bad_input_is_refused_by_name(device):
    made = filled(EVERY_KIND, 1, 20, 0, device)
    half = allocate(Plan(dataclasses.replace(EVERY_KIND, format="fp16x3"), (0, 0, 0)), 1, 20, device)
    v = torch.ones(20, 1, dtype=torch.float64, device=device)
    for call, message in (
        (lambda: tangent_product.transposed_product(half, v), "format 'fp64'"),
        (lambda: tangent_product.transposed_product(made, v[1:]), "V must have shape"),
        (lambda: tangent_product.transposed_product(made, v.float()), "V must be fp64"),
        (lambda: tangent_product.product(made, v.t()), "parameters must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
