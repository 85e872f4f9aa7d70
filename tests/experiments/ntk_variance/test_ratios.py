"""Paired ratios and verdicts: those of Student's interval of the logarithms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from inrfast.experiments.ntk_variance.claims import CLAIMS, Claim
from inrfast.experiments.ntk_variance.ratios import ratio, slope

VALUES = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=3, max_size=12)


@given(VALUES)
def test_a_ratio_is_the_t_interval_of_paired_logarithms(pairs):
    above, below = zip(*pairs, strict=True)
    found = ratio(above, below)
    logs = np.log(above) - np.log(below)
    assert found.factor == pytest.approx(np.exp(logs.mean())) and found.below == (logs < 0).sum()
    error = stats.sem(logs)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), error)
        assert np.log(found.json["low"]) == pytest.approx(low, abs=1e-9)
        expected = "lower" if high < 0 else "higher" if low > 0 else "open"
        assert found.seen == expected
        for wanted, held in (("lower", "lower"), ("changed", None)):
            verdict = Claim("", "", "pe", wanted=wanted).verdict(found)
            if expected == "open":
                assert verdict == "open"
            else:
                assert verdict == ("confirmed" if held in (None, expected) else "refuted")
        turned = ratio(below, above)
        assert turned.seen == {"lower": "higher", "higher": "lower", "open": "open"}[found.seen]


def test_one_seed_decides_nothing():
    assert ratio([2.0], [1.0]).seen == "open" and str(ratio([2.0], [1.0])) == "2, 0 of 1"
    assert {claim.number for claim in CLAIMS} >= {"normalised", "first", "frozen", "input"}


@given(st.floats(-3, 3), st.floats(0.1, 9))
def test_the_slope_of_a_power_law_is_its_exponent(power, factor):
    across = np.array([0.1, 0.5, 1.0, 4.0])
    assert slope(across, factor * across**power) == pytest.approx(power, abs=1e-9)
