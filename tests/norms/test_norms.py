"""Every norm of the registry works in kernels, diagnoses, files, fits and on the command line."""

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors.torch
import torch
from random_networks import exact_jacobian, exact_kernel, random_coords

import inrfast as inr
from inrfast.cli import main
from inrfast.norms import NORMS, Norm, NormSlope, norm_config
from inrfast.norms.topk import ROWWISE
from inrfast.testing import check_norm
from inrfast.training.callbacks import Callback
from inrfast.training.data import check_data
from inrfast.training.engines import ENGINES, Task, engine_of
from inrfast.training.networks import load_network, save_network


@dataclass(frozen=True)
class Scaled(Norm):
    """All units by one factor."""

    factor: float

    def forward(self, u):
        return u * self.factor, u.new_full((1,), self.factor).expand(u.shape[1])

    def backward(self, gradient, state):
        return gradient * self.factor, None

    def slope(self, state):
        return NormSlope(state)


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

    # In fp64: a bias before a batch norm has no gradient, and Adam makes steps of what rounding leaves of it in fp32.
    net, coords, target = net.double(), coords.double(), target.double()

    def run(steps, net, **options):
        return inr.fit(net, coords, target, steps=steps, lr=1e-3, schedule="constant", progress=False, **options)

    nets = [copy.deepcopy(net) for _ in range(4)]
    run(6, nets[0])
    inr.fit_many(nets[1:3], coords, target, steps=6, lr=1e-3, schedule="constant", progress=False)
    assert run(6, nets[3], checkpoint=tmp_path / "fit", callbacks=[InterruptAt(3)]).interrupted
    assert load_network(tmp_path / "fit")[0].norm_names == (name, name)
    run(6, resumed := copy.deepcopy(net), checkpoint=tmp_path / "fit", resume=True, callbacks=[InterruptAt(-1)])
    assert not torch.equal(net(coords), nets[0](coords))
    expected = nets[0].state_dict()
    assert all(torch.equal(own, expected[key]) for key, own in resumed.state_dict().items())
    for other in nets[1:3]:  # stacked, their products may round otherwise than those of one network
        torch.testing.assert_close(other.state_dict(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_network_says_why_a_fit_takes_no_fast_engine(name):
    data = check_data(network(name).train(), random_coords(40, 2, 0), random_coords(40, 2, 1))
    task = Task([network(name).train()], data)
    if NORMS[name] not in ROWWISE:
        assert [engine.reason_against(task) for engine in ENGINES[1:3]] == ["its hidden layers have norms"] * 2
    assert engine_of(task)[0].name == {"batch": "normed", "layer": "chunked"}.get(name, "layerwise")


@pytest.mark.parametrize("name", sorted(NORMS))
def test_the_command_line_takes_every_norm(name, capsys):
    words = ["ntk", "--grid", "4x4", "--width", "8", "--hidden-layers", "2", "--norm", name, "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["network"]["norm"] == 2 * [norm_config(name, 8)]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"name": "topk", "k": 9}, ValueError, "k of the norm must be from 1 to the width, 8, got 9"),
        ({"name": "topk", "k": 0}, ValueError, "from 1 to the width, 8, got 0"),
        ({"name": "topk_sphere", "k": 2.5}, TypeError, "k of the norm 'topk_sphere' must be an integer, got 2.5"),
        ({"name": "topk", "keep": 2}, ValueError, r"has no number 'keep'; its numbers are \['k'\]"),
        ({"name": "sphere", "k": 2}, ValueError, "the norm 'sphere' has no number 'k'; it has no numbers"),
        ({"k": 2}, ValueError, "norm as a mapping takes the keys 'first' and 'hidden', or 'name'"),
        ("top_k", ValueError, "Did you mean 'topk'"),
    ],
)
def test_numbers_that_no_layer_has_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        inr.INR(2, 1, width=8, hidden_layers=2, norm=given)


@pytest.mark.parametrize("k", [0, 9, 2.5, "two", None, True, 10**30])
def test_a_file_with_numbers_that_no_layer_has_is_refused(k, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(inr.INR(2, 1, width=8, hidden_layers=2, norm=[{"name": "topk", "k": 3}, "sphere"]), path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    assert about["net"]["norm"] == [{"name": "topk", "k": 3}, "sphere"]
    about["net"]["norm"][0]["k"] = k
    metadata = {"schema": metadata["schema"], "tree": metadata["tree"], "about": json.dumps(about)}
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="does not hold the network it describes"):
        load_network(path)


class Shrunk(torch.nn.Module):
    def __init__(self, by, power):
        super().__init__()
        self.by, self.power = by, power

    def forward(self, features):
        return features / self.by**self.power

    def extra_repr(self):
        return f"by={self.by}, power={self.power}"


class ShrunkNorm(Scaled):
    """A norm of one's own with a number that is no whole one, and one that is."""

    module = Shrunk

    @classmethod
    def numbers(cls, width):
        return {"by": 2.0, "power": 1}

    @classmethod
    def make(cls, width, device, dtype, by, power):
        return Shrunk(by, power)

    @classmethod
    def of(cls, module):
        return cls(1 / module.by**module.power)


def test_a_norm_of_ones_own_has_numbers(tmp_path, capsys, monkeypatch):
    check_norm(ShrunkNorm)
    check_norm(ShrunkNorm, numbers={"by": 3.0})
    with pytest.raises(ValueError, match="numbers must be out of"):
        check_norm(ShrunkNorm, numbers={"buy": 3.0})
    monkeypatch.setitem(NORMS._completed(), "shrunk", ShrunkNorm)
    net = inr.INR(2, 1, width=8, hidden_layers=2, norm=["shrunk", {"name": "shrunk", "by": 4, "power": 2}]).eval()
    assert net.config()["norm"] == [
        {"name": "shrunk", "by": 2.0, "power": 1},
        {"name": "shrunk", "by": 4.0, "power": 2},
    ]
    save_network(net, tmp_path / "net.safetensors")
    again, coords = load_network(tmp_path / "net.safetensors")[0], random_coords(5, 2, 0)
    assert torch.equal(again(coords), net(coords))
    words = ["ntk", "--grid", "4x4", "--width", "8", "--hidden-layers", "1", "--norm", "shrunk:4:power=2", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["network"]["norm"] == [{"name": "shrunk", "by": 4.0, "power": 2}]


def test_networks_pickled_before_norms_had_numbers_are_read():
    net = inr.INR(2, 1, width=8, hidden_layers=2, norm=["sphere", None])
    state = net.__getstate__() if hasattr(net, "__getstate__") else vars(net)
    state = {**{key: value for key, value in state.items() if key != "norm_configs"}, "norm_names": ("sphere", None)}
    old = inr.INR.__new__(inr.INR)
    old.__setstate__(state)
    assert old.config() == net.config()
    assert old.norm_names == ("sphere", None)
