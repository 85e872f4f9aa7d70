"""Values and derivatives on the device against 50 digits of mpmath."""

import mpmath
import pytest
import torch
import triton
import triton.language as tl
from random_networks import mild

from inrfast.activations import ACTIVATIONS, DEVICE, bind
from inrfast.kernels import activations as device_functions
from inrfast.kernels.activations import activate


@triton.jit
def apply(u, value, slope, numbers, ACTIVATION: tl.constexpr, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    v, s = activate(tl.load(u + places), tl.load(numbers), 0.0, tl.load(numbers + 1), ACTIVATION, False)
    tl.store(value + places, v)
    tl.store(slope + places, s)


def on_device(name, u, omega, device):
    u = torch.as_tensor(u, dtype=torch.float64, device=device)
    count = triton.next_power_of_2(len(u))
    padded = torch.nn.functional.pad(u, (0, count - len(u)))
    value, slope = torch.full_like(padded, 7.0), torch.full_like(padded, 7.0)
    numbers = torch.tensor([*bind(mild(name), omega).numbers, 0.0, 0.0], dtype=torch.float64, device=device)
    apply[(1,)](padded, value, slope, numbers, ACTIVATION=ACTIVATIONS[name].device_name, COUNT=count)
    return value[: len(u)].cpu(), slope[: len(u)].cpu()


EXACT = {
    "identity": lambda u: u,
    "relu": lambda u: mpmath.mpf(max(u, 0)),
    "sine": lambda u, omega: mpmath.sin(omega * u),
    "gaussian": lambda u, omega: mpmath.exp(-((omega * u) ** 2)),
    "finer": lambda u, omega: mpmath.sin(omega * (abs(u) + 1) * u),
    "tanh": lambda u: mpmath.tanh(u),
    "gelu": lambda u: u * (1 + mpmath.erf(u / mpmath.sqrt(2))) / 2,
    "softplus": lambda u: mpmath.log1p(mpmath.exp(u)),
    "wire": lambda u, omega, sigma: mpmath.cos(omega * u) * mpmath.exp(-((sigma * u) ** 2)),
}

SLOPES = {
    "identity": lambda u: mpmath.mpf(1),
    "relu": lambda u: mpmath.mpf(u > 0),
    "sine": lambda u, omega: omega * mpmath.cos(omega * u),
    "gaussian": lambda u, omega: -2 * omega**2 * u * mpmath.exp(-((omega * u) ** 2)),
    "finer": lambda u, omega: omega * (2 * abs(u) + 1) * mpmath.cos(omega * (abs(u) + 1) * u),
    "tanh": lambda u: mpmath.sech(u) ** 2,
    "gelu": lambda u: (1 + mpmath.erf(u / mpmath.sqrt(2))) / 2 + u * mpmath.npdf(u),
    "softplus": lambda u: 1 / (1 + mpmath.exp(-u)),
    "wire": lambda u, omega, sigma: (
        -(omega * mpmath.sin(omega * u) + 2 * sigma**2 * u * mpmath.cos(omega * u)) * mpmath.exp(-((sigma * u) ** 2))
    ),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_value_and_derivative(name, omega, device):
    spread = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = torch.cat([spread, spread * 1e-9, spread * 30, torch.tensor([0.0, -0.0, 0.5, -0.5, 35.0, -35.0])])
    numbers, (value, slope) = bind(mild(name), omega).numbers, on_device(name, points, omega, device)
    with mpmath.workdps(50):
        for u, v, s in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
            exact, derivative = EXACT[name](mpmath.mpf(u), *numbers), SLOPES[name](mpmath.mpf(u), *numbers)
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
            exact = EXACT[name](mpmath.mpf(u))
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


def test_device_names_of_the_registry_are_those_of_the_kernels():
    assert device_functions.NUMBERS.value == max(DEVICE.values())
    for activation in ACTIVATIONS.values():
        if activation.device is not None:
            assert getattr(device_functions, activation.device.upper()).value == activation.device


# ---- fp32 ----------------------------------------------------------------------------------------------------------


@triton.jit
def apply_fp32(
    u, value, slope, omega, omega_rest, second, ACTIVATION: tl.constexpr, SHORT: tl.constexpr, COUNT: tl.constexpr
):
    places = tl.arange(0, COUNT)
    v, s = activate(tl.load(u + places), omega, omega_rest, second, ACTIVATION, SHORT)
    tl.store(value + places, v)
    tl.store(slope + places, s)


def on_device_fp32(name, u, omega, device, short=False):
    count = triton.next_power_of_2(len(u))
    padded = torch.nn.functional.pad(u.to(device, torch.float32), (0, count - len(u)))
    value, slope = torch.full_like(padded, 7.0), torch.full_like(padded, 7.0)
    first, second, *_ = (*bind(mild(name), omega).numbers, 0.0, 0.0)
    high = float(torch.tensor(first, dtype=torch.float32))
    numbers = high, first - high, second
    apply_fp32[(1,)](padded, value, slope, *numbers, ACTIVATION=ACTIVATIONS[name].device_name, SHORT=short, COUNT=count)
    return value[: len(u)].cpu(), slope[: len(u)].cpu()


def unit_in_the_last_place(x, bits):
    return 2.0 ** (mpmath.frexp(abs(x))[1] - bits) if x else 2.0**-149


@pytest.mark.parametrize("omega", [1.0, 30.0, 30.1, 1000.0])
def test_fp32_sine_is_within_two_units_in_the_last_place(omega, device):
    """Of the exact product ``omega u``, up to ``|omega u| = 1e3``, also next to the zeros of the sine."""
    rng = torch.Generator().manual_seed(3)
    spread = (2 * torch.rand(3000, generator=rng, dtype=torch.float64) - 1) * 1e3 / omega
    zeros = torch.arange(-318, 319, dtype=torch.float64) * (torch.pi / omega)
    points = torch.cat([spread, spread * 1e-3, zeros]).to(torch.float32)
    for short, bits, units in ((False, 24, 2.0), (True, 11, 0.51)):  # a short one is rounded to fp16, half a unit
        value, slope = on_device_fp32("sine", points, omega, device, short)
        with mpmath.workdps(40):
            for u, v, s in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
                angle = mpmath.mpf(omega) * mpmath.mpf(u)
                exact = mpmath.sin(angle)
                slack = 0.0 if omega == 1.0 else 1e-12  # the exact product comes nearer to a zero than any fp32 number
                assert abs(v - exact) <= units * unit_in_the_last_place(exact, bits) + slack
                assert abs(s / omega - mpmath.cos(angle)) <= (1e-5 if short else 3e-7)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("omega", [1.0, 7.3])
def test_fp32_value_and_derivative(name, omega, device):
    spread = torch.randn(60, generator=torch.Generator().manual_seed(1))
    points = torch.cat([spread, spread * 1e-5, spread * 10, torch.tensor([0.0, -0.0, 0.5, -0.5, 35.0, -35.0])])
    numbers, (value, slope) = bind(mild(name), omega).numbers, on_device_fp32(name, points, omega, device)
    with mpmath.workdps(40):
        for u, v, s in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
            exact, derivative = EXACT[name](mpmath.mpf(u), *numbers), SLOPES[name](mpmath.mpf(u), *numbers)
            angle = abs(omega * u) * (abs(u) + 1) if name == "finer" else 1.0  # its own rounding
            assert abs(v - exact) <= 2e-7 * (1 + angle) * max(1.0, abs(u))
            size = omega * (2 * abs(u) + 1) * (1 + omega * abs(u))
            assert abs(s - derivative) <= 3e-7 * (1 + angle) * max(1.0, size)


def test_fp32_activations_of_what_is_no_number(device):
    points = torch.tensor([float("nan"), float("inf"), -float("inf"), 2.0**23, -(2.0**30)])
    value, _ = on_device_fp32("sine", points, 1.0, device)
    assert value.isnan().all()
    for name in ("relu", "tanh", "softplus", "gaussian", "identity"):
        value, _ = on_device_fp32(name, points[:3], 1.0, device)
        torch.testing.assert_close(value, bind(name, 1.0).value(points[:3]), equal_nan=True, rtol=0, atol=0)
