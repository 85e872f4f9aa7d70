"""Filters of the coordinates: their formulas, what networks with them are, and exact kernels and fits of these."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, random_coords
from torch.func import functional_call, grad

import inrfast as inr
from inrfast.cli import main
from inrfast.metrics import data_range_of, mse_to_psnr
from inrfast.mlp import describe, is_pointwise
from inrfast.modulations import MODULATIONS, Modulation
from inrfast.norms import NORMS
from inrfast.ops import mlp_step
from inrfast.testing import check_modulation
from inrfast.training import trainer
from inrfast.training.data import Data
from inrfast.training.engines import Task, engine_of
from inrfast.training.engines.native import NativeGradient
from inrfast.training.group import Group
from inrfast.training.networks import load_network, save_network

FOURIER, GABOR = {"name": "fourier", "scale": 4.0}, {"name": "gabor", "scale": 4.0}


def value(module, x):
    """The filter by its formula."""
    phase = x @ module.linear.weight.T + module.linear.bias
    if not hasattr(module, "gamma"):
        return phase.sin()
    apart = (x[:, None, :] - module.mu).square().sum(2)
    return phase.sin() * torch.exp(-module.gamma / 2 * apart)


@st.composite
def modulated(draw):
    """Modulated networks of every norm, in fp64 and eval mode."""
    depth = draw(st.integers(1, 3))
    filters = draw(st.lists(st.sampled_from([None, FOURIER, GABOR]), min_size=depth, max_size=depth).filter(any))
    d, norm = draw(st.integers(1, 3)), draw(st.sampled_from([None, *sorted(NORMS)]))
    net = inr.INR(
        d,
        draw(st.integers(1, 3)),
        width=draw(st.integers(2, 12)),
        hidden_layers=depth,
        activation=draw(st.sampled_from(["relu", "sine", "tanh", "identity"])),
        omega=draw(st.sampled_from([1.0, 3.0])),
        encoding=draw(st.sampled_from([None, inr.RandomFourier(5, 1.0)])),
        norm=norm,
        norm_position=draw(st.sampled_from(["pre", "post"])),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
        dtype=torch.float64,
        modulation=filters,
    )
    if norm == "batch":
        inr.calibrate_batchnorm_(net, random_coords(50, d, 1).double())
    return net.eval()


@pytest.mark.parametrize("kind", MODULATIONS.values(), ids=MODULATIONS)
def test_filters_keep_their_contract(kind):
    for d, width in ((1, 1), (2, 7), (4, 3)):
        check_modulation(kind, d, width)


@given(modulated())
@settings(max_examples=25, deadline=None)
def test_outputs_are_those_of_the_formula(net):
    """The product stands last in a layer, with the raw coordinates."""
    x = random_coords(9, net.in_features, 2).double()
    z = x if net.encoding is None else net.encoding(x)
    for k in range(net.hidden_layers):
        z = net.activate(k, net.layers[k](z))
        if net.modulation_configs[k] is not None:
            z = z * value(net.modulations[k], x)
    torch.testing.assert_close(net(x), net.layers[-1](z), rtol=1e-12, atol=1e-12)


def test_a_fourier_network_is_that_of_the_paper():
    """z_1 = g_1(x), z_{k+1} = (W_k z_k + b_k) * g_{k+1}(x): Fathony et al., equation 3, with sines for g."""
    net = inr.INR(2, 1, width=8, activation=["sine", "identity", "identity"], omega=1.0,
                  modulation=[None, FOURIER, FOURIER], dtype=torch.float64)  # fmt: skip
    x = random_coords(20, 2, 0).double()
    z = net.layers[0](x).sin()
    for k in (1, 2):
        z = net.layers[k](z) * net.modulations[k].linear(x).sin()
    torch.testing.assert_close(net(x), net.layers[3](z))


def test_other_weights_are_those_without_filters_and_draws_have_the_stated_laws():
    state = torch.get_rng_state()
    net = inr.INR(2, 1, width=4000, hidden_layers=2, seed=4, modulation=["gabor", FOURIER])
    assert torch.equal(torch.get_rng_state(), state)
    plain = inr.INR(2, 1, width=4000, hidden_layers=2, seed=4).state_dict()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in plain.items())
    gabor, fourier = net.modulations
    assert float(fourier.linear.weight.detach().abs().max()) == pytest.approx(
        4 / 2, rel=0.01
    )  # two filters, two coordinates
    bound = 256 / 2 * gabor.gamma.sqrt().unsqueeze(1)
    assert float((gabor.linear.weight / bound).detach().abs().max()) == pytest.approx(1.0, rel=0.01)
    assert float(gabor.gamma.detach().mean()) == pytest.approx(3, rel=0.1)  # Gamma(6 / 2, 1)
    assert float(gabor.gamma.detach().var()) == pytest.approx(3, rel=0.2)
    for module in net.modulations:
        assert float(module.linear.bias.detach().abs().max()) == pytest.approx(math.pi, rel=0.01)


@pytest.mark.parametrize("output", ["full", "trace"])
@given(net=modulated(), some=st.booleans())
@settings(max_examples=20, deadline=None)
def test_kernels_are_exact(output, net, some):
    """Against torch.func in fp64: all parameters, or every second one; and the blocks of layers are those of K."""
    x = random_coords(14, net.in_features, 3).double()
    names = [name for name, _ in net.named_parameters()]
    chosen = names[::2] if some else names
    kernel = inr.ntk(net, x, output=output, params=chosen, precision="highest")
    jacobian = exact_jacobian(net, x, chosen)
    expected = exact_kernel(jacobian, jacobian, output)
    found = kernel.to_dense().double()
    assert (found.flatten() - expected.flatten()).abs().max() <= 1e-10 * expected.abs().max()
    blocks = sum(block.to_dense().double() for block in kernel.layers.values())
    assert (blocks - found).abs().max() <= 1e-10 * found.abs().max()


def test_no_fast_path_takes_a_network_for_one_without_filters():
    net = inr.INR(2, 1, width=4, modulation=FOURIER)
    assert "filters of the coordinates" in describe(net)
    assert describe(net, modulated=True).modulations == tuple(net.modulations)
    assert is_pointwise(net)
    changed = copy.deepcopy(net)
    changed.modulations[1] = torch.nn.Identity()
    assert describe(changed, modulated=True) == "modulations.1 is a Identity, no Fourier"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [FOURIER, GABOR, [None, FOURIER, GABOR]], ids=str)
def test_fits_are_those_of_an_eager_loop(own, dtype):
    """Full steps with weights: one network and three of them, natively where that is, else by autograd on pieces."""
    x = random_coords(700, 2, 0).to(dtype)
    target, weight = x[:, :1].sin(), x[:, 1].square() + 0.5
    start = [inr.INR(2, 1, width=19, modulation=own, dtype=dtype, seed=seed) for seed in range(3)]
    expected = []
    for net in start:
        eager = copy.deepcopy(net)
        for parameter in eager.modulations[2].parameters():
            parameter.requires_grad_(False)
        sgd = torch.optim.SGD([p for p in eager.parameters() if p.requires_grad], lr=0.1)
        for _ in range(10):
            sgd.zero_grad()
            ((eager(x) - target).square() * weight[:, None]).sum().div(weight.sum()).backward()
            sgd.step()
        expected.append(eager)
        for parameter in net.modulations[2].parameters():
            parameter.requires_grad_(False)
    many, one = copy.deepcopy(start), copy.deepcopy(start[0])
    given = {"steps": 10, "weight": weight, "optimizer": "sgd", "lr": 0.1, "schedule": "constant"}
    told = inr.fit(one, x, target, **given)
    measured = [told, *inr.fit_many(many, x, target, **given)]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-7
    for net, other, found in zip((one, *many), (expected[0], *expected), measured, strict=True):
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance / 10)
        square = float((net(x) - target).detach().square().mean())
        assert found.psnr == pytest.approx(mse_to_psnr(square, data_range_of(target)), abs=1e-3)


def engine(net, **given):
    data = Data(torch.zeros(1, 9, net.in_features, dtype=net.layers[0].weight.dtype), torch.zeros(1, 9, 1), None)
    return engine_of(Task([net], data, **given))[0].__name__, NativeGradient.reason_against(Task([net], data, **given))


@pytest.mark.skipif(not mlp_step.takes_filters(), reason="no native step here takes filters")
def test_native_steps_are_for_the_filters_of_this_library():
    """Alone of the engines that know a network's formula; what was changed goes to autograd."""
    assert engine(inr.INR(2, 1, width=4, modulation=[None, FOURIER, GABOR])) == ("NativeGradient", None)
    encoded = inr.INR(2, 1, width=4, modulation=FOURIER, encoding=inr.RandomFourier(5, 1.0))
    name, reason = engine(encoded)
    assert (name, "raw coordinates" in reason) == ("ChunkedGradient", True)
    changed = inr.INR(2, 1, width=4, modulation=FOURIER)
    changed.modulations[0].linear = torch.nn.Sequential(changed.modulations[0].linear)
    name, reason = engine(changed)
    assert (name, reason) == ("ChunkedGradient", "its filters have been changed")
    name, reason = engine(inr.INR(2, 1, width=4, modulation=GABOR, activation="tanh"))
    assert (name, "'tanh'" in reason) == ("ChunkedGradient", True)

    class Shifted(type(changed.modulations[1])):
        def forward(self, coords):
            return super().forward(coords) + 1

    own = Shifted(2, 4, 1, torch.Generator(), torch.device("cpu"), torch.float32)
    assert "without a native step" in mlp_step.reason_against([], [], filters=[own])


def test_only_native_steps_take_several_with_filters_at_once(monkeypatch):
    """Every network has its own steps where autograd takes them, also by a loss whose link torch measures."""
    x = random_coords(40, 2, 0)
    start = [inr.INR(2, 1, width=5, modulation=FOURIER, seed=seed) for seed in range(3)]
    sizes = []
    monkeypatch.setattr(trainer, "Group", lambda members, *given: sizes.append(len(members)) or Group(members, *given))
    for native, loss in (("auto", "mse"), ("auto", "bce"), ("plain", "mse")):
        monkeypatch.setenv("INRFAST_NATIVE", native)
        expected = [3] if loss == "mse" and mlp_step.takes_filters() else [1, 1, 1]
        sizes.clear()
        many, alone = copy.deepcopy(start), copy.deepcopy(start)
        together = inr.fit_many(many, x, x[:, :1].square(), steps=3, loss=loss)
        assert sizes == expected
        for net, own, found in zip(many, alone, together, strict=True):
            apart = inr.fit(own, x, x[:, :1].square(), steps=3, loss=loss)
            assert found.psnr == pytest.approx(apart.psnr, abs=1e-3)
            for mine, theirs in zip(net.parameters(), own.parameters(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_files_pickles_and_configs_give_the_network_back(tmp_path):
    net, x = inr.INR(2, 1, width=8, modulation=[None, FOURIER, GABOR], seed=3), random_coords(9, 2, 0)
    path = tmp_path / "net.safetensors"
    save_network(net, path)
    again = inr.INR.from_config(net.config())
    again.load_state_dict(net.state_dict())
    for other in (again, load_network(path)[0], pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(other(x), net(x))
        assert other.config()["modulation"] == net.config()["modulation"]
    assert "modulation" not in inr.INR(2, 1).config()
    old = inr.INR(2, 1, width=8)
    for name in ("modulations", "modulation_configs"):
        vars(old).pop(name)
    torch.testing.assert_close(pickle.loads(pickle.dumps(old))(x), inr.INR(2, 1, width=8)(x))


@pytest.mark.parametrize("rule", ["rank_expanding", "siren", "xavier"])
def test_initialisers_leave_filters_alone(rule):
    net = inr.INR(2, 1, width=8, modulation=GABOR)
    before, first = copy.deepcopy(net.modulations.state_dict()), net.layers[0].weight.clone()
    inr.init.apply_(net, rule, omega=30.0 if rule == "siren" else None)
    assert not torch.equal(net.layers[0].weight, first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.modulations.state_dict().items())


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("fourie", "Did you mean 'fourier'"),
        ({"name": "fourier", "scal": 1.0}, "has no number 'scal'; its numbers are .'scale'"),
        ({"name": "gabor", "beta": -1.0}, "beta of the modulation 'gabor' must be positive, got -1"),
        ({"scale": 1.0}, "needs a 'name'|'first' and 'hidden'"),
        (["fourier"], "must be one value or 3 of them"),
        (3, "must be a name out of"),
    ],
)
def test_bad_filters_are_named(given_, message):
    with pytest.raises((ValueError, TypeError), match=message):
        inr.INR(2, 1, modulation=given_)


def test_the_check_tells_what_is_wrong():
    class Coupled(Modulation):
        def __init__(self, d, m, count, generator, device, dtype):
            super().__init__(d, m, count, generator, device, dtype)
            self.shift = torch.nn.Parameter(torch.zeros(m, dtype=dtype))

        @classmethod
        def state(cls, d, m):
            return {"shift": (m,)}

        def forward(self, coords):
            return coords.mean() + self.shift.expand(len(coords), -1)

    with pytest.raises(AssertionError, match="its points influence each other"):
        check_modulation(Coupled)
    with pytest.raises(TypeError, match="kind must be a subclass"):
        check_modulation(torch.nn.Linear)


@pytest.mark.parametrize("method", ["maml", "fomaml", "reptile"])
def test_meta_learning_and_adaptation_are_those_of_torch_func(method):
    """One outer step, and the inner steps of an adaptation, with filters among what is learned."""
    net = inr.INR(1, 1, width=6, hidden_layers=2, activation="tanh", modulation=[FOURIER, GABOR], dtype=torch.float64)
    x, start = inr.grid(24).double(), dict(net.named_parameters())
    target = (3 * x).sin()
    rates, before = {"inner_lr": 0.1, "lr": 1e-2}, {name: own.detach().clone() for name, own in start.items()}

    def loss(at):
        return (functional_call(net, at, (x,)) - target).square().mean()

    at = before
    for _ in range(2):
        at = {name: at[name] - 0.1 * slope for name, slope in grad(loss)(at).items()}
    (adapted,) = inr.adapt(net, x, target[None], steps=2, lr=0.1).nets
    for name, own in adapted.named_parameters():
        torch.testing.assert_close(own, at[name], rtol=1e-7, atol=1e-9)

    def behind(first):
        for _ in range(2):
            first = {name: first[name] - 0.1 * slope for name, slope in grad(loss)(first).items()}
        return loss(first)

    slopes = {
        "maml": lambda: grad(behind)(before),
        "fomaml": lambda: grad(loss)(at),
        "reptile": lambda: {name: (before[name] - at[name]) / 0.1 for name in before},
    }[method]()
    stepped = {name: own.clone().requires_grad_() for name, own in before.items()}
    for name, own in stepped.items():
        own.grad = slopes[name]
    torch.optim.Adam(stepped.values(), lr=1e-2).step()
    inr.meta_learn(net, x, target[None], method, inner_steps=2, steps=1, batch=1, progress=False, **rates)
    for name, own in net.named_parameters():
        torch.testing.assert_close(own, stepped[name], rtol=1e-6, atol=1e-7)


def test_what_is_watched_is_true():
    """A loop of one's own, watched: kernel, and the filters' own shares of its trace, by torch.func."""
    net, x = inr.INR(2, 2, width=6, modulation=[None, FOURIER, GABOR], seed=1), random_coords(12, 2, 0)
    seen = inr.watch(net, x, every=1, rtols=(1e-2,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    found, exact = seen.step(), copy.deepcopy(net).double()
    jacobian = exact_jacobian(exact, x.double(), [name for name, _ in exact.named_parameters()])
    values = torch.linalg.eigvalsh(exact_kernel(jacobian, jacobian, "trace"))
    assert found.trace == pytest.approx(float(values.sum()), rel=1e-9)
    assert found.eigenvalues[0] == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.ranks[0].lower <= int((values > 1e-2 * values[-1]).sum()) <= found.ranks[0].upper
    own = exact_jacobian(exact, x.double(), ["modulations.2.mu", "modulations.2.gamma"])
    share = float(own.detach().square().sum() / jacobian.detach().square().sum())
    assert found.layer_shares["modulations.2"] == pytest.approx(share, rel=1e-9)
    assert sum(found.layer_shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("own", [FOURIER, [None, FOURIER, GABOR]], ids=["fourier", "gabor"])
def test_a_resumed_fit_is_that_without_an_interrupt(own, tmp_path):
    def network(own=own):
        return inr.INR(2, 1, width=6, modulation=own)

    x, options = random_coords(60, 2, 0), {"batch_size": 20, "schedule": "constant", "seed": 4, "progress": False}
    y, file = x[:, :1].sin(), {"checkpoint": tmp_path / "fit.safetensors"}
    whole, part, again = network(), network(), network()
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)  # the checkpoint brings them
    losses = inr.fit(whole, x, y, steps=8, **options).losses
    inr.fit(part, x, y, steps=4, **options, **file)
    assert inr.fit(again, x, y, steps=8, resume=True, **options, **file).losses == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="modulation"):
        inr.fit(network(own=None), x, y, steps=8, resume=True, **options, **file)


def test_aliasing_sees_the_frequency_of_a_filter():
    """A filter alone, a tone above half the rate: told at its frequency, with its amplitude."""
    net = inr.INR(1, 1, width=1, hidden_layers=1, activation="identity", modulation=FOURIER, dtype=torch.float64)
    constants = {"layers.0.weight": 0.0, "layers.0.bias": 1.0, "layers.1.weight": 0.5, "layers.1.bias": 0.0}
    with torch.no_grad():
        for name, number in (constants | {"modulations.0.linear.weight": 2 * math.pi * 21}).items():
            net.get_parameter(name).fill_(number)
    (peak,) = inr.aliasing(net, 32, 128, bounds=(0.0, 1.0)).peaks
    assert (peak.frequency, peak.folded) == ((21.0,), (11.0,))
    assert peak.amplitude == pytest.approx(0.5)


def test_formulas_of_networks_without_filters_are_not_told_of_networks_with_them():
    with pytest.raises(TypeError, match="filters of the coordinates"):
        inr.harmonics.input_mapping(inr.INR(2, 1, width=4, activation="sine", modulation=FOURIER))


@pytest.mark.parametrize("spelling", ["fourier:4", "gabor:4"])
def test_the_command_line_gives_the_kernel_and_the_report_of_the_same_network(spelling, tmp_path, capsys):
    words = ["--width", "8", "--hidden-layers", "2", "--first-modulation", "none", "--modulation", spelling]
    words += ["--grid", "6x5", "--seed", "3", "--quiet", "--json"]
    assert main(["ntk", *words, "--precision", "highest", "--rtols", "1e-3", "--out", str(tmp_path / "k.npy")]) == 0
    told = json.loads(capsys.readouterr().out)
    own = {"fourier": FOURIER, "gabor": GABOR}[spelling.partition(":")[0]]
    net = inr.INR.from_config(told["network"])
    assert net.config()["modulation"] == inr.INR(2, 1, hidden_layers=2, modulation=[None, own]).config()["modulation"]
    net, x = net.double(), inr.grid((6, 5)).double()
    names = [name for name, _ in net.named_parameters()]
    jacobian = exact_jacobian(net, x, names)
    expected = exact_kernel(jacobian, jacobian, "trace")
    found = torch.from_numpy(np.load(tmp_path / "k.npy")).double()
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert main(["diagnose", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"modulations.1.linear"} < {entry["name"] for entry in report["sensitivities"]}
    shown = {entry["name"]: entry for entry in report["representations"]}
    assert shown["layers.1"]["spectrum"]["columns"] == 8
