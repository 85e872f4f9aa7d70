"""Every norm of the registry: its module, its derivative and its factors against autograd, and all that uses them."""

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, random_coords

import inrfast as inr
from inrfast.cli import main
from inrfast.norms import NORMS, Norm, norm_of
from inrfast.pointwise import dependence
from inrfast.training.callbacks import Callback
from inrfast.training.data import check_data
from inrfast.training.engines import ENGINES, Task, engine_of
from inrfast.training.networks import load_network, save_network


def module(name: str, width: int, seed: int = 0) -> torch.nn.Module:
    """A module of the norm in fp64 and eval mode, every number of it drawn at random."""
    made = NORMS[name].make(width, torch.device("cpu"), torch.float64)
    rng = torch.Generator().manual_seed(seed)
    for tensor in [*made.parameters(), *made.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=rng, dtype=torch.float64))
    return made.eval()


class InterruptAt(Callback):
    """Ends a fit after some steps as Ctrl-C does, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: Any) -> None:
        if state.step == self.step:
            self.step = -1
            raise KeyboardInterrupt


def network(name: str, seed: int = 0, position: str = "pre") -> inr.INR:
    net = inr.INR(2, 2, width=9, hidden_layers=2, activation="tanh", norm=name, norm_position=position, seed=seed)
    if name == "batch":
        inr.calibrate_batchnorm_(net, random_coords(50, 2, 1))
    for norm in net.norms:
        for parameter in norm.parameters():
            parameter.data += 0.3 * random_coords(9, 1, 7).squeeze(1)
    return net.eval()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(NORMS)), st.integers(1, 12), st.integers(1, 3), st.sampled_from([1e-3, 1.0, 1e4]))
def test_the_factor_pass_of_a_norm_is_autograds_of_its_module(name, width, outputs, scale):
    layer = module(name, width).requires_grad_(False)
    norm = norm_of(layer)
    assert isinstance(norm, Norm) and not norm.couples
    u = scale * random_coords(6, width, 3).double()
    with torch.no_grad():
        values, state = norm.forward(u)
        torch.testing.assert_close(values, layer(u))
        gradient = random_coords(6, outputs * width, 5).double().view(6, outputs, width)
        below, factors = norm.backward(gradient.clone(), state)
        slope = norm.slope(state)
    one = lambda x: layer(x.unsqueeze(0))[0]  # noqa: E731
    jacobians = torch.func.vmap(torch.func.jacrev(one))(u)
    tolerance = {"rtol": 1e-9, "atol": 1e-9 * float(jacobians.abs().max())}
    torch.testing.assert_close(below, gradient @ jacobians, **tolerance)
    mixing = torch.eye(width, dtype=torch.float64).expand(6, -1, -1)
    if slope.directions is not None:
        mixing = mixing - slope.directions.mT @ slope.directions
    torch.testing.assert_close(slope.left.expand(6, width).unsqueeze(2) * mixing, jacobians, **tolerance)
    names = [name for name, _ in layer.named_parameters()]
    assert (factors is None) == (not names)
    if factors is not None:
        rows = {"weight": factors.sensitivities * factors.normalised.unsqueeze(1), "bias": factors.sensitivities}
        for k in range(outputs):
            layer.requires_grad_()
            expected = torch.autograd.grad((layer(u) * gradient[:, k]).sum(), list(layer.parameters()))
            for name, grad in zip(names, expected, strict=True):
                torch.testing.assert_close(rows[name][:, k].sum(0), grad)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_what_a_norm_says_of_its_module_holds(name):
    layer = module(name, 7)
    assert {key: tuple(tensor.shape) for key, tensor in layer.state_dict().items()} == NORMS[name].state(7)
    coupled = dependence(layer.train(), random_coords(20, 7, 0).double()) is not None
    assert norm_of(layer).couples is coupled
    layer.__class__ = type("Other", (type(layer),), {})
    assert "Other" in norm_of(layer)


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_network_of_every_norm_works_everywhere(name, position, tmp_path, capsys):
    coords, target = random_coords(40, 2, 0), random_coords(40, 2, 1)
    net = network(name, position=position)
    exact = exact_jacobian(net, coords)
    for output in ("trace", "full"):
        kernel = inr.ntk(net, coords, output=output, precision="highest").to_dense()
        torch.testing.assert_close(kernel, exact_kernel(exact, exact, output), rtol=1e-10, atol=1e-10)
    kinds = {layer.name: layer.kind for layer in inr.diagnose(net, coords, rtols=(1e-2,), progress=False).sensitivities}
    assert ("norms.0" in kinds) == bool(list(net.norms.parameters()))

    save_network(net, tmp_path / "net.safetensors")
    again, _ = load_network(tmp_path / "net.safetensors")
    assert again.config() == net.config()
    assert torch.equal(again(coords), net(coords))

    def run(steps, net, **options):
        return inr.fit(net, coords, target, steps=steps, lr=1e-3, schedule="constant", progress=False, **options)

    nets = [copy.deepcopy(net) for _ in range(4)]
    run(6, nets[0])
    inr.fit_many(nets[1:3], coords, target, steps=6, lr=1e-3, schedule="constant", progress=False)
    assert run(6, nets[3], checkpoint=tmp_path / "fit", callbacks=[InterruptAt(3)]).interrupted
    assert load_network(tmp_path / "fit")[0].norm_names == (name, name)
    run(6, resumed := copy.deepcopy(net), checkpoint=tmp_path / "fit", resume=True, callbacks=[InterruptAt(-1)])
    assert not torch.equal(net(coords), nets[0](coords))
    for other in (nets[1], nets[2], resumed):
        for (key, ours), theirs in zip(nets[0].state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_network_says_why_a_fit_takes_no_fast_engine(name):
    data = check_data(network(name).train(), random_coords(40, 2, 0), random_coords(40, 2, 1))
    task = Task([network(name).train()], data)
    assert [engine.reason_against(task) for engine in ENGINES[1:3]] == ["its hidden layers have norms"] * 2
    assert engine_of(task)[0].name == ("whole" if name == "batch" else "chunked")


@pytest.mark.parametrize("name", sorted(NORMS))
def test_the_command_line_takes_every_norm(name, capsys):
    words = ["ntk", "--grid", "4x4", "--width", "8", "--hidden-layers", "2", "--norm", name, "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["network"]["norm"] == [name, name]
