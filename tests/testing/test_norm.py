"""The check of norms passes all of the library, at any width, and tells every planted fault by name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inrfast.norms import NORMS, Norm, NormFactors, NormSlope, norm_of
from inrfast.norms.layer import LayerNorm
from inrfast.testing import check_norm


@settings(max_examples=12)
@given(st.sampled_from(sorted(NORMS)), st.integers(1, 12))
def test_every_norm_of_the_library_passes(name: str, width: int) -> None:
    check_norm(NORMS[name], width)


class WrongValues(LayerNorm):
    def forward(self, u: Tensor) -> tuple[Tensor, Any]:
        values, state = super().forward(u)
        return 2 * values, state


class WrongSlope(LayerNorm):
    def slope(self, state: Any) -> NormSlope:
        found = super().slope(state)
        assert found.directions is not None
        return NormSlope(found.left, found.directions[:, :1])


class WrongBackward(LayerNorm):
    def backward(self, gradient: Tensor, state: Any) -> tuple[Tensor, NormFactors]:
        below, factors = super().backward(gradient, state)
        return below + 1e-6, factors


class WrongFactors(LayerNorm):
    def backward(self, gradient: Tensor, state: Any) -> tuple[Tensor, NormFactors]:
        below, factors = super().backward(gradient, state)
        return below, factors._replace(normalised=2 * factors.normalised)


class NoFactors(LayerNorm):
    def backward(self, gradient: Tensor, state: Any) -> Any:
        return super().backward(gradient, state)[0], None


class WrongState(LayerNorm):
    @classmethod
    def state(cls, width: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (width,)}


class WrongModule(LayerNorm):
    module = nn.RMSNorm  # type: ignore[assignment]


class WrongWord(LayerNorm):
    @property
    def couples(self) -> bool:
        return True


class Refusing(LayerNorm):
    @classmethod
    def of(cls, module: Any) -> LayerNorm | str:
        return "is not to its taste"


def planted(**changes: Any) -> type[Norm]:
    return type("Planted", (LayerNorm,), changes)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (planted(module=int), "module must be the class of its torch.nn.Module, got <class 'int'>"),
        (planted(make=staticmethod(lambda *given: None)), "must return a LayerNorm, got NoneType"),
        (planted(make=staticmethod(lambda *given: 1 / 0)), r"make\(\) raises ZeroDivisionError"),
        (planted(state=staticmethod(lambda width: None)), r"state\(7\) must be .*got None"),
        (planted(of=staticmethod(lambda module: module.nothing)), r"of\(\) raises AttributeError"),
        (planted(forward=lambda self, u: u), r"forward\(\) must return the values and a state .*, got shape"),
        (planted(forward=lambda self, u: None), r"forward\(\) must return .*, got a NoneType"),
        (planted(slope=lambda self, state: None), r"slope\(\) must return a NormSlope, got a NoneType"),
        (planted(backward=lambda self, gradient, state: gradient), r"backward\(\) must return the gradient"),
        (planted(backward=lambda self, gradient, state: (gradient, 3)), r"backward\(\) must be NormFactors"),
        (WrongValues, r"forward\(\) gives other values"),
        (WrongSlope, r"slope\(\) is not the derivative"),
        (WrongBackward, r"backward\(\) is not the product"),
        (WrongFactors, "not the gradient of 'weight'"),
        (NoFactors, r"must return factors .* \['bias', 'weight'\]"),
        (WrongState, r"state\(7\) must be"),
        (WrongModule, "must return a RMSNorm, got LayerNorm"),
        (WrongWord, "couples is True in train mode"),
        (Refusing, "must take what make.. returns"),
    ],
)
def test_a_fault_is_told(kind: type[Norm], said: str) -> None:
    with pytest.raises(AssertionError, match=f"{kind.__name__} breaks the contract of norms: .*{said}"):
        check_norm(kind)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="kind must be a subclass"):
        check_norm("layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width must be at least 1"):
        check_norm(LayerNorm, 0)


def test_a_norm_takes_its_own_class_alone() -> None:
    module = nn.LayerNorm(3)
    found = norm_of(module)
    assert isinstance(found, LayerNorm)
    assert replace(found, eps=1.0) != found
    module.__class__ = type("Other", (nn.LayerNorm,), {})
    assert "is a Other" in str(norm_of(module))
    assert norm_of(nn.Identity()) is None


def test_the_derivative_of_the_sphere_norm_vanishes_at_zero_and_for_one_unit() -> None:
    norm = NORMS["sphere"].of(NORMS["sphere"].make(1, torch.device("cpu"), torch.float64))
    assert isinstance(norm, Norm)
    _, state = norm.forward(torch.tensor([[0.0], [3.0]], dtype=torch.float64))
    below, _ = norm.backward(torch.ones(2, 1, 1, dtype=torch.float64), state)
    assert torch.equal(below, torch.zeros_like(below))
