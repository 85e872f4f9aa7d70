"""The kernel that accepts pivots keeps the candidates that the definition keeps, panel by panel."""

from acceptance import blocks, check_acceptance, graded, shares_and_lots
from hypothesis import Phase, given, settings

from inrfast.kernels import pivots as kernel
from inrfast.ops.pivots import LEAST_SHARE, from_columns


def on(device):
    """The kernel as the operator calls it, from and to the CPU."""

    def accept(block, candidates, weights, lots, wanted):
        given = (t.to(device) for t in (block, candidates, weights, lots))
        return tuple(t.cpu() for t in from_columns(*kernel.launch(*given, wanted, LEAST_SHARE)))

    return accept


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(blocks(70))
def test_candidates_are_kept_by_the_definition(device, case):
    check_acceptance(on(device), case)


def test_several_panels_with_rows_in_all_of_them(device):
    check_acceptance(on(device), graded(150, 90, 50))


def test_a_lot_that_is_the_share_itself_is_too_high_and_the_next_number_below_is_not(device):
    places, _, count = on(device)(*shares_and_lots(40))
    assert places[: int(count)].tolist() == list(range(1, 40, 2))
