"""The kernels of the fused layer across several tiles, ranges and models, and the sizes they are launched with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensor_cores import truncating

from inrfast.activations import ACTIVATIONS
from inrfast.kernels import fused_linear as kernel
from inrfast.kernels import tiles

KINDS = {"fp16": torch.float16, "tf32": torch.float32, "tf32x3": torch.float32, "fp64": torch.float64}
UNIT = {"fp16": 2.0**-10, "tf32": 2.0**-10, "tf32x3": 2.0**-22, "fp64": 2.0**-50}


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_ranges_and_models(device, kind):
    """More rows, columns and terms than a tile has of each; the sums of the ranges are those of all points."""
    models, n, inputs, outputs = (2, 70, 37, 41) if kind == "fp64" else (2, 150, 131, 261)
    rng = torch.Generator().manual_seed(0)
    sizes = ((1, n, inputs), (models, outputs, inputs), (models, outputs), (models, n, outputs))
    x, weight, bias, g = (torch.randn(*size, generator=rng).to(device, KINDS[kind]) for size in sizes)
    weight /= inputs**0.5
    name = ACTIVATIONS["relu"].device_name
    y = torch.full_like(g, 7.0)
    saved = torch.zeros(models, n, -(-outputs // 8), dtype=torch.uint8, device=device)
    kernel.launch_forward(kind, x, weight, bias, y, saved, kernel.MASK.value, name, ())
    u = x.double() @ weight.double().mT + bias.double().unsqueeze(1)
    assert (y.double() - u.relu()).abs().max() <= 8 * UNIT[kind] * u.abs().max()
    shifts = torch.arange(8, device=device, dtype=torch.uint8)
    bits = (saved.unsqueeze(-1) >> shifts & 1).flatten(2)[..., :outputs]
    clear = u.abs() > 64 * UNIT[kind]
    assert torch.equal(bits[clear].bool(), (u > 0)[clear])

    e = g.double() * bits
    ranges, length = kernel.ranges_of(models, n, outputs, 16)
    errors = torch.full_like(g, 7.0)
    sums = torch.full((models, ranges, outputs), 7.0, device=device, dtype=torch.float64 if kind == "fp64" else None)
    kernel.launch_errors(g, saved, errors, sums, length, kernel.MASK.value, name)
    assert torch.equal(errors.double(), e)
    assert (sums.sum(1) - e.sum(1)).abs().max() <= 8 * 2.0**-24 * e.abs().sum(1).max()


@pytest.mark.parametrize("kind", ["fp16", "tf32", "tf32x3"])
def test_long_sums_keep_the_bound_on_cores_that_truncate(device, kind):
    """Of terms of one sign the errors of a truncated chain all add up: a product of 4096 terms is fp32-accurate yet.

    The numbers are such as every kind holds exactly; ``out`` is fp32, so that nothing but the sum is rounded.
    """
    terms, few = 4096, 16
    rng = torch.Generator().manual_seed(0)

    def positive(*shape):
        return (torch.rand(shape, generator=rng) + 0.5).half().to(device, KINDS[kind])

    def excess(found, left, right):
        left, right = left.double(), right.double()
        exact, squares = left @ right, (left**2) @ (right**2)
        bound = 2.0**-24 * (4 * exact + 8 * (terms * squares).sqrt())
        return float(((found.double() - exact).abs() / bound).max())

    name = ACTIVATIONS["identity"].device_name
    empty = torch.zeros(1, 0, device=device)
    with truncating():
        x, weight = positive(1, few, terms), positive(1, few, terms)
        y = torch.zeros(1, few, few, device=device)
        kernel.launch_forward(kind, x, weight, None, y, empty, kernel.NOTHING.value, name, ())
    assert excess(y, x, weight.mT) <= 1


@given(st.integers(1, 5), st.integers(0, 10**6), st.integers(1, 1024), st.integers(1, 1056))
def test_ranges_cover_all_points_once(models, n, outputs, programs):
    ranges, length = kernel.ranges_of(models, n, outputs, programs)
    assert ranges >= 1
    assert ranges * length >= n
    assert (ranges - 1) * length < max(n, 1)
    assert length % kernel.ERROR_ROWS == 0


@pytest.mark.parametrize("columns", [1, 2, 16, 17, 64, 1000])
def test_tiles_are_not_wider_than_the_layer(columns):
    for name, kind, _ in tiles.LAYERS:
        config = kernel.config_of(name, kind)
        found = kernel.fitting(config, columns)
        assert 16 <= found.columns <= config.columns
        assert found.columns == config.columns or found.columns >= columns
