"""Intervals, paired differences and orders, against scipy's own formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inrfast.experiments.scores import difference, interval, pairs

NUMBERS = st.lists(st.floats(-50, 50), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-3)


@given(NUMBERS)
def test_the_interval_is_students(values):
    found = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


@given(NUMBERS, st.integers(0, 99))
def test_a_paired_difference_is_decided_where_the_t_test_rejects(values, seed):
    other = np.asarray(values) + np.random.default_rng(seed).normal(1, 1, len(values))
    p = stats.ttest_rel(other, values).pvalue
    if abs(p - 0.05) > 1e-6:
        assert difference(list(other), values).decided == (p < 0.05)


def test_one_value_decides_nothing():
    assert not interval([3.0]).decided


def test_a_pair_is_named_in_the_papers_order():
    (pair,) = pairs({"low": 1.0, "high": 2.0}, {"low": [5.0, 6.0], "high": [1.0, 2.0]})
    assert (pair.first, pair.second, pair.verdict) == ("high", "low", "opposite")
