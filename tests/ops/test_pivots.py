"""Accepting pivots: one candidate after another by definition, and a factor of what is kept."""

import torch
from acceptance import blocks, check_acceptance, graded, shares_and_lots
from hypothesis import given, settings

from inrfast.ops.pivots import accept_pivots


@settings(max_examples=60)
@given(blocks(60))
def test_candidates_are_kept_by_the_definition(case):
    check_acceptance(accept_pivots, case)


def test_large_blocks():
    check_acceptance(accept_pivots, graded(400, 300, 120))


def test_a_lot_that_is_the_share_itself_is_too_high_and_the_next_number_below_is_not():
    places, _, count = accept_pivots(*shares_and_lots(40))
    assert places[: int(count)].tolist() == list(range(1, 40, 2))


def test_the_operator_is_the_function():
    """On a CPU that does without the operator, which would load the compiler."""
    case = graded(9, 6, 4)
    found = torch.ops.inrfast.accept_pivots(*case)
    assert all(torch.equal(a, b) for a, b in zip(found, accept_pivots(*case), strict=True))
