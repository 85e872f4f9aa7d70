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
from inrfast.mlp import describe, is_pointwise
from inrfast.modulations import MODULATIONS, Modulation
from inrfast.norms import NORMS
from inrfast.testing import check_modulation
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


@pytest.mark.parametrize("own", [FOURIER, GABOR, [None, FOURIER, GABOR]], ids=str)
def test_fits_are_those_of_an_eager_loop(own):
    """Full steps of Adam, fp64: one network and three of them."""
    x = random_coords(40, 2, 0).double()
    target = x[:, :1].sin()
    start = inr.INR(2, 1, width=8, modulation=own, dtype=torch.float64)
    eager = copy.deepcopy(start)
    adam = torch.optim.Adam(eager.parameters(), lr=1e-3)
    for _ in range(10):
        adam.zero_grad()
        (eager(x) - target).square().mean().backward()
        adam.step()
    one, many = copy.deepcopy(start), [copy.deepcopy(start) for _ in range(3)]
    inr.fit(one, x, target, steps=10, lr=1e-3, schedule="constant")
    inr.fit_many(many, x, target, steps=10, lr=1e-3, schedule="constant")
    for net in (one, *many):
        for mine, theirs in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


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
