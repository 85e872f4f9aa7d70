"""The slips of somebody's first hour: each simply works, or ends in words that say what to write instead."""

import re
import warnings

import numpy as np
import pytest
import torch

import inrfast as inr

IMAGE = torch.rand(12, 10, 3, generator=torch.Generator().manual_seed(0))
GRID = inr.grid((12, 10))
ROWS, COLUMNS = np.meshgrid(np.arange(12), np.arange(10), indexing="ij")
PIXELS = np.stack([ROWS, COLUMNS], -1).reshape(-1, 2)


def net(outputs=3, **options):
    return inr.INR(2, outputs, width=16, hidden_layers=2, **options)


def fit(network, coords, target, **options):
    return inr.fit(network, coords, target, **{"steps": 3, "progress": False, **options})


HELPED = {
    "a target of the wrong length": (
        lambda: fit(net(), GRID, IMAGE.reshape(-1, 3)[:-1]),
        "target must have shape (120, 3) or (*grid, 3) with 120 grid points, got (119, 3); that is 119 points",
    ),
    "channels first": (
        lambda: fit(net(), GRID, IMAGE.permute(2, 0, 1)),
        "got (3, 12, 10); its outputs stand first, target.permute(1, 2, 0) brings them last",
    ),
    "channels first, without coordinates": (
        lambda: fit(net(), None, IMAGE.permute(2, 0, 1)),
        "its outputs stand first, target.permute(1, 2, 0) brings them last",
    ),
    "a picture with an opacity": (
        lambda: fit(net(), GRID, torch.rand(12, 10, 4)),
        "target[..., :3] leaves out the opacity of RGBA, or make the network with 4",
    ),
    "one value for three outputs": (
        lambda: fit(net(), GRID, torch.rand(120)),
        "it has 1 value per point, the network 3 outputs: make the network with 1",
    ),
    "three values for one output": (
        lambda: fit(net(1), GRID, IMAGE),
        "target.mean(-1) is grey, or make the network with 3",
    ),
    "whole numbers as coordinates": (
        lambda: fit(net(), PIXELS, IMAGE),
        "of numbers of pixels inrfast.grid((H, W)) has the coordinates in [-1, 1], else .float() makes one",
    ),
    "values from 0 to 255": (
        lambda: fit(net(), GRID, 255 * IMAGE),
        "scale it (pixels of 8 bits: divide by 255), or give data_range if that is meant",
    ),
    "coordinates in columns": (lambda: fit(net(), GRID.T, IMAGE), "coords.permute(1, 0) has the coordinates of a poin"),
    "the grid of three axes": (
        lambda: inr.diagnose(net(), inr.grid(IMAGE.shape)),
        "the grid of an image (H, W, C) is inrfast.grid(image.shape[:2])",
    ),
    "a grid of two numbers": (lambda: inr.grid(12, 10), "the points of all axes together: grid((12, 10))"),
    "a misspelt argument": (lambda: inr.INR(2, 1, activaton="sine"), "INR() takes no argument 'activaton'. Did you me"),
    "a misspelt option": (lambda: fit(net(), GRID, IMAGE, step=3), "no argument 'step'. Did you mean 'steps'?"),
    "another library's word": (lambda: fit(net(), GRID, IMAGE, epochs=3), "'epochs'. Did you mean 'steps'?"),
    "a misspelt activation": (lambda: inr.INR(2, 1, activation="sin"), "got 'sin'. Did you mean 'sine'?"),
    "a network's name as activation": (lambda: inr.INR(2, 1, activation="siren"), "Did you mean 'sine'?"),
    "a hyphen": (lambda: inr.INR(2, 1, init="rank-expanding"), "Did you mean 'rank_expanding'?"),
    "an unknown argument of a kernel": (lambda: inr.ntk(net(), GRID, layer="x"), "ntk() takes no argument 'layer'"),
    "an unknown argument of a record": (lambda: inr.watch(net(), GRID, evry=3), "Did you mean 'every'?"),
    "the class": (
        lambda: fit(inr.INR, GRID, IMAGE),
        "must be a torch.nn.Module, got the class INR; write INR(...)",
    ),
    "the class for a kernel": (lambda: inr.ntk(inr.INR, GRID), "got the class INR; write INR(...)"),
    "no target": (
        lambda: inr.fit(net(), IMAGE),
        "target is missing: call fit(net, coords, target), or fit(net, targ",
    ),
    "lists": (lambda: fit(net(), GRID.tolist(), IMAGE), "got list; torch.tensor(coords) makes one"),
    "another device": (lambda: fit(net(), GRID.to("meta"), IMAGE), "coords is on meta but the network is on cpu; move"),
    "coordinates of another dimension": (
        lambda: inr.ntk(net(), inr.grid((3, 3, 3))),
        "coords must have shape (N, 2), or (..., 2) with more axes, for this network, got (27, 3)",
    ),
    "an optimiser's class": (lambda: fit(net(), GRID, IMAGE, optimizer=torch.optim.Adam), "or a torch.optim.Optimizer"),
    "the norm of a loss": (lambda: fit(net(), GRID, IMAGE, loss="l2"), "got 'l2'. Did you mean 'mse'?"),
}


@pytest.mark.parametrize("slip", HELPED)
def test_a_slip_ends_in_words_that_help(slip):
    call, told = HELPED[slip]
    with pytest.raises((ValueError, TypeError), match=re.escape(told)):
        call()


WARNED = {
    "pixels as coordinates": (
        lambda: fit(net(), PIXELS.astype(np.float32), IMAGE),
        "coordinates lie in [0, 11] x [0, 9], and the network is made for [-1, 1]: scale them, as inrfast.grid(shape)",
    ),
    "pixels of 8 bits": (
        lambda: fit(net(), GRID, (255 * IMAGE).byte()),
        "target holds pixels of 8 bits (uint8); they are taken as value / 255, in [0, 1]",
    ),
    "a rate that is too high": (lambda: fit(net(seed=0), GRID, IMAGE, lr=10.0, steps=200), "lower lr (it was 10)"),
}


@pytest.mark.parametrize("slip", WARNED)
def test_a_slip_that_may_be_meant_is_warned_of(slip):
    call, told = WARNED[slip]
    with pytest.warns((UserWarning, RuntimeWarning), match=re.escape(told)):
        call()


def in_no_grad():
    with torch.no_grad():
        return fit(net(seed=0), GRID, IMAGE)


WORKS = {
    "NumPy's fp64": lambda: fit(net(seed=0), GRID.double().numpy(), IMAGE.double().numpy()),
    "fp64": lambda: fit(net(seed=0), GRID.double(), IMAGE.double()),
    "eval mode": lambda: fit(net(seed=0).eval(), GRID, IMAGE),
    "no gradients": in_no_grad,
    "no coordinates": lambda: fit(net(seed=0), None, IMAGE),
    "a grid by its array of sizes": lambda: fit(net(seed=0), inr.grid(np.array([12, 10])), IMAGE),
    "coordinates as an image": lambda: fit(net(seed=0), GRID.reshape(12, 10, 2), IMAGE),
    "a target on the graph": lambda: fit(net(seed=0), GRID, IMAGE.clone().requires_grad_()),
}


@pytest.mark.parametrize("habit", WORKS)
def test_a_habit_simply_works(habit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(WORKS[habit]().losses, fit(net(seed=0), GRID, IMAGE).losses, rtol=1e-5)
