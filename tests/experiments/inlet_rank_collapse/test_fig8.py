"""Fig. 8 from the cells to the report, at a small size: what it says of IoUs is what its cells hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inrfast.experiments.inlet_rank_collapse import fig8
from inrfast.experiments.inlet_rank_collapse.shapes import Sizes
from inrfast.experiments.reproduce import reproduce

SMALL = fig8.Preset(Sizes((64, 64, 64, 64), 16), 8, 8, 2, 2, 32, (1e-3, 1e-2), 2)


def test_every_method_has_a_surface_an_iou_and_the_rate_that_did_best(tmp_path, monkeypatch):
    monkeypatch.setattr(fig8, "QUICK", SMALL)
    made = reproduce("inlet_rank_collapse", "fig8", tmp_path, progress=False)["fig8"]
    (shape,) = made["numbers"].values()
    assert list(shape) == list(fig8.IN_3D)
    assert made["cells"] == 1 + 2 * len(fig8.IN_3D)
    for row, fit in zip(made["rows"], shape.values(), strict=True):
        assert row[1] == "—" and row[2].startswith(f"{np.mean(fit['grid']):.3f}")
        assert len(fit["grid"]) == len(fit["points"]) == 2
        assert fit["lr"] in SMALL.rates
    assert (tmp_path / "fig8" / "fig8.png").stat().st_size > 1000


def test_the_text_follows_the_numbers():
    ious = {"default": 0.5, "ours": 0.8, "siren": 0.805, "pe": 0.9, "bn": 0.6, "siren-first": 0.7, "bn-first": 0.65}
    first, second, third = fig8._seen({"x": {name: {"grid": [value]} for name, value in ious.items()}})
    assert "lowest IoU. Here: on 1 of 1" in first
    assert "+0.300 (better on 1" in second and "-0.005 (equal on 1" in second and "-0.100 (worse on 1" in second
    assert "-0.105 (worse on 1" in third and "+0.050 (better on 1" in third


RATES_TRIED = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=2, max_size=4)


@given(RATES_TRIED, RATES_TRIED)
def test_a_rate_is_called_best_only_where_one_trial_won(ours, pe):
    """An independent count: a rate won if its IoU is above every other one's."""
    told = " ".join(fig8._undecided({"x": {"ours": {"iou": ours}, "pe": {"iou": pe}}}))
    for label, tried in (("ReLU (our init) on x", ours), ("PE on x", pe)):
        won = sorted(tried)[-1] > sorted(tried)[-2]
        assert (label in told) != won and (fig8._why({"iou": tried}) == "") == won
        assert ("no rate" in fig8._why({"iou": tried})) == (not any(tried))
    assert ("IoU 0 at every rate" in told) == (not any(ours) or not any(pe))


def test_a_tie_for_the_lowest_is_no_lowest():
    level = dict.fromkeys(fig8.IN_3D, 0.0)
    first = fig8._seen({"x": {name: {"grid": [value]} for name, value in level.items()}})[0]
    assert "on 0 of 1 shapes, and level with another as the lowest on 1" in first
