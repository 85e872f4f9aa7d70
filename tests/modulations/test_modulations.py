"""Filters of the coordinates: their formulas, what networks with them are, and exact kernels and fits of these."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, random_coords

import inrfast as inr
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
