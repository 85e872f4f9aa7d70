"""Table 2: its numbers are those of the solvers called by hand, and what it says is counted from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from inrfast.experiments.paper import Request, Work
from inrfast.experiments.peak import table2
from inrfast.experiments.peak.images import image
from inrfast.experiments.peak.table2 import RATIOS, Sizes, Table2, methods
from inrfast.experiments.reproduce import reproduce
from inrfast.grids import grid
from inrfast.inverse import FourierMagnitude, GaussianMagnitude, net_adm, net_gd
from inrfast.nn import INR

SMALL = Sizes(16, 2, 2, 3, 1, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(table2.SIZES, "quick", SMALL)


def test_cells_are_the_solvers_called_by_hand(tmp_path):
    request = Request()
    cells = {cell.name: cell for cell in Table2().cells(request, {})}
    assert len(cells) == 2 * (2 * 3 * 5) + 2
    truth = image(request, "House", 16).values[..., None]
    for problem, operator in (("FPR", FourierMagnitude((16, 16), 1.9)), ("GPR", GaussianMagnitude((16, 16), 1.0))):
        method = methods(problem)[-1]
        points = grid(operator.shape_out if problem == "FPR" else (16, 16))
        net, _ = method.made(points, len(points), 0, points.device)
        if problem == "FPR":
            by_hand = net_adm(net, operator, operator(truth), 2, 2, method.lr, rho=0.1, target=truth, data_range=1.0)
        else:
            by_hand = net_gd(net, None, operator, operator(truth), 3, method.lr, target=truth, data_range=1.0)
        cell = cells[f"{problem}.House.{RATIOS[problem][0]:g}.gamma.0"]
        found = cell.run(Work(points.device, tmp_path / f"{problem}.safetensors", False))
        assert found.numbers["psnr"] == pytest.approx(by_hand.psnr, abs=1e-4)
        np.testing.assert_allclose(found.numbers["residuals"], by_hand.residuals, rtol=1e-4)
        assert found.arrays["picture"].shape == (16, 16)


def test_a_restart_that_was_left_out_can_be_written():
    operator = GaussianMagnitude((8, 8), 1.0)
    truth = grid((8, 8))[:, :1].reshape(8, 8, 1)
    result = net_gd(INR(2, 1, width=4), None, operator, operator(truth), 1, target=truth, progress=False)
    result = replace(result, restart_residuals=(result.residual, math.inf), restart_psnrs=(result.psnr, math.nan))
    found = table2._tasks(Request())[0]._found(result, operator, truth)
    written = json.loads(json.dumps(found.numbers, allow_nan=False))
    assert written["restart_residuals"] == [result.residual, None]


def test_the_table_is_made_and_says_what_it_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(table2.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
    ratios_of = {"FPR": (1.9,), "GPR": (1.0,)}
    monkeypatch.setattr(table2, "RATIOS", ratios_of)
    made = reproduce("peak", "table2", tmp_path, progress=False)["table2"]
    numbers = made["numbers"]
    for problem, ratios in ratios_of.items():
        above = sum(
            numbers[f"{problem}.{name}.{ratio:g}.peak.0"]["psnr"]
            > max(numbers[f"{problem}.{name}.{ratio:g}.{rival}.0"]["psnr"] for rival in ("mlp", "fourier", "hash"))
            for name in ("House", "Boat")
            for ratio in ratios
        )
        (said,) = [text for text in made["text"] if text.startswith(f"{problem} by")]
        assert f"in {above} of 2 entries" in said
    assert len(made["rows"]) == 4
    assert "40.44" in made["rows"][0][1]
    assert any("Boston" in text for text in made["text"])
