"""The norm beside some vectors is bounded whatever they are, and products in fp32 are as far off as they say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import matrix_with, spectra

import inrfast as inr
from inrfast.linalg.complement import Complement
from inrfast.linalg.operators import DenseOperator
from inrfast.tangent.kernel_operator import KernelOperator


def vectors(matrix, count, noise, seed, dtype):
    """About the leading eigenvectors, neither exact nor orthonormal."""
    leading = torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, :count]
    moved = torch.randn(leading.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (leading + noise / math.sqrt(len(matrix)) * moved).to(dtype)


def projected(matrix, U):
    P = torch.eye(len(matrix), dtype=torch.float64) - U.double() @ U.double().t()
    return P @ matrix @ P


@given(spectra(), st.floats(0, 1), st.sampled_from([0.0, 1e-7, 1e-3, 0.3]), st.integers(1, 60), st.integers(0, 10**6))
def test_bounds_hold_and_count(values, share, noise, steps, seed):
    """Whatever U is, ``|P K P| <= t`` means that at most as many eigenvalues as it has columns exceed t."""
    matrix = matrix_with(values, seed)
    U = vectors(matrix, int(share * (len(values) - 1)), noise, seed, torch.float64)
    complement = Complement(DenseOperator(matrix), U, 2 * float(values[0]), float(values[0]))
    bounds = complement.norm(1e-6, seed, lambda found: found.steps >= steps)
    norm = float(torch.linalg.eigvalsh(projected(matrix, U))[-1])
    slack = 1e-12 * float(values[0])
    assert bounds.inner <= norm + slack
    assert norm <= bounds.upper + slack
    exact = torch.linalg.eigvalsh(matrix)
    assert int((exact > bounds.upper + slack).sum()) <= U.shape[1]


NETWORKS = {
    "relu": {},
    "rank-expanding": {"init": "rank_expanding"},
    "siren": {"activation": "sine", "init": "siren", "omega": 30.0},
    "sphere": {"norm": "sphere"},
    "three outputs": {"out_features": 3},
}


@settings(max_examples=40)
@given(
    st.sampled_from(list(NETWORKS)),
    st.sampled_from(["trace", "full", 0]),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([1e-2, 1e-4, 1e-5]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_single_precision_is_as_far_off_as_it_says(name, output, scale, rtol, copies, seed):
    """On the leading eigenvector of ``P K P`` and at random, also where points repeat and rounding with them."""
    settings = {"out_features": 1, **NETWORKS[name]}
    net = inr.INR(2, width=48, hidden_layers=2, seed=seed, **settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    coords = inr.grid((16, 16))
    if copies:
        coords = coords[torch.randint(8, (256,), generator=torch.Generator().manual_seed(seed))]
    kernel = inr.ntk(net, coords, output=output, precision="highest")
    operator, matrix = KernelOperator(kernel), kernel.to_dense()
    values = torch.linalg.eigvalsh(matrix).flip(0)
    level = rtol * float(values[0])
    U = vectors(matrix, int((values > level).sum()), 0.0, seed, torch.float32)
    complement = Complement(operator, U, float(values[0]), level)
    if complement.single is None:
        return
    exact = projected(matrix, U)
    norm, top = torch.linalg.eigh(exact)
    root = math.sqrt(max(float(norm[-1]), 0.0))
    for v in (top[:, -1:], torch.ones(len(matrix), 1).double() / math.sqrt(len(matrix))):
        off = float(torch.linalg.vector_norm(complement.product(v) - exact @ v))
        assert off <= 2 * complement.noise * root + complement.noise**2 + 1e-14 * float(values[0])


@pytest.mark.parametrize("seed", range(4))
def test_a_space_that_is_used_up_goes_on_from_vectors_of_its_own(seed):
    """Of rank 1 the second vector is drawn: one like the start would lie in the basis."""
    x = torch.rand(100, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    largest = float((x * x).sum())
    complement = Complement(DenseOperator(x @ x.t()), torch.zeros(100, 1), largest, largest / 2)
    bounds = complement.norm(1e-6, seed, lambda found: False)
    assert largest * (1 - 1e-9) <= bounds.upper <= largest * (1 + 1e-9)
