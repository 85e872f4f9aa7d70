"""Table 1 and the figures of fits: made whole at a tiny size, and chosen without the images that are scored."""

import math

import pytest

from inrfast.experiments.inlet_rank_collapse import protocol
from inrfast.experiments.inlet_rank_collapse.comparison import PAPER
from inrfast.experiments.inlet_rank_collapse.protocol import Sizes
from inrfast.experiments.inlet_rank_collapse.table1 import _images
from inrfast.experiments.reproduce import reproduce


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(protocol.SIZES, "quick", Sizes(2, 12, 4, 8, 4, 1))
    _images.cache_clear()
    yield
    _images.cache_clear()


def test_all_are_made_and_a_second_call_computes_nothing(tmp_path, monkeypatch):
    names = ["fig1", "fig3", "table1", "table1_best"]
    made = reproduce("inlet_rank_collapse", names, tmp_path / "out", progress=False)
    table = made["table1"]
    assert len(table["rows"]) == 9 + 3
    assert set(table["numbers"]["scores"]) == set(PAPER)
    distances = [one["distance"] for one in table["numbers"]["search"]]
    best = table["numbers"]["search"][0]
    assert distances == sorted(distances)
    squares = [(best["psnrs"][method] - PAPER[method]) ** 2 for method in PAPER]
    assert distances[0] == pytest.approx(math.sqrt(sum(squares) / len(squares)))
    tried = made["table1_best"]["numbers"]["search"]
    counts = [sum(one["method"] == method for one in tried) for method in PAPER]
    assert len(set(counts)) == 1, "equal budgets"
    monkeypatch.setattr(protocol, "fit_many", None)
    again = reproduce("inlet_rank_collapse", names, tmp_path / "out", progress=False)
    assert again["table1"]["numbers"] == table["numbers"]


def test_one_image_is_not_called_unseen_nor_a_mean(tmp_path, monkeypatch):
    """It chose the settings that it is scored with, and has neither a range nor an interval."""
    monkeypatch.setitem(protocol.SIZES, "quick", Sizes(1, 12, 4, 8, 4, 1))
    made = reproduce("inlet_rank_collapse", ["fig1", "table1"], tmp_path, progress=False)
    said = " ".join(made["table1"]["text"] + made["fig1"]["text"])
    assert "which chose the settings too" in said and "that chose no setting" not in said
    assert "first 1 of" not in said and "±" not in str(made["table1"]["rows"]) and "all 1" not in str(made)
    assert all("12x12 pixels" in row[3] for row in made["table1"]["rows"] if row[2] != "-")
