"""A loss is known by what it holds: what nobody trains is found wherever it is, and what changes it tells it apart."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.callables import attributes, described, different, uncompared, untrained
from inrfast.training.loop import fit

GLOBAL = nn.Linear(1, 1)
FACTOR = 2.0


def by_closure(held: Any) -> Callable[..., Tensor]:
    def loss(pred: Tensor, target: Tensor) -> Tensor:
        return held(pred - target).square().mean()

    return loss


def by_default(held: Any) -> Callable[..., Tensor]:
    def loss(pred: Tensor, target: Tensor, using: Any = held) -> Tensor:
        return using(pred - target).square().mean()

    return loss


def by_partial(held: Any) -> Callable[..., Tensor]:
    return functools.partial(lambda using, pred, target: using(pred - target).square().mean(), held)


class Holder:
    def __init__(self, held: Any) -> None:
        self.inside = {"some": [held]}

    def measure(self, pred: Tensor, target: Tensor) -> Tensor:
        return self.inside["some"][0](pred - target).square().mean()

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        return self.measure(pred, target)


class Learned(nn.Module):
    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = held

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return self.held(pred - target).square().mean()


def by_another_function(held: Any) -> Callable[..., Tensor]:
    inner = by_closure(held)
    return lambda pred, target: inner(pred, target)


WAYS: list[Callable[[Any], Callable[..., Tensor]]] = [
    by_closure,
    by_default,
    by_partial,
    Holder,
    lambda held: Holder(held).measure,
    Learned,
    by_another_function,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: getattr(way, "__name__", "way"))
def test_a_module_that_nobody_trains_is_found_wherever_it_is(way: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 1))
    module = nn.Linear(1, 1)
    assert len(untrained(way(module), [net])) == 1
    module.weight.requires_grad_(False)
    assert len(untrained(way(module), [net])) == 1  # the bias asks still
    assert untrained(way(module.requires_grad_(False)), [net]) == []
    net.add_module("judge", module.requires_grad_(True))
    assert untrained(way(module), [net]) == []


def test_globals_and_bare_tensors_are_found_and_what_losses_usually_hold_is_not() -> None:
    net, scale = nn.Linear(2, 1), torch.ones((), requires_grad=True)
    assert untrained(lambda pred, target: GLOBAL(pred - target).mean(), [net]) == ["GLOBAL (Linear)"]
    assert untrained(lambda pred, target: (scale * (pred - target)).mean(), [net]) == ["scale (tensor ())"]
    fixed, points = scale.detach(), torch.rand(5, 2)
    for fine in (
        nn.MSELoss(),
        nn.functional.l1_loss,
        lambda pred, target: (net(points) * fixed * FACTOR).mean() + torch.sin(pred).mean() * math.pi,
    ):
        assert untrained(fine, [net]) == []


def test_a_fit_says_what_it_does_not_train() -> None:
    x = inr.grid((5, 5))
    with pytest.warns(UserWarning, match="the loss holds held .Linear., which the fit does not train") as caught:
        fit(inr.INR(2, 1, width=4), x, x[:, :1], steps=1, loss=by_closure(nn.Linear(1, 1)))
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(inr.INR(2, 1, width=4), x, x[:, :1], steps=1, loss=by_closure(nn.Identity()))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=3,
)


@given(one=VALUES, other=VALUES)
def test_callables_of_one_text_differ_if_and_only_if_what_they_hold_does(one: Any, other: Any) -> None:
    for way in (by_closure, by_default, by_partial, Holder):
        first, same, second = (described(way(held)) for held in (one, one, other))
        assert different(first, same) == []
        assert (first == second) == (repr(one) == repr(other)) or isinstance(one, dict) or isinstance(other, dict)
    tensor = torch.tensor([1.0, 2.0])
    assert described(by_closure(tensor)) == described(by_closure(tensor.clone()))
    assert described(by_closure(tensor)) != described(by_closure(tensor + 1e-6))


def test_code_is_compared_by_what_it_does() -> None:
    def one(pred: Tensor, target: Tensor) -> Tensor:
        return (pred - target).abs().mean()

    first = described(one)

    def one(pred: Tensor, target: Tensor) -> Tensor:  # type: ignore[no-redef]
        """With a docstring now."""
        return (pred - target).abs().mean()

    assert different(described(one), first) == []
    for other in (lambda p, t: (p - t).square().mean(), lambda p, t: (p - t).abs().sum()):
        assert different(described(other), first) == ["code"]
    assert different({"code": "python3.9 abc"}, {"code": "python3.10 abd"}) == []  # another Python's instructions


class Wave(nn.Module):
    def __init__(self, omega: float, table: Tensor) -> None:
        super().__init__()
        self.omega, self.table, self.layer = omega, table, nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.layer(x)) + self.table.sum()


def test_modules_of_one_text_differ_by_their_attributes_and_code() -> None:
    def mine(omega: float = 1.0, table: Tensor | None = None) -> dict[str, str]:
        return attributes(nn.Sequential(Wave(omega, torch.ones(2) if table is None else table)))

    assert different(mine(), mine()) == []
    assert different(mine(), mine(2.0)) == ["0.omega (now 1.0, in the checkpoint 2.0)"]
    assert [entry.split(" ")[0] for entry in different(mine(), mine(1.0, torch.zeros(2)))] == ["0.table"]
    before = mine()
    original = Wave.forward
    try:
        Wave.forward = lambda self, x: self.layer(x)  # type: ignore[method-assign, assignment]
        assert different(mine(), before) == ["class Wave"]
    finally:
        Wave.forward = original  # type: ignore[method-assign]


class Box:
    """An object that is no callable and holds something, and itself."""

    def __init__(self, held: Any) -> None:
        self.held, self.itself = held, self


def test_what_containers_and_objects_hold_is_compared_and_what_cannot_be_is_named() -> None:
    inside: list[Callable[[Any], Any]] = [
        lambda value: [torch.full((2,), float(value))],
        lambda value: {"a": (np.full(2, value), value)},
        lambda value: Box(Box(value)),
        lambda value: [Box({1: torch.tensor(value)})],
        lambda value: np.float32(value),
        lambda value: slice(value),
        lambda value: by_closure(Box(value)),
    ]
    for make in inside:
        for way in (by_closure, by_default, by_partial, Holder):
            one, same, other = (described(way(make(value))) for value in (1, 1, 2))
            assert different(one, same) == []
            assert len(different(one, other)) >= 1
            assert uncompared(one, same) == []
    for unknown in (torch.Generator(), iter([1]), object()):
        (name,) = uncompared(*[described(by_closure([Box(unknown)]))] * 2)
        assert name == f"held[0].held (an object of {type(unknown).__qualname__})"
    assert uncompared({"code": "python3.9 abc"}, {"code": "python3.10 abd"}) == []  # of neither is this Python
