"""Values and derivatives on the device against 50 digits of mpmath."""

import mpmath
import pytest
import torch
import triton
import triton.language as tl

from inrfast.activations import ACTIVATIONS
from inrfast.kernels import activations as device_functions
from inrfast.kernels.activations import activate


@triton.jit
def apply(u, value, slope, omega, ACTIVATION: tl.constexpr, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    v, s = activate(tl.load(u + places), tl.load(omega), ACTIVATION)
    tl.store(value + places, v)
    tl.store(slope + places, s)


def on_device(name, u, omega, device):
    u = torch.as_tensor(u, dtype=torch.float64, device=device)
    count = triton.next_power_of_2(len(u))
    padded = torch.nn.functional.pad(u, (0, count - len(u)))
    value, slope = torch.full_like(padded, 7.0), torch.full_like(padded, 7.0)
    frequency = torch.tensor([omega], dtype=torch.float64, device=device)
    apply[(1,)](padded, value, slope, frequency, ACTIVATION=ACTIVATIONS[name].kernel_id, COUNT=count)
    return value[: len(u)].cpu(), slope[: len(u)].cpu()


EXACT = {
    "identity": lambda u, omega: u,
    "relu": lambda u, omega: mpmath.mpf(max(u, 0)),
    "sine": lambda u, omega: mpmath.sin(omega * u),
    "gaussian": lambda u, omega: mpmath.exp(-((omega * u) ** 2)),
    "finer": lambda u, omega: mpmath.sin(omega * (abs(u) + 1) * u),
    "tanh": lambda u, omega: mpmath.tanh(u),
    "gelu": lambda u, omega: u * (1 + mpmath.erf(u / mpmath.sqrt(2))) / 2,
    "softplus": lambda u, omega: mpmath.log1p(mpmath.exp(u)),
}

SLOPES = {
    "identity": lambda u, omega: mpmath.mpf(1),
    "relu": lambda u, omega: mpmath.mpf(u > 0),
    "sine": lambda u, omega: omega * mpmath.cos(omega * u),
    "gaussian": lambda u, omega: -2 * omega**2 * u * mpmath.exp(-((omega * u) ** 2)),
    "finer": lambda u, omega: omega * (2 * abs(u) + 1) * mpmath.cos(omega * (abs(u) + 1) * u),
    "tanh": lambda u, omega: mpmath.sech(u) ** 2,
    "gelu": lambda u, omega: (1 + mpmath.erf(u / mpmath.sqrt(2))) / 2 + u * mpmath.npdf(u),
    "softplus": lambda u, omega: 1 / (1 + mpmath.exp(-u)),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_value_and_derivative(name, omega, device):
    spread = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = torch.cat([spread, spread * 1e-9, spread * 30, torch.tensor([0.0, -0.0, 0.5, -0.5, 35.0, -35.0])])
    value, slope = on_device(name, points, omega, device)
    with mpmath.workdps(50):
        for u, v, s in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
            exact, derivative = EXACT[name](mpmath.mpf(u), omega), SLOPES[name](mpmath.mpf(u), omega)
            # The angle's own rounding, a unit in its last place, is not the function's error.
            angle = abs(omega * u) * (abs(u) + 1 if name == "finer" else 1) if omega > 1 or name == "finer" else 0.0
            slack = 4e-16 * (1 + angle)
            # Where a value cancels to nothing (the far tails of GELU and softplus) its error is that of its terms.
            assert abs(v - exact) <= slack * max(1.0, abs(u)) or abs(v - exact) <= 4e-15 * abs(exact)
            size = omega * (2 * abs(u) + 1) * (1 + omega * abs(u))
            assert abs(s - derivative) <= slack * max(1.0, size)
    assert value[torch.isclose(points, torch.tensor(0.0, dtype=points.dtype))].isfinite().all()


@pytest.mark.parametrize("name", ["tanh", "softplus"])
def test_small_results_keep_their_digits(name, device):
    points = torch.tensor([-30.0, -20.0, -3.0, -0.3, 1e-5, -1e-5, 3e-9, 0.49, 0.51], dtype=torch.float64)
    value, _ = on_device(name, points, 1.0, device)
    with mpmath.workdps(50):
        for u, v in zip(points.tolist(), value.tolist(), strict=True):
            exact = EXACT[name](mpmath.mpf(u), 1.0)
            assert abs(v - exact) <= 2e-15 * abs(exact)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e3, 1e5, 1e9, 1e12])
def test_sine_of_large_angles(size, device):
    """The reduction is exact to 3e-16 up to 2^40; beyond, the result is NaN and no silent number."""
    points = size * (1 + torch.rand(100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)) / 2
    points = torch.cat([points, -points, (points / torch.pi).round() * torch.pi])
    value, slope = on_device("sine", points, 1.0, device)
    with mpmath.workdps(50):
        for u, v, s in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
            assert abs(v - mpmath.sin(mpmath.mpf(u))) <= 3e-16
            assert abs(s - mpmath.cos(mpmath.mpf(u))) <= 3e-16
    beyond = torch.tensor([2.0**40 * 1.01, -(2.0**60), float("nan"), float("inf")], dtype=torch.float64)
    assert all(t.isnan().all() for t in on_device("sine", beyond, 1.0, device))


def test_numbers_of_the_activations_are_those_of_the_table():
    for name, activation in ACTIVATIONS.items():
        assert getattr(device_functions, name.upper()).value == activation.kernel_id
