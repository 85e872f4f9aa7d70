"""Energies in words: claims hold where numbers say so; the figures with faces run, and share what they can."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure as Drawing
from tiny_faces import TINY, arrays, tiny

from inrfast.experiments.inr_dictionaries.atoms import THRESHOLDS
from inrfast.experiments.inr_dictionaries.energy import LEVELS, above, agreement, at_levels
from inrfast.experiments.inr_dictionaries.fig4 import BEST, order, telling
from inrfast.experiments.inr_dictionaries.starts import META, OMEGAS, SIRENS
from inrfast.experiments.inr_dictionaries.steps import FIRST_STEPS
from inrfast.experiments.paper import Found
from inrfast.experiments.reproduce import reproduce

FACES = ["fig4", "fig5", "fig10", "fig11", "fig12", "fig13", "fig14", "fig15", "fig16"]


def made_up(energies, psnrs=None):
    """Return cells of the sine networks and the meta-learned one, with these energies at every threshold."""
    found = {}
    for start, energy in zip((*SIRENS, META), energies, strict=True):
        curve = np.full(len(THRESHOLDS), float(energy))
        found[f"atoms.{start.name}"] = Found({}, {"lower": curve, "upper": curve})
        value = energy if psnrs is None else psnrs[start.name]
        found[f"steps.{start.name}.{FIRST_STEPS}"] = Found({"test": [10.0 * value] * (FIRST_STEPS + 1)})
    return found


@given(st.lists(st.floats(0.01, 0.99), min_size=9, max_size=9, unique=True))
def test_a_claim_on_the_order_holds_where_the_energies_have_that_order(energies):
    worst, best, receding, meta = order(made_up(energies)).values()
    random, learned = energies[:-1], energies[-1]
    named = [energy for omega, energy in zip(OMEGAS, random, strict=True) if omega in BEST]
    assert bool(worst) == (random[0] == min(energies))
    assert bool(best) == (max(random) in named)
    assert bool(receding) == (random[-1] < max(named))
    assert bool(meta) == (1 - learned < 0.5 * (1 - max(random)))
    assert {len(held) for held in (worst, best, receding, meta)} <= {0, len(LEVELS)}


def test_levels_are_told_apart():
    found = made_up(np.linspace(0.1, 0.9, 9))
    found[f"atoms.{META.name}"].arrays["lower"][:15] = 0  # at 0.1 the meta-learned one has none
    found[f"atoms.{META.name}"].arrays["upper"][:15] = 0
    held = list(order(found).values())
    assert held[0] == list(LEVELS[1:]) and "not at 0.1" in at_levels(held[0])
    assert "not at 0.1" in above(META, SIRENS[0], found, "x")
    assert telling(found) == list(LEVELS)
    for start in SIRENS:  # a network that has everything above 0.001 says nothing on the order there
        found[f"atoms.{start.name}"].arrays["lower"][25:] = found[f"atoms.{start.name}"].arrays["upper"][25:] = 0.9995
    assert telling(found) == [0.1, 0.01] and all(set(held) <= {0.1, 0.01} for held in order(found).values())
    assert at_levels(LEVELS).startswith("yes") and at_levels([]).startswith("no")


def test_agreement_is_the_rank_correlation():
    energies = np.linspace(0.1, 0.9, 9)
    starts = (*SIRENS, META)
    rising = {start.name: float(i) for i, start in enumerate(starts)}
    assert "1.00 at 0.1" in agreement(starts, made_up(energies, rising))
    falling = {name: -value for name, value in rising.items()}
    assert "-1.00 at 0.1" in agreement(starts, made_up(energies, falling))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    with tiny(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
        return out, reproduce("inr_dictionaries", FACES, out, progress=False)


def test_all_figures_with_faces_come_from_cells_that_they_share(whole):
    out, made = whole
    assert list(made) == FACES
    shared = [path.stem for path in (out / "shared" / "cells").glob("*.json")]
    assert sum(found["cells"] for found in made.values()) > 1.5 * len(shared)
    assert sorted(name for name in shared if name.startswith("weights")) == [
        "weights.ffn.maml", "weights.siren.maml", "weights.siren.reptile", "weights.siren.single.0",
        "weights.siren.single.2",
    ]  # fmt: skip
    for name, found in made.items():
        assert bool(list((out / name / "cells").glob("*.json"))) == (name == "fig15")
        assert found["rows"] and found["text"] and found["numbers"]
    assert f"{TINY.side}x{TINY.side}" in str(made["fig4"]["tables"]) and len(made["fig4"]["tables"]) == 3


def test_fits_of_eigenfunctions_start_at_the_psnr_that_is_told(whole):
    out, made = whole
    for name in ("maml", "siren-30"):
        numbers = made["fig15"]["numbers"][name]
        assert numbers["indices"] == [1, 2, 5, 10, 20]  # up to half of 81 points
        assert numbers["eigenvalues"] == sorted(numbers["eigenvalues"], reverse=True)
        with np.load(out / "fig15" / "cells" / f"targets.{name}.npz") as kept:
            np.testing.assert_allclose(kept["atoms"] @ kept["atoms"].T, np.eye(5), atol=1e-9)
        # At a few small steps from the start the error is that of the start, output and target together.
        far = 10 * np.log10((0.25 + numbers["output_rms"] + 0.01) ** -2)
        assert all(psnr > far for psnr in numbers["psnrs"])


def test_given_weights_take_the_place_of_meta_learning_and_are_said_to(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays(width=6, layers=2))
    with tiny(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "savefig", lambda *arguments, **options: None)
        made = reproduce("inr_dictionaries", "fig10", tmp_path / "r", weights=tmp_path / "w.npz", progress=False)
    assert not list((tmp_path / "r" / "shared" / "cells").glob("weights*"))
    assert "2 hidden layers of width 6" in made["fig10"]["text"][0]
    assert replace(META).meta and made["fig10"]["cells"] == 10
