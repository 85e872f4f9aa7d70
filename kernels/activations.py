"""Device functions: every activation's value and derivative in fp64 or fp32, without a byte of local memory.

The library's sine keeps a table on the stack for the reduction of huge arguments. Here the argument is reduced in
three parts (Cody and Waite, Software Manual for the Elementary Functions, 1980), in fp64 by pi/2 in the 33-bit parts of
fdlibm, which leaves an error below ``3e-16`` up to ``|x| = 2^40``, in fp32 by pi in parts of 15 bits and a rest, which
leaves 2 units in the last place of the sine up to ``|x| = 1e3`` and more. Beyond 2^40 (2^22 in fp32), where
neighbouring numbers are 1e-4 (0.5) apart, the result is NaN rather than a number without meaning.
"""

from __future__ import annotations

import triton
import triton.language as tl

IDENTITY = tl.constexpr("identity")
RELU = tl.constexpr("relu")
SINE = tl.constexpr("sine")
GAUSSIAN = tl.constexpr("gaussian")
FINER = tl.constexpr("finer")
TANH = tl.constexpr("tanh")
GELU = tl.constexpr("gelu")
SOFTPLUS = tl.constexpr("softplus")
WIRE = tl.constexpr("wire")

NUMBERS = tl.constexpr(2)
"""Numbers of a layer's activation that the kernels' tables have room for; what is beyond those it has is 0."""

HEAVY = (FINER.value, GELU.value, SOFTPLUS.value, WIRE.value)
"""Activations that leave a training step fewer registers for features."""

HALVED = {
    "fp16x3": (SINE.value, FINER.value, GELU.value, SOFTPLUS.value, WIRE.value),
    "tf32x3": (GELU.value, SOFTPLUS.value, WIRE.value),
    "fp64": (WIRE.value,),
}
"""Activations that leave the factor pass in these formats registers for half as many columns, as all do in fp16; the
ahead-of-time report shows it."""

LARGEST_ANGLE = tl.constexpr(float(2**40))

LARGEST_ANGLE_FP32 = tl.constexpr(float(2**22))

ROUND = tl.constexpr(1.5 * 2**23)
"""Added to an fp32 number below 2^22, it leaves the nearest integer in the last bits."""


@triton.jit
def _fma(x, y, CONSTANT: tl.constexpr):
    """Return ``x y + CONSTANT``, the constant in all its digits: older Triton takes a bare one as fp32."""
    return tl.fma(x, y, tl.full(x.shape, CONSTANT, x.dtype))


@triton.jit
def _less(x, turns, PART: tl.constexpr):
    """Return ``x - turns PART``, rounded once."""
    return tl.fma(-turns, tl.full(x.shape, PART, x.dtype), x)


@triton.jit
def sine_and_cosine(x):
    """Return sin(x) and cos(x) of fp64 numbers, absolute error below 3e-16."""
    quarters = tl.floor(x * 0.6366197723675814 + 0.5)
    # pi/2 in parts of 33 bits: products with up to 20 bits are exact even where an fma rounds twice.
    r = _less(x, quarters, 1.5707963267341256)
    r = _less(r, quarters, 6.077100506303966e-11)
    r = _less(r, quarters, 2.0222662487111665e-21)
    s = r * r
    # Minimax polynomials on |r| <= pi/4 (fdlibm's k_sin and k_cos, errors below 2^-58).
    p = s * 1.58969099521155010221e-10 + -2.50507602534068634195e-08
    p = _fma(s, p, 2.75573137070700676789e-06)
    p = _fma(s, p, -1.98412698298579493134e-04)
    p = _fma(s, p, 8.33333333332248946124e-03)
    p = _fma(s, p, -1.66666666666666324348e-01)
    sine = tl.fma(s * r, p, r)
    p = s * -1.13596475577881948265e-11 + 2.08757232129817482790e-09
    p = _fma(s, p, -2.75573143513906633035e-07)
    p = _fma(s, p, 2.48015872894767294178e-05)
    p = _fma(s, p, -1.38888888888741095749e-03)
    p = _fma(s, p, 4.16666666666666019037e-02)
    cosine = tl.fma(s * s, p, 1.0 - 0.5 * s)
    turn = quarters - 4 * tl.floor(quarters * 0.25)
    swapped = (turn == 1) | (turn == 3)
    first = tl.where(swapped, cosine, sine)
    second = tl.where(swapped, sine, cosine)
    known = tl.abs(x) <= LARGEST_ANGLE
    first = tl.where(turn >= 2, -first, first)
    second = tl.where((turn == 1) | (turn == 2), -second, second)
    return tl.where(known, first, float("nan")), tl.where(known, second, float("nan"))


@triton.jit
def sine_and_cosine_fp32(x, low, SHORT: tl.constexpr):
    """Return sin(x + low) and cos(x + low) of fp32 numbers, ``low`` what the rounding of x left.

    The sine is within 2 units in the last place (and 1e-12, if ``low`` is not 0) for ``|x| <= 1e3``, the cosine within
    3e-7; with SHORT, for results of 16 bits, within 2e-6 of its value, and 1e-5.
    """
    shifted = _fma(x, tl.full(x.shape, 0.31830987334251404, tl.float32), ROUND)
    turns = shifted - ROUND
    # Parts of pi of 15 bits: their products with up to 9 bits are exact, and what is left of x needs no rounding.
    r = _less(x, turns, 3.1416015625)
    r = _less(r, turns, -8.909031748771667e-06)
    r = _less(r + low, turns, 1.215420125655342e-10)
    s = r * r
    if SHORT:
        p = s * -1.8540928431320935e-04 + 8.31423606723547e-03
        p = _fma(s, p, -1.6665850579738617e-01)
        q = s * -1.275642542168498e-03 + 4.1506752371788025e-02
        q = _fma(s, q, -4.9993544816970825e-01)
    else:
        p = s * 2.6056311526190257e-06 + -1.980953966267407e-04
        p = _fma(s, p, 8.333065547049046e-03)
        p = _fma(s, p, -1.6666659712791443e-01)
        q = s * -2.607565932066791e-07 + 2.476180816302076e-05
        q = _fma(s, q, -1.3888402609154582e-03)
        q = _fma(s, q, 4.166664183139801e-02)
        q = _fma(s, q, -0.5)
    sine = tl.fma(s * r, p, r)
    cosine = _fma(s, q, 1.0)
    # Every odd number of half turns changes both signs.
    sign = shifted.to(tl.int32, bitcast=True) << 31
    sine = (sine.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    cosine = (cosine.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    known = tl.abs(x) <= LARGEST_ANGLE_FP32
    return tl.where(known, sine, float("nan")), tl.where(known, cosine, float("nan"))


@triton.jit
def tanh(x):
    """Return tanh(x), relative error below 1e-15, in fp32 below 5e-7."""
    # Near zero 1 - 2 / (e^2x + 1) cancels; Lambert's continued fraction does not.
    s = tl.minimum(x * x, 0.25)
    if x.dtype == tl.float64:
        fraction = 11 + s / (13 + s / 15)
        fraction = 7 + s / (9 + s / fraction)
        fraction = 3 + s / (5 + s / fraction)
    else:
        fraction = 3 + s / (5 + s / (7 + s * 0.1111111111111111))
    near = x / (1 + s / fraction)
    far = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0, -far, far))


@triton.jit
def log1p(x):
    """Return log(1 + x) of numbers 0 <= x <= 1, relative error below 1e-15, in fp32 below 5e-7."""
    # The rounding of 1 + x is divided out (Kahan; Goldberg 1991, theorem 4).
    shifted = 1 + x
    return tl.where(shifted == 1, x, tl.log(shifted) * (x / tl.where(shifted == 1, 1.0, shifted - 1)))


@triton.jit
def _periodic(u, omega, omega_rest, SHORT: tl.constexpr):
    """Return sine and cosine of ``(omega + omega_rest) u``, in fp32 of the exact product."""
    if u.dtype == tl.float64:
        return sine_and_cosine((omega + omega_rest) * u)
    else:
        frequency = tl.zeros_like(u) + omega
        angle = frequency * u
        return sine_and_cosine_fp32(angle, tl.fma(frequency, u, -angle) + omega_rest * u, SHORT)


@triton.jit
def activate(u, omega, omega_rest, second, ACTIVATION: tl.constexpr, SHORT: tl.constexpr):
    """Return the activation's value and derivative at ``u``, in fp64 or fp32.

    ``omega + omega_rest`` is the first number of those that have one, in the precision of ``u`` and its rest, and
    ``second`` the second. SHORT: a result of 16 bits will do. NaN stays NaN, as torch's does.
    """
    if ACTIVATION == RELU:
        return tl.where(u <= 0, 0.0, u).to(u.dtype), tl.where(u <= 0, 0.0, 1.0).to(u.dtype)
    elif ACTIVATION == SINE:
        value, cosine = _periodic(u, omega, omega_rest, SHORT)
        return value, omega * cosine
    elif ACTIVATION == GAUSSIAN:
        scaled = omega * u
        value = tl.exp(-scaled * scaled)
        return value, -2 * omega * scaled * value
    elif ACTIVATION == FINER:
        size = tl.abs(u)
        value, cosine = _periodic((size + 1) * u, omega, omega_rest, SHORT)
        return value, omega * (2 * size + 1) * cosine
    elif ACTIVATION == WIRE:
        sine, cosine = _periodic(u, omega, omega_rest, SHORT)
        scaled = second * u
        bell = tl.exp(-scaled * scaled)
        return cosine * bell, -(omega * sine + 2 * second * scaled * cosine) * bell
    elif ACTIVATION == TANH:
        value = tanh(u)
        return value, 1 - value * value
    elif ACTIVATION == GELU:
        cumulative = 0.5 * (1 + tl.erf(u * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * u * u)
        return u * cumulative, cumulative + u * density
    elif ACTIVATION == SOFTPLUS:
        small = tl.exp(-tl.abs(u))
        slope = 1 / (1 + small)
        return tl.where(u <= 0, 0.0, u) + log1p(small), tl.where(u < 0, small * slope, slope)
    else:
        tl.static_assert(ACTIVATION == IDENTITY)
        return u, tl.full(u.shape, 1.0, u.dtype)
