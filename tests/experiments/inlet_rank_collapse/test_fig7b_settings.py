"""The open settings of Fig. 7B: both networks of a setting differ in the first layer alone."""

import pytest
import torch

from inrfast.experiments.inlet_rank_collapse import fig7b_settings
from inrfast.experiments.inlet_rank_collapse.spectra import network
from inrfast.experiments.paper import Found, Request, Work

CPU = torch.device("cpu")


def test_starts_share_all_layers_but_the_first(monkeypatch):
    seen = []

    def recorded(method, side, seed, device, hidden_layers):
        seen.append(network(method, side, seed, device, hidden_layers=hidden_layers)[0])
        raise InterruptedError

    monkeypatch.setattr(fig7b_settings, "network", recorded)
    for cell in fig7b_settings.cells(Request()):
        with pytest.raises(InterruptedError):
            cell.run(Work(CPU, None, False))
    assert len(seen) == 2 * len(fig7b_settings.SETTINGS)
    for default, ours in zip(seen[::2], seen[1::2], strict=True):
        assert default.activations == ours.activations and len(default.layers) == len(ours.layers)
        assert not torch.equal(default.layers[0].weight, ours.layers[0].weight)
        for one, two in zip(default.layers[1:], ours.layers[1:], strict=True):
            assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_text_counts_each_setting_once_and_where_it_belongs():
    found = {}
    for place, name in enumerate(fig7b_settings.SETTINGS):
        kind = place % 4
        after = [[20] * 4, [20, 10, 10, 10], [10] * 4, [5] * 4][kind]
        for start, ranks in (("default", [10] * 4), ("ours", after)):
            found[f"setting.{name}.{start}"] = Found({"ranks": [ranks], "head": [0.5], "rms": [0.1]})
    told = fig7b_settings.text(Request(), found)[0]
    parts = dict(zip(("all", "some", "none", "lower"), told.split(". ")[1:], strict=True))
    for place, setting in enumerate(fig7b_settings.SETTINGS.values()):
        items = list(parts.values())[place % 4].rstrip(".").partition(": ")[2].split("; ")
        assert setting.label in items, "items stay whole, whatever commas they hold"
