"""The Gram kernel against the same numbers multiplied in fp64, for every format, tile, shape and number of models."""

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from random_networks import random_coords
from tensor_cores import truncating

import inrfast as inr
from inrfast.kernels import gram as kernel
from inrfast.kernels import tiles
from inrfast.kernels.formats import FORMATS, config_for
from inrfast.ops import factors, reductions
from inrfast.ops.gram import config_on, gram, gram_reference, tile_order
from inrfast.ops.operands import LayerShape, Layout, Plan, allocate, make_plan
from inrfast.tangent.capture import Capture

UNIT = {"fp16": 2.0**-24, "fp16x3": 2.0**-22, "tf32x3": 2.0**-21, "fp64": 2.0**-53}
"""What one product may lose, relative to its terms: the accumulator's rounding, and the split's dropped halves."""


@st.composite
def layouts(draw, format):
    shape = st.builds(
        LayerShape, st.sampled_from([0, 2, 8, 9, 40, 70]), st.sampled_from([0, 3, 20, 65]), st.booleans()
    ).map(lambda s: dataclasses.replace(s, bias=s.bias and s.features > 0))
    output = draw(st.sampled_from(["trace", "full", 0]))
    return Layout(tuple(draw(st.lists(shape, min_size=1, max_size=4))), output, draw(st.integers(1, 3)), format)


def filled(plan, models, rows, seed, device):
    """Operands of random numbers; what lies beyond the rows is poison that must not reach the result."""
    made = allocate(plan, models, rows, torch.device("cpu"))
    rng = torch.Generator().manual_seed(seed)
    for t in (made.slabs, made.narrow, made.scale):
        t.copy_(torch.randn(t.shape, generator=rng).clamp(-3, 3))
    if made.slabs.shape[1] == 2:
        made.slabs[:, 1] *= 2.0**-12
    moved = (t.to(device) for t in (made.slabs, made.narrow, made.scale))
    return dataclasses.replace(made, **dict(zip(("slabs", "narrow", "scale"), moved, strict=True)))


def launch(format, config, rows, columns, out, values, symmetric, multiprocessors=2):
    layout = rows.plan.layout
    wide = rows.scale.dtype
    kernel.launch(
        format,
        config,
        (rows.slabs, rows.narrow, rows.scale),
        (columns.slabs, columns.narrow, columns.scale),
        out,
        tile_order(out.shape[1], out.shape[2], config.block, symmetric, out.device),
        torch.tensor(layout.segments, dtype=torch.int32, device=out.device).view(-1, 2),
        torch.tensor(values, dtype=wide, device=out.device).view(-1, 2),
        layout.narrow_layers,
        symmetric,
        multiprocessors,
    )


def truth(rows, columns, values, n, m):
    layout = rows.plan.layout
    sides = (rows.slabs, rows.narrow, rows.scale, columns.slabs, columns.narrow, columns.scale)
    exact = gram_reference(*sides, layout.segments, values, layout.narrow_layers)
    size = gram_reference(*(t.abs() for t in sides), layout.segments, values, layout.narrow_layers)
    return exact[:, :n, :m], size[:, :n, :m]


SIZES = [0, 1, 2, 63, 127, 131]


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(
    st.data(),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(SIZES),
    st.sampled_from(SIZES),
    st.integers(1, 2),
    st.sampled_from(["small", "large"]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_tiles_against_fp64(device, data, format, n, m, models, kind, symmetric, dtype):
    layout = data.draw(layouts(format))
    plan = Plan(layout, (0,) * len(layout.shapes))
    rows, columns = (filled(plan, models, size, seed, device) for seed, size in enumerate((n, m)))
    values = [v for place in layout.places for v in (0.5 if layout.shapes[place.layer].bias else 0.0, place.weight)]
    config = tiles.config("gram_tile", format, kind) if device.type == "cpu" else config_on(format, device)
    other, width = (rows, n) if symmetric else (columns, m)
    # A part of a larger matrix: the stride is not the width, and its surroundings must stay.
    around = torch.full((models, n + 3, width + 5), 7.0, dtype=dtype, device=device)
    out = around[:, 1 : 1 + n, 2 : 2 + width]
    launch(format, config, rows, other, out, values, symmetric)
    exact, size = truth(rows, other, values, n, width)
    bound = (16 + layout.slabs) * UNIT[format] + torch.finfo(dtype).eps
    assert ((out - exact).abs() <= bound * size + 1e-300).all()
    if symmetric:
        assert torch.equal(out, out.mT)
    around[:, 1 : 1 + n, 2 : 2 + width] = 7.0
    assert (around == 7.0).all()


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(
    st.data(),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from([1, 40, 70]),
    st.sampled_from([1, 40, 70]),
    st.integers(1, 2),
    st.sampled_from(["symmetric", "rectangular"]),
    st.integers(1, 5),
    st.booleans(),
)
def test_designs_agree_to_the_last_bit(device, data, format, n, m, models, kind, multiprocessors, copy_engine):
    """However many programs share the tiles of a stream, and wherever a tile of theirs begins."""
    layout = data.draw(layouts(format))
    plan = Plan(layout, (0,) * len(layout.shapes))
    rows = filled(plan, models, n, 0, device)
    other = filled(plan, models, m, 1, device) if kind == "rectangular" else rows
    values = [v for place in layout.places for v in (0.5 if layout.shapes[place.layer].bias else 0.0, place.weight)]
    config = config_on(format, device)
    if device.type == "cpu":
        config = dataclasses.replace(config, block=32, copy_engine=copy_engine)
    found = []
    for design in ("tile", "stream"):
        out = torch.full((models, n, other.rows), 7.0, dtype=rows.scale.dtype, device=device)
        chosen = dataclasses.replace(config, design=design)
        launch(format, chosen, rows, other, out, values, kind == "symmetric", multiprocessors)
        found.append(out)
    assert torch.equal(*found)


@pytest.mark.parametrize("format", ["fp16x3", "fp64"])
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@example(16, 32, 0)
@example(16, 32, 1)
@given(st.integers(1, 32), st.sampled_from([16, 20, 32]), st.integers(0, 1))
def test_a_measured_stream_is_launched_at_aligned_sizes_alone(device, format, n, m, place):
    """Whatever of a result is no multiple of 16, its size, stride or address, it comes from tiles: the same bits."""
    layout = Layout((LayerShape(2, 20, True), LayerShape(20, 9, True)), "trace", 1, format)
    rows, columns = (filled(Plan(layout, (0, 0)), 1, size, size, device) for size in (n, m))
    kind = "large" if config_on(format, device).copy_engine else "small"
    found, launched = [], []
    for design in ("tile", "stream"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("inrfast.ops.gram.runs_kernels", lambda device: True)
            for name, chosen in (("gram_tile", "tile"), ("gram_aligned", design)):
                patch.setitem(tiles.TILES, (name, format, kind), (32, 4, 2, False, 34, chosen, "measured"))
            for name in ("gram_tile", "gram_stream"):
                patch.setattr(kernel, name, Recorded(getattr(kernel, name), launched, name))
            out = torch.full((1, n, m + place), 7.0, dtype=rows.scale.dtype, device=device)[:, :, place:]
            found.append(gram(rows, columns, out=out))
    aligned = n % 16 == m % 16 == place == 0
    assert torch.equal(*found)
    assert launched == ["gram_tile", "gram_stream" if aligned else "gram_tile"]


class Recorded:
    """A kernel that says when it is launched."""

    def __init__(self, own, launched, name):
        self.own, self.launched, self.name = own, launched, name

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.own[grid]


def test_a_part_of_operands_gives_a_part_of_the_kernel(device):
    layout = Layout((LayerShape(2, 20, True), LayerShape(20, 30, True), LayerShape(30, 0, True)), "trace", 1, "fp16x3")
    whole = filled(Plan(layout, (0, 0, 0)), 2, 300, 0, device)
    values = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    part = whole.part(128, 290)
    out = torch.empty(2, 162, 300, device=device)
    interpreted = [tiles.config("gram_tile", "fp16x3", kind) for kind in ("small", "large")]
    for config in interpreted if device.type == "cpu" else [config_on("fp16x3", device)]:
        launch("fp16x3", config, part, whole, out, values, symmetric=False)
        exact, size = truth(whole, whole, values, 300, 300)
        assert ((out - exact[:, 128:290]).abs() <= 1e-4 * size[:, 128:290]).all()


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_gpu_since_ampere_has_a_configuration(format):
    for product in (False, True):
        kernel_name = "gram_product" if product else "gram_tile"
        assert config_for(format, (9, 0), 227 * 1024, product) == tiles.config(kernel_name, format, "large")
        for capability, shared in (((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((12, 0), 99)):
            config = config_for(format, capability, shared * 1024, product)
            assert config == tiles.config(kernel_name, format, "small")
            assert config.shared <= shared * 1024
            assert not config.copy_engine


# ---- what a precision promises, on tensor cores that truncate --------------------------------------------------------


PROMISES = {"fp16": 2e-4, "fp16x3": 1e-6, "tf32x3": 1e-6}


def operands(net, coords, format):
    """Operands of a network in a format, whatever would be chosen for it."""
    capture = Capture(net, coords)
    mlp, inputs = capture._mlp, capture.inputs(coords)
    layout = Layout(factors.layer_shapes(mlp), "trace", net.out_features, "fp64")
    if format == "tf32x3":
        plan = make_plan("highest", dataclasses.replace(layout, format=format), [])
        plan = dataclasses.replace(plan, layout=dataclasses.replace(layout, format=format))
    else:
        plan = make_plan("medium" if format == "fp16" else "high", layout, factors.feature_ranges(mlp, inputs))
    assert plan.layout.format == format
    return factors.mlp_operands([mlp], inputs, plan)


@pytest.mark.parametrize("format", sorted(PROMISES))
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@example(("relu", {"init": "rank_expanding"}), 256, 3, 0)
@example(("sine", {"init": "siren"}), 256, 2, 0)
@given(
    st.sampled_from([("relu", {}), ("relu", {"init": "rank_expanding"}), ("sine", {"init": "siren"}), ("gelu", {})]),
    st.sampled_from([64, 192, 384]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_every_format_keeps_its_promise_on_tensor_cores_that_truncate(device, format, activation, width, layers, seed):
    """Entries, norm and ``K V``, relative to ``sqrt(K_ii K_jj)``: the chains of sums are those of a whole network."""
    net = inr.INR(2, 1, width=width, hidden_layers=layers, activation=activation[0], seed=seed, **activation[1])
    coords = random_coords(32, 2, seed)
    exact = inr.ntk(net, coords, precision="highest").to_dense().double()
    made = operands(net.to(device), coords.to(device), format)
    V = torch.randn(32, 3, generator=torch.Generator().manual_seed(seed))
    with truncating() if device.type == "cpu" else contextlib.nullcontext(), pytest.MonkeyPatch.context() as patch:
        for name in ("gram_tile", "gram_product"):  # small tiles have the same sums as large ones
            _, *row = tiles.TILES[name, format, "small"]
            patch.setitem(tiles.TILES, (name, format, "small"), (32, *row))
        entries, norm = gram(made).double().cpu(), float(reductions.gram_norm(made).sqrt())
        product = reductions.gram_product(made, None, V.to(device)).double().cpu()
    size = exact.diagonal().sqrt().outer(exact.diagonal().sqrt())
    promise = PROMISES[format]
    assert ((entries - exact).abs() <= promise * size).all()
    assert abs(norm - float(exact.norm())) <= promise * float(exact.trace())
    assert ((product - exact @ V.double()).abs() <= promise * (size @ V.double().abs())).all()
    # Of many errors of either sign little is left in the mean; a core's truncation has one sign.
    assert abs(float(((entries - exact) / size).mean())) <= promise / 4
