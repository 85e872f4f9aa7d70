"""The Gram kernel against the same numbers multiplied in fp64, for every format, tile, shape and number of models."""

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from inrfast.kernels import gram as kernel
from inrfast.kernels.formats import FORMATS, LARGE, SMALL, config_for
from inrfast.ops.gram import config_on, gram_reference, tile_order
from inrfast.ops.operands import LayerShape, Layout, Plan, allocate

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


def launch(format, config, rows, columns, out, values, symmetric, mirror=True):
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
        mirror,
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
    st.sampled_from([SMALL, LARGE]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_tiles_against_fp64(device, data, format, n, m, models, configs, symmetric, dtype):
    layout = data.draw(layouts(format))
    plan = Plan(layout, (0,) * len(layout.shapes))
    rows, columns = (filled(plan, models, size, seed, device) for seed, size in enumerate((n, m)))
    values = [v for place in layout.places for v in (0.5 if layout.shapes[place.layer].bias else 0.0, place.weight)]
    config = configs[format] if device.type == "cpu" else config_on(format, device)
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


def test_without_its_mirror_the_upper_half_stays(device):
    layout = Layout((LayerShape(2, 20, True), LayerShape(20, 0, True)), "trace", 1, "fp64")
    rows = filled(Plan(layout, (0, 0)), 1, 200, 0, device)
    values = [0.0, 1.0, 1.0, 1.0]
    out = torch.full((1, 200, 200), 7.0, dtype=torch.float64, device=device)
    config = dataclasses.replace(config_on("fp64", device), copy_engine=False)
    launch("fp64", config, rows, rows, out, values, symmetric=True, mirror=False)
    exact, _ = truth(rows, rows, values, 200, 200)
    place = torch.arange(200, device=device) // config.block
    written = place[:, None] >= place[None, :]
    torch.testing.assert_close(out[0][written], exact[0][written], rtol=1e-12, atol=1e-12)
    assert (out[0][~written] == 7.0).all()


def test_a_part_of_operands_gives_a_part_of_the_kernel(device):
    layout = Layout((LayerShape(2, 20, True), LayerShape(20, 30, True), LayerShape(30, 0, True)), "trace", 1, "fp16x3")
    whole = filled(Plan(layout, (0, 0, 0)), 2, 300, 0, device)
    values = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    part = whole.part(128, 290)
    out = torch.empty(2, 162, 300, device=device)
    for config in (LARGE["fp16x3"], SMALL["fp16x3"]) if device.type == "cpu" else (config_on("fp16x3", device),):
        launch("fp16x3", config, part, whole, out, values, symmetric=False)
        exact, size = truth(whole, whole, values, 300, 300)
        assert ((out - exact[:, 128:290]).abs() <= 1e-4 * size[:, 128:290]).all()


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_gpu_since_ampere_has_a_configuration(format):
    assert config_for(format, (9, 0), 227 * 1024) == LARGE[format]
    for capability, shared in (((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((12, 0), 99)):
        config = config_for(format, capability, shared * 1024)
        assert config == SMALL[format]
        assert config.shared <= shared * 1024
        assert not config.copy_engine
