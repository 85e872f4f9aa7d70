"""Fig. 6: the layers have the geometry that their names say, and the figure counts what is active."""

import numpy as np
import pytest
import torch

from inrfast.experiments.inlet_rank_collapse import fig6
from inrfast.experiments.reproduce import reproduce


@pytest.mark.parametrize("name", ["ours", "inward", "random"])
def test_hinges_pass_at_eps_from_the_points_of_the_paper(name):
    weight, bias = fig6.layer(name, 16, seed=3)
    axis = 2 * torch.arange(1, 5, dtype=torch.float64) / 5 - 1  # equation 12 at p = 4
    points = torch.cartesian_prod(axis, axis)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(16, dtype=torch.float64))
    torch.testing.assert_close((weight * points).sum(1) + bias, torch.full((16,), fig6.EPS, dtype=torch.float64))
    outward = (weight * points).sum(1) > 0
    assert outward.all() if name == "ours" else not outward.all()
    assert name != "inward" or not outward.any()


def test_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(fig6.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
    monkeypatch.setattr(fig6, "SIDE", 16)
    made = reproduce("inlet_rank_collapse", "fig6", tmp_path, runs=1, progress=False)["fig6"]
    axis = np.linspace(-1, 1, 16)
    coords = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    for name in fig6.LAYERS:
        weight, bias = (part.numpy() for part in fig6.layer(name, fig6.WIDTH))
        value = coords @ weight.T + bias
        assert np.abs(value).min() > 1e-15 or name == "cover"
        numbers = made["numbers"]["cells"][f"{name}.0"]
        if name != "cover":  # whose hinges lie on diagonals of the grid
            assert numbers["active"] == pytest.approx((value > 0).mean())
            assert numbers["patterns"] == len({row.tobytes() for row in value > 0})
            assert numbers["dead_pixels"] == pytest.approx((value <= 0).all(1).mean())
    assert made["numbers"]["cells"]["cover.0"]["dead_pixels"] == 0
