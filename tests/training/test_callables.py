"""A loss is known by what it holds: what nobody trains is found wherever it is, and what changes it tells it apart."""

import functools
import math
import os
import sys
import textwrap
import types
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
from inrfast.training.fit import fit

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


def test_a_fit_refuses_what_it_does_not_train() -> None:
    x = inr.grid((5, 5))
    for held, refused in (
        (nn.Linear(1, 1), True),
        (nn.Linear(1, 1).requires_grad_(False), False),
        (nn.Identity(), False),
    ):
        options: dict[str, Any] = {"steps": 1, "loss": by_closure(held)}
        if refused:
            with pytest.raises(ValueError, match=r"loss holds held \(Linear\), which asks to be trained.*modules="):
                fit(inr.INR(2, 1, width=4), x, x[:, :1], **options)
            with pytest.raises(ValueError, match="by name, modules"):
                inr.fit_many([inr.INR(2, 1, width=4)], x, x[:, :1], **options)
        fit(inr.INR(2, 1, width=4), x, x[:, :1], **options, modules=[held] if refused else [])


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


WRITTEN = {
    "method of the class": "class L(Base):\n    def w(self): return {v}",
    "method of a base": "class B(Base):\n    def w(self): return {v}\nclass L(B): pass",
    "another base": "class Q: v = 1.0\nclass R: v = 2.0\nclass L({q}, Base): w = lambda self: self.v",
    "static method": "class L(Base):\n    @staticmethod\n    def s(): return {v}\n    def w(self): return self.s()",
    "class method": "class L(Base):\n    @classmethod\n    def s(cls): return {v}\n    w = lambda self: self.s()",
    "property": "class L(Base):\n    v = property(lambda self: {v})\n    w = lambda self: self.v",
    "closure of a method": "def f(v):\n    class L(Base):\n        def w(self): return v\n    return L\nL = f({v})",
    "default of a method": "class L(Base):\n    def w(self, v={v}): return v",
    "attribute of the class": "class L(Base):\n    c = {v}\n    w = lambda self: self.c",
    "array of the class": "class L(Base):\n    c = torch.tensor([{v}])\n    w = lambda self: self.c",
    "slots": "class L(Base):\n    __slots__ = '__c'\n    def __init__(s): s.__c = {v}\n    w = lambda s: s.__c",
    "slots of data": "@dataclass(slots=True)\nclass L(Base):\n    c: float = 0.0\nM = L\nL = lambda: M({v})",
    "an own method": "class L(Base):\n    w = None\n    def __init__(self): self.w = lambda: {v}",
    "global class": "class Cfg: c = {v}\nclass L(Base):\n    w = lambda self: Cfg.c",
    "global object": "class G: __slots__ = 'c'\ng = G()\ng.c = {v}\nclass L(Base):\n    w = lambda self: g.c",
    "global module": "import inrfast_settings\nclass L(Base):\n    w = lambda self: inrfast_settings.K",
    "module inside": "class L(Base):\n    def w(self):\n        import inrfast_settings as s\n        return s.K",
    "function of a module": "import inrfast_settings as s\nclass L(Base):\n    w = lambda self: s.f()",
    "attribute of a function": "def f(): return f.k\nf.k = {v}\nclass L(Base):\n    w = lambda self: f()",
    "environment": "import os\nclass L(Base):\n    w = lambda self: float(os.environ['INRFAST_K'])",
    "class of the class": "class M(type): c = {v}\nclass L(Base, metaclass=M):\n    w = lambda s: type(type(s)).c",
    "part of a method": "from functools import partialmethod\n"
    "class L(Base):\n    v = lambda self, k: k\n    w = partialmethod(v, {v})",
    "queue": "from collections import deque\nclass L(Base):\n    c = deque([{v}])\n    w = lambda self: self.c[0]",
    "its function": "from os import getenv\nclass L(Base):\n    w = lambda self: float(getenv('INRFAST_K', 1))",
}
"""Losses whose number ``w`` depends on ``{v}`` in one way each."""


def written(text: str, value: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a loss of this text, in a module of its own."""
    settings = types.ModuleType("inrfast_settings")
    exec(f"K = {value}\ndef f(): return {value}", vars(settings))
    monkeypatch.setitem(sys.modules, "inrfast_settings", settings)
    monkeypatch.setenv("INRFAST_K", str(value))
    module = types.ModuleType("users")
    monkeypatch.setitem(sys.modules, "users", module)
    base = """
        import torch
        from dataclasses import dataclass
        class Base:
            __slots__ = ()
            def __call__(self, pred, target): return (self.w() * (pred - target)).abs().mean()
            def w(self): return self.c
        """
    exec(textwrap.dedent(base) + text.format(v=value, q="Q" if value == 1 else "R"), vars(module))
    return module.L()


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_loss_reaches_in_any_way_tells_it_from_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value differs if and only if its description does; and one of the same text is the same."""
    pred, target = torch.ones(3), torch.zeros(3)
    losses, texts = [], []
    for value in (1.0, 1.0, 2.0):
        loss = written(WRITTEN[name], value, monkeypatch)
        losses.append(float(loss(pred, target)))
        texts.append(described(loss))
    assert losses == [1.0, 1.0, 2.0]
    one, same, other = texts
    assert different(same, one) == [] and one.keys() == same.keys()
    assert different(other, one) != []
    assert uncompared(same, one) == []


NAMESAKES = {
    "method": "scale = {v}\nclass L(Base):\n    w = lambda self: self.scale()\n    scale = lambda self: 1.0",
    "attribute": "class scale: c = {v}\nclass L(Base):\n    scale = 1.0\n    w = lambda self: self.scale",
    "inside": "scale = {v}\nclass L(Base):\n    def w(self): return [s.real for s in (1.0,) if self.scale][0]\n"
    "    scale = True",
    "keyword": "scale = {v}\nclass L(Base):\n    w = lambda self: dict(scale=1.0)['scale']",
}
"""Losses in whose code the name of a global stands, as that of something else."""


@pytest.mark.parametrize("name", NAMESAKES)
def test_what_only_has_the_name_of_a_global_is_not_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (described(written(NAMESAKES[name], value, monkeypatch)) for value in (1.0, 2.0))
    assert one == other


net = nn.Linear(1, 1)
"""A module that nobody trains, of a name that losses use for parts of others."""


def test_a_part_of_a_module_is_not_the_global_of_its_name() -> None:
    x, holder = inr.grid((5, 5)), nn.ModuleDict({"net": nn.Linear(1, 1)})

    def loss(pred: Tensor, target: Tensor, modules: Any) -> Tensor:
        return modules[0].net(pred - target).square().mean()

    fit(inr.INR(2, 1, width=4), x, x[:, :1], steps=1, loss=loss, modules=[holder])


def test_no_more_of_the_environment_is_compared_than_code_names(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for value in ("1", "2"):
        monkeypatch.setenv("INRFAST_OTHER", value)
        texts.append([described(written(WRITTEN[name], 1.0, monkeypatch)) for name in ("environment", "its function")])
    assert texts[0] == texts[1]
    assert not any(os.environ["PATH"] in text for own in texts[0] for text in own.values())


HOOKS: dict[str, Callable[[Any, Callable[..., Any]], object]] = {
    "forward": lambda net, hook: net[0].register_forward_hook(hook),
    "forward of all": lambda net, hook: net.register_forward_hook(hook, with_kwargs=True),
    "before": lambda net, hook: net[1].register_forward_pre_hook(hook),
    "backward": lambda net, hook: net[0].register_full_backward_hook(hook),
    "before backward": lambda net, hook: net[0].register_full_backward_pre_hook(hook),
    "gradient": lambda net, hook: net[0].weight.register_hook(hook),
    "after gradient": lambda net, hook: net[0].bias.register_post_accumulate_grad_hook(hook),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_tell_modules_apart(name: str) -> None:
    def hook(k: float) -> Callable[..., Any]:
        return lambda *given: k

    def mine(*factors: float) -> dict[str, str]:
        net = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
        for k in factors:
            HOOKS[name](net, hook(k))
        return attributes(net)

    assert different(mine(1.0), mine(1.0)) == []
    (entry,) = different(mine(2.0), mine(1.0))
    assert "hooks[0].k (now 2.0, in the checkpoint 1.0)" in entry
    for more, fewer in (((1.0,), ()), ((1.0, 1.0), (1.0,))):
        for now, then in ((more, fewer), (fewer, more)):
            assert [entry.split(" ")[0] for entry in different(mine(*now), mine(*then))] == ["hooks"]


def subclassed(k: float) -> type[inr.INR]:
    class Scaled(inr.INR):
        def forward(self, coords: Tensor) -> Tensor:
            return super().forward(coords) * k

    return Scaled


def test_subclasses_of_a_network_of_ours_are_told_apart() -> None:
    def mine(kind: type[inr.INR]) -> dict[str, str]:
        return attributes(kind(2, 1, width=4))

    assert different(mine(subclassed(1.0)), mine(subclassed(1.0))) == []
    (entry,) = different(mine(subclassed(2.0)), mine(subclassed(1.0)))
    assert "Scaled.forward.k (now 2.0" in entry
    for now, then in ((inr.INR, subclassed(1.0)), (subclassed(1.0), inr.INR)):
        assert any(entry.startswith("__class__ (now ") for entry in different(mine(now), mine(then)))
    net = inr.INR(2, 1, width=4)
    before = attributes(net)
    net.forward = lambda coords: coords  # type: ignore[method-assign]
    assert different(attributes(net), before) == ["overrides (now forward, in the checkpoint none)"]
