"""Registries take things of their kind under their own names and nothing else; pickles and functions keep to names."""

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_networks import registered
from torch import nn

import inrfast as inr
from inrfast.activations import ACTIVATIONS, DEVICE, NATIVE, Activation, BoundActivation, register
from inrfast.encodings import ENCODINGS, Encoding
from inrfast.importing import LAYOUTS
from inrfast.kernels import activations as device_functions
from inrfast.kernels import losses as device_losses
from inrfast.layers import LAYERS, Layer
from inrfast.linalg.preconditioners import PRECONDITIONERS
from inrfast.losses import LOSSES, NAMED, Loss
from inrfast.norms import NORMS, Norm
from inrfast.registry import Registry
from inrfast.signals.kinds import SIGNALS
from inrfast.training.optimizers import OPTIMIZERS, Optimizer

REGISTRIES = [ACTIVATIONS, ENCODINGS, LAYERS, LAYOUTS, PRECONDITIONERS, LOSSES, NORMS, SIGNALS, OPTIMIZERS]

PLAIN = Activation("plain", torch.cos, lambda u: -torch.sin(u))


class Halves(Norm):
    """Lacks its methods."""


class Momentum(Optimizer):
    pass


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
@pytest.mark.parametrize("junk", [3, "rubbish", nn.Tanh(), torch.optim.SGD, None])
def test_what_is_of_another_kind_is_refused(registry: Registry[Any], junk: Any) -> None:
    if registry is PRECONDITIONERS and callable(junk):
        return  # a function is all that one is
    before = dict(registry)
    with pytest.raises(TypeError, match=f"{registry.kind} must be"):
        registry.add("rubbish", junk)
    assert dict(registry) == before


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_a_thing_of_ones_own_can_be_replaced_one_of_the_library_cannot(
    registry: Registry[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_items", dict(registry))
    name, item = next(iter(registry.items()))
    called = registry.called

    def another(name: str) -> Any:
        if registry is ENCODINGS:  # no other may have its spelling
            return type(name, (item,), {"spelling": ""} if name == "mine" else {})
        if isinstance(item, type):
            return type(name, (item,), {called: name} if called == "kind" else {})
        if registry is SIGNALS:
            return replace(item, ending=".mine", readable=lambda: [".mine"])
        return replace(item, name=name) if called else lambda system: None

    with pytest.raises(ValueError, match=f"called '{name}' already; take another name$"):
        registry.add(name, another(name), replace=True)
    first, second = another("mine"), another("mine")
    assert registry.add("mine", first) is first
    assert registry.add("mine", first) is first
    with pytest.raises(ValueError, match=r"called 'mine' already; .*replace=True"):
        registry.add("mine", second)
    assert registry.add("mine", second, replace=True) is registry["mine"] is second
    with pytest.raises(ValueError, match="must be an identifier"):
        registry.add("not mine", another("mine"))
    if called:
        with pytest.raises(ValueError, match=f"under its own name, {called}='mine', got 'yours'"):
            registry.add("yours", second)


def test_a_name_of_the_librarys_own_is_taken_before_the_first_look() -> None:
    fresh: Registry[Any] = Registry("norm", "inrfast.norms", Norm, classes=True)
    fresh._completed = lambda: fresh._items.setdefault("batch", NORMS["batch"])  # type: ignore[assignment,method-assign]
    with pytest.raises(ValueError, match="called 'batch' already"):
        fresh.add("batch", NORMS["sphere"])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: NORMS.add("halves", Halves), TypeError, "Halves misses backward, forward, make, of, slope"),
        (lambda: register(nn.Tanh()), TypeError, "activation must be an instance of inrfast.activations.Activation"),
        (lambda: replace(PLAIN, numbers=["a"]), TypeError, "numbers of plain must be a mapping"),
        (lambda: replace(PLAIN, numbers={"a": "1"}), TypeError, "number 'a' of plain must be a number"),
        (lambda: replace(PLAIN, numbers={3: 1.0}), ValueError, "called by an identifier, got 3"),
        (lambda: replace(PLAIN, value=3), TypeError, "value of plain must be a function, got 3"),
        (lambda: replace(PLAIN, in_place=3), TypeError, "in_place of plain must be a function"),
        (lambda: replace(PLAIN, signed=("q",)), ValueError, "signed of plain must be a tuple of names"),
        (lambda: replace(PLAIN, signed="q"), ValueError, "signed of plain"),
        (lambda: replace(PLAIN, name="a b"), ValueError, "name of an activation must be an identifier"),
        (lambda: replace(PLAIN, bound="1"), TypeError, "bound of plain must be a number"),
        (lambda: replace(PLAIN, native="rellu"), ValueError, "native of plain must be one of .*Did you mean 'relu'"),
        (lambda: replace(PLAIN, device="sinne"), ValueError, "device of plain must be one of .*Did you mean 'sine'"),
        (lambda: replace(PLAIN, native="tanh"), ValueError, "native of plain must be one of"),
        (lambda: replace(PLAIN, native="wire"), ValueError, "function of 2 numbers, but it has 0: none"),
        (lambda: replace(PLAIN, device="relu", numbers={"a": 1.0}), ValueError, "of 0 numbers, but it has 1: a"),
        (lambda: Loss("own", 3, abs), TypeError, "value of own must be a function"),
        (lambda: Loss("own", abs, abs, ["a"]), TypeError, "numbers of own must be a mapping"),
        (lambda: Loss("own", abs, abs, {"a": -1.0}), ValueError, "number 'a' of own must be above 0"),
        (lambda: Loss("own", abs, abs, targets=3), ValueError, "targets of own must be"),
        (lambda: Loss("own", abs, abs, native="huber"), ValueError, "function of 1 numbers, but it has 0"),
        (lambda: Loss("own", abs, abs, triton="msee"), ValueError, "triton of own must be one of .*'mse'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_the_tables_of_functions_are_those_of_the_sources() -> None:
    source = Path(inr.__file__).parents[1] / "csrc" / "mlp_step_activations.h"
    for table, field in ((NATIVE, "native"), (DEVICE, "device")):
        named = {getattr(kind, field): len(kind.numbers) for kind in ACTIVATIONS.values()}
        assert {name: count for name, count in named.items() if name} == table
        assert all(getattr(kind, field) in (None, name) for name, kind in ACTIVATIONS.items())
    if source.exists():
        (names,) = re.findall(r"kActivationNames\[\] = \{(.*?)\}", source.read_text())
        assert sorted(re.findall(r'"(\w+)"', names)) == sorted(NATIVE)
    assert all(getattr(device_functions, name.upper()).value == name for name in DEVICE)
    assert {name: len(loss.numbers) for name, loss in LOSSES.items()} == NAMED
    assert all(getattr(device_losses, name.upper()).value == name for name in NAMED)


def test_pickles_keep_numbers_by_name() -> None:
    def kind(*names: str) -> Activation:
        return Activation("pair", lambda u, a, b: u, lambda u, a, b: u, dict.fromkeys(names, 1.0))

    with registered(kind("a", "b")) as first:
        net = inr.INR(2, 1, width=4, activation={"name": "pair", "a": 2.0, "b": 3.0})
        kept, whole = pickle.dumps(first.bind(a=2.0, b=3.0)), pickle.dumps(net)
        assert pickle.loads(kept) == first.bind(a=2.0, b=3.0)
    with registered(kind("b", "a")) as second:
        assert pickle.loads(kept) == second.bind(a=2.0, b=3.0)
        assert pickle.loads(whole).bound_activations[0].named == {"a": 2.0, "b": 3.0}
    for other in (kind("a"), kind("a", "b", "c"), kind("a", "c")):
        with registered(other), pytest.raises(ValueError, match="'pair' was pickled with a, b, but the one registered"):
            pickle.loads(kept)


def test_pickles_of_versions_that_kept_no_names_are_read() -> None:
    sine, old = ACTIVATIONS["sine"], object.__new__(BoundActivation)
    old.__setstate__({"kind": sine, "numbers": (5.0,)})
    assert old == sine.bind(omega=5.0)
    for numbers in ((), (1.0, 2.0)):
        with pytest.raises(ValueError, match="'sine' was pickled with"):
            old.__setstate__({"kind": sine, "numbers": numbers})


class Odd(Layer):
    """Knows no name of its own."""


def test_a_layer_must_know_its_name() -> None:
    with pytest.raises(ValueError, match="kind=None, got 'odd'"):
        LAYERS.add("odd", Odd)


def test_an_encoding_replaces_one_of_ones_own() -> None:
    kinds = [type("Again", (Encoding,), {}) for _ in range(2)]
    try:
        inr.encodings.register(kinds[0])
        assert inr.encodings.register(kinds[1], replace=True) is ENCODINGS["Again"]
    finally:
        ENCODINGS._items.pop("Again", None)


def _wide(u: torch.Tensor) -> torch.Tensor:
    return u.relu().double()


WRONG = {
    "shape": (ValueError, lambda u: u[..., :1].relu(), lambda f, y: (f - y)[..., :1].abs()),
    "scalar": (ValueError, lambda u: u.relu().mean(), lambda f, y: (f - y).abs().mean()),
    "number": (TypeError, lambda u: 1.0, lambda f, y: 1.0),
}


def _fit(**options: Any) -> Any:
    net = inr.INR(2, 3, width=4, hidden_layers=2, activation=options.pop("activation", "relu"))
    return inr.fit(net, torch.rand(20, 2), torch.rand(20, 3), steps=2, progress=False, **options)


@pytest.mark.parametrize("field", ["value", "slope"])
@pytest.mark.parametrize("wrong", WRONG)
def test_functions_of_ones_own_that_return_another_shape_stop_the_fit(wrong: str, field: str) -> None:
    error, activation, loss = WRONG[wrong]
    with (
        registered(replace(PLAIN, **{field: activation})),
        pytest.raises(error, match=f"{field} of the activation 'pl"),
    ):
        _fit(activation="plain")
    LOSSES.add("plain", replace(Loss("plain", lambda f, y: (f - y).abs(), torch.sub), **{field: loss}))
    try:
        with pytest.raises(error, match=f"{field} of the loss 'plain' must return"):
            _fit(loss="plain")
    finally:
        del LOSSES._items["plain"]


@pytest.mark.parametrize("field", ["value", "slope"])
def test_another_dtype_does_not_go_unseen_in_place(field: str) -> None:
    own, u = replace(PLAIN, **{field: _wide}).bind(), torch.rand(3, 2)
    with pytest.raises(TypeError, match=f"{field} of the activation 'plain' must return torch.float32"):
        own.in_place(u, u.clone(), u.clone())
    with registered(own.kind), pytest.raises(TypeError, match=f"{field} of the activation 'plain'"):
        _fit(activation="plain")


def test_an_optimiser_that_moves_by_another_shape_stops_the_fit() -> None:
    class Wrong(Optimizer):
        def step(self, rates: Any, again: Any) -> None:
            for name, grad in self.stack.grads.items():
                self.move(name, grad.mean(), rates)

    OPTIMIZERS.add("wrong", Wrong)
    try:
        with pytest.raises(ValueError, match=r"direction of layers.0.weight must be a tensor of shape \(1, 4, 2\)"):
            _fit(optimizer="wrong")
    finally:
        del OPTIMIZERS._items["wrong"]
