"""A network is warned of coordinates outside its box, once, at every door, and its box is where its own grids lie."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import inrfast as inr
from inrfast.boxes import made_for_anywhere, stated_bounds, warn_of_other_box
from inrfast.signals.render import render
from inrfast.training.networks import load_network, save_network

PIXELS = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij"), -1).reshape(-1, 2)
MEANT = r"lie in \[0, 7\] x \[0, 8\], and the network is made for \[-1, 1\]: .*bounds=\[\(0, 7\), \(0, 8\)\]"


def network(**options):
    return inr.INR(2, 1, width=8, hidden_layers=1, seed=0, **options)


DOORS = {
    "fit": lambda net, x: inr.fit(net, x, x[:, :1] / 8, steps=1, progress=False),
    "fit_many": lambda net, x: inr.fit_many([net], x, x[:, :1] / 8, steps=1, progress=False),
    "ntk": lambda net, x: inr.ntk(net, x),
    "jacobian": lambda net, x: inr.jacobian(net, x),
    "diagnose": lambda net, x: inr.diagnose(net, x, progress=False),
    "watch": lambda net, x: inr.watch(net, x, every=1),
    "meta_learn": lambda net, x: inr.meta_learn(net, x, x.t()[..., None] / 8, steps=1, batch=1, progress=False),
    "render": lambda net, x: render(net, (8, 9), bounds=(float(x.min()), float(x.max())), progress=False),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_warns_once_of_coordinates_far_outside(door):
    net, apart = network(), network()
    told = MEANT if door != "render" else r"coordinates lie in \[0, 8\] x \[0, 8\], .* made for \[-1, 1\]"
    with pytest.warns(UserWarning, match=told):
        DOORS[door](net, PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DOORS[door](net, PIXELS)  # said before
        DOORS[door](apart, PIXELS / 8)
        DOORS[door](network(bounds=[(0, 7), (0, 8)] if door != "render" else (0, 8)), PIXELS)  # meant


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=2, unique=True).map(sorted), st.floats(-1, 2), st.booleans())
def test_stated_bounds_are_left_by_what_lies_outside_them_alone(bounds, place, up):
    low, high = bounds
    if high - low < 1e-2:
        return
    net = inr.INR(1, 1, width=4, hidden_layers=1, activation="tanh", bounds=(low, high), seed=0, dtype=torch.float64)
    point = low + place * (high - low)
    coords = torch.tensor([[point], [(low + high) / 2]], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_other_box(net, coords)
    if -0.0009 <= place <= 1.0009:
        assert not told
    elif not -0.0011 <= place <= 1.0011:
        assert "outside them nothing has taught it" in str(told[0].message)


def test_bounds_are_kept_in_the_description_in_files_and_in_copies(tmp_path):
    net = network(bounds=(0, 1))
    assert net.bounds == ((0.0, 1.0), (0.0, 1.0)) and net.config()["bounds"] == [[0.0, 1.0], [0.0, 1.0]]
    assert "bounds" not in network().config() and network().bounds is None
    save_network(net, tmp_path / "net.safetensors")
    for other in (load_network(tmp_path / "net.safetensors")[0], copy.deepcopy(net), pickle.loads(pickle.dumps(net)),
                  inr.INR.from_config(net.config())):  # fmt: skip
        assert other.bounds == net.bounds and other.config()["bounds"] == net.config()["bounds"]
    assert stated_bounds(net) == net.bounds and stated_bounds(network()) == (-1.0, 1.0)
    assert stated_bounds(torch.nn.Linear(2, 1)) == (-1.0, 1.0)


def test_grids_that_are_made_lie_in_the_bounds():
    net, image = network(bounds=(0, 1)), torch.rand(6, 5)
    inr.fit(net, None, image, steps=3, progress=False)
    other = network(bounds=(0, 1))
    inr.fit(other, inr.grid((6, 5), bounds=(0, 1)), image, steps=3, progress=False)
    assert torch.equal(net.layers[0].weight, other.layers[0].weight)
    assert torch.equal(render(net, (6, 5)).reshape(-1, 1), net(inr.grid((6, 5), bounds=(0, 1))).detach())


@pytest.mark.parametrize("rule", ["rank_expanding", {"first": "rank_expanding", "hidden": "kaiming"}])
def test_hinges_lie_in_the_bounds(rule):
    stated = {"name": "rank_expanding", "bounds": [(0, 1), (0, 3)]}
    other = stated if isinstance(rule, str) else {**rule, "first": stated}
    net = network(bounds=[(0, 1), (0, 3)], init=rule)
    assert torch.equal(net.layers[0].bias, network(init=other).layers[0].bias)
    own = network(bounds=(0, 9), init=stated)  # which an initialiser of its own bounds keeps
    assert torch.equal(own.layers[0].bias, network(init=other).layers[0].bias) or not isinstance(rule, str)


@pytest.mark.parametrize(("bounds", "error"), [((1, 0), ValueError), ([(0, 1)] * 3, ValueError), (3, TypeError)])
def test_bad_bounds_are_refused(bounds, error):
    with pytest.raises(error, match="bounds must"):
        network(bounds=bounds)


def test_a_network_that_is_not_ours_has_no_box():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inr.ntk(torch.nn.Linear(2, 1), PIXELS)


def test_nothing_is_said_of_points_that_this_library_places_outside():
    net = network()
    made_for_anywhere(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inr.ntk(net, PIXELS)
        inr.choose(torch.sin(20 * inr.grid(256)), candidates=[{"activation": "sine", "init": "siren"}], width=8,
                   hidden_layers=1, points=64, progress=False)  # fmt: skip


def test_points_of_an_evaluation_outside_the_box_are_told_too():
    coords = inr.grid((5, 5), bounds=(0, 1))
    values = coords[:, :1].clone()
    options = {"steps": 1, "progress": False, "eval_target": values}
    net = network(bounds=(0, 1))
    for fit in (
        lambda: inr.fit(net, coords, values, eval_coords=coords - 1, **options),
        lambda: inr.fit_many([network(bounds=(0, 1))], coords, values, eval_coords=coords - 1, **options),
    ):
        with pytest.warns(UserWarning, match=r"eval_coords: coordinates lie in \[-1, 0\] .* made for \[0, 1\]") as told:
            fit()
        assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inr.fit(net, coords, values, eval_coords=coords - 1, **options)  # once per network
        inr.fit(network(bounds=(0, 1)), coords, values, eval_coords=coords / 2, **options)


def test_the_text_of_a_network_states_its_bounds():
    assert "bounds=((0.0, 1.0), (0.0, 1.0))" in repr(network(bounds=(0, 1))) and "bounds" not in repr(network())
