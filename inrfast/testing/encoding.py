"""The check of an encoding: that it does what networks, kernels, fits and files rely on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from inrfast.encodings import ENCODINGS, Encoding, from_config
from inrfast.encodings.base import shares
from inrfast.errors import check_int
from inrfast.pointwise import dependence, stirred_

POINTS = 64

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
"""Of difference quotients: a derivative is right if one of them confirms it, whatever the frequencies."""

AGREES = 1e-4
"""Relative difference up to which a difference quotient confirms a derivative."""


def check_encoding(encoding: Encoding, in_features: int = 2, bounds: tuple[float, float] = (-1.0, 1.0)) -> None:
    """Check that an encoding keeps the contract of :class:`inrfast.encodings.Encoding`, on the CPU.

    It is built and used at random points of ``bounds``: sizes, dtypes and seeds; that every point is mapped alone;
    that values are finite, and derivatives (in the coordinates and in every parameter) those of the values; that its
    description and its state give it back.

    Parameters
    ----------
    encoding
        As it would be given to :class:`inrfast.INR`.
    in_features
        Number of coordinates.
    bounds
        Of the points, on every axis.

    Raises
    ------
    AssertionError
        It breaks the contract; the message says where.
    TypeError, ValueError
        Bad arguments.

    Examples
    --------
    >>> from inrfast.encodings import RandomFourier
    >>> check_encoding(RandomFourier(8, 1.0, trainable=True))
    """
    if not isinstance(encoding, Encoding):
        raise TypeError(f"encoding must be an inrfast.encodings.Encoding, got {type(encoding).__name__}")
    check_int("in_features", in_features, minimum=1)
    low, high = bounds
    draw = torch.rand(POINTS, in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coords = low + (high - low) * draw
    built = _built(encoding, in_features, torch.float64, 0)
    _check_sizes(encoding, built, coords)
    _check_seeds(encoding, in_features, coords)
    _check_alone(built, coords)
    _check_leading(encoding, built, coords)
    _check_derivatives(built, coords)
    _check_moves(encoding, in_features, coords)
    _check_config(encoding, built, coords)
    _check_state(encoding, built, coords)


def _fail(encoding: Encoding, what: str) -> NoReturn:
    raise AssertionError(f"{type(encoding).__name__} breaks the contract of encodings: {what}")


def _tried(encoding: Encoding, what: str, call: Callable[[], Any]) -> Any:
    """Return what a call gives; whatever it raises becomes the error of this check."""
    try:
        return call()
    except Exception as error:
        raise AssertionError(
            f"{type(encoding).__name__} breaks the contract of encodings: {what} raises {type(error).__name__}: {error}"
        ) from error


def _built(encoding: Encoding, in_features: int, dtype: torch.dtype, seed: int) -> Encoding:
    generator = torch.Generator().manual_seed(seed)
    arguments = in_features, generator, torch.device("cpu"), dtype
    before = torch.random.get_rng_state()
    given = copy.deepcopy(encoding)
    built = _tried(encoding, "build()", lambda: given.build(*arguments))
    if not isinstance(built, Encoding):
        _fail(encoding, f"build() must return an Encoding, got {type(built).__name__}")
    shared = shares(given, built)
    if shared is not None:
        _fail(encoding, f"build() must return a new encoding, but {shared}")
    if not torch.equal(before, torch.random.get_rng_state()):
        _fail(encoding, "build() draws from the global generator; draw from the one that it is given")
    for name, tensor in built.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            _fail(encoding, f"{name} must be of the dtype asked for, {dtype}, got {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            _fail(encoding, f"{name} holds NaN or Inf")
    return built


def _values(encoding: Encoding, built: Encoding, coords: Tensor, what: str = "forward()") -> Tensor:
    given = coords.clone()
    values = _tried(encoding, what, lambda: built(given))
    if not torch.equal(given, coords):
        _fail(encoding, f"{what} must not write into its argument; work on a copy (coords.clone())")
    shape = *coords.shape[:-1], built.out_features
    if not isinstance(values, Tensor) or values.shape != shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        _fail(encoding, f"{what} of coordinates {tuple(coords.shape)} must have shape {shape}, got {got}")
    if values.dtype != coords.dtype:
        _fail(encoding, f"{what} of {coords.dtype} coordinates must return {coords.dtype}, got {values.dtype}")
    if not bool(torch.isfinite(values).all()):
        _fail(encoding, f"{what} gives NaN or Inf")
    return values


def _check_sizes(encoding: Encoding, built: Encoding, coords: Tensor) -> None:
    d = coords.shape[1]
    for name, wanted in (("in_features", d), ("out_features", None)):
        got = getattr(built, name, None)
        if not isinstance(got, int) or got < 1 or wanted not in (None, got):
            _fail(encoding, f"build() must set {name} to {wanted or 'the number of columns'}, got {got!r}")
    stated = _tried(encoding, "columns()", lambda: encoding.columns(d))
    if stated not in (0, built.out_features):
        _fail(encoding, f"columns({d}) is {stated}, but build() makes {built.out_features} (0 stands for: not known)")
    for some in (coords, coords[:1]):
        if not torch.equal(_values(encoding, built, some), _values(encoding, built, some)):
            _fail(
                encoding, "forward() gives other values at its second call; they may not depend on chance or on calls"
            )


def _check_leading(encoding: Encoding, built: Encoding, coords: Tensor) -> None:
    flat, boxed = (_values(encoding, built, some) for some in (coords, coords.reshape(4, -1, coords.shape[1])))
    if not torch.allclose(boxed.reshape(flat.shape), flat, rtol=1e-9, atol=1e-12):
        _fail(encoding, "forward() of coordinates with several leading dimensions gives other values")


def _check_seeds(encoding: Encoding, in_features: int, coords: Tensor) -> None:
    first, second = (_built(encoding, in_features, torch.float64, 3) for _ in range(2))
    if not torch.equal(first(coords), second(coords)):
        _fail(encoding, "two builds from the same seed differ; draw only from the generator that build() is given")


def _check_alone(built: Encoding, coords: Tensor) -> None:
    for copied in (copy.deepcopy(built), stirred_(copy.deepcopy(built))):
        reason = dependence(copied, coords, number=len(coords))
        if reason is not None:
            _fail(built, f"every point must be mapped alone, but {reason.replace('the outputs', 'its columns')}")


def _check_derivatives(built: Encoding, coords: Tensor) -> None:
    """Compare the derivatives along random directions with difference quotients."""
    built = copy.deepcopy(built)
    generator = torch.Generator().manual_seed(2)
    parameters = {f"the parameter {name}": p for name, p in built.named_parameters() if p.requires_grad}
    coords = coords.clone().requires_grad_()
    cotangent = torch.randn(POINTS, built.out_features, generator=generator, dtype=torch.float64)
    total = (built(coords) * cotangent).sum()
    wanted = {"the coordinates": coords, **parameters}
    if not total.requires_grad:
        found: tuple[Tensor, ...] = tuple(torch.zeros_like(tensor) for tensor in wanted.values())
    else:
        found = _tried(
            built,
            "the gradient",
            lambda: torch.autograd.grad(total, list(wanted.values()), allow_unused=True, materialize_grads=True),
        )
    for (what, tensor), gradient in zip(wanted.items(), found, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        slope = float((gradient * direction).sum())
        quotients = [_quotient(built, coords, tensor, direction * step, cotangent) / step for step in STEPS]
        scale = float((built(coords).detach() * cotangent).abs().sum())
        if not any(
            abs(quotient - slope) <= AGREES * max(abs(slope), abs(quotient)) + 1e-13 * scale / step
            for quotient, step in zip(quotients, STEPS, strict=True)
        ):
            near = min(quotients, key=lambda quotient: abs(quotient - slope))
            _fail(built, f"its derivative in {what} is {slope:g} along a direction where differences give {near:g}")


@torch.no_grad()
def _quotient(built: Encoding, coords: Tensor, moved: Tensor, step: Tensor, cotangent: Tensor) -> float:
    """Return half the difference of ``sum(values * cotangent)`` between ``moved + step`` and ``moved - step``."""
    before = moved.detach().clone()
    ends = []
    for sign in (1, -1):
        moved.copy_(before + sign * step)
        ends.append(built(coords.clone()))
    moved.copy_(before)
    return float(((ends[0] - ends[1]) * cotangent).sum() / 2)


def _check_moves(encoding: Encoding, in_features: int, coords: Tensor) -> None:
    """Check fp32, and that ``.to()`` reaches every number: a tensor in a plain attribute stays as it is."""
    narrow = _built(encoding, in_features, torch.float32, 0)
    _values(encoding, narrow, coords.float())
    _values(encoding, copy.deepcopy(narrow).double(), coords, "after .double(), forward()")


def _check_config(encoding: Encoding, built: Encoding, coords: Tensor) -> None:
    config = _tried(encoding, "config()", built.config)
    if not isinstance(config, dict):
        _fail(encoding, f"config() must return a dict of its name and its arguments, got {type(config).__name__}")
    same = _tried(encoding, "config(), which must hold plain values:", lambda: json.loads(json.dumps(config)))
    if same != config:
        _fail(encoding, f"config() must hold plain values, as JSON gives them back; got {config!r}")
    if _tried(encoding, "config() before build()", encoding.config) != config:
        _fail(encoding, "config() is another one before and after build()")
    if config.get("name") not in ENCODINGS or ENCODINGS[config["name"]] is not type(encoding):
        _fail(
            encoding,
            f"the name in its config, {config.get('name')!r}, must be that of its class, which "
            "inrfast.encodings.register makes known to files",
        )
    again = _tried(encoding, "from_config(config())", lambda: from_config(same))
    if again.config() != config:
        _fail(encoding, f"config() describes another encoding: {again.config()}")
    first, second = (_built(one, coords.shape[1], torch.float64, 5) for one in (encoding, again))
    if not torch.equal(_values(encoding, first, coords), _values(again, second, coords)):
        _fail(encoding, "the encoding that config() describes gives other values")


def _check_state(encoding: Encoding, built: Encoding, coords: Tensor) -> None:
    d = coords.shape[1]
    changed = copy.deepcopy(built)
    stirred_(changed)
    state = copy.deepcopy(changed.state_dict())
    shapes = _tried(encoding, "shapes()", lambda: encoding.shapes(d))
    if shapes is not None and shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        _fail(encoding, f"shapes({d}) must be those of the state_dict, or None; got {shapes}")
    other = _built(encoding, d, torch.float64, 7)
    _tried(encoding, "load_state_dict()", lambda: other.load_state_dict(state))
    _tried(encoding, "check_state() of its own state", lambda: other.check_state(state))
    if not torch.equal(_values(encoding, other, coords), _values(encoding, changed, coords)):
        _fail(encoding, "its state_dict does not hold all that its values depend on")
