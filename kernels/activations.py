"""Device functions: every activation's value and derivative in fp64, without a byte of local memory.

The library's sine keeps a table on the stack for the reduction of huge arguments. Here the argument is reduced by
pi/2 in three parts (Cody and Waite, Software Manual for the Elementary Functions, 1980; the 33-bit parts of fdlibm),
which leaves an error below ``3e-16`` up to ``|x| = 2^40``; beyond, where neighbouring numbers are 1e-4 apart,
the result is NaN rather than a number without meaning.
"""

from __future__ import annotations

import triton
import triton.language as tl

IDENTITY = tl.constexpr(0)
RELU = tl.constexpr(1)
SINE = tl.constexpr(2)
GAUSSIAN = tl.constexpr(3)
FINER = tl.constexpr(4)
TANH = tl.constexpr(5)
GELU = tl.constexpr(6)
SOFTPLUS = tl.constexpr(7)

LARGEST_ANGLE = tl.constexpr(float(2**40))


@triton.jit
def _fma(x, y, CONSTANT: tl.constexpr):
    """Return ``x y + CONSTANT``, the constant in all its digits: older Triton takes a bare one as fp32."""
    return tl.fma(x, y, tl.full(x.shape, CONSTANT, tl.float64))


@triton.jit
def _less(x, quarters, PART: tl.constexpr):
    """Return ``x - quarters PART``, rounded once."""
    return tl.fma(-quarters, tl.full(x.shape, PART, tl.float64), x)


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
def tanh(x):
    """Return tanh(x) of fp64 numbers, relative error below 1e-15."""
    # Near zero 1 - 2 / (e^2x + 1) cancels; Lambert's continued fraction does not.
    s = tl.minimum(x * x, 0.25)
    fraction = 11 + s / (13 + s / 15)
    fraction = 7 + s / (9 + s / fraction)
    fraction = 3 + s / (5 + s / fraction)
    near = x / (1 + s / fraction)
    far = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0, -far, far))


@triton.jit
def log1p(x):
    """Return log(1 + x) of fp64 numbers 0 <= x <= 1, relative error below 1e-15."""
    # The rounding of 1 + x is divided out (Kahan; Goldberg 1991, theorem 4).
    shifted = 1 + x
    return tl.where(shifted == 1, x, tl.log(shifted) * (x / tl.where(shifted == 1, 1.0, shifted - 1)))


@triton.jit
def activate(u, omega, ACTIVATION: tl.constexpr):
    """Return the activation's value and derivative at ``u``; ``omega`` is the frequency of those that have one."""
    if ACTIVATION == RELU:
        return tl.maximum(u, 0.0), tl.where(u > 0, 1.0, 0.0).to(u.dtype)
    elif ACTIVATION == SINE:
        value, cosine = sine_and_cosine(omega * u)
        return value, omega * cosine
    elif ACTIVATION == GAUSSIAN:
        scaled = omega * u
        value = tl.exp(-scaled * scaled)
        return value, -2 * omega * scaled * value
    elif ACTIVATION == FINER:
        size = tl.abs(u)
        value, cosine = sine_and_cosine(omega * (size + 1) * u)
        return value, omega * (2 * size + 1) * cosine
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
        return tl.maximum(u, 0.0) + log1p(small), tl.where(u < 0, small * slope, slope)
    else:
        tl.static_assert(ACTIVATION == IDENTITY)
        return u, tl.full(u.shape, 1.0, u.dtype)
