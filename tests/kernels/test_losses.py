"""Losses and their slopes on the device against fp64 formulas of the library, whose own truth is PyTorch's autograd."""

import pytest
import torch
import triton
import triton.language as tl

from inrfast.kernels import losses as device_functions
from inrfast.losses import LOSSES, loss_of


@triton.jit
def apply(prediction, target, value, slope, numbers, LOSS: tl.constexpr, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    v, s = device_functions.loss_and_slope(tl.load(prediction + places), tl.load(target + places), numbers, LOSS)
    tl.store(value + places, v)
    tl.store(slope + places, s)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "mse"])  # whose path is the fused step's own
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 4e-15), (torch.float32, 2e-6)])
def test_value_and_slope(name, dtype, close, device):
    loss = loss_of(name)
    rng = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.linspace(-6, 3, 128, dtype=torch.float64)
    prediction = (sizes * (1 - 2 * (torch.arange(128) % 2))).to(device, dtype)
    target = torch.rand(128, generator=rng, dtype=torch.float64).to(device, dtype)
    target[:4] = torch.tensor([0.0, 1.0, 0.5, 0.5])
    prediction[2:5] = torch.tensor([0.0, 0.5, float("nan")])
    value, slope = (torch.full_like(prediction, 7.0) for _ in range(2))
    numbers = torch.tensor([*loss.numbers, 0.0], dtype=dtype, device=device)
    apply[(1,)](prediction, target, value, slope, numbers, LOSS=loss.kind.triton, COUNT=128)
    exact = prediction.double(), target.double()
    for found, wanted in ((value, loss.value(*exact)), (slope, loss.slope(*exact))):
        assert bool(found[4].isnan())
        known = torch.arange(128, device=device) != 4
        error = (found.double() - wanted)[known].abs()
        assert bool((error <= close * wanted[known].abs().clamp_min(1.0)).all())
