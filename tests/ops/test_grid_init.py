"""Rank-expanding initialisation against mpmath, its Python reference, and the rank that it exists for."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import inrfast as inr
from inrfast import extension
from inrfast.errors import MemoryBudgetError, NotAvailableError
from inrfast.ops.grid_init import points_per_axis, rank_expanding, rank_expanding_reference

needs_cuda_half = pytest.mark.skipif(
    not torch.cuda.is_available() or isinstance(extension._module_or_reason("inrfast._CUDA"), str),
    reason="needs a GPU and the CUDA half of the extension",
)


def exact_grid(p: int, d: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return W and b of all p^d units as mpmath numbers, from the definition."""
    weights, biases = [], []
    with mpmath.workdps(50):
        for digits in itertools.product(range(1, p + 1), repeat=d):
            v = [mpmath.mpf(2 * i - p - 1) / (p + 1) for i in digits]
            norm = mpmath.sqrt(sum(x * x for x in v))
            weights.append([x / norm for x in v] if norm else [mpmath.mpf(1)] + [mpmath.mpf(0)] * (d - 1))
            biases.append(mpmath.mpf(eps) - norm)
    return np.array(weights, dtype=object), np.array(biases, dtype=object)


def worst_ulps(computed: torch.Tensor, exact: np.ndarray) -> float:
    """Return the largest error in units in the last place of the computed dtype at the exact value."""
    got = computed.numpy()
    with mpmath.workdps(50):
        unit = np.spacing(np.abs(exact.astype(np.float64)).astype(got.dtype)).astype(np.float64)
        error = np.array([float(abs(mpmath.mpf(float(g)) - e)) for g, e in zip(got.flat, exact.flat, strict=True)])
    return float((error.reshape(unit.shape) / unit).max())


@pytest.mark.parametrize("d", [2, 3])
def test_grid_is_within_two_ulps_of_the_exact_one(d: int) -> None:
    for p in range(1, 41 if d == 2 else 10):
        exact_w, exact_b = exact_grid(p, d, 1e-3)
        for dtype, ulps in ((torch.float64, 2.0), (torch.float32, 1.0)):
            w, b = rank_expanding(p**d, d, dtype=dtype)
            assert w.dtype == b.dtype == dtype
            assert worst_ulps(w, exact_w) <= ulps, (p, dtype)
            assert worst_ulps(b, exact_b) <= ulps, (p, dtype)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_are_finite_and_distinct(d: int, dtype: torch.dtype) -> None:
    for width in range(1, 701):
        w, b = rank_expanding(width, d, dtype=dtype)
        units = torch.cat([w, b[:, None]], dim=1)
        assert torch.isfinite(units).all()
        assert len(np.unique(units.numpy(), axis=0)) == width, width


@st.composite
def requests(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of rank_expanding, all of them drawn."""
    d = draw(st.integers(1, 7))
    width = draw(st.integers(1, 300))
    low = st.floats(-5, 5)
    bounds = [(a, a + draw(st.floats(0.1, 9))) for a in draw(st.lists(low, min_size=d, max_size=d))]
    eps: float | str | None = draw(
        st.none() | (st.floats(1e-9, 2 / 300) if d == 1 else st.just("cover") | st.floats(0, 1))
    )
    coords = None
    if d == 1 and draw(st.booleans()):
        steps = draw(st.lists(st.floats(0.01, 3), min_size=width, max_size=width))
        coords, bounds = torch.tensor(steps, dtype=torch.float64).cumsum(0) - 7, [(-1.0, 1.0)]
    gain = draw(st.floats(0.01, 10))
    return {"width": width, "in_features": d, "eps": eps, "gain": gain, "bounds": bounds, "coords": coords}


@given(requests(), st.sampled_from([torch.float32, torch.float64]))
def test_native_result_is_the_reference_to_the_bit(request: dict, dtype: torch.dtype) -> None:
    w, b = rank_expanding(**request, dtype=dtype)
    w_reference, b_reference = rank_expanding_reference(**request, dtype=dtype)
    assert w.shape == (request["width"], request["in_features"])
    assert torch.equal(w, w_reference)
    assert torch.equal(b, b_reference)


@given(st.integers(2, 6), st.integers(1, 400), st.floats(0, 1))
def test_hinges_face_outward_and_keep_their_distance(d: int, width: int, eps: float) -> None:
    """|w| = 1, and the hinge w.x + b = 0 lies at distance eps inside its point, which is in the box."""
    w, b = rank_expanding(width, d, eps=eps, dtype=torch.float64)
    point = w * (eps - b)[:, None]
    assert torch.allclose(w.norm(dim=1), torch.ones(width, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (point.abs() <= 1 + 1e-14).all()
    on_point = (w * point).sum(1) + b
    assert torch.allclose(on_point, torch.full_like(b, eps), rtol=0, atol=1e-14)


@given(st.integers(1, 10**6), st.integers(1, 40))
def test_points_per_axis_is_the_exact_root(width: int, d: int) -> None:
    p = points_per_axis(width, d)
    assert (p - 1) ** d < width <= p**d


@given(st.integers(2, 3), st.integers(1, 2000))
def test_grid_is_thinned_evenly_in_row_major_order(d: int, width: int) -> None:
    assume(width >= 2**d)
    p = points_per_axis(width, d)
    w, b = rank_expanding(width, d, eps=0.0, dtype=torch.float64)
    digits = ((w * -b[:, None] * (p + 1) + p - 1) / 2).round().to(torch.int64)
    flat = sum(digits[:, axis] * p ** (d - 1 - axis) for axis in range(d))
    assert flat.tolist() == [k * p**d // width for k in range(width)]


@given(st.integers(1, 5), st.integers(1, 200), st.floats(0.01, 10), st.integers(0, 2**31))
def test_gain_multiplies_and_bounds_pull_back(d: int, width: int, gain: float, seed: int) -> None:
    """The layer for a box, at x in that box, gives gain times what the plain layer gives at x mapped to [-1, 1]^d."""
    random = np.random.default_rng(seed)
    low = random.uniform(-3, 3, d)
    high = low + random.uniform(0.1, 5, d)
    x_hat = random.uniform(-1, 1, (50, d))
    x = low + (x_hat + 1) / 2 * (high - low)
    plain_w, plain_b = (t.numpy() for t in rank_expanding(width, d, dtype=torch.float64))
    w, b = rank_expanding(width, d, gain=gain, bounds=list(zip(low, high, strict=True)), dtype=torch.float64)
    expected = gain * (x_hat @ plain_w.T + plain_b)
    np.testing.assert_allclose(x @ w.numpy().T + b.numpy(), expected, rtol=0, atol=1e-11 * gain)


def rank_of_first_layer(weight: torch.Tensor, bias: torch.Tensor, rtol: float = 1e-3) -> int:
    """Return the number of singular values of relu(x W^T + b) above rtol sigma_1 on the 256x256 grid, in fp64."""
    weight, bias = weight.double(), bias.double()
    gram = torch.zeros(len(bias), len(bias), dtype=torch.float64)
    for coords in inr.grid((256, 256), dtype=torch.float64).split(4096):
        features = torch.relu(torch.addmm(bias, coords, weight.T))
        gram.addmm_(features.T, features)
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(gram.numpy()), 0))
    return int((sigma > rtol * sigma[-1]).sum())


def test_rank_of_first_layer_is_expanded() -> None:
    """The claim of arXiv 2602.01526 at width 256: 220 of 256 (default: 75), and no collapse at 257, no square."""
    assert abs(rank_of_first_layer(*rank_expanding(256, 2)) - 220) <= 5
    assert abs(rank_of_first_layer(*rank_expanding(257, 2)) - 220) <= 22
    generator = torch.Generator().manual_seed(0)
    default = (2 * torch.rand(256, 3, generator=generator) - 1) / math.sqrt(2)
    assert 50 <= rank_of_first_layer(default[:, :2], default[:, 2]) <= 100


def test_cover_leaves_no_point_near_the_origin_dead() -> None:
    coords = inr.grid((64, 64), dtype=torch.float64)
    for width in (64, 81, 256):
        w, b = rank_expanding(width, 2, eps="cover", dtype=torch.float64)
        assert ((coords @ w.T + b) > 0).any(dim=1).all()


@pytest.mark.parametrize("eps", [None, 1e-2])
def test_triangle_has_full_rank(eps: float | None) -> None:
    """For 0 < eps <= h the matrix relu(x_i - x_j + eps) is lower triangular with eps on its diagonal.

    That is full rank exactly; numerically it shows on a uniform grid at eps = h, the best conditioned case.
    """
    points = torch.tensor(np.sort(np.random.default_rng(1).uniform(-4, 9, 60)) + 0.02 * np.arange(60))
    for coords, x in ((None, inr.grid(60, dtype=torch.float64)), (points, points[:, None])):
        w, b = rank_expanding(60, 1, eps=eps, coords=coords, dtype=torch.float64)
        triangle = torch.relu(x @ w.T + b).numpy()
        np.testing.assert_allclose(triangle, np.tril(triangle), rtol=0, atol=1e-14)
        expected = float(x[:, 0].diff().min()) if eps is None else eps
        np.testing.assert_allclose(np.diag(triangle), expected, rtol=0, atol=1e-12)
        if eps is None and coords is None:
            assert np.linalg.matrix_rank(triangle) == 60


def test_spacing_of_a_rounded_uniform_grid_is_accepted() -> None:
    """The step 2 / 255 exceeds the smallest fp32 difference by a rounding, and is meant all the same."""
    coords = inr.grid(256)
    assert rank_expanding(256, 1, eps=2 / 255, coords=coords)[1].shape == (256,)


def test_one_unit_on_a_line_covers_it() -> None:
    w, b = rank_expanding(1, 1)
    assert (w.item(), b.item()) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"width": 0}, ValueError, "width"),
        ({"width": 2**31}, (ValueError, MemoryBudgetError), "width"),
        ({"width": 2.5}, TypeError, "width"),
        ({"in_features": 0}, ValueError, "in_features"),
        ({"in_features": True}, TypeError, "in_features"),
        ({"eps": -1e-3}, ValueError, "eps"),
        ({"eps": float("nan")}, ValueError, "eps"),
        ({"eps": "covr"}, ValueError, "cover"),
        ({"gain": 0.0}, ValueError, "gain"),
        ({"gain": float("inf")}, ValueError, "gain"),
        ({"gain": 1e300}, ValueError, "gain"),
        ({"bounds": (1, -1)}, ValueError, "bounds"),
        ({"bounds": (0, 0)}, ValueError, "bounds"),
        ({"bounds": [(0, 1)] * 3}, ValueError, "bounds"),
        ({"bounds": (0, float("nan"))}, ValueError, "bounds"),
        ({"bounds": (-1e308, 1e308), "dtype": torch.float64}, ValueError, "bounds"),
        ({"bounds": 1}, TypeError, "bounds"),
        ({"coords": torch.linspace(-1, 1, 16)}, ValueError, "coords"),
        ({"dtype": torch.float16}, TypeError, "dtype"),
        ({"dtype": torch.int64}, TypeError, "dtype"),
        ({"device": "gpu"}, ValueError, "device"),
        ({"in_features": 1, "eps": "cover"}, ValueError, "cover"),
        ({"in_features": 1, "eps": 0.0}, ValueError, "eps"),
        ({"in_features": 1, "eps": 0.2}, ValueError, "spacing"),
        ({"in_features": 1, "coords": [0.0, 1.0]}, TypeError, "coords"),
        ({"in_features": 1, "coords": torch.arange(16)}, TypeError, "coords"),
        ({"in_features": 1, "coords": torch.linspace(0, 1, 15)}, ValueError, "coords"),
        ({"in_features": 1, "coords": torch.linspace(1, 0, 16)}, ValueError, "sorted"),
        ({"in_features": 1, "coords": torch.zeros(16)}, ValueError, "distinct"),
        ({"in_features": 1, "coords": torch.full((16,), math.nan)}, ValueError, "coords"),
        ({"in_features": 1, "coords": torch.linspace(0, 1, 16), "bounds": (0, 1)}, ValueError, "bounds"),
        ({"in_features": 1, "coords": torch.linspace(0, 1, 16), "eps": 0.1}, ValueError, "spacing"),
    ],
)
def test_bad_input_is_named(arguments: dict, error: type[Exception] | tuple[type[Exception], ...], named: str) -> None:
    with pytest.raises(error, match=named):
        rank_expanding(**{"width": 16, "in_features": 2, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_gpu_is_refused() -> None:
    with pytest.raises(NotAvailableError, match="no CUDA device"):
        rank_expanding(4, 2, device="cuda")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_code_rounds_every_operation_once(tmp_path: Path) -> None:
    """What makes CUDA agree with the CPU to the bit: IEEE division and square root, and no contraction into FMAs."""
    source = Path(__file__).parents[2] / "csrc" / "grid_init.cu"
    ptx = tmp_path / "grid_init.ptx"
    flags = ["-std=c++17", "-O3", "--fmad=false", "-DINRFAST_CUDA_ARCHS=", "-arch=compute_80", "-ptx"]
    subprocess.run(["nvcc", *flags, str(source), "-o", str(ptx)], check=True)
    instructions = set(re.findall(r"(?:fma|add|sub|mul|div|sqrt)\.[a-z.]*f(?:32|64)", ptx.read_text()))
    assert instructions == {"add.rn.f64", "sub.rn.f64", "mul.rn.f64", "div.rn.f64", "sqrt.rn.f64"}


@needs_cuda_half
@given(requests(), st.sampled_from([torch.float32, torch.float64]))
def test_cuda_result_is_the_cpu_one_to_the_bit(request: dict, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w, b = rank_expanding(**request, dtype=dtype, device="cuda")
    expected_w, expected_b = rank_expanding(**request, dtype=dtype, device="cpu")
    assert w.is_cuda
    assert b.is_cuda
    assert torch.equal(w.cpu(), expected_w)
    assert torch.equal(b.cpu(), expected_b)
