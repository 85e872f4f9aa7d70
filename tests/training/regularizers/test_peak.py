"""PEAK: the same function at the start, engines, kernels and files as before, and a_k that train and stay above 0."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast.encodings import Compose, HashGrid, Polynomial
from inrfast.training.networks import load_network, save_network

X = inr.grid((8, 9))
Y = torch.sin(4 * X.sum(1, keepdim=True))
FEW = {"r": 8, "width": 16, "hidden_layers": 2, "rows": 20, "keys": 16}
SINE = {"activation": "sine", "init": "siren", "omega": 10.0}

NETS = {
    "relu": {},
    "siren": SINE,
    "rank expanding": {"init": "rank_expanding"},
    "batch norm": {"norm": "batch"},
    "without bias": {"bias": False, **SINE},
    "fourier": {"encoding": inr.RandomFourier(6, 2.0)},
    "hash grid": {"encoding": HashGrid(levels=3, finest=32, table_size=2**10)},
}


def network(kind: str, dtype=torch.float32) -> inr.INR:
    net = inr.INR(2, 2, width=12, hidden_layers=2, dtype=dtype, **NETS[kind])
    net.layers[-1].bias = None if kind == "without bias" else net.layers[-1].bias
    return net


@pytest.mark.parametrize("degree", [1, 3])
@pytest.mark.parametrize("constant", [None, False])
@pytest.mark.parametrize("kind", list(NETS))
def test_it_begins_as_the_same_function(kind, degree, constant):
    net = network(kind, torch.float64)
    for parameter in net.parameters():  # one that was trained before
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = [parameter.clone() for parameter in net.parameters()]
    if net.encoding is not None and degree > 1:
        if kind == "hash grid":
            with pytest.raises(ValueError, match="at most 4 coordinates"):
                inr.PEAK(net, X.double(), degree, constant=constant, **FEW)
            return
        peak = inr.PEAK(net, X.double(), degree, constant=constant, **FEW)
        assert bool(peak.net(X.double()).isfinite().all())
        return
    peak = inr.PEAK(net, X.double(), degree, constant=constant, **FEW)
    gap = (peak.net.eval()(X.double()) - net.eval()(X.double())).abs().max()
    assert float(gap.detach()) < 1e-12
    assert all(torch.equal(own, old) for own, old in zip(net.parameters(), before, strict=True))
    own = {id(parameter) for parameter in net.parameters()}
    assert not any(id(parameter) in own for parameter in peak.net.parameters())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.floats(0, 4), min_size=6, max_size=6),
    st.integers(1, 3),
)
def test_a_polynomial_without_its_constant(degree, constant, numbers, d):
    """Its inner products are ``sum_k a_k (x . x')^k``, from degree 0 or 1 on."""
    lowest = 0 if constant else 1
    numbers = numbers[: degree + 1 - lowest]
    for trainable in (False, True):
        given_ = Polynomial(degree, numbers, trainable, constant)
        own = given_.build(d, torch.Generator(), torch.device("cpu"), torch.float64)
        x = torch.linspace(-1, 1, 4 * d, dtype=torch.float64).reshape(4, d)
        z = own(x)
        assert z.shape[1] == own.out_features == given_.columns(d)
        wanted = sum(a * (x @ x.t()) ** (lowest + k) for k, a in enumerate(numbers))
        torch.testing.assert_close(z @ z.t(), wanted, atol=1e-10, rtol=1e-10)
        assert own.coefficients == pytest.approx(numbers)
        again = Polynomial.from_entries({key: own for key, own in own.config().items() if key != "name"})
        assert again.config() == own.config() == given_.config()
    one = Polynomial(1, constant=False).build(d, torch.Generator(), torch.device("cpu"), torch.float64)
    assert torch.equal(one(x), x)


@pytest.mark.parametrize("kind", ["siren", "relu", "fourier", "hash grid"])
def test_it_trains_is_saved_and_has_a_kernel(kind, tmp_path):
    peak = inr.PEAK(network(kind), X, factor=0.05, **FEW)
    before = peak.coefficients
    result = inr.fit(peak.net, X[::2], Y[::2].expand(-1, 2), steps=30, lr=1e-2, regularizers=peak.regularizers)
    assert result.losses[-1] < result.losses[0]
    assert peak.coefficients != before and all(a >= 0 for a in peak.coefficients)
    save_network(peak.net, tmp_path / "net.safetensors", {})
    loaded, _ = load_network(tmp_path / "net.safetensors")
    assert torch.equal(loaded(X), peak.net(X))
    kernel, names = inr.ntk(peak.net, X[:6], precision="highest").to_dense(), dict(peak.net.named_parameters())
    rows = []
    for n in range(6):
        for m in range(2):
            found = torch.autograd.grad(peak.net(X[n : n + 1])[0, m], list(names.values()), allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        torch.zeros_like(p).flatten() if g is None else g.flatten()
                        for p, g in zip(names.values(), found, strict=True)
                    ]
                )
            )
    wanted = torch.stack(rows).double()
    torch.testing.assert_close(kernel.double().trace(), wanted.square().sum(), atol=0, rtol=1e-4)


def test_a_k_stay_above_zero():
    """Where the loss would rather have them negative, they end at 0 and do not pass it."""
    peak = inr.PEAK(network("relu"), X, degree=2, factor=0.0, coefficients=[1e-3, 1e-3, 1e-3], **FEW)
    inr.fit(peak.net, X, Y.expand(-1, 2), steps=30, lr=0.05, regularizers=peak.regularizers, progress=False)
    assert all(a >= 0 for a in peak.coefficients)


def test_frozen_parameters_modes_and_settings_are_kept():
    net = network("siren").eval()
    net.layers[1].weight.requires_grad_(False)
    peak = inr.PEAK(net, X, **FEW)
    assert not peak.net.training and not peak.net.layers[1].weight.requires_grad
    assert isinstance(peak.net.encoding, Polynomial) and peak.net.config()["init"] == "siren"
    assert isinstance(inr.PEAK(network("fourier"), X, **FEW).net.encoding, Compose)
    small = inr.PEAK(net, degree=2, coefficients=[1, 1, 1e-6], **FEW)  # the same function, and trained
    torch.testing.assert_close(small.net(X), net(X), atol=1e-4, rtol=1e-4)
    small.net(X).sum().backward()
    assert bool(small.net.layers[0].weight.grad[:, small.polynomial.exponents.sum(1) == 2].any())
    assert inr.PEAK(net, **FEW).kar.points is None


class Foreign(nn.Module):
    def __init__(self, inputs: int = 2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


def test_any_module_can_be_plugged_in():
    net = Foreign()
    peak = inr.PEAK(net, X, **FEW)
    assert torch.equal(peak.net(X), net(X))
    result = inr.fit(peak.net, X, Y, steps=20, lr=1e-2, regularizers=peak.regularizers, progress=False)
    assert result.losses[-1] < result.losses[0] and peak.coefficients != [1.0]
    wider = inr.PEAK(Foreign(6), X, degree=2, **FEW)
    assert wider.net(X).shape == (len(X), 1) and len(wider.coefficients) == 3
    with pytest.raises(ValueError, match=r"net \(Foreign\) does not take the 3 columns.*constant=False and degree=1"):
        inr.PEAK(net, X, constant=True, **FEW)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: inr.PEAK(3, X), TypeError, "net must be a torch.nn.Module"),
        (lambda: inr.PEAK(Foreign()), ValueError, "PEAK needs points, or in_features"),
        (lambda: inr.PEAK(network("relu"), X[:, :1]), ValueError, r"points must have shape \(N, 2\)"),
        (lambda: inr.PEAK(network("relu"), X.double()), TypeError, "points must have the network's dtype"),
        (lambda: inr.PEAK(network("relu"), X * math.inf), ValueError, "points must be finite"),
        (lambda: inr.PEAK(network("relu"), X, degree=0), ValueError, "degree must be at least 1"),
        (lambda: inr.PEAK(network("relu"), X, degree=2, coefficients=[1, 1, 0]), ValueError, "must be above 0 in .*fl"),
        (
            lambda: inr.PEAK(network("relu"), X, coefficients=[1, 1e-100]),
            ValueError,
            "must be above 0 in torch.float32",
        ),
        (lambda: inr.PEAK(network("relu"), X, degree=0, constant=False), ValueError, "degree must be at least 1"),
        (lambda: inr.PEAK(network("relu"), X, factor=-1.0), ValueError, "factor must be at least 0"),
        (lambda: inr.PEAK(network("relu"), X, coefficients=[1.0]), ValueError, "coefficients must hold .* 2 numbers"),
        (lambda: inr.PEAK(network("relu"), X, coefficients=[1.0, -1.0]), ValueError, "coefficients must be at least 0"),
        (lambda: inr.PEAK(network("relu"), X, rows=73), ValueError, "rows must be at most the number of points 72"),
        (lambda: inr.PEAK(network("relu"), X, depth=3), TypeError, "depth"),
    ],
)
def test_bad_input(make, error, match):
    with pytest.raises(error, match=match):
        make()
