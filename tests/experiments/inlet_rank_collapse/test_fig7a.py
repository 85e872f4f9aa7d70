"""Fig. 7A: every curve is that of numpy's singular values; one run has no deviation; a stopped call goes on."""

import json

import numpy as np
import pytest
import torch

from inrfast.experiments.inlet_rank_collapse import fig7a
from inrfast.experiments.inlet_rank_collapse.spectra import network, representation
from inrfast.experiments.reproduce import reproduce


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(fig7a, "SIDE", 17)
    monkeypatch.setattr(fig7a.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest


def test_one_run_against_numpy(tmp_path, small):
    made = reproduce("inlet_rank_collapse", "fig7a", tmp_path, runs=1, seed=2, progress=False)["fig7a"]
    assert "±" not in json.dumps(made, ensure_ascii=False)
    for name, curve in fig7a.CURVES.items():
        net, coords = network(curve.method, 17, 2, torch.device("cpu"))
        features = torch.cat(list(representation(net, coords, curve.layer)())).numpy()
        values = np.linalg.svd(features, compute_uv=False)
        numbers = made["numbers"]["cells"][f"{name}.2"]
        for rtol, (low, high) in zip(fig7a.RTOLS, numbers["ranks"], strict=True):
            assert low <= (values > rtol * values[0]).sum() <= high
        assert numbers["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2)
        assert numbers["constant_units"] == (np.ptp(features, axis=0) == 0).sum()
        kept = np.load(tmp_path / "fig7a" / "cells" / f"{name}.2.npz")["values"]
        above = values > 1e-5 * values[0]
        assert kept[: len(values)][above] == pytest.approx(values[above] / values[0], rel=1e-6)


def test_a_stopped_call_goes_on(tmp_path, small, monkeypatch):
    computed, real = [], fig7a.network

    def stopping(method, *arguments):
        computed.append(method.name)
        if len(computed) == 4:
            raise KeyboardInterrupt
        return real(method, *arguments)

    monkeypatch.setattr(fig7a, "network", stopping)
    with pytest.raises(KeyboardInterrupt):
        reproduce("inlet_rank_collapse", "fig7a", tmp_path, runs=2, progress=False)
    made = reproduce("inlet_rank_collapse", "fig7a", tmp_path, runs=2, progress=False)["fig7a"]
    cells = 2 * len(fig7a.CURVES) - 1  # one of them draws nothing at random
    assert made["cells"] == cells and len(computed) == cells + 1
