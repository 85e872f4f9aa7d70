"""Every result of the library becomes plain values that JSON takes, and holds the numbers of its fields."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import inrfast as inr
from inrfast import public
from inrfast.encodings.hash_grid import HashGrid
from inrfast.records import MOST, Record, brief, plain
from inrfast.training.callbacks import TrackNTK

POINTS = inr.grid((5, 6), dtype=torch.float64)
WAVE = torch.sin(20 * inr.grid(256))
SINE = {"activation": "sine", "init": "siren", "omega": 5.0}
MAPPING = inr.RandomFourier(frequencies=[[1.0]])
SINES = inr.INR(1, 1, width=4, hidden_layers=1, activation="sine", omega=1.0, encoding=MAPPING, dtype=torch.float64)


def network(seed: int = 0) -> inr.INR:
    return inr.INR(2, 1, width=8, hidden_layers=2, activation="sine", init="siren", dtype=torch.float64, seed=seed)


def kernel() -> inr.NTK:
    return inr.ntk(network(), POINTS)


def fit(lr: float = 1e-3) -> list[inr.FitResult]:
    targets = [POINTS[:, :1] * 0, POINTS[:, :1] / 2]
    return inr.fit_many([network(), network(1)], POINTS, targets, steps=4, lr=[lr, 1e-3], progress=False)


def tracked() -> Any:
    track = TrackNTK(points=8)
    inr.fit(network(), POINTS, POINTS[:, :1], steps=2, callbacks=[track], progress=False)
    return track.history


def choice() -> inr.Choice:
    return inr.choose(WAVE, candidates=[SINE], points=64, width=8, hidden_layers=1, progress=False)


def watched() -> inr.Watch:
    net = network()
    seen = inr.watch(net, POINTS, every=1)
    for loss in (1.0, math.nan):
        seen.step(loss)
    return seen


def reconstruction() -> Any:
    operator = inr.inverse.FourierMagnitude((5, 6), 1.5)
    truth = POINTS[:, 0].reshape(5, 6) / 4 + 0.5
    return inr.inverse.net_adm(network(), operator, operator(truth), 2, 2, target=truth, progress=False)


def scene() -> Any:
    encoding = HashGrid(levels=2, table_size=2**6, coarsest=2, finest=4)
    views = inr.scenes.Views(torch.full((2, 3, 3, 4), 0.5), inr.scenes.sphere_of_cameras(2, 3, 3))
    own = inr.scenes.RadianceField(encoding=encoding, width=4, features=2)
    return inr.scenes.fit_scene(views, 2, field=own, held_out=views, samples=4, cells=4, progress=False)


RESULTS = {
    "Reconstruction": reconstruction,
    "SceneResult": scene,
    "Composited": lambda: inr.scenes.render(scene().renderer, inr.scenes.sphere_of_cameras(1, 2, 3)[0]),
    "Watch": watched,
    "WatchRecord": lambda: watched().history,
    "Applied": lambda: inr.init.apply_(network(), "siren", coords=POINTS),
    "RankInterval": lambda: inr.numerical_rank(POINTS, 1e-3),
    "Spectrum": lambda: kernel().spectrum(eigenvectors=True),
    "a spectrum of counts": lambda: kernel().spectrum(method="inertia", levels=[1.0]),
    "a spectrum of estimates": lambda: kernel().spectrum(method="quadrature"),
    "Factorization": lambda: kernel().factor(-1.0),
    "FitResult": fit,
    "a fit that diverges": lambda: fit(1e300),
    "MetaResult": lambda: inr.meta_learn(network(), POINTS, POINTS.t().reshape(2, 30, 1), steps=2, batch=1),
    "AdaptResult": lambda: inr.adapt(network(), POINTS, POINTS.t().reshape(2, 30, 1)),
    "Energy": lambda: inr.dictionary(network(), POINTS).energy(POINTS[:, 0]),
    "KernelNorm": lambda: inr.dictionary(network(), POINTS).kernel_norm(POINTS[:, 0]),
    "Dictionary": lambda: inr.dictionary(network(), POINTS),
    "Aliasing": lambda: inr.aliasing(SINES, 8, 16),
    "KernelRegression": lambda: inr.kernel_regression(kernel(), POINTS, kernel().to_dense()[:3]),
    "InfiniteNTK": lambda: inr.infinite_ntk(2, bias_variance=0.1),
    "DotProductEncoding": lambda: inr.dot_product_encoding(inr.infinite_ntk(1), inr.infinite_ntk(1)),
    "TwoLayerVariance": lambda: inr.two_layer_variance(POINTS, 8),
    "NTKVariance": lambda: inr.variance(network(), POINTS, progress=False),
    "Cost": lambda: kernel().cost(),
    "TrackedKernel": tracked,
    "DiagnosisReport": lambda: inr.diagnose(network(), POINTS, progress=False),
    "Representation": lambda: inr.representation(network(), POINTS, "input", progress=False),
    "Choice": choice,
    "Candidate": lambda: choice().best,
    "BesselSeries": lambda: inr.bessel_series(SINES),
    "Restored": lambda: inr.upscale(torch.rand(4, 4), 2, steps=2, progress=False),
    "InputMapping": lambda: inr.harmonics.input_mapping(network_of_frequencies()),
}


def network_of_frequencies() -> inr.INR:
    return inr.INR(1, 1, width=8, encoding=inr.RandomFourier(frequencies=[[1.0], [2.0]]))


def same(held: Any, value: Any) -> bool:
    """Return whether a plain value says what a field holds."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return isinstance(held, list) and len(held) == len(value) and all(map(same, held, value))
    if isinstance(value, Mapping):
        return list(held) == [str(key) for key in value] and all(map(same, held.values(), value.values()))
    if isinstance(value, float) and not math.isfinite(value):
        return held is None
    if isinstance(value, complex):
        return complex(*held) == value
    if isinstance(value, bool | int | float | str | None):
        return held == value
    return (dataclasses.is_dataclass(value) and not hasattr(value, "line") and holds(held, value)) or bool(held)


def holds(held: Mapping[str, Any], result: Any) -> bool:
    left = getattr(result, "left_out", ())
    named = {own.name for own in dataclasses.fields(result)}
    return named - set(left) == named & set(held) and all(
        same(held[name], getattr(result, name)) for name in named - set(left)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RESULTS)
def test_json_takes_every_result(name):
    found = RESULTS[name]()
    for result in found if isinstance(found, list) else [found]:
        held = result.to_dict()
        assert json.loads(json.dumps(held, allow_nan=False)) == held
        if dataclasses.is_dataclass(result):
            assert isinstance(result, Record) and holds(held, result)
            assert all(hasattr(result, left) for left in result.left_out)


def test_no_public_result_is_forgotten():
    """Dataclasses are results; other classes are networks, their parts, and operators."""
    named = {name: getattr(public, name) for name in public.__all__}
    results = {name for name, own in named.items() if inspect.isclass(own) and dataclasses.is_dataclass(own)}
    results |= {name for name, own in named.items() if inspect.isclass(own) and hasattr(own, "to_dict")}
    assert results <= set(RESULTS), "add one to RESULTS"
    assert all(hasattr(named[name], "to_dict") for name in results)


def test_plain_values():
    @dataclasses.dataclass
    class Inner:
        number: complex

    given = {
        1: (math.nan, math.inf, -math.inf, np.float32(0.5), np.longdouble(1), np.int8(3), True, None),
        "words": [torch.float32, torch.device("cpu"), Path("a/b"), ValueError("bad"), math.sin, torch.nn.ReLU(), Inner],
        "parts": {"set": {1}, "inner": Inner(1 + 2j), "array": np.ones((1, 2)), "grad": torch.ones(2).requires_grad_()},
    }
    assert plain(given) == {
        "1": [None, None, None, 0.5, 1.0, 3, True, None],
        "words": ["float32", "cpu", "a/b", "bad", "sin", "ReLU", "test_plain_values.<locals>.Inner"],
        "parts": {"set": [1], "inner": {"number": [1.0, 2.0]}, "array": [[1.0, 1.0]], "grad": [1.0, 1.0]},
    }


class Products(TorchDispatchMode):
    """Collects the names of what torch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*RESULTS, "NTK", "LayerwiseJacobian", "OptimalKernel"])
def test_a_result_in_a_line_prints_no_array_and_computes_nothing(name):
    others = {
        "NTK": kernel,
        "LayerwiseJacobian": lambda: inr.jacobian(network(), POINTS),
        "OptimalKernel": lambda: inr.optimal_kernel(POINTS.t()),
    }
    found = (RESULTS | others)[name]()
    for result in found if isinstance(found, list) else [found]:
        with Products() as computed:
            shown = repr(result)
        assert shown.startswith(type(result).__name__ + "(") and shown.endswith(")")
        assert "\n" not in shown and len(shown) <= MOST
        assert "tensor(" not in shown and "array(" not in shown
        assert not {own for own in computed.names if "mm" in own or "linalg" in own or "mul" in own}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(torch.zeros, st.integers(0, 9)),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@given(st.lists(VALUES, min_size=1, max_size=20))
def test_a_line_stays_short_whatever_a_result_holds(values):
    made = dataclasses.make_dataclass("Made", [f"field_{i}" for i in range(len(values))], bases=(Record,))
    shown = repr(made(*values))
    assert len(shown) <= MOST and len(shown.splitlines()) == 1
    assert shown.startswith(f"Made(field_0={brief(values[0])}")


def test_a_result_keeps_the_line_that_its_class_or_its_parent_writes():
    @dataclasses.dataclass
    class Parent(Record):
        number: int

        def __repr__(self):
            return "mine"

    @dataclasses.dataclass
    class Child(Parent):
        other: int = 2

    assert repr(Parent(1)) == repr(Child(1)) == "mine"
