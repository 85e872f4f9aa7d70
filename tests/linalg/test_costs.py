"""The model of costs, and when pivots give way by it."""

from hypothesis import given
from hypothesis import strategies as st

from inrfast.linalg.costs import SPENT, Alternative, dense_flops, factorisation_flops, pivots_flops

ORDERS = st.integers(100, 10**6)


@given(ORDERS, st.floats(0, 1), st.floats(0, 1), st.integers(1, 50))
def test_costs_grow_with_what_is_asked(n, one, other, levels):
    low, high = sorted((one * n, other * n))
    assert pivots_flops(n, low) <= pivots_flops(n, high)
    assert factorisation_flops(n, levels) < factorisation_flops(n, levels + 1) < factorisation_flops(n + 1, levels + 1)
    assert factorisation_flops(16384, 1) < dense_flops(16384) < factorisation_flops(16384, 20)


@given(ORDERS, st.floats(0.01, 1), st.floats(0.01, 2), st.floats(0.01, 1), st.floats(8, 18))
def test_pivots_give_way_to_what_costs_less_or_alone_fits(n, rank, needed, most, exponent):
    rank, needed, most = int(rank * n), needed * n, int(most * n)
    way = Alternative(n, 10.0**exponent, "the other way")
    told = way.verdict(rank, needed, most)
    if pivots_flops(n, rank) < SPENT * way.flops:
        assert told == ""
    elif min(needed, n) > most:
        assert f"after {rank:,} pivots" in told
        assert f"{most:,} fit the budget" in told
    else:
        assert (told != "") == (pivots_flops(n, min(needed, n)) - pivots_flops(n, rank) > way.flops)
        assert told == "" or told.endswith("which costs more")
