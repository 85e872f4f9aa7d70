"""WIRE networks, two numbers per layer and a first layer of its own, against the formula as anyone would write it."""

import pytest
import torch
from random_networks import exact_jacobian, exact_kernel, random_coords

import inrfast as inr
from inrfast.nn import FusedLinear
from inrfast.ops import mlp_step
from inrfast.training.networks import load_network, save_network

NUMBERS = ((6.0, 2.0), (3.0, 1.5))
SPEC = {
    "first": {"name": "wire", "omega": 6.0, "sigma": 2.0},
    "hidden": {"name": "wire", "sigma": 1.5},
}


def wire(u, omega, sigma):
    return torch.cos(omega * u) * torch.exp(-((sigma * u) ** 2))


class Written(torch.nn.Module):
    """The same network as anyone would write it."""

    def __init__(self, net):
        super().__init__()
        self.layers = net.layers

    def forward(self, x):
        for layer, (omega, sigma) in zip(self.layers[:-1], NUMBERS, strict=True):
            x = wire(layer(x), omega, sigma)
        return self.layers[-1](x)


def network(seed=0, dtype=None):
    return inr.INR(2, 3, width=24, hidden_layers=2, activation=SPEC, omega=3.0, init="siren", seed=seed, dtype=dtype)


def signal(dtype=torch.float32):
    return random_coords(60, 2, 1).to(dtype), torch.rand(60, 3, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_its_numbers_come_from_the_spelling_then_omega_then_the_defaults():
    assert tuple(own.numbers for own in network().bound_activations) == NUMBERS
    assert inr.INR(2, 1, activation="wire", width=2).omegas == (20.0,) * 3


def test_kernel_and_diagnosis_are_those_of_autodiff():
    net, coords = network(), random_coords(30, 2, 1)
    truth = exact_jacobian(net, coords)
    kernel = inr.ntk(net, coords, precision="highest")
    torch.testing.assert_close(kernel.to_dense(), exact_kernel(truth, truth, "trace"), rtol=1e-9, atol=1e-9)
    assert "wire(omega=6, sigma=2)/wire(omega=3, sigma=1.5)" in str(inr.diagnose(net, coords, progress=False))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fits_take_the_steps_of_the_formula(native, dtype, monkeypatch):
    if not native:
        monkeypatch.setattr(mlp_step, "instructions", lambda: "")
    options = {"steps": 5, "lr": 1e-3, "progress": False}
    nets, written = ([network(seed, dtype) for seed in range(3)] for _ in range(2))
    inr.fit(nets[0], *signal(dtype), **options)
    inr.fit_many(nets[1:], *signal(dtype), **options)
    for net, same in zip(nets, written, strict=True):
        inr.fit(Written(same), *signal(dtype), **options)
        for ours, theirs in zip(net.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_networks_of_other_numbers_do_not_step_together():
    def alone(spec, seed):
        return inr.INR(2, 3, width=24, hidden_layers=2, activation=spec, omega=3.0, init="siren", seed=seed)

    specs = [{"name": "wire", "sigma": sigma} for sigma in (1.0, 2.0)]
    together, one_by_one = ([alone(spec, seed) for seed, spec in enumerate(specs)] for _ in range(2))
    inr.fit_many(together, *signal(), steps=3, progress=False)
    for net, other in zip(together, one_by_one, strict=True):
        inr.fit(other, *signal(), steps=3, progress=False)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_resumed_fit_and_a_saved_network_have_its_bits(tmp_path):
    whole, part, again = network(), network(), network()
    options = {"schedule": "constant", "progress": False}
    kept = options | {"checkpoint": tmp_path / "fit.safetensors", "resume": True}
    inr.fit(whole, *signal(), steps=6, **options)
    inr.fit(part, *signal(), steps=3, **kept)
    inr.fit(again, *signal(), steps=6, **kept)
    save_network(again, tmp_path / "net.safetensors")
    read, _ = load_network(tmp_path / "net.safetensors")
    assert read.config()["activation"] == [{"name": "wire", "omega": o, "sigma": s} for o, s in NUMBERS]
    for net in (again, read):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters(), strict=True))
    other = inr.INR(2, 3, width=24, hidden_layers=2, activation="wire", omega=3.0, init="siren")
    with pytest.raises(ValueError, match="sigma"):
        inr.fit(other, *signal(), steps=6, **kept)


def test_the_fused_layer_is_the_formula():
    layer = FusedLinear(3, 5, activation=SPEC["first"], dtype=torch.float64)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), wire(torch.nn.functional.linear(x, layer.weight, layer.bias), 6.0, 2.0))
    assert torch.autograd.gradcheck(layer, x)
    assert layer.extra_repr().endswith("wire(omega=6, sigma=2)")
