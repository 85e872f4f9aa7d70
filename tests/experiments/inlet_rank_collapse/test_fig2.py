"""Fig. 2: the products are those of the weights, and the figure's numbers those of numpy."""

import numpy as np
import torch

from inrfast.experiments.inlet_rank_collapse import fig2
from inrfast.experiments.inlet_rank_collapse.methods import DEFAULT
from inrfast.experiments.reproduce import reproduce
from inrfast.nn import INR


def test_the_product_is_the_jacobian_of_the_linear_network():
    net = INR(2, 1, width=6, hidden_layers=4, activation="identity", dtype=torch.float64)
    found = fig2.weight_matrices(net)
    assert list(found) == ["W_1", "W_2", "W_3", "W_2 W_3", "W_1 W_2 W_3"]

    def behind(features):
        for layer in net.layers[1:-1]:
            features = layer(features)
        return features

    jacobian = torch.autograd.functional.jacobian(behind, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found["W_1 W_2 W_3"], jacobian)


def test_one_run_against_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr(fig2.Drawing, "savefig", lambda *arguments, **options: None)  # takes longest
    monkeypatch.setattr(fig2, "SIDE", 12)
    made = reproduce("inlet_rank_collapse", "fig2", tmp_path, runs=1, seed=5, progress=False)["fig2"]
    net, axis = DEFAULT.but(init="kaiming").network(2, 1, 5), np.linspace(-1, 1, 12)
    features = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    for layer, parts in enumerate(net.layers[:-1]):
        weight, bias = (part.detach().double().numpy() for part in (parts.weight, parts.bias))
        features = np.maximum(features @ weight.T + bias, 0)
        values = np.linalg.svd(features, compute_uv=False)
        for rtol, (low, high) in zip(fig2.RTOLS, made["numbers"]["cells"]["kaiming.5"][f"Z_{layer}"]["ranks"],
                                     strict=True):  # fmt: skip
            assert low <= (values > rtol * values[0]).sum() <= high
    assert "±" not in str(made["rows"])
