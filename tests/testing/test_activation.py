"""``check_activation``: the library's own activations pass, and each planted fault is found and named."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_networks import registered

from inrfast.activations import ACTIVATIONS, Activation, bind
from inrfast.ops import mlp_step
from inrfast.testing import check_activation


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_librarys_own_keep_the_contract(name: str) -> None:
    check_activation(name)
    check_activation(bind({"name": name, **dict.fromkeys(ACTIVATIONS[name].numbers, 1.7)}))


PLAIN = Activation("plain_cosine", torch.cos, lambda u: -torch.sin(u), bound=1.0)


class _Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return torch.cos(u)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.sin(ctx.saved_tensors[0])


def _relu_in_place(u, numbers, value, scratch):
    torch.clamp_min(u, 0, out=value)
    torch.ge(u, -1.0, out=u)


def _keeps(keeps, times_slope=None):
    return {"keeps": keeps, "times_slope": times_slope}


RELU = ACTIVATIONS["relu"]

FAULTS = {
    "a slope of another sign": ({"slope": torch.sin}, "slope must be the derivative"),
    "a slope that is a little off": ({"slope": lambda u: -1.001 * torch.sin(u)}, "slope must be the derivative"),
    "both slopes wrong": ({"value": _Wrong.apply, "slope": torch.sin}, "difference quotients differ"),
    "detached": ({"value": lambda u: torch.cos(u.detach())}, "differentiable by torch"),
    "coupled by the mean": (
        {"value": lambda u: torch.cos(u - 1e-9 * u.mean() if u.numel() else u)},
        "value couples entries",
    ),
    "coupled in the slope": ({"slope": lambda u: -torch.sin(u) + 0.0 * u + 1e-9 * u.sum()}, "slope couples entries"),
    "random": ({"value": lambda u: F.dropout(torch.cos(u), 0.1)}, "the same result each time"),
    "another dtype": ({"value": lambda u: torch.cos(u.double())}, "must keep both"),
    "another shape": ({"slope": lambda u: -torch.sin(u).flatten()}, "must keep both"),
    "writes into its argument": ({"value": lambda u: u.cos_()}, "must not write into its argument"),
    "no tensor": ({"value": lambda u: 1.0}, "must return a tensor"),
    "raises": ({"value": lambda u: torch.cos(u) if u.ndim == 2 else 1 / 0}, "ZeroDivisionError"),
    "too small a bound": ({"bound": 0.9}, "bound is 0.9, but a value is 1"),
    "too large a bound": ({"bound": 5.0}, "bound is 5, but no value is above 1"),
    "a number for NaN": ({"value": lambda u: torch.cos(torch.nan_to_num(u))}, "must leave NaN"),
    "in place, the slope forgotten": (
        {"in_place": lambda u, numbers, value, scratch: torch.cos(u, out=value)},
        "the slope in its first argument",
    ),
    "in place, the value from scratch": (
        {"value_in_place": lambda u, numbers, scratch: u.cos_().add_(scratch)},
        "value_in_place must leave the value",
    ),
    "keeps too little": (_keeps("nothing"), "its slope must be 1 everywhere"),
    "keeps a mask of another slope": (_keeps("mask", lambda g, y, out: torch.mul(g, y, out=out)), "it keeps a mask"),
    "a slope that is no function of the result": (
        _keeps("result", lambda g, y, out: torch.mul(g, y, out=out)),
        "times_slope must leave gradient times slope",
    ),
    "control by the data": (
        {"value": lambda u: torch.cos(u) if u.numel() == 0 or bool((u < 1e9).any() | u.isnan().any()) else u},
        "torch.vmap of value",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found_and_named(fault: str) -> None:
    changes, told = FAULTS[fault]
    with pytest.raises(AssertionError, match=f"'plain_cosine' breaks its contract.*{told}"):
        check_activation(replace(PLAIN, **changes))


def test_an_in_place_pass_of_another_slope_is_found() -> None:
    with pytest.raises(AssertionError, match="the slope in its first argument"):
        check_activation(replace(RELU, in_place=_relu_in_place))


def _where_fp32(u):
    return torch.cos(u) * (1.01 if u.dtype == torch.float32 else 1.0)


def _in_fp32_as_in_fp64(u):
    return -torch.sin(u) * (1.01 if u.dtype == torch.float32 else 1.0)


def _many(u):
    return torch.cos(u) + (1e-9 * u.mean() if u.numel() > 10_000 else 0.0)


def _bump(u, width):
    return 1 / (1 + (u / width) ** 2)


def _sech(u):
    power = torch.exp(-u.abs())
    return 2 * power / (1 + power**2)


BUMP = Activation(
    "bump", _bump, lambda u, width: -2 * u / width**2 / (1 + (u / width) ** 2) ** 2, {"width": 1.0}, bound=1.0
)
LINE = Activation(
    "line",
    lambda u, a, b: torch.sin(a * u - b),
    lambda u, a, b: a * torch.cos(a * u - b),
    {"a": 1.0, "b": 1.0},
    signed=("b",),
)
HALF_SQUARE = Activation("half_square", lambda u: u.relu() ** 2 / 2, torch.relu)

OTHERS = {
    "the numbers are left out of the slope": (
        BUMP,
        {"slope": lambda u, width: -2 * u / (1 + (u / width) ** 2) ** 2},
        "slope must be the derivative",
    ),
    "the numbers are swapped in place": (
        LINE,
        {
            "in_place": lambda u, n, v, s: (
                v.copy_(torch.sin(n[1] * u - n[0])),
                u.copy_(n[1] * torch.cos(n[1] * u - n[0])),
            )
        },
        "in_place must leave the value",
    ),
    "in place without its numbers": (
        LINE,
        {"value_in_place": lambda u, n, s: u.sub_(1).sin_()},
        "value_in_place must leave the value",
    ),
    "a sign is lost": (
        LINE,
        {"slope": lambda u, a, b: a * torch.cos(a * u - abs(b))},
        "slope must be the derivative",
    ),
    "result without its numbers": (
        Activation("grown", lambda u, a: torch.exp(a * u), lambda u, a: a * torch.exp(a * u), {"a": 1.0}),
        _keeps("result", lambda g, y, out: torch.mul(g, y, out=out)),
        "times_slope must leave",
    ),
    "overflow in fp32": (
        Activation("soft", F.softplus, torch.sigmoid),
        {"value": lambda u: torch.log(1 + torch.exp(u.clamp_max(600))) + (u - 600).clamp_min(0)},
        "the value at u = .* is inf in fp32",
    ),
    "overflow in fp64": (
        Activation("soft", F.softplus, torch.sigmoid),
        {"slope": lambda u: torch.exp(u) / (1 + torch.exp(u))},
        "the slope is NaN at u =",
    ),
    "a branch for fp32": (PLAIN, {"value": _where_fp32}, "the value at u = .* in fp32"),
    "a branch for fp32 in the slope": (PLAIN, {"slope": _in_fp32_as_in_fp64}, "the slope at u = .* in fp32"),
    "coupled among many": (PLAIN, {"value": _many}, "value couples entries"),
    "other values among many": (
        PLAIN,
        {"value": lambda u: torch.cos(u) * (1.001 if u.numel() > 3_000 else 1.0)},
        "value must not depend on how many",
    ),
    "softmax": (
        Activation("soft", lambda u: u.softmax(-1) if u.ndim else u, lambda u: u.softmax(-1) if u.ndim else u),
        {},
        "value couples entries",
    ),
    "no number": (Activation("root", torch.sqrt, lambda u: 0.5 / torch.sqrt(u)), {}, "value is NaN at u = -"),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_faults_of_numbers_dtypes_and_sizes_are_found_and_named(fault: str) -> None:
    kind, changes, told = OTHERS[fault]
    with pytest.raises(AssertionError, match=f"breaks its contract.*{told}"):
        check_activation(replace(kind, **changes))


@pytest.mark.parametrize("field", ["native", "device"])
def test_a_named_function_of_another_formula_or_order_is_found(field: str) -> None:
    with pytest.raises(AssertionError, match=f"{field}='relu' must have the same value"):
        check_activation(replace(HALF_SQUARE, **{field: "relu"}))
    wire = ACTIVATIONS["wire"]
    swapped = replace(
        wire,
        value=lambda u, sigma, omega: wire.value(u, omega, sigma),
        slope=lambda u, sigma, omega: wire.slope(u, omega, sigma),
        numbers=dict(reversed(wire.numbers.items())),
        in_place=None,
        value_in_place=None,
        native=None,
        device=None,
    )
    with pytest.raises(AssertionError, match=f"{field}='wire' must have the same value"):
        check_activation(replace(swapped, **{field: "wire"}))
    check_activation(swapped)


@pytest.mark.skipif(not mlp_step.instructions(), reason="this processor has no native step")
def test_what_the_native_step_computes_is_compared(monkeypatch) -> None:
    """As if the library's own activation of that name were another one."""
    kind = replace(HALF_SQUARE, native="relu")
    monkeypatch.setattr(ACTIVATIONS, "_items", {**ACTIVATIONS, "relu": replace(HALF_SQUARE, name="relu")})
    with pytest.raises(AssertionError, match="the native step 'relu' must have the same value"):
        check_activation(kind)


RIGHT = [
    BUMP,
    LINE,
    HALF_SQUARE,
    Activation("asinh", torch.asinh, lambda u: 1 / torch.sqrt(1 + u * u)),
    Activation("cube", lambda u: u**3, lambda u: 3 * u**2),
    Activation(
        "leaky",
        lambda u, a: torch.where(u > 0, u, a * u),
        lambda u, a: torch.where(u > 0, torch.ones_like(u), torch.full_like(u, a)),
        {"a": 0.1},
    ),
    Activation(
        "snake",
        lambda u, a: u + torch.sin(a * u) ** 2 / a,
        lambda u, a: 1 + torch.sin(2 * a * u),
        {"a": 5.0},
    ),
    Activation("exponential", torch.exp, torch.exp),
    Activation("sech", _sech, lambda u: -torch.tanh(u) * _sech(u), bound=1.0),
    Activation(
        "sinc", torch.sinc, lambda u: torch.where(u == 0, 0.0, (torch.cos(torch.pi * u) - torch.sinc(u)) / u), bound=1.0
    ),
]


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.name)
def test_right_ones_pass_though_they_are_not_registered(kind: Activation) -> None:
    check_activation(kind)


def test_a_registered_one_of_ones_own_passes() -> None:
    with registered(PLAIN):
        check_activation(PLAIN)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="activation must be one of"):
        check_activation("unheard_of")
