"""The benchmark of modules compares the same steps, and writes no time of others."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import inrfast as inr

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import modules


def test_every_kind_takes_the_points_and_the_fit_the_same_steps() -> None:
    coords, target = modules.signal(64)
    for name, make in modules.KINDS.items():
        if name in ("hash grid", "embedding"):
            continue  # of millions of numbers
        net = make()
        twin = copy.deepcopy(net)
        modules.plain(net, coords, target, 1)
        modules.fitted(twin, coords, target, 1)
        if name != "dropout":
            assert modules.difference(net, twin, coords, target) < modules.ALIKE


def test_a_time_of_other_steps_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(modules.KINDS, "small", lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))
    found = modules.measure("small", 64, 3, 1)
    assert found["apart"] < modules.ALIKE
    assert found["fit / plain"] > 0

    def faster(net: nn.Module, coords: Any, target: Any, steps: int, clock: str) -> tuple[float, str]:
        inr.fit(net, coords, target, steps=1, lr=0.1, progress=False)
        return 0.0, "chunked"

    monkeypatch.setattr(modules, "fitted", faster)
    with pytest.raises(SystemExit, match="no time is written"):
        modules.measure("small", 64, 30, 1)
