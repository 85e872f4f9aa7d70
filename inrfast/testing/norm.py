"""The check of a norm: that its derivative and the factors of its weights are those of its module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from inrfast.errors import check_int
from inrfast.norms import Norm, NormFactors, NormSlope
from inrfast.pointwise import dependence

POINTS = 12

OUTPUTS = 3
"""Outputs whose sensitivities are taken back through the norm."""

AGREES = 1e-9
"""Largest error, relative to the largest factor of the derivative at a point."""

ROUNDED = 1e-3
"""Largest error of fp32, relative to the largest number at a point."""


def check_norm(kind: type[Norm], width: int = 7, numbers: Mapping[str, Any] | None = None) -> None:
    """Check that a norm keeps the contract of :class:`inrfast.norms.Norm`, in fp64 and fp32 on the CPU.

    Its module's numbers are drawn at random. Then its values, its derivative in both forms, and the factors of its
    weight and bias are compared with the module and with automatic differentiation; what it says of the module's
    tensors and of points that influence each other is compared with the module itself. Values, derivative and
    factors in fp32 are compared with those in fp64.

    Parameters
    ----------
    kind
        The class, registered or not.
    width
        Number of units.
    numbers
        Those of its numbers that are not to have their defaults at this width.

    Raises
    ------
    AssertionError
        It breaks the contract; the message says where.
    TypeError, ValueError
        Bad arguments.

    Examples
    --------
    >>> from inrfast.norms import NORMS
    >>> check_norm(NORMS["layer"])
    """
    if not (isinstance(kind, type) and issubclass(kind, Norm)):
        raise TypeError(f"kind must be a subclass of inrfast.norms.Norm, got {kind!r}")
    check_int("width", width, minimum=1)
    module = _drawn(kind, width, _numbers_of(kind, width, numbers or {}))
    u = _random(POINTS, width, seed=1) * torch.tensor([0.01, 1.0, 100.0]).double().repeat(POINTS // 3).unsqueeze(1)
    values = _tried(kind, "its module", lambda: module(u.clone()))
    if not isinstance(values, Tensor) or values.shape != u.shape:
        _fail(kind, f"its module must keep the shape {tuple(u.shape)}, got {_shown(values)}")
    for mode in (True, False):
        norm = _tried(kind, "of()", lambda mode=mode: kind.of(module.train(mode)))  # type: ignore[misc]
        if isinstance(norm, Norm) and norm.couples != (dependence(module, u) is not None):
            _fail(kind, f"couples is {norm.couples} in {'train' if mode else 'eval'} mode, but points say otherwise")
    if not isinstance(norm, kind):
        _fail(kind, f"of() must take what make() returns in eval mode, got {norm!r}")
    if norm.couples:
        _fail(kind, "its points influence each other in eval mode, where it has no derivative at single points")
    with torch.no_grad():
        _check_derivative(kind, module, norm, u)
        _check_fp32(kind, module, norm, u)


def _fail(kind: type[Norm], what: str) -> NoReturn:
    raise AssertionError(f"{kind.__name__} breaks the contract of norms: {what}")


def _tried(kind: type[Norm], what: str, call: Callable[[], Any]) -> Any:
    """Return what a call gives; whatever it raises becomes the error of this check."""
    try:
        return call()
    except Exception as error:
        told = f"{what} raises {type(error).__name__}: {error}"
        raise AssertionError(f"{kind.__name__} breaks the contract of norms: {told}") from error


def _shown(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _numbers_of(kind: type[Norm], width: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers that the module is made with."""
    usual = _tried(kind, "numbers()", lambda: dict(kind.numbers(width)))
    for name, value in usual.items():
        if not (isinstance(name, str) and name.isidentifier()) or name == "name" or type(value) not in (int, float):
            _fail(kind, f"numbers() must map identifiers to ints and floats, got {name!r}: {value!r}")
    unknown = [name for name in given if name not in usual]
    if unknown:
        raise ValueError(f"numbers must be out of {sorted(usual)}, got {unknown[0]!r}")
    _tried(kind, "check_numbers() of the defaults", lambda: kind.check_numbers(width, **usual))
    return {**usual, **given}


def _drawn(kind: type[Norm], width: int, numbers: Mapping[str, Any]) -> nn.Module:
    """Return a module of the norm whose parameters and buffers are between 0.5 and 1.5."""
    wanted = getattr(kind, "module", None)
    if not (isinstance(wanted, type) and issubclass(wanted, nn.Module)):
        _fail(kind, f"module must be the class of its torch.nn.Module, got {wanted!r}")
    module: nn.Module = _tried(kind, "make()", lambda: kind.make(width, torch.device("cpu"), torch.float64, **numbers))
    if type(module) is not wanted:
        _fail(kind, f"make() must return a {wanted.__name__}, got {type(module).__name__}")
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stated = _tried(kind, "state()", lambda: kind.state(width))
    if shapes != stated:
        _fail(kind, f"state({width}) must be {shapes}, got {stated}")
    for seed, tensor in enumerate([*module.parameters(), *module.buffers()]):
        if tensor.is_floating_point():
            tensor.data.copy_(0.5 + torch.sigmoid(_random(*tensor.shape, seed=seed)))
    return module


def _check_derivative(kind: type[Norm], module: nn.Module, norm: Norm, u: Tensor) -> None:
    found = _tried(kind, "forward()", lambda: norm.forward(u.clone()))
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Tensor):
        _fail(kind, f"forward() must return the values and a state for slope() and backward(), got {_shown(found)}")
    values, state = found
    if not torch.allclose(values, module(u), rtol=1e-9, atol=1e-12):
        _fail(kind, "forward() gives other values than the module")
    one = torch.func.jacrev(lambda row: module(row.unsqueeze(0))[0])
    jacobians: Tensor = torch.func.vmap(one)(u)  # (n, out, in)
    slope = _tried(kind, "slope()", lambda: norm.slope(state))
    if not isinstance(slope, NormSlope):
        _fail(kind, f"slope() must return a NormSlope, got {_shown(slope)}")
    left = _tried(kind, "slope() whose left is of another shape", lambda: slope.left.expand_as(u))
    mixing = torch.eye(u.shape[1], dtype=u.dtype).expand(len(u), -1, -1)
    if slope.directions is not None:
        mixing = mixing - slope.directions.mT @ slope.directions
    allowed = AGREES * left.abs().amax(1).view(-1, 1, 1) + 1e-290
    if bool(((left.unsqueeze(2) * mixing - jacobians).abs() > allowed).any()):
        _fail(kind, "slope() is not the derivative of the module")
    gradient = _random(len(u), OUTPUTS, u.shape[1], seed=3)
    pair = _tried(kind, "backward()", lambda: norm.backward(gradient.clone(), state))
    if not isinstance(pair, tuple) or len(pair) != 2 or _shown(pair[0]) != _shown(gradient):
        _fail(kind, f"backward() must return the gradient {tuple(gradient.shape)} below, and factors or None")
    below, factors = pair
    if factors is not None and not isinstance(factors, NormFactors):
        _fail(kind, f"the factors of backward() must be NormFactors, got {_shown(factors)}")
    if bool(((below - gradient @ jacobians).abs() > allowed * gradient.abs().sum(2, keepdim=True)).any()):
        _fail(kind, "backward() is not the product with the derivative of the module")
    names = {name for name, _ in module.named_parameters()}
    if (factors is not None) != bool(names):
        _fail(kind, f"backward() must return factors if the module has weights: it has {sorted(names) or 'none'}")
    if factors is None:
        return
    rows = {"weight": factors.sensitivities * factors.normalised.unsqueeze(1), "bias": factors.sensitivities}
    for name, parameter in module.named_parameters():
        for k in range(OUTPUTS):
            with torch.enable_grad():
                (expected,) = torch.autograd.grad((module(u) * gradient[:, k]).sum(), parameter)
            if name not in rows or not torch.allclose(rows[name][:, k].sum(0), expected, rtol=1e-9, atol=1e-9):
                _fail(kind, f"the factors of backward() are not the gradient of {name!r}")


def _check_fp32(kind: type[Norm], module: nn.Module, norm: Norm, u: Tensor) -> None:
    narrow = copy.deepcopy(module).float()
    other = kind.of(narrow)
    if not isinstance(other, Norm):
        _fail(kind, f"of() must take the module in fp32 too, got {other!r}")
    module = copy.deepcopy(narrow).double()  # of the same numbers
    norm = kind.of(module)  # type: ignore[assignment]
    u = u.float().double()
    gradient = _random(len(u), OUTPUTS, u.shape[1], seed=3).float().double()
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for own, values, given, tensors in ((other, narrow, torch.float32, found), (norm, module, u.dtype, expected)):
        out, state = own.forward(u.to(given))
        below, factors = own.backward(gradient.to(given), state)
        slope = own.slope(state)
        tensors += [values(u.to(given)), out, below, slope.left.expand_as(u), *(factors or ())]
        if slope.directions is not None:
            tensors.append(slope.directions.mT @ slope.directions)  # a direction may have either sign
    names = ("the module's values", "forward()", "backward()", "slope()", "the factors", "the factors", "slope()")
    for name, one, truth in zip(names[: len(expected)], found, expected, strict=True):
        if one.dtype != torch.float32:
            _fail(kind, f"{name} of fp32 must be fp32, got {one.dtype}")
        size = truth.flatten(1).abs().amax(1)
        if name == "backward()":  # what cancels in it is as large as its factors
            size = expected[3].abs().amax(1) * gradient.abs().sum((1, 2))
        size = size.view(-1, *[1] * (truth.ndim - 1))
        if not bool(((one.double() - truth).abs() <= ROUNDED * size + 1e-30).all()):
            _fail(kind, f"{name} in fp32 differs from fp64 by more than rounding")
