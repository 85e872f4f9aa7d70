"""Initialisation of any module: the inlet is found, the numbers are those of an INR, and a refusal changes nothing."""

import copy
import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from others_modules import OTHERS, Size
from others_sines import Chain, FinerLayer, LearnedSine, OfDictionary, SingleBVPNet, Siren, SirenNet
from torch import nn

import inrfast as inr
from inrfast.initialisers import write_

RULES = ["default", "kaiming", "xavier", "siren", "rank_expanding", {"first": "rank_expanding", "hidden": "siren"}]


def equal(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items())


def field(width=64, activation=nn.ReLU, before=(), bias=True):
    return nn.Sequential(*before, nn.Linear(2, width, bias), activation(), nn.Linear(width, 1))


@settings(max_examples=25)
@given(
    rule=st.sampled_from(RULES),
    activation=st.sampled_from(["relu", "sine", "gaussian", "finer"]),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3)),
    box=st.tuples(st.floats(-5, 5), st.floats(0.1, 9)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_numbers_are_those_of_a_network_made_with_the_rule(rule, activation, sizes, box, seed, dtype):
    """Bit for bit, whether the module says that it is an INR or is a chain of its layers."""
    d, width, layers = sizes
    bounds = (box[0], box[0] + box[1])
    omegas = [7.0, 5.0, 3.0][:layers]
    options = {"width": width, "hidden_layers": layers, "activation": activation, "omega": omegas, "dtype": dtype}
    placed = {"name": "rank_expanding", "bounds": bounds}
    made = {"rank_expanding": placed}.get(rule, rule) if isinstance(rule, str) else {"first": placed, "hidden": "siren"}
    wanted = inr.INR(d, 2, **options, init=made, seed=seed)
    net = inr.INR(d, 2, **options, seed=1 - min(seed, 1))
    if rule == "rank_expanding":  # the others stay
        for mine, other in zip(net.layers[1:], wanted.layers[1:], strict=True):
            mine.load_state_dict(other.state_dict())
    chain = nn.Sequential(*copy.deepcopy(net.layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        inr.init.apply_(net, rule, bounds=bounds, seed=seed)
        inr.init.apply_(chain, rule, bounds=bounds, omega={"first": 7.0, "hidden": 5.0}, seed=seed)
    assert equal(wanted.state_dict(), net.state_dict())
    assert torch.equal(chain[0].weight, wanted.layers[0].weight)
    assert net.config()["init"] == inr.INR(d, 2, **options, init=net.init).config()["init"]


INLETS = {
    "siren bvp": ["net.net.net.0.0"],
    "siren batched": ["net.net.net.net.0.0"],
    "siren-pytorch": ["layers.0"],
    "siren-pytorch modulated": ["net.layers.0"],
    "wire real": ["net.0.freqs", "net.0.scale"],
}
for names, inlets in (
    (("siren", "finer", "finer with its slope", "gauss", "learned frequencies"), ["net.0.linear"]),
    (("residual", "layer norm", "keyword", "squeezed", "checkpointed", "caching"), ["inlet"]),
    (("mfn fourier", "mfn gabor", "bacon"), [f"filters.{k}.linear" for k in range(3)]),
):
    INLETS |= dict.fromkeys(names, inlets)
"""The layers that get the coordinates; of networks that are not named, none does (or it gets more than those)."""


@pytest.mark.parametrize("name", OTHERS)
def test_the_inlet_of_other_peoples_networks_is_found_and_nothing_else_is_touched(name):
    other = OTHERS[name]
    torch.manual_seed(0)
    net = other.make(Size())
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    others = random.getstate(), np.random.get_state()[1].tolist()
    coords = 2 * torch.rand(20, other.dimensions, generator=torch.Generator().manual_seed(1)) - 1
    if name == "pointwise conv":
        with pytest.raises(ValueError, match="nothing that init"):
            inr.init.apply_(net, "xavier", coords=coords)
        return
    applied = inr.init.apply_(net, {"first": "xavier", "hidden": {"name": "xavier"}}, coords=coords)
    assert list(applied.inlets) == INLETS.get(name, [])
    assert torch.equal(torch.get_rng_state(), state)
    assert others == (random.getstate(), np.random.get_state()[1].tolist())
    for entry, values in net.state_dict().items():
        owner = entry.rpartition(".")[0]
        changed = owner in applied.rules
        assert changed == (not torch.equal(values, before[entry])) or entry.endswith("bias")
        assert changed or entry not in dict(net.named_parameters()) or {owner, entry} & set(applied.left), entry
    assert all(text in str(applied) for text in (*applied.rules, *applied.left))
    net.load_state_dict(before)
    if name not in INLETS:
        with pytest.raises(ValueError, match="rank_expanding"):
            inr.init.apply_(net, "rank_expanding", coords=coords)
        assert equal(before, net.state_dict())


@pytest.mark.parametrize(
    ("net", "omegas"),
    [
        (Siren(2, 200, 2, 3, first_omega_0=11, hidden_omega_0=7.0), [11, 7, 7, 7]),
        (OfDictionary(SingleBVPNet(1, 2, 200, 2)), [30, 30, 30, 30]),
        (SirenNet(2, 200, 3, 3, w0=2.0, w0_initial=30.0), [30, 2, 2, 2]),
        (Chain(FinerLayer(2, 200, True, 9), FinerLayer(200, 200, omega_0=4), nn.Linear(200, 1)), [9, 4, 4]),
        (nn.Sequential(nn.Linear(2, 200), inr.nn.FusedLinear(200, 200, activation="sine", omega=3.0)), [3, 3]),
    ],
    ids=["siren", "bvp", "siren-pytorch", "finer", "fused"],
)
def test_sirens_rule_takes_each_layers_own_omega(net, omegas):
    applied = inr.init.apply_(net, "siren", bounds=[(-1, 1)] * 2)
    parameters = dict(net.named_parameters())
    assert len(applied.rules) == len(omegas) and list(applied.inlets) == list(applied.rules)[:1]
    for number, (name, omega) in enumerate(zip(applied.rules, omegas, strict=True)):
        weight = parameters[f"{name}.weight"].detach()
        bound = 1 / 2 if number == 0 else math.sqrt(6 / 200) / omega
        assert 0.95 * bound < float(weight.abs().max()) <= bound


class Normalised(nn.Module):
    """Pixels to [-1, 1], each axis from its own range, columns swapped."""

    def forward(self, coords):
        return torch.stack([coords[..., 1] / 50 - 1, 1 - coords[..., 0] / 20], dim=-1)


@given(st.integers(4, 40), st.booleans())
def test_hinges_lie_in_the_box_that_the_layer_gets(width, batched):
    """Of a module that rescales its coordinates: its inlet is the one of the rescaled box."""
    coords = inr.grid((9, 11), bounds=[(0, 40), (0, 100)])
    net = field(width, before=[Normalised()])
    applied = inr.init.apply_(net, "rank_expanding", coords=coords[None] if batched else coords)
    weight, bias = inr.rank_expanding(width, 2)
    same = copy.deepcopy(net.state_dict())
    assert inr.init.apply_(net, "rank_expanding", coords=coords.numpy()) == applied or batched
    assert equal(same, net.state_dict())
    torch.testing.assert_close(net[1].weight.detach(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[1].bias.detach(), bias, rtol=1e-5, atol=1e-6)
    assert applied.dead_units["1"] == int((net[1](net[0](coords)) <= 0).all(0).sum())
    assert applied.bounds == ((0, 40), (0, 100))


def test_a_module_that_takes_only_its_own_number_of_points_is_asked_in_their_shape():
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = field(8)

        def forward(self, coords):
            return self.net(coords).reshape(coords.shape[0], 5, 6)

    coords = inr.grid((5, 6))
    net = Image()
    applied = inr.init.apply_(net, "rank_expanding", coords=coords[None])
    assert applied.inlets == ("net.0",) and torch.equal(net.net[0].weight, inr.rank_expanding(8, 2)[0])
    with pytest.raises(ValueError, match=r"must take coordinates \(64, 2\)"):
        inr.init.apply_(net, "rank_expanding")


def test_bare_products_are_layers_whichever_way_their_weight_is_kept():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.b = nn.Parameter(torch.zeros(2, 30)), nn.Parameter(torch.zeros(30))
            self.V, self.c = nn.Parameter(torch.zeros(1, 30)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.addmm(self.c, torch.relu(x @ self.W + self.b), self.V.t())

    net = Bare()
    applied = inr.init.apply_(net, {"first": "rank_expanding", "hidden": "kaiming"}, bounds=[(-1, 1)] * 2)
    weight, bias = inr.rank_expanding(30, 2)
    assert applied.inlets == ("W",) and set(applied.rules) == {"W", "V"} and not applied.left
    assert torch.equal(net.W, weight.T) and torch.equal(net.b, bias) and net.V.any() and not net.c.any()


@pytest.mark.parametrize(
    ("net", "rule", "options", "told"),
    [
        (inr.INR(2, 1, 8, encoding=inr.RandomFourier(4)), "rank_expanding", {}, "'layers.0', gets 8 columns"),
        (field(bias=False), "rank_expanding", {}, "needs a bias"),
        (field(), {"hidden": "rank_expanding"}, {}, "hidden layer"),
        (field(), {"hiden": "siren"}, {}, "'first' and 'hidden'"),
        (field(), "sirenn", {}, "Did you mean 'siren'"),
        (field(), {"name": "siren", "omegas": 3}, {"omega": 3}, "does not take these options"),
        (field(), "siren", {}, "omega must be given.*'0'"),
        (field(), "siren", {"omega": {"first": 3}}, "'first' and 'hidden'"),
        (field(), "rank_expanding", {"coords": torch.zeros(5, 2)}, "fill a box"),
        (field(), "rank_expanding", {"coords": torch.rand(5, 3)}, "must take coordinates"),
        (field(), "rank_expanding", {"coords": torch.rand(5, 2), "bounds": (0, 1)}, "one of coords="),
        (field(), "rank_expanding", {"bounds": (1, 0)}, "low < high"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 4)), "rank_expanding", {}, "bake it in"),
        (nn.ReLU(), "kaiming", {}, "give coords="),
        (nn.Sequential(Normalised(), nn.Conv1d(2, 4, 1)), "kaiming", {"bounds": [(0, 1)] * 2}, "must take coordinates"),
    ],
)
def test_a_refusal_names_what_is_wrong_and_changes_nothing(net, rule, options, told):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=told):
        inr.init.apply_(net, rule, **options)
    assert equal(before, net.state_dict())
    with pytest.raises(TypeError, match="module must be"):
        inr.init.apply_(torch.relu, "siren")


class Through(nn.Module):
    """An inlet and a head behind any function of the coordinates."""

    def __init__(self, function, width=16, dimensions=2):
        super().__init__()
        self.function, self.inlet, self.head = function, nn.Linear(dimensions, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.head(torch.relu(self.inlet(self.function(x))))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0),
        lambda x: (x - x.mean(0)) / x.std(0),
        lambda x: (x - x.amin(0)) / (x.amax(0) - x.amin(0)),
        lambda x: x / x.abs().max(),
        lambda x: x - x[:1],
        lambda x: x / len(x),
        nn.BatchNorm1d(2, affine=False),
    ],
    ids=["mean", "standardised", "range", "largest", "first", "number", "batch norm"],
)
def test_coordinates_normalised_by_their_batch_have_no_box(function):
    net, coords = Through(function), torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) ** 6
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="depends on the other points"):
        inr.init.apply_(net, "rank_expanding", coords=coords)
    assert equal(before, net.state_dict())
    applied = inr.init.apply_(net, "xavier", coords=coords)
    assert applied.inlets == ("inlet",) and not applied.dead_units and "no dead units" in str(applied)
    if isinstance(function, nn.BatchNorm1d):
        inr.init.apply_(net.eval(), "rank_expanding", coords=coords)


class Branches(nn.Module):
    """Inlets of several widths, which get coordinates in ways of their own."""

    def __init__(self, widths, ways):
        super().__init__()
        self.ways, self.inlets = (
            ways,
            nn.ModuleList([nn.Linear(len(columns), n) for n, (columns, *_) in zip(widths, ways, strict=True)]),
        )
        self.head = nn.Linear(sum(widths), 1)

    def units(self, x):
        ways = zip(self.inlets, self.ways, strict=True)
        return torch.relu(torch.cat([inlet(x[..., columns] * a + b) for inlet, (columns, a, b) in ways], -1))

    def forward(self, x):
        return self.head(self.units(x))


@given(st.lists(st.integers(1, 20), min_size=2, max_size=3), st.integers(2, 3), st.integers(0, 9))
def test_inlets_of_the_same_coordinates_have_the_hinges_of_one_wide_inlet(widths, d, seed):
    """The units of all of them are those of one inlet, in another order; and numbers repeat."""
    rng = torch.Generator().manual_seed(seed)
    ways = [
        (torch.randperm(d, generator=rng).tolist(), float(a), float(b))
        for a, b in 4 * torch.rand(len(widths), 2, generator=rng, dtype=torch.float64) - 2
    ]
    box = [(-1.0 + k, 3.0 + 2 * k) for k in range(d)]
    net, coords = Branches(widths, ways).double(), inr.grid((7,) * d, bounds=box).double()
    with torch.device("meta"):  # a default device changes nothing
        applied = inr.init.apply_(net, "rank_expanding", coords=coords)
    assert len(applied.inlets) == len(widths) and "one grid" in str(applied)
    weight, bias = inr.rank_expanding(sum(widths), d, bounds=box, dtype=torch.float64)
    wanted, found = torch.relu(coords @ weight.T + bias), net.units(coords).detach()
    apart = (wanted.unsqueeze(2) - found.unsqueeze(1)).abs().amax(0)
    assert sorted(apart.argmin(1).tolist()) == list(range(sum(widths))) or apart.amin(0).max() < 1e-9
    assert float(apart.amin(1).max()) < 1e-9 and float(apart.amin(0).max()) < 1e-9


def test_inlets_of_some_of_the_coordinates_have_their_boxes():
    net, box = Branches((9, 5, 6), [([0, 1], 1, 0), ([2], 2, 1), ([1, 0], 1, 0)]), [(0.0, 1.0), (2.0, 6.0), (-3.0, 3.0)]
    applied = inr.init.apply_(net, "rank_expanding", bounds=box)
    for rule, wanted in zip(applied.rules.values(), (box[:2], [(-5, 7)], box[1::-1]), strict=True):
        torch.testing.assert_close(torch.tensor(rule["bounds"]), torch.tensor(wanted).float(), rtol=1e-6, atol=1e-6)
    weight, bias = inr.rank_expanding(5, 1, bounds=(-5, 7))
    torch.testing.assert_close(net.inlets[1].weight.detach(), weight)
    torch.testing.assert_close(net.inlets[1].bias.detach(), bias)


def test_shared_memory_and_parameters_that_cannot_be_written_change_nothing():
    coords = inr.grid((9, 9), bounds=(0, 1))
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    net[2].bias = net[0].bias
    with pytest.raises(ValueError, match="a bias that is the layer's own: that of '0'"):
        inr.init.apply_(net, "rank_expanding", coords=coords)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        applied = inr.init.apply_(net, {"first": "default", "hidden": "kaiming"}, coords=coords)
    assert "2 has the bias of 0" in str(applied) and net[0].bias.any()
    assert applied.dead_units["0"] == int((net[0](coords) <= 0).all(0).sum())
    flat = torch.rand(100)
    for start, name in ((0, "0.weight"), (15, "0.weight"), (16, None)):
        net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8))
        net[0].weight = nn.Parameter(flat[:16].view(8, 2))
        net[2].weight = nn.Parameter(flat[start : start + 64].view(8, 8))
        before = copy.deepcopy(net.state_dict())
        for rule in ("xavier", "rank_expanding") if name else ():
            with pytest.raises(ValueError, match="share memory"):
                inr.init.apply_(net, rule, coords=coords)
            assert equal(before, net.state_dict())
    inr.init.apply_(net, "xavier")
    with torch.inference_mode():
        late = nn.Linear(8, 1)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"2\.\w+ was made in inference mode"):
        inr.init.apply_(nn.Sequential(net[0], nn.ReLU(), late), "xavier")
    with pytest.raises(RuntimeError):
        write_([("a", net[0].weight, torch.zeros(8, 2)), ("b", net[2].weight, torch.zeros(3))], {})
    assert equal(before, net.state_dict())


def test_what_is_left_and_why_is_true_of_tied_frozen_and_bare_weights():
    tied = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    tied[4].weight = tied[2].weight
    tied[0].weight.requires_grad_(False)
    applied = inr.init.apply_(tied, "xavier", bounds=[(0, 1)] * 2)
    assert applied.left["4"].startswith("its weight is 2.weight") and "frozen" in str(applied)
    assert not tied[0].weight.requires_grad

    class Decoder(Through):
        def forward(self, x):
            z = torch.relu(self.inlet(x))
            return nn.functional.linear(z, self.inlet.weight.T)

    applied = inr.init.apply_(net := Decoder(None), "rank_expanding", bounds=(-1, 1))
    assert torch.equal(net.inlet.weight, inr.rank_expanding(16, 2)[0]) and "the other way round" in str(applied)

    class Bare(Through):
        def __init__(self):
            super().__init__(None)
            self.V, self.W = nn.Parameter(torch.ones(16, 1)), nn.Parameter(torch.ones(4, 2))

        def forward(self, x):
            return torch.relu(self.inlet(x)) @ self.V + (self.W @ x.T).sum(0, keepdim=True).T

    applied = inr.init.apply_(Bare(), "xavier", bounds=[(-1, 1)] * 2)
    assert set(applied.rules) == {"inlet"} and all("no linear layer" in applied.left[key] for key in "VW")


def test_dead_units_and_hinges_without_a_rectifier_are_warned_of():
    far = inr.grid((6, 6), bounds=[(5, 9), (-9, -5)])
    with pytest.warns(UserWarning, match="of the 64 units of '0' are dead") as caught:
        applied = inr.init.apply_(net := field(), "kaiming", coords=far)
    assert applied.dead_units["0"] == int((net[0](far) <= 0).all(0).sum())
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="followed by tanh"):
        inr.init.apply_(field(activation=nn.Tanh), "rank_expanding")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inr.init.apply_(field(), "rank_expanding", coords=far)
        inr.init.apply_(inr.INR(2, 1, 64), "rank_expanding", coords=far)
        inr.fit(net, inr.grid((4, 4)), torch.rand(16, 1), steps=1)


def test_learned_frequencies_are_no_omega_unless_it_is_one_number():
    with pytest.raises(ValueError, match="omega must be given"):
        inr.init.apply_(Chain(LearnedSine(2, 8), nn.Linear(8, 1)), "siren")
