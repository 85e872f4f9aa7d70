"""Capture of arbitrary modules against automatic differentiation, and every refusal."""

import pytest
import torch
import torch.nn.functional as F
from random_networks import exact_jacobian, random_coords
from torch import nn
from torch.nn.utils import parametrizations

import inrfast as inr
from inrfast.errors import UnsupportedModuleError


class Residual(nn.Module):
    """Skip connections, LayerNorm, RMSNorm, an in-place activation and a dictionary as its return value."""

    def __init__(self):
        super().__init__()
        self.inlet = nn.Linear(2, 12)
        self.norm = nn.LayerNorm(12)
        self.middle = nn.Linear(12, 12, bias=False)
        self.scale = nn.RMSNorm(12, eps=torch.finfo(torch.float32).eps)  # as in fp32 without a number
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        h = self.inlet(x)
        h = h + F.silu(self.middle(F.relu_(self.norm(h))))
        return {"rgb": self.head(torch.sin(self.scale(h))), "density": h[:, :1]}


class Selected(nn.Module):
    def __init__(self, net, key):
        super().__init__()
        self.net, self.key = net, key

    def forward(self, x):
        return self.net(x)[self.key]


@pytest.mark.parametrize("key", ["rgb", "density"])
def test_any_module_of_supported_layers(key):
    net = Residual()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    coords = random_coords(17, 2, 0)
    truth = exact_jacobian(Selected(net, key), coords).flatten(0, 1)
    for select in (key, lambda returned: returned[key]):
        J = inr.jacobian(net, coords, select=select, precision="highest")
        torch.testing.assert_close(J.rows(), truth, rtol=1e-10, atol=1e-12)
        v = torch.randn(truth.shape[0], dtype=torch.float64)
        torch.testing.assert_close(J.T @ v, truth.t() @ v, rtol=1e-10, atol=1e-12)
        K = inr.ntk(net, coords, select=select, output="full", precision="highest")
        torch.testing.assert_close(K.to_dense(), truth @ truth.t(), rtol=1e-10, atol=1e-12)


def test_frozen_batchnorm_and_sequential_outputs_of_one_dimension():
    net = nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 1), nn.Flatten(0))
    net(torch.randn(64, 3))  # running statistics
    net.eval()
    coords = random_coords(8, 3, 0)
    truth = exact_jacobian(nn.Sequential(*list(net)[:-1]), coords).flatten(0, 1)
    torch.testing.assert_close(inr.jacobian(net, coords, precision="highest").rows(), truth)


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    inr.ntk(net, random_coords(5, 2, 0)).to_dense()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not net[0].weight.requires_grad
    assert net[2].weight.grad is None
    assert net[0].weight.dtype == torch.float32
    assert not net[2]._forward_hooks


@pytest.mark.parametrize("kind", ["hooked", "plain"])
def test_works_inside_no_grad_and_inference_mode(kind):
    """With points enough for several threads, which have modes of their own."""
    hooked = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    net = hooked if kind == "hooked" else inr.INR(2, 1, width=8)
    coords = random_coords(1100, 2, 0)
    expected = inr.ntk(net, coords).to_dense()
    product = inr.ntk(net, coords) @ expected[:, :3]
    with torch.no_grad():
        assert torch.equal(inr.ntk(net, coords).to_dense(), expected)
    with torch.inference_mode():
        K = inr.ntk(net, coords.clone())
        assert torch.equal(K.to_dense(), expected)
        assert torch.equal(K @ expected[:, :3], product)


def shared_weight():
    net = inr.INR(2, 1, width=4, hidden_layers=3)
    net.layers[1].weight = net.layers[2].weight
    return net


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gain = nn.Linear(2, 1), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.gain * self.a(x)


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 3)

    def forward(self, x):
        return self.a(x - x.mean(0))


class Backdoor(nn.Module):
    """Uses a weight outside its layer's forward: only the numerical probe can see it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) + self.a.weight.sum()


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x):
        return self.a(x)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 1)

    def forward(self, x):
        return self.a(x + torch.randn_like(x))


class Ranked(nn.Module):
    """Applies a layer to several positions a point."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 1)

    def forward(self, x):
        return self.a(x.unsqueeze(-1)).squeeze(-1)


def frozen():
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    return net.requires_grad_(False)


REFUSALS = {
    "shared": (shared_weight, r"layers\.1\.weight.*layers\.2\.weight.*share"),
    "used twice": (Twice, "'a' is used more than once"),
    "bare parameter": (Bare, "'gain'"),
    "coupled": (Coupled, "couples samples"),
    "outside its layer": (Backdoor, "acts outside its layer"),
    "uncalled": (Uncalled, "'b'.*does not call"),
    "random": (Noisy, "random"),
    "positions": (Ranked, "input of shape"),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 1))), "parametrised"),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(2, 2))), "parametrised"),
    "convolution": (lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 1), nn.Flatten()), "Conv1d"),
    "dropout": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)), "train mode"),
    "batchnorm in train mode": (
        lambda: inr.calibrate_batchnorm_(inr.INR(2, 1, width=4, norm="batch"), inr.grid((4, 4))).train(),
        "train mode",
    ),
    "batchnorm uncalibrated": (lambda: inr.INR(2, 1, width=4, norm="batch").eval(), "calibrate_batchnorm_"),
    "batchnorm without statistics": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
        "no running statistics",
    ),
    "no parameters": (nn.ReLU, "no parameters"),
    "all frozen": (frozen, "frozen"),
    "complex": (lambda: nn.Linear(2, 1, dtype=torch.complex64), "complex"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_culprit(name):
    make, message = REFUSALS[name]
    with pytest.raises(UnsupportedModuleError, match=message):
        inr.ntk(make(), random_coords(6, 2, 0))


def test_other_returns_need_select():
    coords = random_coords(6, 2, 0)
    with pytest.raises(TypeError, match="select="):
        inr.ntk(Residual(), coords)
    with pytest.raises(ValueError, match="'rgbb' is not in what net returns"):
        inr.ntk(Residual(), coords, select="rgbb")


def test_one_point_is_enough():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    coords = random_coords(1, 2, 0)
    truth = exact_jacobian(net, coords).flatten(0, 1)
    torch.testing.assert_close(inr.ntk(net, coords, precision="highest").to_dense(), truth @ truth.t())


def test_representations_are_the_activated_outputs():
    net = inr.INR(2, 1, width=5, hidden_layers=2, norm="sphere", norm_position="post").double()
    coords = random_coords(7, 2, 0).double()
    found = inr.ntk(net, coords).capture.representations(coords)
    assert list(found) == ["input", "layers.0", "layers.1"]
    z = coords
    for index, name in enumerate(found):
        torch.testing.assert_close(found[name], z)
        if index < 2:
            z = net.activate(index, net.layers[index](z))
