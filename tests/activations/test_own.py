"""An activation of one's own, registered with value and slope alone, works wherever activations do."""

import pytest
import torch
import torch.nn.functional as F
from random_networks import exact_jacobian, exact_kernel, random_coords, registered

import inrfast as inr
from inrfast.activations import Activation
from inrfast.errors import NotAvailableError
from inrfast.nn import FusedLinear
from inrfast.ops import fused_linear as op
from inrfast.testing import check_activation
from inrfast.training.callables import attributes, different, uncompared
from inrfast.training.networks import load_network, save_network


def _slope(u, beta, shift):
    gate = torch.sigmoid(beta * (u - shift))
    return gate + beta * u * gate * (1 - gate)


@pytest.fixture
def own():
    numbers = {"beta": 1.5, "shift": 0.0}
    kind = Activation(
        "own_swish", lambda u, beta, shift: u * torch.sigmoid(beta * (u - shift)), _slope, numbers, signed=("shift",)
    )
    with registered(kind):
        yield kind


SPEC = {"first": {"name": "own_swish", "beta": 2.5, "shift": -0.5}, "hidden": "own_swish"}


class Written(torch.nn.Module):
    """The same network as anyone would write it."""

    def __init__(self, net):
        super().__init__()
        self.layers = net.layers

    def forward(self, x):
        for layer, (beta, shift) in zip(self.layers[:-1], ((2.5, -0.5), (1.5, 0.0)), strict=True):
            u = layer(x)
            x = u * torch.sigmoid(beta * (u - shift))
        return self.layers[-1](x)


def network(**options):
    return inr.INR(2, 3, width=16, hidden_layers=2, activation=SPEC, **options)


def test_it_keeps_the_contract(own):
    check_activation(own)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_kernels_and_diagnoses_are_those_of_autodiff(own, norm):
    net, coords = network(norm=norm), random_coords(20, 2, 1)
    if norm == "batch":
        inr.calibrate_batchnorm_(net, coords)
    net.eval()
    truth = exact_jacobian(net, coords)
    kernel = inr.ntk(net, coords, precision="highest")
    torch.testing.assert_close(kernel.to_dense(), exact_kernel(truth, truth, "trace"), rtol=1e-9, atol=1e-9)
    report = inr.diagnose(net, coords, progress=False)
    assert "own_swish" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [None, 7])
def test_fits_take_the_steps_of_the_network_as_anyone_would_write_it(own, dtype, batch):
    coords, target = random_coords(30, 2, 1).to(dtype), torch.rand(30, 3, generator=torch.Generator().manual_seed(2))
    nets = [network(seed=seed, dtype=dtype) for seed in range(2)]
    written = [Written(network(seed=seed, dtype=dtype)) for seed in range(2)]
    options = {"steps": 5, "lr": 1e-3, "batch_size": batch, "progress": False}
    inr.fit(nets[0], coords, target.to(dtype), **options)
    inr.fit_many(nets[1:], coords, target.to(dtype), **options)
    for net, plain in zip(nets, written, strict=True):
        inr.fit(plain, coords, target.to(dtype), **options)
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("large", [0, op.LARGE])
def test_the_fused_layer_takes_it(own, large, monkeypatch):
    monkeypatch.setattr(op, "LARGE", large)  # small layers take the operators too
    layer = FusedLinear(3, 5, activation=SPEC["first"], dtype=torch.float64)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
    u = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), u * torch.sigmoid(2.5 * (u + 0.5)))
    torch.testing.assert_close(torch.vmap(layer)(x.unsqueeze(1)), layer(x).unsqueeze(1))


def test_a_backend_named_for_it_says_what_is_missing(own):
    with pytest.raises(NotAvailableError, match="activation 'own_swish' has no device function"):
        op.fused_linear(torch.rand(5, 2), torch.rand(3, 2), None, "own_swish", backend="triton")
    with pytest.raises(NotAvailableError, match="'own_swish' has no fused step"):
        inr.fit(network(), torch.rand(5, 2), torch.rand(5, 3), steps=1, backend="triton", progress=False)


class Sub(inr.INR):
    """A network of one's own class, which a checkpoint describes attribute by attribute."""


def test_checkpoints_compare_the_activations_of_networks_of_ones_own_class(own):
    now = attributes(Sub(2, 3, width=4, hidden_layers=2, activation=SPEC))
    assert uncompared(now, now) == []
    spec = {"first": {"name": "own_swish", "beta": 2.5, "shift": -0.4}, "hidden": "own_swish"}
    (told,) = different(attributes(Sub(2, 3, width=4, hidden_layers=2, activation=spec)), now)
    assert "bound_activations[0]" in told and "-0.4" in told


def test_files_give_it_back_and_name_it_where_it_is_missing(own, tmp_path):
    net = network(seed=3)
    assert net.activations == ("own_swish", "own_swish")
    assert net.config()["activation"][0] == SPEC["first"]
    save_network(net, tmp_path / "net.safetensors")
    read, _ = load_network(tmp_path / "net.safetensors")
    x = torch.rand(4, 2)
    assert torch.equal(read(x), net(x))
    assert read.bound_activations == net.bound_activations
    del inr.activations.ACTIVATIONS._items["own_swish"]
    try:
        with pytest.raises(ValueError, match=r"known after inrfast\.activations\.register.*'own_swish'"):
            load_network(tmp_path / "net.safetensors")
    finally:
        inr.activations.register(own)
