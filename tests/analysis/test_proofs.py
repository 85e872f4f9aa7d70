"""What is said of how a rank was found: a proof names the method that gave the interval, and bounds its failure."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.analysis.proofs import RankProof, proof
from inrfast.linalg.certificates import CertifiedCount
from inrfast.linalg.lanczos import FAILURE
from inrfast.linalg.spectrum import Spectrum


def listing(values, method, certified=(), unlisted=0):
    values = torch.tensor(values, dtype=torch.float64)
    n = len(values) + unlisted
    beyond = float(values[-1]) if unlisted else float("inf")
    return Spectrum(values, None, 0.0, 0.0, n, float(values.sum()), n, 1e-6, method, beyond, certified=certified)


@settings(max_examples=60)
@given(st.data())
def test_without_the_counts_it_names_the_interval_would_be_wider(data):
    """Counts of random certificates, true ones of a known spectrum, beside some listed eigenvalues."""
    values = sorted(data.draw(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=9, unique=True)), reverse=True)
    listed = data.draw(st.integers(1, len(values)))
    certified = []
    for _ in range(data.draw(st.integers(0, 3))):
        low = data.draw(st.floats(0.005, 1.0))
        high = low * data.draw(st.floats(1.0, 1.3))
        lower, upper = sum(v > high for v in values), sum(v > low for v in values)
        precision = data.draw(st.sampled_from(["high", "highest"]))
        certified.append(CertifiedCount(low, high, lower, upper, precision, 0.0, 1e-6))
    spectrum = listing(values[:listed], "inertia" if certified else "cholesky", tuple(certified), len(values) - listed)
    threshold = data.draw(st.floats(0.005, 1.0))
    found, said = spectrum.count_above(threshold), proof(spectrum, threshold)
    assert sum(v > threshold for v in values) in found
    plain = replace(spectrum, certified=()).count_above(threshold)
    by_counts = (found.lower, found.upper) != (plain.lower, plain.upper)
    assert said.method.startswith("inertia, fp") == by_counts
    assert 0 < said.failure <= 3 * FAILURE


@pytest.mark.parametrize("method", ["dense", "gram"])
def test_what_lapack_lists_holds_without_a_probability(method):
    assert proof(listing([3.0, 2.0, 1.0], method), 1.5) == RankProof(method, 0.0)


def test_ranks_of_a_kernel_by_factorisations():
    K = inr.ntk(inr.INR(2, 1, width=24, activation="gaussian"), inr.grid((15, 15)), precision="highest")
    values = torch.linalg.eigvalsh(K.to_dense()).flip(0)
    spectrum = K.spectrum((1e-2, 1e-5), method="inertia", progress=False)
    for rtol in (1e-2, 1e-5):
        threshold = rtol * float(spectrum.eigenvalues[0])
        assert int((values > rtol * values[0]).sum()) in spectrum.count_above(threshold, rtol)
        said = proof(spectrum, threshold, rtol)
        assert said.method in ("inertia, fp32", "inertia, fp64")
        assert 0 < said.failure <= 2 * FAILURE
        assert str(said).startswith(f"{said.method}, failure ")
