"""The kernels of the fused layer across several tiles, ranges and models, and the sizes they are launched with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.activations import ACTIVATIONS
from inrfast.kernels import fused_linear as kernel

KINDS = {"fp16": torch.float16, "tf32": torch.float32, "tf32x3": torch.float32, "fp64": torch.float64}
UNIT = {"fp16": 2.0**-10, "tf32": 2.0**-10, "tf32x3": 2.0**-22, "fp64": 2.0**-50}


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_ranges_and_models(device, kind):
    """More rows, columns and terms than a tile has of each; the sums of the ranges are the whole gradient."""
    models, n, inputs, outputs = (2, 70, 37, 41) if kind == "fp64" else (2, 150, 131, 133)
    rng = torch.Generator().manual_seed(0)
    sizes = ((1, n, inputs), (models, outputs, inputs), (models, outputs), (models, n, outputs))
    x, weight, bias, g = (torch.randn(*size, generator=rng).to(device, KINDS[kind]) for size in sizes)
    weight /= inputs**0.5
    number = ACTIVATIONS["relu"].kernel_id
    y = torch.full_like(g, 7.0)
    saved = torch.zeros(models, n, -(-outputs // 8), dtype=torch.uint8, device=device)
    kernel.launch_forward(kind, x, weight, bias, y, saved, kernel.MASK.value, number, 1.0)
    u = x.double() @ weight.double().mT + bias.double().unsqueeze(1)
    assert (y.double() - u.relu()).abs().max() <= 8 * UNIT[kind] * u.abs().max()
    shifts = torch.arange(8, device=device, dtype=torch.uint8)
    bits = (saved.unsqueeze(-1) >> shifts & 1).flatten(2)[..., :outputs]
    clear = u.abs() > 64 * UNIT[kind]
    assert torch.equal(bits[clear].bool(), (u > 0)[clear])

    e = g.double() * bits
    dx = torch.full((models, n, inputs), 7.0, device=device, dtype=x.dtype)
    kernel.launch_input_gradient(kind, g, weight, saved, dx, kernel.MASK.value, number)
    truth = e @ weight.double()
    assert (dx.double() - truth).abs().max() <= 8 * UNIT[kind] * truth.abs().max()

    ranges, length = kernel.ranges_of(kind, models, n, inputs, outputs, 64)
    wide = torch.float64 if kind == "fp64" else torch.float32
    weights = torch.full((models, ranges, outputs, inputs), 7.0, device=device, dtype=wide)
    biases = torch.full((models, ranges, outputs), 7.0, device=device, dtype=wide)
    kernel.launch_weight_gradient(kind, g, x, saved, weights, biases, length, kernel.MASK.value, number)
    for found, truth in ((weights.sum(1), e.mT @ x.double()), (biases.sum(1), e.sum(1))):
        assert (found.double() - truth).abs().max() <= 8 * UNIT[kind] * truth.abs().max()


@given(
    st.sampled_from(sorted(KINDS)), st.integers(1, 5), st.integers(0, 10**6), st.integers(1, 1024),
    st.integers(1, 1024), st.integers(1, 300),
)  # fmt: skip
def test_ranges_cover_all_points_once(kind, models, n, inputs, outputs, programs):
    ranges, length = kernel.ranges_of(kind, models, n, inputs, outputs, programs)
    assert ranges >= 1
    assert ranges * length >= n
    assert (ranges - 1) * length < max(n, 1)
    assert length % kernel.WEIGHT_GRADIENT[kind].terms == 0


@pytest.mark.parametrize("columns", [1, 2, 16, 17, 64, 1000])
def test_tiles_are_not_wider_than_the_layer(columns):
    for table in (kernel.FORWARD, kernel.INPUT_GRADIENT, kernel.WEIGHT_GRADIENT):
        for config in table.values():
            found = kernel.fitting(config, columns)
            assert 16 <= found.columns <= config.columns
            assert found.columns == config.columns or found.columns >= columns
