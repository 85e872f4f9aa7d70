"""``check_loss``: the library's own losses pass, and each planted fault is found and named."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from inrfast.losses import LOSSES, Loss, loss_of
from inrfast.ops import mlp_step
from inrfast.testing import check_loss


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_librarys_own_keep_the_contract(name):
    check_loss(name)
    check_loss(LOSSES[name])
    check_loss(loss_of({"name": name, **dict.fromkeys(LOSSES[name].numbers, 0.07)}))


def _cauchy(f, y, width):
    return width**2 * torch.log1p(((f - y) / width) ** 2)


def _slope(f, y, width):
    return 2 * (f - y) / (1 + ((f - y) / width) ** 2)


CAUCHY = Loss("cauchy", _cauchy, _slope, {"width": 1.0})
LOGCOSH = Loss(
    "logcosh",
    lambda f, y: (f - y).abs() + F.softplus(-2 * (f - y).abs()) - 0.6931471805599453,
    lambda f, y: torch.tanh(f - y),
)
POISSON = Loss("poisson", lambda f, y: torch.exp(f) - y * f, lambda f, y: torch.exp(f) - y, targets=(0.0, float("inf")))
TWO = Loss(
    "two",
    lambda f, y, a, b: a * (f - y) ** 2 + b * (f - y) ** 4,
    lambda f, y, a, b: 2 * a * (f - y) + 4 * b * (f - y) ** 3,
    {"a": 1.0, "b": 1.0},
)


@pytest.mark.parametrize("loss", [CAUCHY, LOGCOSH, POISSON, TWO], ids=lambda loss: loss.name)
def test_right_ones_pass_though_they_are_not_registered(loss):
    check_loss(loss)


def _writes(f, y, width):
    y.clamp_(0.0, 1.0)
    return _cauchy(f, y, width)


FAULTS = {
    "a slope without its number": (
        CAUCHY,
        {"slope": lambda f, y, w: 2 * (f - y) / (1 + (f - y) ** 2)},
        "slope must be the",
    ),
    "swapped numbers": (TWO, {"slope": lambda f, y, b, a: TWO.slope(f, y, a, b)}, "slope must be the derivative"),
    "a slope in the target": (CAUCHY, {"slope": lambda f, y, w: _slope(y, f, w)}, "slope must be the derivative"),
    "half the slope": (CAUCHY, {"slope": lambda f, y, w: _slope(f, y, w) / 2}, "slope must be the derivative"),
    "a scalar": (CAUCHY, {"value": lambda f, y, w: _cauchy(f, y, w).mean()}, "must keep both"),
    "another dtype": (CAUCHY, {"slope": lambda f, y, w: _slope(f.double(), y, w)}, "must keep both"),
    "wrong in fp32": (
        CAUCHY,
        {"value": lambda f, y, w: _cauchy(f, y, w) * (1.01 if f.dtype == torch.float32 else 1)},
        "the value at prediction = .* in fp32",
    ),
    "overflow": (
        LOGCOSH,
        {"value": lambda f, y: torch.log(torch.cosh(f - y))},
        "the value at prediction = .* is inf in fp32",
    ),
    "coupled": (CAUCHY, {"slope": lambda f, y, w: _slope(f, y, w) + 1e-9 * f.sum()}, "slope couples entries"),
    "coupled by targets": (
        CAUCHY,
        {
            "value": lambda f, y, w: (
                _cauchy(f, y - 1e-9 * y[..., :1], w) if f.numel() > 1 and f.ndim == 2 else _cauchy(f, y, w)
            )
        },
        "others' targets",
    ),
    "coupled among many": (
        CAUCHY,
        {"value": lambda f, y, w: _cauchy(f, y, w) + (1e-9 * f.mean() if f.numel() > 9_000 else 0)},
        "value couples entries",
    ),
    "writes into predictions": (CAUCHY, {"slope": lambda f, y, w: f.sub_(y)}, "must not write into its argument"),
    "writes into targets": (CAUCHY, {"value": _writes}, "must not write into its targets"),
    "no slope at no error": (
        Loss("root", lambda f, y: ((f - y) ** 2).sqrt(), lambda f, y: (f - y).sign()),
        {},
        "gradient of value must be finite where the prediction is the target",
    ),
    "a number for NaN": (CAUCHY, {"value": lambda f, y, w: _cauchy(f.nan_to_num(), y, w)}, "must leave NaN"),
    "a negative cost": (CAUCHY, {"cost": lambda error, width: -error}, "cost of 0.001 must be"),
    "of another native function": (LOGCOSH, {"native": "mse"}, "native='mse' must have the same value"),
    "of another Triton function": (LOGCOSH, {"triton": "l1"}, "triton='l1' must have the same value"),
    "detached": (CAUCHY, {"value": lambda f, y, w: _cauchy(f.detach(), y, w)}, "differentiable by torch"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found_and_named(fault):
    loss, changes, told = FAULTS[fault]
    with pytest.raises(AssertionError, match=f"the loss '{loss.name}' breaks its contract.*{told}"):
        check_loss(replace(loss, **changes))


@pytest.mark.skipif(not mlp_step.instructions(), reason="this processor has no native step")
def test_what_the_native_step_computes_is_compared(monkeypatch):
    """As if the library's own loss of that name were another one."""
    other = replace(LOGCOSH, name="mse", native="mse")
    monkeypatch.setattr(LOSSES, "_items", {**LOSSES, "mse": other})
    with pytest.raises(AssertionError, match="the native step 'mse' must have the same value"):
        check_loss(other)


def test_what_is_no_loss_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'huber'"):
        check_loss("hubber")
    with pytest.raises(TypeError, match="must be a name"):
        check_loss(3)
