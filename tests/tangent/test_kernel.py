"""One suite of laws for kernels in one process and for kernels that real processes share."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_laws import LAWS, Truth
from random_networks import networks, random_coords
from shared_processes import processes
from torch import nn

import inrfast as inr
from inrfast.encodings.hash_grid import HashGrid
from inrfast.errors import RangeError

CASES = {
    "net": networks(max_width=24, max_depth=3),
    "n": st.integers(2, 23),
    "seed": st.integers(0, 10**6),
    "precision": st.sampled_from(["highest", "high"]),
    "output": st.sampled_from(["trace", "full", 0]),
}


@settings(max_examples=10)
@given(**CASES)
def test_in_one_process(net, n, seed, precision, output):
    coords = random_coords(n, net.in_features, seed)
    truth = Truth.of(net, coords, output, precision, seed)
    K = inr.ntk(net, coords, output=output, precision=precision)
    for law in LAWS.values():
        law(K, truth)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with processes(2, tmp_path_factory.mktemp("two")) as found:
        yield found


@settings(max_examples=3, phases=[Phase.explicit, Phase.generate])
@given(**CASES)
def test_shared_by_two_processes(two, net, n, seed, precision, output):
    """Both find the same numbers, to the last bit."""
    coords = random_coords(n, net.in_features, seed)
    truth = Truth.of(net, coords, output, precision, seed)
    first, second = two.call("kernel_laws", "shared", net, coords, output, precision, truth)
    assert first == second


OTHERS = {
    "trained frequencies": lambda: inr.INR(
        2, 2, width=6, hidden_layers=1, encoding=inr.RandomFourier(4, 1.0, trainable=True)
    ),
    "tables": lambda: inr.INR(2, 2, width=6, hidden_layers=1, encoding=HashGrid(3, 2, 16, 2, 4)),
    "affine norm": lambda: nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_other_layers_obey_the_same_laws(two, name):
    net, coords = OTHERS[name](), random_coords(9, 2, 1)
    truth = Truth.of(net, coords, "full", "highest", 3)
    K = inr.ntk(net, coords, output="full", precision="highest")
    for law in LAWS.values():
        law(K, truth)
    first, second = two.call("kernel_laws", "shared", net, coords, "full", "highest", truth)
    assert first == second


@pytest.mark.parametrize("scale", [1e-130, 1e-160, 1e-165, 1e-200])
def test_spectra_of_kernels_that_fp64_does_not_hold_are_refused(scale):
    """A ReLU network without biases has the same ranks at every scale of its points, until squares vanish."""
    net = inr.INR(2, 1, width=16, hidden_layers=2, bias=False, dtype=torch.float64, seed=0)
    K = inr.ntk(net, scale * inr.grid((12, 12)).double(), precision="highest")
    for refused in (
        lambda: K.spectrum(1e-3),
        lambda: K.counts(1e-3),
        lambda: inr.numerical_rank(K, 1e-3),
        lambda: K.layers["layers.1"].counts(1e-3),
        lambda: K.solve(torch.ones(144), ridge=1.0),
    ):
        with pytest.raises(RangeError, match="spectrum or system"):
            refused()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert inr.ntk(net, inr.grid((12, 12))).counts(1e-3).rank().upper == 0
