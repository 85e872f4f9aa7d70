"""Tiles of the Gram product: every entry of the kernel once, for every kind of layer and output."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from inrfast.ops import gram
from inrfast.ops.operands import LayerShape, Layout, Plan, pack


@st.composite
def layers(draw):
    """Widths (a, b) of the layers' factors, 0 for one that is not there, and the number of outputs."""
    pairs = draw(st.lists(st.sampled_from([(3, 4), (5, 2), (4, 0), (0, 3)]), min_size=1, max_size=4))
    return pairs, draw(st.integers(1, 3))


def factors(widths, outputs, n, seed):
    rng = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, a, generator=rng, dtype=torch.float64) if a else None,
            torch.randn(n, outputs, b, generator=rng, dtype=torch.float64) if b else None,
        )
        for a, b in widths
    ]


def kernel(rows, columns, output, outputs):
    """The formula entry by entry: rows of the Jacobian are Kronecker products, an absent S is the identity."""
    total = 0
    for (z, s), (z2, s2) in zip(rows, columns, strict=True):
        left = 1.0 if z is None else (z @ z2.t())[:, None, :, None]
        if s is None:
            right = torch.eye(outputs, dtype=torch.float64)[None, :, None, :].expand(len(z), -1, len(z2), -1)
        else:
            right = torch.einsum("nmb,pqb->nmpq", s, s2)
        total = total + left * right
    n, m = total.shape[0], total.shape[2]
    if output == "full":
        return total.reshape(n * outputs, m * outputs)
    return total.diagonal(dim1=1, dim2=3).sum(-1) if output == "trace" else total[:, output, :, output]


@given(layers(), st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 8, 64]), st.booleans(), st.integers(0, 99))
def test_tiles_cover_the_kernel_once(shape, n, m, tile, in_order, seed):
    widths, outputs = shape
    rows, columns = factors(widths, outputs, n, seed), factors(widths, outputs, m, seed + 1)
    for output in ("trace", "full", outputs - 1):
        for other in (None, columns):
            truth = kernel(rows, rows if other is None else other, output, outputs)
            found, visits = torch.zeros_like(truth), torch.zeros_like(truth)

            def visit(i, j, part, found=found, visits=visits):
                found[i, j] += part
                visits[i, j] += 1

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gram, "TILE", tile)
                gram.for_each_tile(rows, other, output, outputs, torch.float64, visit, in_order)
            if other is None:  # the upper tiles stand for the whole
                twice = (visits > 0) & (visits.t() > 0)
                assert torch.equal(visits + visits.t() - visits * twice, torch.ones_like(visits))
                assert torch.equal(found * twice, (found * twice).t())
                found = torch.where(visits > 0, found, found.t())
            else:
                assert (visits == 1).all()
            torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


# ---- the operator --------------------------------------------------------------------------------------------------


@given(st.integers(0, 900), st.integers(0, 900), st.sampled_from([1, 16, 64]), st.booleans())
def test_the_order_of_tiles_covers_each_once(n, m, block, symmetric):
    m = n if symmetric else m
    found = [tuple(place) for place in gram.tile_order(n, m, block, symmetric, torch.device("cpu")).tolist()]
    rows, columns = -(-n // block), -(-m // block)
    assert len(set(found)) == len(found)
    assert set(found) == {(i, j) for i in range(rows) for j in range(columns) if not symmetric or i >= j}
    # Neighbours in the order share a group of 16 x 16, so that their operands are read once.
    groups = [(i // 16, j // 16) for i, j in found]
    assert len([a for a, b in itertools.pairwise(groups) if a != b]) == max(len(set(groups)) - 1, 0)


def operands(n, seed, models=1, device="cpu", output="trace"):
    shapes = (LayerShape(2, 12, True), LayerShape(12, 12, True), LayerShape(12, 0, True))
    layout = Layout(shapes, output, 2, "fp16x3")
    made = []
    for k in range(models):
        found = factors([(2, 12), (12, 12), (12, 0)], 2, n, seed + k)
        made.append(pack(Plan(layout, (0, 11, 11)), found))
    parts = {name: torch.cat([getattr(m, name) for m in made]).to(device) for name in ("slabs", "narrow", "scale")}
    return dataclasses.replace(made[0], **parts)


def arguments(rows, columns, symmetric):
    layout = rows.plan.layout
    values = [v for place in layout.places for v in (gram._bias(rows.plan, place), place.weight)]
    sides = (rows.slabs, rows.narrow, rows.scale, columns.slabs, columns.narrow, columns.scale)
    return sides, (list(layout.segments), values, layout.narrow_layers, symmetric)


def test_many_models_are_one_by_one(device):
    together = gram.gram(operands(20, 0, 3, device), operands(9, 5, 3, device))
    assert together.shape == (3, 20, 9)
    for k in range(3):
        one = gram.gram(operands(20, k, 1, device), operands(9, 5 + k, 1, device))
        torch.testing.assert_close(together[k], one, rtol=0, atol=0)


class Operators(TorchDispatchMode):
    """Names of the operators of torch that run within it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_second_call_makes_no_tables(device, monkeypatch):
    """On a GPU every small copy to it is a wait; what follows from the plan alone is made once."""
    rows = operands(40, 0, 1, device)
    sides, (segments, values, narrow_layers, symmetric) = arguments(rows, rows, True)
    out = torch.empty(1, 40, 40, device=device)
    call = (sides, out, segments, values, narrow_layers, symmetric, "fp16x3")
    gram._write(*call)
    monkeypatch.setattr("inrfast.kernels.gram.launch", lambda *arguments, **named: None)
    with Operators() as seen:
        gram._write(*call)
    assert seen.names == []


def test_the_operator_compiles_whole(device):
    rows = operands(20, 0, 1, device)
    sides, tables = arguments(rows, rows, True)

    def twice(*tensors):
        out = tensors[0].new_empty(1, 20, 20, dtype=torch.float32)
        gram.gram_(*tensors, out, *tables, "fp16x3")
        return 2 * out

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*sides), twice(*sides))


def test_operands_that_do_not_belong_together_are_refused(device):
    rows, other = operands(20, 0, 1, device), operands(9, 0, 2, device)
    with pytest.raises(ValueError, match="one plan, number of models and device"):
        gram.gram(rows, other)
    with pytest.raises(ValueError, match="one plan, number of models and device"):
        gram.gram(rows, operands(9, 0, 1, device, output=0))
    with pytest.raises(ValueError, match=r"out must be fp32 or fp64 of shape \(1, 20, 20\)"):
        gram.gram(rows, out=torch.empty(20, 19, device=device))
    with pytest.raises(ValueError, match=r"out must be fp32 or fp64 of shape"):
        gram.gram(rows, out=torch.empty(20, 20, dtype=torch.float16, device=device))
