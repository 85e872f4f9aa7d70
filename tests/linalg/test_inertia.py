"""Certified counts hold the truth: of dense eigenvalues, of long double, for spoiled factors, next to eigenvalues.

``INRFAST_FUZZ=1`` takes 300 random kernels of up to 5,000 rows in place of some smaller ones.
"""

import math
import os
import random
from statistics import median

import extended_precision
import numpy as np
import pytest
import torch
from extended_precision import needs_long_double
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, spectra
from random_networks import mild, random_coords

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.errors import MemoryBudgetError
from inrfast.linalg import counting, inertia
from inrfast.linalg.block_ldl import block_ldl, bytes_needed
from inrfast.linalg.counting import certified_counts, vector_bytes
from inrfast.linalg.inertia import decide
from inrfast.linalg.operators import UNIT, DenseOperator
from inrfast.tangent.kernel_operator import KernelOperator

FULL = os.environ.get("INRFAST_FUZZ") == "1"
CASES, LARGEST = (34, 5000) if FULL else (10, 700)
BUDGET = 1 << 32
DTYPES = [torch.float32, torch.float64]


def points(rng, count, d):
    """Points in general position, some twice, or some next to others."""
    coords = random_coords(count, d, rng.randrange(10**6))
    half, kind = count // 2, rng.choice(["apart", "apart", "twice", "near"])
    if kind != "apart" and half > 0:
        coords[-half:] = coords[:half] + (1e-6 * torch.randn(half, d) if kind == "near" else 0)
    return coords


def network(rng, name, d, m):
    """A network with this activation first, as initialised or trained for some steps, its head scaled or not."""
    depth = rng.randint(1, 4)
    names = [name] + [rng.choice([name, *sorted(ACTIVATIONS)]) for _ in range(depth - 1)]
    init = rng.choice(["default", "siren", "xavier"])
    return inr.INR(
        d,
        m,
        width=rng.choice([7, 32, 64]),
        hidden_layers=depth,
        activation=[mild(own) for own in names],
        omega=rng.choice([1.0, 3.0, 30.0]) if init == "siren" and "finer" not in names else 1.0,
        init=init,
        encoding=rng.choice([None, None, inr.RandomFourier(16, 3.0)]),
        seed=rng.randrange(10**6),
    )


def train(net, coords, steps=8):
    target = torch.randn(len(coords), net.out_features)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(coords) - target).square().mean().backward()
        optimizer.step()


def kernel(rng, name):
    d, m = rng.randint(1, 3), rng.choice([1, 1, 3])
    net, coords = network(rng, name, d, m), points(rng, max(1, round(LARGEST ** rng.uniform(0, 1))), d)
    if rng.random() < 0.4:
        train(net, coords)
    with torch.no_grad():
        for parameter in net.layers[-1].parameters():
            parameter.mul_(rng.choice([1.0, 1.0, 0.1, 5.0]))
    full = rng.random() < 0.3 and len(coords) * m <= LARGEST
    K = inr.ntk(net.eval(), coords, output="full" if full else "trace", precision="highest")
    return K.layers[rng.choice(list(K.layers))] if rng.random() < 0.2 else K


def level(rng, values, error):
    """A level: anywhere, or next to an eigenvalue that is known well enough."""
    threshold = 10.0 ** rng.uniform(-8, -0.5) * float(values[0])
    below = values[(values < threshold) & (values > 1e3 * error)]
    near = rng.choice([None, None, 1e-3, 1e-6, 1e-9])
    if near is not None and len(below) > 0:
        return float(below[0]) * (1 + rng.choice([-near, near]))
    return max(threshold, 100 * error)


def truth(values, error, low, high):
    """Numbers of eigenvalues: the count above ``low`` is no less than the first, that above ``high`` no more than the
    second; and the second with those in doubt."""
    return int((values > low + error).sum()), int((values > high - error).sum()), int((values > low - error).sum())


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_counts_hold_the_dense_eigenvalues(name, monkeypatch):
    """No interval of 300 (of fewer here) is wrong, and most are one number."""
    widths = []
    for number in range(CASES):
        rng = random.Random(f"{name} {number}")
        torch.manual_seed(rng.randrange(10**6))
        K = kernel(rng, name)
        values = torch.linalg.eigvalsh(K.to_dense()).flip(0)
        error = len(values) * UNIT * float(values[0]) + 2 * K.matrix_error
        threshold = level(rng, values, error)
        half = rng.choice([0, 0, 1e-9, 1e-6]) * threshold
        low, high = threshold - half, threshold + half
        sizes = {"window": rng.choice([37, 100, 256])}
        monkeypatch.setattr(counting, "block_ldl", lambda *a, s=sizes, **k: block_ldl(*a, **k, **s))
        precision = rng.choice([None, None, "high", "highest"])
        (found,) = certified_counts(KernelOperator(K), [(low, high)], BUDGET, precision, number)
        least, most, doubtful = truth(values, error, low, high)
        assert found.upper >= least, (name, number)
        assert found.lower <= most, (name, number)
        widths.append(found.upper - found.lower - (doubtful - most))
    assert median(widths) <= 0


@needs_long_double
@pytest.mark.parametrize("seed", range(20))
def test_counts_hold_the_eigenvalues_of_long_double(seed):
    """The kernel of the exact network, next to one of its eigenvalues."""
    rng = random.Random(seed)
    name = sorted(ACTIVATIONS)[seed % len(ACTIVATIONS)]
    count, d = rng.randint(66, 100), rng.randint(1, 2)
    activation = {"name": name, "sigma": 1.0} if name == "wire" else name
    net = inr.INR(d, 1, width=24, hidden_layers=2, activation=activation, omega=2.0, seed=seed)
    coords = random_coords(count, d, seed)
    values, error = extended_precision.eigenvalues(extended_precision.kernel(net, coords))
    K = KernelOperator(inr.ntk(net, coords, precision="highest"))
    place = rng.randrange(1, max(2, int((values > 1e-9 * values[0]).sum())))
    threshold = float(values[place] * (1 + rng.choice([-1, 1]) * 10.0 ** rng.uniform(-9, -3)))
    jacobian = K.jacobian_error
    low, high = (max(math.sqrt(threshold) - jacobian, 0)) ** 2, (math.sqrt(threshold) + jacobian) ** 2
    (found,) = certified_counts(K, [(low, high)], BUDGET, seed=seed)
    exact = int((values > np.longdouble(threshold)).sum())
    if np.abs(values - threshold).min() > error:
        assert found.lower <= exact <= found.upper


@settings(max_examples=40)
@given(
    spectra(most=180), st.floats(-100, 100), st.booleans(), st.data(), st.sampled_from(DTYPES), st.integers(0, 10**6)
)
def test_levels_next_to_eigenvalues_of_every_size(values, exponent, indefinite, data, dtype, seed):
    """Clusters, multiplicities, any scale, indefinite matrices; shifts in the interval or not."""
    scale = 10.0 ** (exponent if dtype == torch.float64 else exponent / 4)
    values = values / values.max() * scale
    if indefinite:
        values[::2] *= -1
    values = values.sort(descending=True).values
    n = len(values)
    error = 4 * n * 2.2e-16 * scale
    operator = DenseOperator(matrix_with(values, seed), error)
    at = float(values[data.draw(st.integers(0, n - 1))])
    low = at * (1 + data.draw(st.sampled_from([0.0, 1e-3, -1e-3, 1e-6, -1e-9]))) + data.draw(
        st.sampled_from([0.0, 1e-12 * scale])
    )
    high = low + data.draw(st.sampled_from([0.0, 1e-9, 1e-3])) * abs(low)
    shift = (low + high) / 2 + data.draw(st.sampled_from([0.0, 1e-9, -1e-4])) * scale
    if shift == 0:
        return
    factor = block_ldl(operator, shift, dtype, window=data.draw(st.integers(3, 64)))
    found = decide(operator, factor, low, high, seed=seed)
    assert found.lower <= int((values > high).sum())
    assert found.upper >= int((values > low).sum())
    precision = "high" if dtype == torch.float32 else "highest"
    (count,) = certified_counts(operator, [(low, high)], BUDGET, precision, seed)
    assert count.lower <= int((values > high).sum())
    assert count.upper >= int((values > low).sum())
    least, _, doubtful = truth(values, 1e-8 * scale, low, high)
    if dtype == torch.float64:  # as wide as what is near the level
        assert count.upper - count.lower <= doubtful - least


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiplicity", [1, 7, 40, 150])
def test_a_level_that_is_an_eigenvalue_of_a_diagonal_matrix(dtype, multiplicity):
    """Whole numbers: nothing rounds, and pivots are exactly zero."""
    values = torch.cat([torch.full((multiplicity,), 4.0), torch.arange(5, 65), torch.arange(-60, 3)]).double()
    operator = DenseOperator(values.diag(), 0.0)
    name = "high" if dtype == torch.float32 else "highest"
    at, above, wide = certified_counts(operator, [(4.0, 4.0), (4.5, 4.5), (3.5, 4.5)], BUDGET, name)
    assert (at.lower, at.upper) == (60, 60 + multiplicity)
    assert (above.lower, above.upper) == (60, 60)
    assert (wide.lower, wide.upper) == (60, 60 + multiplicity)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 3, 40, 200])
def test_one_factor_at_an_eigenvalue_leaves_that_one_open_alone(dtype, number):
    values = torch.logspace(0, -4, 300, dtype=torch.float64)
    matrix = matrix_with(values, number)
    operator, level = DenseOperator(matrix), float(torch.linalg.eigvalsh(matrix).flip(0)[number])
    found = decide(operator, block_ldl(operator, level, dtype), level, level)
    assert (found.lower, found.upper) == (number, number + 1), found.route


def wrong_sign(factor, rng):
    factor.pivots[rng.randrange(factor.size)] *= -1


def lost_column(factor, rng):
    block = factor.lower[len(factor.lower.blocks) - 1]
    block[:, rng.randrange(min(40, block.shape[1]))] = 0


def nan(factor, rng):
    block = factor.lower[len(factor.lower.blocks) - 1]
    block[-1, rng.randrange(20)] = math.nan


def noise_below(factor, rng):
    block = factor.lower[len(factor.lower.blocks) - 1]
    block += torch.randn(block.shape, generator=torch.Generator().manual_seed(rng.randrange(99))) * block.abs().max()


def other_basis(factor, rng):
    step = factor.steps[rng.randrange(len(factor.steps))]
    step.basis.copy_(torch.linalg.qr(torch.randn_like(step.basis)).Q)


def zero_pivot(factor, rng):
    factor.pivots[rng.randrange(factor.size)] = 0


FAULTS = [wrong_sign, lost_column, nan, noise_below, other_basis, zero_pivot]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_spoiled_factor_proves_nothing_wrong(fault, dtype):
    values = 10.0 ** -torch.linspace(0, 4, 200, dtype=torch.float64)
    operator = DenseOperator(matrix_with(values, 0), 1e-13)
    noticed = 0
    for seed in range(8):
        threshold = 10.0 ** -random.Random(seed).uniform(0.5, 3.5)
        true = int((values > threshold).sum())
        factor = block_ldl(operator, threshold, dtype, window=33)
        sound = decide(operator, factor, threshold, threshold, seed=seed)
        fault(factor, random.Random(seed))
        found = decide(operator, factor, threshold, threshold, seed=seed)
        assert sound.lower == sound.upper == true
        assert found.lower <= true <= found.upper
        noticed += found.residual > 10 * sound.residual
    assert noticed >= 4


def test_the_certificate_is_what_makes_a_count_right(monkeypatch):
    """Without the residual the same counts are wrong: this test would find a certificate that is too kind."""
    values = torch.linspace(1, 2, 300, dtype=torch.float64)
    operator = DenseOperator(matrix_with(values, 0), 1e-13)
    wrong = {True: 0, False: 0}
    for kind in (True, False):
        if kind:
            monkeypatch.setattr(inertia, "residual_bound", lambda *a, **k: inertia.NormBound(0.0, 0.0, 0.0, 0))
        for number in range(10, 290, 28):
            threshold = float(values[number]) * (1 + 1e-9)
            factor = block_ldl(operator, threshold, torch.float32, window=50)
            found = decide(operator, factor, threshold, threshold)
            wrong[kind] += not found.lower <= int((values > threshold).sum()) <= found.upper
        monkeypatch.undo()
    assert wrong[False] == 0
    assert wrong[True] >= 1


def test_levels_beyond_the_spectrum_take_no_factor(monkeypatch):
    net = inr.INR(2, 1, width=16, hidden_layers=2, activation="tanh", seed=0)
    K = KernelOperator(inr.ntk(net, random_coords(100, 2, 0), precision="highest"))
    monkeypatch.setattr(counting, "block_ldl", None)
    trace = float(K.diagonal().sum())
    found = certified_counts(K, [(1.01 * trace, 2 * trace)], BUDGET)
    assert (found[0].lower, found[0].upper) == (0, 0)
    assert certified_counts(K, [], BUDGET) == []


def test_a_budget_that_is_too_small_is_refused_and_the_stated_one_suffices():
    values = 1.0 / torch.arange(1, 301, dtype=torch.float64)
    operator = DenseOperator(matrix_with(values, 0), 1e-13)
    for name in ("high", "highest"):
        dtype = torch.float32 if name == "high" else torch.float64
        enough = bytes_needed(300, dtype, operator.device) + vector_bytes(300)
        (found,) = certified_counts(operator, [(0.0101, 0.0101)], enough, name)
        assert found.lower == found.upper == 99
        with pytest.raises(MemoryBudgetError):
            certified_counts(operator, [(0.0101, 0.0101)], enough // 2, name)


@pytest.mark.parametrize("scale", [2.0**-200, 2.0**150])
@pytest.mark.parametrize("width", [0.0, 0.6])
@pytest.mark.parametrize("diagonal", [True, False])
def test_counts_do_not_hang_on_the_unit(scale, width, diagonal, monkeypatch):
    """fp32 is tried, does not hold these numbers, and fp64 goes on."""
    monkeypatch.setattr(counting, "SMALL", 100)
    values = torch.logspace(0, -3, 150, dtype=torch.float64)
    matrix, zero = matrix_with(values, 1), torch.zeros(150, 150, dtype=torch.float64)
    if not diagonal:
        matrix = torch.cat([torch.cat([zero, matrix], 1), torch.cat([matrix, zero], 1)])
    high = float(values[49] + values[50]) / 2
    low = (1 - width) * high
    (found,) = certified_counts(
        DenseOperator(matrix * scale), [(low * scale, high * scale)], BUDGET, failure=1e-6, progress=False
    )
    assert found.precision == "highest"
    assert (found.lower, found.upper) == (50, int((values > low).sum()))
