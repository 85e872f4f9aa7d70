"""``check_activation``: the library's own activations pass, and each planted fault is found and named."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_networks import registered

from inrfast.activations import ACTIVATIONS, Activation, bind
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


def test_a_registered_one_of_ones_own_passes() -> None:
    with registered(PLAIN):
        check_activation(PLAIN)


def test_what_is_not_registered_is_told_to_be() -> None:
    with pytest.raises(AssertionError, match="register 'unheard_of' first"):
        check_activation(replace(PLAIN, name="unheard_of"))
    with pytest.raises(ValueError, match="activation must be one of"):
        check_activation("unheard_of")
