"""Counts that pivots and a complement prove hold the truth, with products in fp32 and in fp64, and are narrow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_spectra import operator_with, spectra

import inrfast as inr
from inrfast.linalg.certified import certified_spectrum
from inrfast.linalg.demands import Ranks
from inrfast.linalg.pivoted_cholesky import PivotedCholesky
from inrfast.linalg.rank_proof import WIDEST, RankProof
from inrfast.tangent.kernel_operator import KernelOperator


@given(spectra(), st.lists(st.sampled_from([1e-2, 1e-4, 1e-6, 1e-8]), min_size=1, unique=True), st.integers(0, 10**6))
def test_counts_alone_hold_the_truth(values, rtols, seed):
    operator = operator_with(values, seed)
    s = certified_spectrum(operator, Ranks(tuple(rtols), values=False), len(values), 1 << 30, seed)
    exact = torch.linalg.eigvalsh(operator.matrix).flip(0)
    for rtol in rtols:
        count = s.count_above(rtol * float(s.eigenvalues[0]), rtol)
        assert int((exact > rtol * exact[0]).sum()) in count
    assert (exact[: len(s.eigenvalues)] <= s.bounds()[1] + 1e-13 * exact[0]).all()


@pytest.mark.parametrize("gap", [1e-3, 1e-6, -1e-3])
def test_a_level_next_to_an_eigenvalue_and_a_cluster_at_the_level(gap):
    values = torch.cat([torch.logspace(0, -4, 200), torch.full((40,), 1e-4 * (1 + gap)), torch.logspace(-4.5, -9, 660)])
    operator = operator_with(values.double(), 5)
    s = certified_spectrum(operator, Ranks((), (1e-4,), values=False), 900, 1 << 30)
    exact = torch.linalg.eigvalsh(operator.matrix)
    assert int((exact > 1e-4).sum()) in s.count_above(1e-4)


@settings(max_examples=12)
@given(
    st.sampled_from([{}, {"init": "rank_expanding"}, {"activation": "sine", "init": "siren", "omega": 15.0}]),
    st.sampled_from(["trace", "full", 1]),
    st.sampled_from([1e-3, 1e-5, 1e-6]),
    st.sampled_from([1e-8, 1.0, 1e8]),
    st.integers(0, 1000),
)
def test_kernels_of_networks(settings, output, rtol, scale, seed):
    net = inr.INR(2, 2, width=32, hidden_layers=2, seed=seed, dtype=torch.float64, **settings)
    with torch.no_grad():
        net.layers[0].weight[3:5] = net.layers[0].weight[:1]  # units that are copies of another one, and dead ones
        net.layers[1].weight[:2] = 0
        net.layers[-1].weight *= scale
    kernel = inr.ntk(net, inr.grid((20, 20)), output=output, precision="highest")
    exact = torch.linalg.eigvalsh(kernel.to_dense()).flip(0)
    for K, values in ((kernel, exact), (kernel.layers["layers.1"], None)):
        values = torch.linalg.eigvalsh(K.to_dense()).flip(0) if values is None else values
        operator = KernelOperator(K)
        s = certified_spectrum(operator, Ranks((rtol,), values=False), len(values), 1 << 30, seed)
        found = s.with_jacobian_error(K.jacobian_error).count_above(rtol * float(s.eigenvalues[0]), rtol)
        assert int((values > rtol * values[0]).sum()) in found


def test_the_proof_saves_pivots_and_memory(monkeypatch):
    """Fewer pivots than Weyl's inequality takes where a spectrum falls slowly, some in fp32, in an interval of 3 %."""
    net = inr.INR(2, 1, width=128, hidden_layers=3, init="rank_expanding", seed=0)
    operator = KernelOperator(inr.ntk(net, inr.grid((48, 48)), precision="highest"))
    found = certified_spectrum(operator, Ranks((1e-5,), values=False), 2304, 1 << 30)
    monkeypatch.setattr(RankProof, "pays", lambda self, estimate, needed: False)
    weyl = certified_spectrum(operator, Ranks((1e-5,), values=False), 2304, 1 << 30)
    assert found.certified and not weyl.certified
    assert len(found.eigenvalues) < 0.8 * len(weyl.eigenvalues)
    count, other = found.rank(1e-5), weyl.rank(1e-5)
    assert count.upper - count.lower <= WIDEST * count.lower
    assert count.lower <= other.upper and other.lower <= count.upper


def test_lambda_1_is_held_by_an_interval_of_one_product():
    """Also where the power steps have not converged: two leading eigenvalues next to each other."""
    for second in (0.5, 0.99, 0.999999, 1.0):
        values = torch.cat([torch.tensor([1.0, second]), 0.3 * torch.arange(1, 399) ** -2.0]).double()
        operator = operator_with(values, 3)
        factor = PivotedCholesky(operator, 0)
        factor.grow(64)
        proof = RankProof(factor, Ranks((1e-3,)), 1 << 30, 0)
        low, high = proof.largest(factor.trace)
        largest = float(torch.linalg.eigvalsh(operator.matrix)[-1])
        assert low * (1 - 1e-13) <= largest <= high * (1 + 1e-13)
