"""The model of a tensor core, that other tests judge kernels by, against exact sums."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from tensor_cores import STEP, product, product_tf32x3, to_tf32, truncating

SEEDS = st.integers(0, 10**6)
UNIT = 2.0**-23


def numbers(rng, kind, *shape):
    """Numbers that a core multiplies exactly, of many sizes."""
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, shape)).astype(np.float32)
    return x.astype(np.float16).astype(np.float32) if kind == "fp16" else to_tf32(x, nearest=True)


@pytest.mark.parametrize("kind", ["fp16", "tf32"])
@given(SEEDS)
def test_one_step_is_off_by_what_it_cuts_and_a_chain_by_all_of_its_steps(kind, seed):
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 9))
    a, b = numbers(rng, kind, 5, steps * STEP[kind]), numbers(rng, kind, steps * STEP[kind], 7)
    total = rng.standard_normal((5, 7)).astype(np.float32)
    exact = total + a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(total) + np.abs(a).astype(np.float64) @ np.abs(b)
    # A step cuts its terms, at most 17, at 2^-25 of the largest, and its sum at 2^-23 of itself.
    found = product(a, b, total, kind).astype(np.float64)
    assert (np.abs(found - exact) <= steps * (17 / 4 + 1) * UNIT * size).all()
    # Of positive numbers something is lost, never won; and of integers within 24 bits nothing at all.
    positive = product(np.abs(a), np.abs(b), np.abs(total), kind).astype(np.float64)
    assert (positive <= size).all()
    assert (positive < size).any()
    a, b = (rng.integers(-16, 17, t.shape) for t in (a, b))
    assert np.array_equal(product(a, b, total * 0 + 5, kind), 5.0 + a @ b)


@triton.jit
def multiplied(a, b, out, PRECISION: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, K)[None, :]
    x, y = tl.load(a + rows * K + columns), tl.load(b + rows * K + columns)
    total = tl.zeros((N, N), out.dtype.element_ty)
    total = tl.dot(x, y.T, total, input_precision=PRECISION, out_dtype=total.dtype)
    tl.store(out + rows * N + tl.arange(0, N)[None, :], total)


@pytest.mark.parametrize(
    ("dtype", "precision", "kind"),
    [
        (torch.float16, "ieee", "fp16"),
        (torch.bfloat16, "ieee", "bf16"),
        (torch.float32, "tf32", "tf32"),
        (torch.float32, "tf32x3", None),
        (torch.float32, "ieee", None),
        (torch.float64, "ieee", None),
    ],
)
def test_interpreted_kernels_multiply_by_it(dtype, precision, kind):
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted")
    a, b = torch.rand(2, 16, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found, plain = torch.zeros(2, 16, 16, dtype=wide)
    with truncating():
        multiplied[(1,)](a, b, found, precision, 16, 64)
    multiplied[(1,)](a, b, plain, precision, 16, 64)
    x, y = a.to(wide).numpy(), b.to(wide).numpy().T
    exact = a.double() @ b.double().T
    if precision == "ieee" and wide == dtype:
        assert torch.equal(found, plain)
    elif precision == "tf32x3":
        assert np.array_equal(found, product_tf32x3(x, y, np.zeros((16, 16), np.float32)))
        torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=0)
    else:
        x, y = (to_tf32(t, nearest=False) for t in (x, y)) if kind == "tf32" else (x, y)
        assert np.array_equal(found, product(x, y, np.zeros((16, 16)), kind))
        assert (found.double() <= exact).all()
        torch.testing.assert_close(found.double(), exact, rtol=2e-3 if kind == "tf32" else 2e-6, atol=0)
