"""Spectra over runs: representations are those of the forward pass; intervals and words say what the numbers say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrfast.experiments.inlet_rank_collapse import spectra
from inrfast.experiments.inlet_rank_collapse.methods import METHODS
from inrfast.experiments.paper import Found

RUNS = st.lists(st.integers(0, 50).flatmap(lambda low: st.tuples(st.just(low), st.integers(low, 60))), min_size=1)


@pytest.mark.parametrize("name", METHODS)
def test_representations_are_what_the_network_computes(name, monkeypatch):
    monkeypatch.setattr(spectra, "ROWS", 7)
    net, coords = spectra.network(METHODS[name], 5, 3, torch.device("cpu"))
    seen = {}
    for index, layer in enumerate(net.layers):
        layer.register_forward_pre_hook(lambda _, inputs, index=index: seen.__setitem__(index - 1, inputs[0]))
    with torch.no_grad():
        net(coords)
    assert coords.dtype == torch.float64 and not net.training
    for layer in range(-1 if net.encoding is not None else 0, 3):
        rows = torch.cat(list(spectra.representation(net, coords, layer)()))
        torch.testing.assert_close(rows, seen[layer], rtol=1e-12, atol=1e-12)


@given(RUNS)
def test_ranks_over_runs(runs):
    found = [Found({"ranks": [list(run), [0, 60]]}) for run in runs]
    first, open_above = spectra.ranks_over_runs(found, 60)
    middles = [(low + high) / 2 for low, high in runs]
    assert first.lower <= first.middle <= first.upper and first.middle == pytest.approx(np.mean(middles))
    if len(runs) == 1:
        assert first.deviation is None and "±" not in str(first)
    else:
        assert first.deviation == pytest.approx(np.std(middles, ddof=1))
    assert str(open_above).startswith(">= 0")
    assert "nan" not in str(first)


@given(RUNS, RUNS)
def test_order_is_antisymmetric_and_never_against_the_means(first, second):
    one, two = (spectra.ranks_over_runs([Found({"ranks": [list(run)]}) for run in runs], 60)[0]
                for runs in (first, second))  # fmt: skip
    sign = spectra.order(one, two)
    assert sign == -spectra.order(two, one)
    assert sign * (one.middle - two.middle) >= 0 and (sign == 0 or one.middle != two.middle)


@given(st.lists(st.integers(1, 99), min_size=3, max_size=3), st.lists(st.integers(1, 99), min_size=3, max_size=3))
def test_sentences_follow_the_numbers(first, second):
    rtols = (1e-1, 1e-2, 1e-3)
    ranks = tuple([spectra.Ranks(r, r, None, 1, 99) for r in given] for given in (first, second))
    told = spectra.substantially_higher(("A", "B"), "Rank", ranks, rtols)
    much = [t for a, b, t in zip(first, second, rtols, strict=True) if a > b and a >= spectra.SUBSTANTIAL * b]
    assert (f"or more) at {spectra.listed(much)}" in told) if much else ("substantially" not in told)
    reached = all(a >= (1 - spectra.ALIKE) * b for a, b in zip(first, second, strict=True))
    assert ("at all 3 tolerances" in spectra.matching(("A", "B"), "Rank", ranks, rtols)) == reached


@given(RUNS)
def test_a_printed_mean_is_as_exact_as_its_deviation(runs):
    """Words that compare means of runs that differ can be checked: each is printed to a tenth, as its deviation is."""
    ranks = spectra.ranks_over_runs([Found({"ranks": [[low, low]]}) for low, _ in runs], 60)[0]
    printed = [float(part) for part in str(ranks).split(" ± ")]
    assert printed[0] == pytest.approx(np.mean([low for low, _ in runs]), abs=0.0501)
    assert (len(printed) == 2) == (len(runs) > 1)


def test_bands_end_where_the_shortest_run_does():
    one = spectra.band([np.array([1.0, 0.5])])
    assert one.deviation is None and one.mean.tolist() == [1.0, 0.5]
    two = spectra.band([np.array([1.0, 0.5, 0.1]), np.array([1.0, 0.3])])
    assert two.mean.tolist() == [1.0, 0.4] and two.deviation == pytest.approx([0, np.sqrt(0.02)])
