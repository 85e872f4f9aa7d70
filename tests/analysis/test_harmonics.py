"""Theorem 1: networks of polynomials have no energy outside H(Omega), which is listed, counted and laid on a grid."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_networks import registered

import inrfast as inr
from inrfast.activations import Activation
from inrfast.analysis.harmonics import (
    energy_outside,
    input_mapping,
    support,
    support_count,
    support_mask,
)
from inrfast.errors import MemoryBudgetError

POLYNOMIAL = Activation(
    "polynomial",
    value=lambda u, a, b, c, d: a + u * (b + u * (c + u * d)),
    slope=lambda u, a, b, c, d: b + u * (2 * c + u * 3 * d),
    numbers={"a": 0.5, "b": 1.0, "c": -0.5, "d": 0.25},
    signed=("a", "b", "c", "d"),
)


def every_sum(frequencies, most):
    """All sums of at most ``most`` frequencies, forwards or backwards, by definition."""
    vectors = itertools.product(range(-most, most + 1), repeat=len(frequencies))
    rows = [[Fraction(x) for x in row] for row in frequencies]
    return {
        tuple(sum(s * row[axis] for s, row in zip(vector, rows, strict=True)) for axis in range(len(rows[0])))
        for vector in vectors
        if sum(map(abs, vector)) <= most
    }


@st.composite
def mappings(draw, most=3):
    """Frequencies (T, d) in quarters of a cycle: on [-1, 1) some fall between the bins."""
    d, quarters = draw(st.integers(1, 2)), st.integers(-7, 7)
    rows = draw(st.lists(st.lists(quarters, min_size=d, max_size=d), min_size=1, max_size=most))
    unit = draw(st.sampled_from([0.25, 0.5, 0.5, 1.0, 2.0]))
    return [[unit * number for number in row] for row in rows]


@given(frequencies=mappings(), degree=st.integers(1, 3), hidden=st.integers(1, 2), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_a_network_of_polynomials_has_no_energy_outside(frequencies, degree, hidden, seed):
    shape = (32,) if len(frequencies[0]) == 1 else (24, 16)
    mask = support_mask(frequencies, degree, hidden + 1, shape)
    assume(not mask.all())
    numbers = dict(zip("abcd", [0.3, 1.0, -0.5 * (degree > 1), 0.25 * (degree > 2)], strict=True))
    with registered(POLYNOMIAL):
        net = inr.INR(
            len(shape), 2, width=6, hidden_layers=hidden, activation={"name": "polynomial", **numbers},
            encoding=inr.RandomFourier(frequencies=frequencies), seed=seed, dtype=torch.float64,
        )  # fmt: skip
        with torch.no_grad():
            values = net(inr.grid(shape, "exclusive", dtype=torch.float64))
    assert energy_outside(values.reshape(*shape, 2), mask) < 1e-24


def test_the_largest_sum_is_reached():
    """Else an empty bin would prove nothing: of one frequency and a degree of 3, two layers reach just 9 times it."""
    with registered(POLYNOMIAL):
        net = inr.INR(1, 1, width=8, hidden_layers=2, activation="polynomial", dtype=torch.float64,
                      encoding=inr.RandomFourier(frequencies=[[1.0]]))  # fmt: skip
        with torch.no_grad():
            values = net(inr.grid(64, "exclusive", bounds=(0, 1), dtype=torch.float64))
    mask = support_mask([[1.0]], 3, 3, 64, (0, 1))
    assert mask.nonzero()[:, 0].tolist() == [*range(10), *range(55, 64)]
    energy = torch.fft.rfft(values[:, 0]).abs().square()
    assert energy[9] > 1e9 * energy[10:].max()


def test_sines_reach_no_odd_bin_from_one_cycle_per_unit():
    net = inr.INR(2, 1, width=16, activation="relu", encoding=inr.RandomFourier(frequencies=torch.eye(2)),
                  dtype=torch.float64)  # fmt: skip
    with torch.no_grad():
        values = net(inr.grid((32, 32), "exclusive", dtype=torch.float64)).reshape(32, 32)
    mask = support_mask(input_mapping(net).frequencies, None, 4, (32, 32))
    assert mask[::2, ::2].all() and mask.sum() == 256
    assert energy_outside(values, mask) < 1e-24


@given(frequencies=mappings(), degree=st.integers(1, 2), layers=st.integers(1, 3))
@settings(max_examples=40)
def test_the_list_is_that_of_the_definition(frequencies, degree, layers):
    most = degree ** (layers - 1)
    known = every_sum(frequencies, most)
    found = support(frequencies, degree, layers, progress=False)
    assert [tuple(map(Fraction, row)) for row in found.tolist()] == sorted(known)
    assert len(known) <= support_count(len(frequencies), degree, layers)


@given(frequencies=mappings(2), degree=st.integers(1, 2), layers=st.integers(1, 3))
@settings(max_examples=30)
def test_the_mask_holds_the_bins_of_every_frequency_in_the_list(frequencies, degree, layers):
    """Compared with the DFT of each sinusoid of the list."""
    shape = (12,) if len(frequencies[0]) == 1 else (8, 6)
    coords = inr.grid(shape, "exclusive", dtype=torch.float64)
    bins = torch.zeros(shape, dtype=torch.bool)
    for frequency in support(frequencies, degree, layers, progress=False):
        wave = torch.exp(2j * math.pi * (coords @ frequency)).reshape(shape)
        bins |= torch.fft.fftn(wave).abs() > 1e-9
    assert torch.equal(support_mask(frequencies, degree, layers, shape), bins)


@pytest.mark.parametrize(("count", "degree", "layers"), [(1, 5, 3), (4, 2, 3), (6, 3, 2), (3, 1, 5)])
def test_generic_frequencies_have_as_many_sums_as_the_formula_says(count, degree, layers):
    """Powers of a number beyond twice the largest sum: no two sums are alike, and they need more than 64 bits."""
    frequencies = [[Fraction(101**t, 3)] for t in range(12, 12 + count)]
    found = support(frequencies, degree, layers, progress=False)
    assert len(found) == support_count(count, degree, layers) == len(every_sum(frequencies, degree ** (layers - 1)))
    drawn = support(torch.randn(count, 2, generator=torch.Generator().manual_seed(0)), degree, layers, progress=False)
    assert len(drawn) == len(found)
    assert torch.equal(drawn, -drawn.flip(0))


def test_sums_that_no_memory_holds_are_counted_and_refused_before_they_are_made():
    with pytest.raises(MemoryBudgetError, match=str(support_count(256, 2, 4))):
        support(torch.randn(256, 2), 2, 4)
    with pytest.raises(MemoryBudgetError, match=" 27 frequencies"):
        support([[1.0]], 13, 2, memory_budget=100)
    assert len(support([[t] for t in range(1, 257)], 2, 4, progress=False)) == 2 * 256 * 8 + 1  # harmonics of one


def test_the_mapping_is_what_the_first_layer_computes():
    """By the definition ``sin(2 pi Omega r + phi)``, against the network's own features."""
    coords = inr.grid((5, 5), dtype=torch.float64)
    nets = [
        inr.INR(2, 1, width=7, activation="sine", omega=[9.0, 30.0, 30.0], init="siren", dtype=torch.float64),
        inr.INR(2, 1, width=7, encoding=inr.RandomFourier(5, 3.0), dtype=torch.float64),
        inr.INR(2, 1, width=7, encoding=inr.PositionalEncoding(3), dtype=torch.float64),
    ]
    for net in nets:
        mapping = input_mapping(net)
        with torch.no_grad():
            features = net.activate(0, net.layers[0](coords)) if net.encoding is None else net.encoding(coords)
        assert mapping.layers == 4 - (net.encoding is None)
        waves = torch.sin(2 * math.pi * coords @ mapping.frequencies.mT + mapping.phases)
        assert (waves - features).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: support([[math.nan]], 2, 2), "frequencies"),
        (lambda: support([[1], [1, 2]], 2, 2), "frequencies"),
        (lambda: support([], 2, 2), "frequencies"),
        (lambda: support(3, 2, 2), "frequencies"),
        (lambda: support([[1.0]], 0, 2), "degree"),
        (lambda: support([[1.0]], 2, 0), "layers"),
        (lambda: support_count(0, 2, 2), "count"),
        (lambda: support_mask([[1.0]], 2, 2, (4, 4)), "shape"),
        (lambda: support_mask([[1.0]], 2, 2, 4, (1, 0)), "bounds"),
        (lambda: energy_outside(torch.zeros(4), torch.ones(4, dtype=torch.bool)), "values"),
        (lambda: energy_outside(torch.ones(5), torch.ones(4, dtype=torch.bool)), "values"),
        (lambda: energy_outside(torch.ones(4), torch.ones(4)), "mask"),
        (lambda: input_mapping(inr.INR(2, 1)), "net"),
        (lambda: input_mapping(inr.INR(2, 1, activation="sine", norm="batch")), "net"),
        (lambda: input_mapping(torch.nn.Linear(2, 1)), "net"),
    ],
)
def test_bad_input_is_named_at_the_door(call, told):
    with pytest.raises((ValueError, TypeError), match=f"^{told} must"):
        call()


def test_a_frequency_of_zero_is_a_constant():
    assert support([[0.0, 0.0]], 3, 3).tolist() == [[0.0, 0.0]]
    assert support([[0.0]], 10, 60).tolist() == [[0.0]]
    assert np.flatnonzero(support_mask([[0.0]], None, 3, 6)).tolist() == [0]


def test_whole_numbers_are_frequencies_in_any_form_and_others_are_told_the_form():
    known = support([[1.0, 0.0], [0.0, 3.0]], 2, 2)
    numbers = torch.tensor([[1, 0], [0, 3]])
    for same in (numbers, numbers.to(torch.uint8), numbers.numpy(), numbers.tolist()):
        assert torch.equal(support(same, 2, 2), known)
    for wrong, shown in (([1.0, 2.0], "1.0"), (3.0, "3.0"), ("ab", "ab")):
        with pytest.raises(ValueError, match=rf"^frequencies must be rows of d numbers.*such as.*got .*{shown}"):
            support(wrong, 2, 2)
    for wrong in (torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"^frequencies must be finite numbers of shape \(T, d\), got torch"):
            support(wrong, 2, 2)
