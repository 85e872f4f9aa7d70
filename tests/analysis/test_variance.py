"""The eigenvalue variance against eigenvalues and kernels of automatic differentiation in fp64."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import Grid, jacobian_by_points
from random_networks import exact_jacobian, exact_kernel, networks, random_coords
from torch import nn

import inrfast as inr
from inrfast.analysis import variance as module
from inrfast.errors import NotAvailableError, RangeError, UnsupportedModuleError


def defined(kernels):
    """Mean and variance of the eigenvalues of the sum of some kernels, and the matrix of their pairs."""
    whole = sum(kernels)
    values = torch.linalg.eigvalsh(whole)
    n = len(values)
    centred = torch.stack([K - K.diagonal().mean() * torch.eye(n, dtype=K.dtype) for K in kernels]).flatten(1)
    return float(values.mean()), float(values.var(correction=0)), centred @ centred.t() / n


def kernels_by_layer(net, coords, output, names):
    """The kernels of parameters, each by automatic differentiation, by the layer they belong to."""
    found = {}
    for name in names:
        parameters = [own for own, _ in net.named_parameters() if own.rsplit(".", 1)[0] == name]
        J = exact_jacobian(net, coords, parameters)
        found[name] = exact_kernel(J, J, output).detach()
    return found


@settings(max_examples=15)
@given(networks(max_width=24, max_depth=3), st.integers(2, 20), st.sampled_from(["trace", "full", 0]))
def test_exact_values_are_those_of_dense_eigenvalues(net, n, output):
    coords = random_coords(n, net.in_features, 0)
    found = inr.variance(net, coords, output=output, precision="highest", progress=False)
    kernels = kernels_by_layer(net, coords, output, found.layers)
    mean, variance, pairs = defined(list(kernels.values()))
    size = mean**2 + variance
    assert found.method == "exact" and found.points == found.used == n
    assert found.mean == pytest.approx(mean, rel=1e-10)
    assert abs(found.variance - variance) <= 1e-9 * size
    assert ((found.pairs - pairs).abs() <= 1e-9 * size).all()
    assert float(found.pairs.sum()) == pytest.approx(found.variance, rel=1e-12, abs=1e-300)
    assert float(torch.linalg.eigvalsh(found.pairs).min()) >= -1e-12 * float(found.pairs.trace())
    for index, layer in enumerate(found.layers.values()):
        assert layer.variance == float(found.pairs[index, index])
        assert layer.mean == pytest.approx(float(kernels[list(kernels)[index]].diagonal().mean()), rel=1e-9, abs=1e-300)
    high = inr.variance(net, coords, output=output, progress=False)
    assert abs(high.variance - found.variance) <= high.error + found.error
    assert ((high.pairs - found.pairs).abs() <= high.pairs_error + found.pairs_error).all()
    assert abs(high.mean - found.mean) <= high.mean_error + found.mean_error


@pytest.mark.parametrize("output", ["trace", "full", 1])
def test_the_identity_holds_to_1e12(output):
    """``v = 1/n sum_{i != j} K_ij^2 + Var(K_ii)``, and ``Tr K^2 / n - mu^2`` where that has digits left."""
    net = inr.INR(2, 2, width=24, hidden_layers=2, dtype=torch.float64)
    coords = inr.grid((9, 10), dtype=torch.float64)
    found = inr.variance(net, coords, output=output, precision="highest")
    K = inr.ntk(net, coords, output=output, precision="highest").to_dense()
    values = torch.linalg.eigvalsh(K)
    difference = float(values.square().mean() - values.mean() ** 2)
    off = K - torch.diag(K.diagonal())
    parts = float(off.square().sum() / len(K) + K.diagonal().var(correction=0))
    assert found.variance == pytest.approx(parts, rel=1e-12) and found.variance == pytest.approx(difference, rel=1e-12)
    assert found.normalised == pytest.approx(found.variance / found.mean**2, rel=1e-15)


def observed(net, coords):
    """Inputs of linear layers with ones, sensitivities of their outputs, slopes of activations: by autograd."""
    net, seen = net.double(), []

    def see(layer, entered, output):
        seen.append((entered[0].detach(), output))

    linear = [own for own in net.modules() if isinstance(own, nn.Linear)]
    handles = [layer.register_forward_hook(see) for layer in linear]
    prediction = net(coords.double())
    for handle in handles:
        handle.remove()
    found = []
    for entered, output in seen:
        rows = [torch.autograd.grad(column.sum(), output, retain_graph=True)[0] for column in prediction.t()]
        found.append((torch.cat([entered, torch.ones(len(entered), 1)], 1), torch.stack(rows, 1), output.detach()))
    return found


def alike(vectors, energy):
    """The mean of squared cosines of some vectors over pairs of different points, with weights e_i e_j."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    weights = torch.outer(energy, energy).fill_diagonal_(0)
    return float(((unit @ unit.t()).square() * weights).sum() / weights.sum()), float(weights.sum())


def test_similarities_are_weighted_squared_cosines():
    net = inr.INR(2, 3, width=16, hidden_layers=3, activation="sine", omega=4.0, init="siren")
    coords = random_coords(40, 2, 0)
    found = inr.variance(net, coords, precision="highest")
    sums = {"gate": [], "features": [], "sensitivities": []}
    for (z, s, u), (name, own) in zip(observed(net, coords), found.layers.items(), strict=True):
        energy = z.square().sum(1) * s.flatten(1).square().sum(1)
        kernel = (z @ z.t()) * (s.flatten(1) @ s.flatten(1).t())
        weights = torch.outer(energy, energy).fill_diagonal_(0)
        assert own.features == pytest.approx(alike(z, energy)[0], rel=1e-9)
        assert own.sensitivities == pytest.approx(alike(s.flatten(1), energy)[0], rel=1e-9)
        off = kernel.clone().fill_diagonal_(0).square().sum()
        assert own.joint == pytest.approx(float(off / weights.sum()), rel=1e-9)
        sums["features"].append(alike(z, energy))
        sums["sensitivities"].append(alike(s.flatten(1), energy))
        if name in found.similarities.gates:
            gate = alike((4.0 * u).cos(), energy)
            assert found.similarities.gates[name] == pytest.approx(gate[0], rel=1e-9)
            sums["gate"].append(gate)
    assert len(sums["gate"]) == 3

    def mean(parts):
        return pytest.approx(sum(own * weight for own, weight in parts) / sum(weight for _, weight in parts), rel=1e-9)

    assert found.similarities.input == pytest.approx(sums["features"][0][0], rel=1e-9)
    assert found.similarities.hidden == mean(sums["features"][1:])
    assert found.similarities.gate == mean(sums["gate"])
    assert found.similarities.sensitivities == mean(sums["sensitivities"])


@pytest.mark.parametrize("output", ["trace", "full"])
def test_few_points_at_a_time_and_little_memory_change_nothing(output, monkeypatch):
    net, coords = inr.INR(2, 2, width=32, hidden_layers=2, norm="layer"), inr.grid((36, 36))
    whole = inr.variance(net, coords, output=output)
    monkeypatch.setattr(module, "BLOCK", 500)
    monkeypatch.setattr(module, "LEAST_BLOCK", 100)
    parts = inr.variance(net, coords, output=output)
    little = inr.variance(net, coords, output=output, memory_budget=12 * 2**20)
    for found in (parts, little):
        assert torch.allclose(found.pairs, whole.pairs, rtol=1e-6)
        for own, other in zip(found.layers.values(), whole.layers.values(), strict=True):
            assert own.joint == pytest.approx(other.joint, rel=1e-5)
        assert found.similarities.gate == pytest.approx(whole.similarities.gate, rel=1e-5)
    with pytest.raises(MemoryError):
        inr.variance(net, coords, output=output, memory_budget=10**5)


class Field(nn.Module):
    """A table that points read at few places, behind a linear layer, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.grid, self.head = nn.Linear(2, 8), Grid(8), nn.Linear(8, 1)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.head(torch.tanh(self.grid(self.gain * self.first(x))))


@pytest.mark.filterwarnings("ignore:parameters")
def test_any_module_has_a_variance():
    torch.manual_seed(0)
    net, coords = Field(), random_coords(30, 2, 0)
    found = inr.variance(net, coords, precision="highest")
    J = jacobian_by_points(net, coords, [name for name, _ in net.named_parameters()])
    mean, variance, _ = defined([exact_kernel(J, J, "trace")])
    assert found.mean == pytest.approx(mean, rel=1e-9) and found.variance == pytest.approx(variance, rel=1e-9)
    table = next(own for name, own in found.layers.items() if "table" in name)
    assert table.features is None and table.sensitivities is None and 0 < table.joint < 1
    assert found.similarities.gate is None and "closed form" in found.similarities.reason
    assert "no gates" in str(found)


def test_only_some_parameters():
    net, coords = inr.INR(2, 1, width=16, hidden_layers=2), inr.grid((6, 6))
    found = inr.variance(net, coords, params=["layers.1"], precision="highest")
    K = inr.ntk(net, coords, params=["layers.1"], precision="highest").to_dense()
    assert found.variance == pytest.approx(float(torch.linalg.eigvalsh(K).var(correction=0)), rel=1e-10)
    assert found.similarities.input is None and list(found.similarities.gates) == ["layers.1"]
    head = inr.variance(net, coords, params=["layers.2"])
    assert head.similarities.gate is None and "no weight" in head.similarities.reason


def scaled(power):
    net = inr.INR(2, 1, width=16, hidden_layers=2, bias=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(power)
    return net


def test_entries_whose_squares_fp32_cannot_hold():
    """A bias-free ReLU network is homogeneous: its kernel is that of the unscaled one times a power."""
    coords = inr.grid((8, 8))
    plain = inr.variance(scaled(1.0), coords)
    for power in (1e15, 1e-12):
        found = inr.variance(scaled(power), coords)
        assert found.normalised == pytest.approx(plain.normalised, rel=1e-5)
        assert found.variance == pytest.approx(plain.variance * power**8, rel=1e-5)
    with pytest.raises(RangeError, match="squares"):
        inr.variance(scaled(1e38), coords)


def test_a_kernel_that_is_zero_says_so():
    found = inr.variance(scaled(0.0), inr.grid((8, 8)))
    assert found.mean == found.variance == found.error == 0 and math.isnan(found.normalised)
    assert "the kernel is zero" in found.note and found.to_dict()["normalised"] is None
    estimate = inr.variance(scaled(0.0), inr.grid((12, 12)), method="estimate")
    assert estimate.variance == estimate.error == 0 and math.isnan(estimate.normalised)


def test_points_given_twice():
    net = inr.INR(2, 1, width=16)
    coords = random_coords(20, 2, 0)[[*range(20), 3, 3, 7]]
    found = inr.variance(net, coords, precision="highest")
    values = torch.linalg.eigvalsh(inr.ntk(net, coords, precision="highest").to_dense())
    assert found.variance == pytest.approx(float(values.var(correction=0)), rel=1e-11)
    one = inr.variance(net, coords[:1].expand(5, -1), precision="highest")
    assert one.normalised == pytest.approx(4.0, rel=1e-12)  # rank 1 of order 5


def test_auto_says_what_it_took():
    net = inr.INR(2, 1, width=64, hidden_layers=3)
    small = inr.variance(net, inr.grid((32, 32)))
    assert small.method == "exact" and "always" in small.note
    K, gates = inr.ntk(net, inr.grid((64, 64)), backend="torch"), None
    gates = module.Gates(K)
    assert module._method(K, gates, "auto")[0] == "exact"
    large = inr.ntk(inr.INR(2, 1), inr.grid((256, 256)), backend="torch")
    method, note = module._method(large, module.Gates(large), "auto")
    assert method == "estimate" and "times what method='auto' spends" in note
    assert "FLOP" in inr.variance(net, inr.grid((12, 12)), method="estimate").note


def test_bad_arguments():
    net, coords = inr.INR(2, 1, width=8), inr.grid((8, 9))
    for bad, words in (
        ({"method": "exakt"}, "method must be one of"),
        ({"rtol": 0.0}, "rtol must be above 0"),
        ({"rtol": math.nan}, "rtol must be finite"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"output": 1}, "output must be below"),
        ({"coords": coords[:1]}, "at least 2 points"),
        ({"coords": coords[:60], "method": "estimate"}, "at least 128 points"),
        ({"coords": coords * math.nan}, "coords must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            inr.variance(net, **({"coords": coords} | bad))
    with pytest.raises(TypeError, match="progress must be True or False"):
        inr.variance(net, coords, progress="yes")
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module"):
        inr.variance(inr.ntk(net, coords), coords)
    with pytest.raises(NotAvailableError, match="no fused kernel"):
        inr.variance(net, coords, backend="triton")
    with pytest.raises(UnsupportedModuleError):
        inr.variance(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout()).train(), coords)


def test_print_and_json(capfd):
    found = inr.variance(inr.INR(2, 1, width=8, hidden_layers=1), inr.grid((8, 9)), progress=True)
    text = str(found)
    assert all(word in text for word in ("mean eigenvalue", "normalised", "layers.0", "gate", "exact"))
    held = json.loads(found.to_json())
    assert held["variance"] == found.variance and held["pairs"] == found.pairs.tolist()
    assert "variance" in capfd.readouterr().err


def test_the_figure_shows_the_pairs_of_layers_relative_to_the_variance(tmp_path):
    found = inr.variance(inr.INR(2, 1, width=8, dtype=torch.float64), inr.grid((5, 6)), progress=False)
    left, right = found.plot(tmp_path / "pairs.png").axes
    np.testing.assert_allclose(left.get_images()[0].get_array(), found.pairs / found.variance)
    shares = [bar.get_width() for bar in right.patches]
    assert shares == [layer.share for layer in found.layers.values()]
    assert sum(shares) == pytest.approx(1)
    with pytest.raises(ValueError, match="variance of 0 cannot be drawn"):
        replace(found, variance=0.0).plot()
