"""Operands: every factor in its place, scaled exactly, in a format that keeps the precision promised."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import inrfast as inr
from inrfast.ops import factors
from inrfast.ops.gram import gram_reference
from inrfast.ops.operands import LayerShape, Layout, feature_exponent, make_plan, pack, ranges_of
from inrfast.tangent.capture import Capture

SHAPES = st.builds(
    LayerShape, st.sampled_from([0, 1, 2, 8, 9, 20, 70]), st.sampled_from([0, 1, 3, 20, 70]), st.booleans()
).map(lambda s: dataclasses.replace(s, bias=s.bias and s.features > 0))


def random_factors(shapes, outputs, n, seed, spread=0.0):
    """Factors whose rows differ in size by up to ``2^spread`` either way."""
    rng = torch.Generator().manual_seed(seed)

    def matrix(*size):
        rows = 2.0 ** (spread * (2 * torch.rand(size[0], generator=rng, dtype=torch.float64) - 1))
        return torch.randn(size, generator=rng, dtype=torch.float64) * rows.view(-1, *[1] * (len(size) - 1))

    return [
        (
            matrix(n, s.features) if s.features else None,
            matrix(n, outputs, s.sensitivities) if s.sensitivities else None,
        )
        for s in shapes
    ]


def kernel(shapes, found, output, outputs, n):
    """The formula: ``(Z Z^T + 1) * (S S^T)`` with the identity, or a one, where a factor is not there."""
    total = 0
    for shape, (z, s) in zip(shapes, found, strict=True):
        left = torch.ones(n, n, dtype=torch.float64) if z is None else z @ z.t() + float(shape.bias)
        s = torch.eye(outputs, dtype=torch.float64).expand(n, -1, -1) if s is None else s
        total = total + left[:, None, :, None] * torch.einsum("nmb,pqb->nmpq", s, s)
    if output == "full":
        return total.reshape(n * outputs, n * outputs)
    return total.diagonal(dim1=1, dim2=3).sum(-1) if output == "trace" else total[:, output, :, output]


def from_operands(made):
    """The kernel of the numbers that operands hold, in fp64."""
    plan = made.plan
    values = []
    for place in plan.layout.places:
        wide = place.narrow != "features" and plan.layout.shapes[place.layer].bias
        values += [4.0 ** plan.exponents[place.layer] if wide else 0.0, place.weight]
    sides = (made.slabs, made.narrow, made.scale)
    dense = gram_reference(*sides, *sides, plan.layout.segments, values, plan.layout.narrow_layers)
    return dense[0, : made.rows, : made.rows]


@given(
    st.lists(SHAPES, min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(["trace", "full", 0]),
    st.sampled_from(["fp64", "fp16x3", "tf32x3"]),
    st.integers(1, 30),
    st.integers(0, 1000),
)
def test_operands_hold_the_kernel(shapes, outputs, output, format, n, seed):
    found = random_factors(shapes, outputs, n, seed)
    if all(z is None and s is None for z, s in found):
        return
    layout = Layout(tuple(shapes), output, outputs, format)
    plan = make_plan("highest" if format == "fp64" else "high", layout, ranges_of([z for z, _ in found]))
    plan = dataclasses.replace(plan, layout=layout)
    if format == "tf32x3":
        plan = dataclasses.replace(plan, exponents=(0,) * len(shapes))
    truth = kernel(shapes, found, output, outputs, n)
    size = torch.outer(truth.diagonal().sqrt(), truth.diagonal().sqrt())
    made = pack(plan, found)
    error = (from_operands(made) - truth).abs()
    assert (error <= {"fp64": 1e-14, "fp16x3": 5e-7, "tf32x3": 5e-7}[format] * size + 1e-300).all()
    some = torch.randint(made.rows, (seed % 200 + 1,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(from_operands(made.at(some)), from_operands(made)[some][:, some], rtol=1e-13, atol=0)


@given(st.integers(0, 1000), st.booleans())
def test_rows_however_small_keep_their_digits(seed, bias):
    """Sensitivities from 2^-25 to 2^25, features within what the format takes: each layer's error is relative."""
    shapes = [LayerShape(2, 40, bias), LayerShape(40, 40, bias), LayerShape(40, 0, bias)]
    found = random_factors(shapes, 1, 25, seed, spread=25.0)
    small = random_factors(shapes, 1, 25, seed + 1, spread=3.0)
    found = [(z, s) for (z, _), (_, s) in zip(small, found, strict=True)]
    for chosen, own in [(shapes, found), *(([s], [f]) for s, f in zip(shapes, found, strict=True))]:
        layout = Layout(tuple(chosen), "trace", 1, "fp64")
        plan = make_plan("high", layout, ranges_of([z for z, _ in own]))
        assert plan.layout.format == "fp16x3"
        truth = kernel(chosen, own, "trace", 1, 25)
        size = torch.outer(truth.diagonal().sqrt(), truth.diagonal().sqrt())
        assert ((from_operands(pack(plan, own)) - truth).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"activation": "relu"},
        {"activation": "relu", "init": {"first": "rank_expanding", "hidden": "kaiming"}},
        {"activation": "sine", "omega": 30.0, "init": "siren"},
        {"activation": "gaussian", "omega": 10.0},
    ],
)
def test_medium_keeps_its_promise_and_the_diagonal_is_exact(kwargs, width):
    net, coords = inr.INR(2, 1, width=width, **kwargs), inr.grid((32, 32))
    mlp = Capture(net, coords)._mlp
    layout = Layout(factors.layer_shapes(mlp), "trace", 1, "fp64")
    plan = make_plan("medium", layout, factors.feature_ranges(mlp, coords.double()))
    assert plan.layout.format == "fp16"
    vector = factors.flat_parameters(mlp).unsqueeze(0)
    name, numbers = mlp.hidden[0].activation.name, [number for h in mlp.hidden for number in h.activation.numbers]
    with torch.no_grad():
        made = factors.mlp_operands_reference(coords.double()[None], vector, plan, name, numbers)
    truth = inr.ntk(net, coords, precision="highest").to_dense()
    size = torch.outer(truth.diagonal().sqrt(), truth.diagonal().sqrt())
    error = (from_operands(made) - truth).abs() / size
    assert error.max() <= 2e-4
    assert error.diagonal().max() <= 3e-7


def test_the_format_follows_the_ranges_and_the_widths():
    wide = Layout((LayerShape(2, 64, True), LayerShape(64, 64, True), LayerShape(64, 0, True)), "trace", 1, "fp64")
    thin = Layout((LayerShape(2, 63, True), LayerShape(63, 64, True), LayerShape(64, 0, True)), "trace", 1, "fp64")
    one = [(1.0, 1.0)] * 3
    assert make_plan("highest", wide, []).layout.format == "fp64"
    assert make_plan("high", wide, one).layout.format == "fp16x3"
    assert make_plan("medium", wide, one).layout.format == "fp16"
    assert make_plan("medium", thin, one).layout.format == "fp16x3"
    for layout, precision in ((wide, "high"), (wide, "medium")):
        for bad in ((1e6, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)):
            assert make_plan(precision, layout, [(1.0, 1.0), bad, (1.0, 1.0)]).layout.format == "tf32x3"
    # Beside a bias small rows lose nothing that counts; without one they would.
    tiny = [(1.0, 1e-9)] * 3
    bare = dataclasses.replace(wide, shapes=tuple(dataclasses.replace(s, bias=False) for s in wide.shapes))
    assert make_plan("high", wide, tiny).layout.format == "fp16x3"
    assert make_plan("high", bare, tiny).layout.format == "tf32x3"


@given(st.floats(1e-12, 1e12), st.booleans())
def test_scales_are_as_large_as_fp16_allows(largest, bias):
    scaled = 2.0 ** feature_exponent(largest, bias) * largest
    assert scaled < 2.0**14
    assert scaled >= 2.0**13 or (bias and largest < 1.0)
