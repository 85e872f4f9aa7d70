"""Readings of "quadratically" hold where made-up power laws say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrfast.experiments.ntk_variance.topk import READINGS, SHARES, kept, readings
from inrfast.experiments.ntk_variance.variants import PLAIN, SPHERE, TOPK, TOPK_SPHERE
from inrfast.experiments.paper import Found

WIDTH = 64


def made(sparse, projected):
    """Return networks of which v and v/mu^2 are powers of k/m, hardly apart between seeds."""
    jitter = (0.999, 1.0, 1.001)

    def runs(power, share):
        return [{"normalised": 9 * one * share**power, "variance": 5 * one * share**power} for one in jitter]

    found = {PLAIN.name: runs(sparse, 1.0), SPHERE.name: runs(projected, 1.0)}
    for share in SHARES:
        found[kept(TOPK, share, WIDTH).name] = runs(sparse, share)
        found[kept(TOPK_SPHERE, share, WIDTH).name] = runs(projected, share)
    return Found(found)


@given(st.floats(0.2, 2), st.floats(0.2, 5))
def test_readings_of_power_laws(sparse, projected):
    found = {name: test.verdict for name, test in readings(made(sparse, projected), WIDTH).items()}
    gaps = {
        "exponent-normalised": 2 * sparse - projected,
        "exponent-variance": 2 * sparse - projected,
        "quadratic": 2 - projected,
        "squared": 2 * sparse - projected,
        "share-normalised": sparse + 2 - projected,
        "share-variance": sparse + 2 - projected,
    }
    assert set(gaps) == set(found) == {reading.name for reading in READINGS}
    for name, gap in gaps.items():
        if abs(gap) > 0.01:
            assert found[name] == ("holds" if gap < 0 else "refuted"), name


def test_a_reading_that_holds_at_some_shares_says_so():
    found = made(1.0, 3.0)
    first = kept(TOPK_SPHERE, SHARES[0], WIDTH).name
    found.numbers[first] = [{key: 1e3 * value for key, value in run.items()} for run in found.numbers[first]]
    assert readings(found, WIDTH)["squared"].verdict == f"refuted, holds at {len(SHARES) - 1} of {len(SHARES)} shares"


def test_a_share_of_the_units_is_kept():
    assert kept(TOPK, 1 / 4, WIDTH).network(2, WIDTH, 1, 0).norms[0].k == WIDTH // 4
    with pytest.raises(ValueError, match="k"):
        kept(TOPK, 0.0, WIDTH).network(2, WIDTH, 1, 0)
