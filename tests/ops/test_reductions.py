"""Norms and products of kernels against the same numbers multiplied in fp64, by tiles of factors and by kernels."""

import dataclasses
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from inrfast.kernels.formats import FORMATS
from inrfast.ops import gram, reductions
from inrfast.ops.operands import LayerShape, Layout, Plan, allocate

UNIT = {"fp16": 2.0**-21, "fp16x3": 2.0**-20, "tf32x3": 2.0**-20, "fp64": 2.0**-52}
"""Relative to the terms of a sum: the tile's error, and three TF32 products' in place of one of fp32."""

SHAPES = (LayerShape(2, 12, True), LayerShape(12, 12, True), LayerShape(12, 0, True))
SIZES = [0, 1, 61, 67]


def filled(format, models, rows, seed, device, output="trace", size=1.0):
    """Operands of random numbers; what lies beyond the rows is poison that must not reach the result."""
    layout = Layout(SHAPES, output, 2, format)
    rows *= layout.fold
    made = allocate(Plan(layout, (0,) * len(SHAPES)), models, rows, torch.device("cpu"))
    rng = torch.Generator().manual_seed(seed)
    for t in (made.slabs, made.narrow, made.scale):
        t.copy_(torch.randn(t.shape, generator=rng).clamp(-3, 3))
    if made.slabs.shape[1] == 2:
        made.slabs[:, 1] *= 2.0**-12
    made.scale.mul_(size)
    made.scale[:, rows:] = float("nan")
    return dataclasses.replace(made, **{name: getattr(made, name).to(device) for name in ("slabs", "narrow", "scale")})


def sides_of(operands):
    return operands.slabs, operands.narrow, operands.scale


def truth(rows, columns):
    """Kernels (models, n, m) in fp64, and the same of absolute values: the size of the terms."""
    sides, tables = gram.operator_arguments(rows, columns)
    exact = gram.gram_reference(*sides, *tables)
    size = gram.gram_reference(*(t.abs() for t in sides), *tables)
    return exact[:, : rows.rows, : columns.rows], size[:, : rows.rows, : columns.rows]


@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(SIZES),
    st.sampled_from(SIZES),
    st.integers(1, 2),
    st.sampled_from(["trace", "full", 1]),
    st.booleans(),
    st.sampled_from([0, 1, 3, 37]),
)
def test_norms_and_products_of_operands_against_fp64(device, format, n, m, models, output, symmetric, k):
    rows = filled(format, models, n, 0, device, output)
    columns = rows if symmetric else filled(format, models, m, 1, device, output)
    exact, size = truth(rows, columns)
    unit = UNIT[format] * (16 + rows.plan.layout.slabs)

    found = reductions.gram_norm(rows, None if symmetric else columns)
    assert found.shape == (models,)
    assert found.dtype == torch.float64
    norm = torch.linalg.matrix_norm(exact) if exact.numel() else exact.new_zeros(models)
    bound = torch.linalg.matrix_norm(size) if exact.numel() else exact.new_zeros(models)
    assert ((found.sqrt() - norm).abs() <= unit * bound).all()

    V = torch.randn(models, columns.rows, k, generator=torch.Generator().manual_seed(2)).to(device)
    product = reductions.gram_product(rows, None if symmetric else columns, V)
    assert product.shape == (models, rows.rows, k)
    assert product.dtype == rows.scale.dtype
    assert ((product - exact @ V.double()).abs() <= unit * (size @ V.double().abs())).all()


@pytest.mark.parametrize("format", ["fp16x3", "tf32x3"])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_of_tiny_and_huge_entries(device, format, size):
    """Squares of such entries do not exist in fp32; those of a row beside them keep their digits."""
    rows = filled(format, 1, 100, 0, device, size=math.sqrt(size))
    rows.scale[:, 50:60] *= 2.0**-8
    exact, _ = truth(rows, rows)
    assert 1e-3 * size < float(exact.abs().max()) < 1e5 * size
    columns = filled(format, 1, 70, 1, device, size=math.sqrt(size))
    for other in (None, columns):
        expected = torch.linalg.matrix_norm(truth(rows, other or rows)[0])
        torch.testing.assert_close(reductions.gram_norm(rows, other).sqrt(), expected, rtol=2e-5, atol=0)
    rows.scale.zero_()
    assert float(reductions.gram_norm(rows, columns)) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_norm_with_a_bad_entry_is_not_a_number(device, bad):
    rows, columns = filled("fp16x3", 1, 70, 0, device), filled("fp16x3", 1, 20, 1, device)
    rows.scale[0, 69] = bad
    for found in (reductions.gram_norm(rows), reductions.gram_norm(rows, columns)):
        assert not torch.isfinite(found).any()
    finite = torch.isfinite(reductions.gram_product(rows, columns, torch.ones(20, 2, device=device))).all(1)
    assert finite[:69].all()
    assert not finite[69]


def test_two_runs_are_equal_bit_for_bit(device):
    rows, columns = filled("fp16x3", 1, 70, 0, device), filled("fp16x3", 1, 130, 1, device)
    V = torch.randn(130, 20, generator=torch.Generator().manual_seed(2)).to(device)
    assert torch.equal(reductions.gram_norm(rows), reductions.gram_norm(rows))
    assert torch.equal(reductions.gram_product(rows, columns, V), reductions.gram_product(rows, columns, V))


def test_many_models_and_vmap_are_one_by_one(device):
    rows, columns = filled("fp16x3", 3, 20, 0, device), filled("fp16x3", 3, 9, 1, device)
    V = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(2)).to(device)
    norms, products = reductions.gram_norm(rows, columns), reductions.gram_product(rows, columns, V)
    for k in range(3):
        one = [
            dataclasses.replace(side, **{name: getattr(side, name)[k : k + 1] for name in ("slabs", "narrow", "scale")})
            for side in (rows, columns)
        ]
        assert torch.equal(reductions.gram_norm(*one)[0], norms[k])
        assert torch.equal(reductions.gram_product(*one, V[k]), products[k])
    shared = reductions.gram_product(rows, columns, V[0])
    torch.testing.assert_close(shared[0], products[0], rtol=0, atol=0)

    sides, tables = gram.operator_arguments(rows, columns)

    def norm(*tensors):
        return reductions.gram_norm_op(*(t.unsqueeze(0) for t in tensors), 20, 9, *tables, False, "fp16x3")[0]

    def product(*tensors):
        return reductions.gram_product_op(*(t.unsqueeze(0) for t in tensors), 20, *tables, "fp16x3")[0]

    assert torch.equal(torch.vmap(norm)(*sides), norms)
    assert torch.equal(torch.vmap(product)(*sides, V), products)
    alone = [t[0] for t in sides]
    torch.testing.assert_close(torch.vmap(product, in_dims=(*[None] * 6, 0))(*alone, V)[0], products[0])


def test_the_operators_compile_whole(device):
    rows = filled("fp16x3", 1, 20, 0, device)
    V = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(2)).to(device)
    sides, tables = gram.operator_arguments(rows, rows)

    def both(V, *tensors):
        product = reductions.gram_product_op(*tensors, V, 20, *tables, "fp16x3")
        return 2 * product, 2 * reductions.gram_norm_op(*tensors, 20, 20, *tables, True, "fp16x3")

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(V, *sides), both(V, *sides), strict=True):
        assert torch.equal(found, expected)


def test_without_kernels_the_reference_counts(monkeypatch):
    """A CPU that does not interpret kernels gives the same."""
    cpu = torch.device("cpu")
    rows, columns = filled("fp16x3", 2, 20, 0, cpu), filled("fp16x3", 2, 9, 1, cpu)
    V = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(2))
    exact, _ = truth(rows, columns)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    torch.testing.assert_close(reductions.gram_norm(rows, columns), exact.square().sum((1, 2)))
    product = reductions.gram_product(rows, columns, V)
    torch.testing.assert_close(product, (exact @ V.double()).float(), rtol=1e-6, atol=1e-6)
    assert product.shape == (2, 20, 4)


def test_what_does_not_belong_together_is_refused(device):
    rows, other = filled("fp16x3", 2, 20, 0, device), filled("fp16x3", 1, 9, 0, device)
    with pytest.raises(ValueError, match="one plan, number of models and device"):
        reductions.gram_norm(rows, other)
    with pytest.raises(ValueError, match="one plan, number of models and device"):
        reductions.gram_product(rows, filled("fp64", 2, 9, 0, device), torch.ones(9, 1, device=device))
    for shape in ((19, 1), (3, 20, 1), (20,)):
        with pytest.raises(ValueError, match=r"V must have shape \(20, k\) or \(2, 20, k\)"):
            reductions.gram_product(rows, None, torch.ones(shape, device=device))
    with pytest.raises(ValueError, match="V must be floating"):
        reductions.gram_product(rows, None, torch.ones(20, 1, device=device, dtype=torch.int64))


# ---- either backend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns_rows", [None, 130])
def test_blocks_of_operands_add_up(device, monkeypatch, columns_rows):
    monkeypatch.setattr(reductions, "SIDE", 128)
    rows = filled("fp64", 1, 140, 0, device)
    columns = None if columns_rows is None else filled("fp64", 1, columns_rows, 1, device)
    exact, _ = truth(rows, columns or rows)
    found = reductions.squared_norm(rows, columns, "trace", 2, torch.float64)
    assert found == pytest.approx(float(exact.square().sum()), rel=1e-12)


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from([(3, 4), (5, 2), (4, 0), (0, 3)]), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([3, 8, 64]),
    st.sampled_from(["trace", "full", 0]),
    st.booleans(),
)
def test_norms_and_products_of_factors_by_tiles(widths, n, m, tile, output, symmetric):
    def factors(n, seed):
        rng = torch.Generator().manual_seed(seed)
        shapes = [((n, a) if a else None, (n, 2, b) if b else None) for a, b in widths]
        return [
            tuple(None if s is None else torch.randn(s, generator=rng, dtype=torch.float64) for s in pair)
            for pair in shapes
        ]

    rows, columns = factors(n, 0), None if symmetric else factors(m, 1)
    fold = 2 if output == "full" else 1
    width = n if symmetric else m
    dense = torch.empty(n * fold, width * fold, dtype=torch.float64)
    gram.fill_(dense, rows, columns, output, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "TILE", tile)
        found = [reductions.squared_norm(rows, columns, output, 2, torch.float64) for _ in range(2)]
        assert found[0] == pytest.approx(float(dense.square().sum()), rel=1e-12)
        assert found[0] == found[1]
        V = torch.randn(dense.shape[1], 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        W = torch.randn(dense.shape[0], 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        out, other = torch.ones_like(W), torch.ones_like(V)
        reductions.add_product_(out, rows, columns, V, output, 2, None if symmetric else (other, W))
    torch.testing.assert_close(out, 1 + dense @ V, rtol=1e-12, atol=1e-11)
    if not symmetric:
        torch.testing.assert_close(other, 1 + dense.t() @ W, rtol=1e-12, atol=1e-11)
