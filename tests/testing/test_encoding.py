"""The check of encodings passes all of the library, and tells every planted fault by name."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from inrfast import INR
from inrfast.encodings import (
    ENCODINGS,
    Compose,
    Concatenate,
    Encoding,
    Identity,
    Polynomial,
    PositionalEncoding,
    RandomFourier,
    register,
)
from inrfast.testing import check_encoding

SIMPLE: st.SearchStrategy[Encoding] = st.one_of(
    st.just(Identity()),
    st.builds(PositionalEncoding, st.integers(1, 12)),
    st.builds(RandomFourier, st.integers(1, 6), st.floats(0.1, 20.0), trainable=st.booleans()),
    st.builds(lambda n: Polynomial(n, [1 / (k + 1) for k in range(n + 1)]), st.integers(0, 4)),
)
SOME: st.SearchStrategy[Encoding] = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, min_size=1, max_size=2).flatmap(
        lambda parts: st.sampled_from([Concatenate(*parts), Compose(*parts[:1], Polynomial(2))])
    ),
    max_leaves=4,
).filter(lambda encoding: encoding.columns(3) <= 60)


@given(SOME, st.integers(1, 3))
def test_every_encoding_of_the_library_passes(encoding: Encoding, d: int) -> None:
    check_encoding(encoding, d)


def test_given_frequencies_pass() -> None:
    check_encoding(RandomFourier(frequencies=[[1.0, 2.0], [0.1, -3.0]], trainable=True))


class Ramp(Encoding):
    """A sound encoding of two trained slopes, of which every fault below is one change."""

    def __init__(self, slope: float = 1.5) -> None:
        super().__init__()
        self.slope = slope
        self.out_features = 2

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Any:
        built = type(self)(self.slope)
        built.in_features = in_features
        draw = torch.randn(in_features, 2, generator=generator, dtype=torch.float64)
        built.weight = nn.Parameter((self.slope * draw).to(device, dtype))
        return built

    def columns(self, in_features: int) -> int:
        return 2

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "slope": self.slope}

    def forward(self, coords: Tensor) -> Tensor:
        return (coords @ self.weight).sin()


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def planted(message: str, **changes: Any) -> Any:
    kind = type("Planted", (Ramp,), changes)
    return pytest.param(kind, message, id=message)


def without_seed(self: Ramp, in_features: int, generator: Any, device: Any, dtype: Any) -> Ramp:
    return Ramp.build(self, in_features, torch.Generator(), device, dtype)


def own_seed(self: Ramp, *arguments: Any) -> Ramp:
    built: Ramp = Ramp.build(self, *arguments)
    with torch.no_grad():
        own = torch.Generator()
        own.seed()
        built.weight.copy_(torch.randn(built.weight.shape, generator=own))
    return built


def globally(self: Ramp, *arguments: Any) -> Ramp:
    torch.rand(1)
    built: Ramp = Ramp.build(self, *arguments)
    return built


def kept(self: Ramp, *arguments: Any) -> Ramp:
    built: Ramp = Ramp.build(self, *arguments)
    numbers = built.weight.detach()
    del built.weight
    built.weight = numbers
    return built


def oneself(self: Ramp, *arguments: Any) -> Ramp:
    vars(self).update(vars(Ramp.build(self, *arguments)))
    return self


def with_one_weight(self: Ramp, *arguments: Any) -> Ramp:
    built: Ramp = Ramp.build(self, *arguments)
    built.weight = self.weight = nn.Parameter(built.weight.detach().clone())
    return built


def in_place(self: Ramp, x: Tensor) -> Tensor:
    found = (x @ self.weight).sin()
    with torch.no_grad():
        x.mul_(2)
    return found


FAULTS = [
    planted("build.. must return a new encoding, but returns itself", build=oneself),
    planted("must return a new encoding, but shares the parameter 'weight'", build=with_one_weight),
    planted("must return an Encoding, got NoneType", build=lambda self, *arguments: None),
    planted("must not write into its argument", forward=in_place),
    planted("other values at its second call", forward=lambda self, x: (x @ self.weight).sin() + torch.rand(2)),
    planted("must return a dict of its name and its arguments, got NoneType", config=lambda self: None),
    planted("must have shape", forward=lambda self, x: (x @ self.weight)[..., :1]),
    planted("must return torch.float32", forward=lambda self, x: (x.double() @ self.weight.double()).sin()),
    planted("NaN or Inf", forward=lambda self, x: (x @ self.weight).log()),
    planted("every point must be mapped alone", forward=lambda self, x: (x - x[..., :1, :]) @ self.weight),
    planted("its derivative in the coordinates", forward=lambda self, x: (x.detach() @ self.weight).sin()),
    planted("its derivative in the parameter weight", forward=lambda self, x: (x @ self.weight.detach()).sin()),
    planted("its derivative", forward=lambda self, x: Wrong.apply(x @ self.weight)),
    planted(r"columns\(2\) is 3", columns=lambda self, d: 3),
    planted("two builds from the same seed differ", build=own_seed),
    planted("global generator", build=globally),
    planted(r"after \.double\(\), forward\(\) raises", build=kept),
    planted("gives other values", config=lambda self: {"name": "Planted", "slope": 1.0}),
    planted("plain values", config=lambda self: {"name": "Planted", "slope": (1.5,)}),
    planted("raises TypeError", config=lambda self: {"name": "Planted", "slope": torch.ones(1)}),
    planted("inrfast.encodings.register", config=lambda self: {"name": "Nameless", "slope": 1.5}),
    planted(r"from_config\(config\(\)\) raises ValueError", config=lambda self: {"name": "Planted", "tilt": 1.0}),
    planted(r"shapes\(2\)", shapes=lambda self, d: {"weight": (d,)}),
    planted(r"build\(\) raises RuntimeError", build=lambda self, *arguments: torch.ones(2) @ torch.ones(3)),
]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Let no class of these tests stay in the registry."""
    yield
    for name in ("Ramp", "Planted"):
        ENCODINGS._items.pop(name, None)


@pytest.mark.parametrize(("kind", "message"), FAULTS)
def test_planted_faults_are_named(kind: type[Ramp], message: str) -> None:
    register(kind)
    with pytest.raises(AssertionError, match=message):
        check_encoding(kind())


def test_an_encoding_of_ones_own_passes_once_it_is_registered() -> None:
    with pytest.raises(AssertionError, match=r"inrfast\.encodings\.register"):
        check_encoding(Ramp())
    check_encoding(register(Ramp)())
    with pytest.raises(ValueError, match="called 'Ramp' already"):
        register(type("Ramp", (Encoding,), {}))
    with pytest.raises(TypeError, match="subclass"):
        register(nn.Linear)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="must be an inrfast"):
        check_encoding(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("spelled", [*sorted(kind.spelling for kind in ENCODINGS.values() if kind.spelling), "a:b", 3])
def test_a_spelling_that_another_has_or_nobody_can_write_is_refused(spelled: Any) -> None:
    with pytest.raises(ValueError, match=f"the spelling.*{spelled}"):
        register(type("Planted", (Ramp,), {"spelling": spelled}))
    assert "Planted" not in ENCODINGS


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("must return a new encoding, but returns itself", {"build": oneself}),
        ("must return a new encoding, but shares the parameter 'weight'", {"build": with_one_weight}),
        ("must return an Encoding, got NoneType", {"build": lambda self, *arguments: None}),
        (r"must set out_features to its columns, the 3 of columns\(2\), got 2", {"columns": lambda self, d: 3}),
        (r"\(2, out_features\) = \(2, 2\), got \(2, 1\)", {"forward": lambda self, x: x[:, :1]}),
        ("does not take coordinates .2, 2.: RuntimeError", {"forward": lambda self, x: x @ torch.ones(3, 2)}),
    ],
)
@pytest.mark.parametrize("inside", [lambda one: one, Concatenate, lambda one: Compose(Identity(), one)])
def test_a_network_refuses_what_cannot_be_its_encoding(message: str, changes: dict[str, Any], inside: Any) -> None:
    kind = type("Planted", (Ramp,), changes)
    state = torch.random.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=f"encoding Planted.*{message}"):
        INR(2, 1, width=8, encoding=inside(kind()))
    INR(2, 1, width=8, encoding=inside(Ramp()))
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_no_encoding_and_one_that_is_not_built_are_told_how_it_is_done() -> None:
    for other in ("fourier", RandomFourier, "RandomFurier"):
        with pytest.raises(TypeError, match=r"encodings\.RandomFourier\(\.\.\.\), made of one of .*Polynomial.*; got"):
            INR(2, 1, encoding=other)  # type: ignore[arg-type]
    for encoding in (RandomFourier(2), Concatenate(RandomFourier(2)), Ramp()):
        with pytest.raises(AttributeError, match=r"is not built: INR\(encoding=\.\.\.\) builds it"):
            encoding(torch.zeros(3, 2))
