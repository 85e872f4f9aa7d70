"""The check of a modulation: that a filter of the coordinates is what networks, files and kernels take it for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from inrfast.errors import check_int
from inrfast.modulations import Modulation
from inrfast.pointwise import dependence

POINTS = 12


def check_modulation(
    kind: type[Modulation], in_features: int = 2, width: int = 7, numbers: Mapping[str, float] | None = None
) -> None:
    """Check that a filter keeps the contract of :class:`inrfast.modulations.Modulation`, on the CPU.

    Its tensors must be those that it states, drawn of the generator alone; its values (n, m) finite, of single points,
    and those of fp64 rounded where it is fp32; every parameter must have a gradient; and bounds of rounding errors, if
    it states any, must hold them in fp32.

    Parameters
    ----------
    kind
        The class, registered or not.
    in_features, width
        Number of coordinates and of units.
    numbers
        Those of its numbers that are not to have their defaults.

    Raises
    ------
    AssertionError
        It breaks the contract; the message says where.
    TypeError, ValueError
        Bad arguments.

    Examples
    --------
    >>> from inrfast.modulations import MODULATIONS
    >>> check_modulation(MODULATIONS["gabor"])
    """
    if not (isinstance(kind, type) and issubclass(kind, Modulation)):
        raise TypeError(f"kind must be a subclass of inrfast.modulations.Modulation, got {kind!r}")
    check_int("in_features", in_features, minimum=1)
    check_int("width", width, minimum=1)
    before = torch.get_rng_state()
    wide, narrow = (_made(kind, in_features, width, dtype, numbers or {}) for dtype in (torch.float64, torch.float32))
    if not torch.equal(torch.get_rng_state(), before):
        _fail(kind, "it draws from the global generator")
    shapes = {name: tuple(tensor.shape) for name, tensor in wide.state_dict().items()}
    if shapes != dict(kind.state(in_features, width)):
        _fail(kind, f"state({in_features}, {width}) must be {shapes}, got {kind.state(in_features, width)}")
    for name, tensor in narrow.state_dict().items():
        if tensor.dtype != torch.float32 or not torch.equal(tensor, wide.state_dict()[name].float()):
            _fail(kind, f"{name} in fp32 is not that of fp64, rounded")
    generator = torch.Generator().manual_seed(1)
    coords = 2 * torch.rand(POINTS, in_features, generator=generator, dtype=torch.float64, device="cpu") - 1
    values = wide(coords)
    if values.shape != (POINTS, width) or not bool(torch.isfinite(values).all()):
        _fail(kind, f"forward() must return finite numbers ({POINTS}, {width}), got shape {tuple(values.shape)}")
    if dependence(wide, coords) is not None:
        _fail(kind, "its points influence each other")
    named = dict(wide.named_parameters())
    grads = torch.autograd.grad(values.sum(), list(named.values()), allow_unused=True)
    unused = [name for name, grad in zip(named, grads, strict=True) if grad is None]
    if unused:
        _fail(kind, f"its values do not depend on {unused[0]!r}")
    with torch.no_grad():
        single = coords.float()
        stated, exact = narrow.rounding(single), copy.deepcopy(narrow).double()(single.double())
        if stated is not None and not bool(((narrow(single) - exact).abs() <= stated).all()):
            _fail(kind, "rounding() is less than what rounding does to its values in fp32")


def _made(
    kind: type[Modulation], in_features: int, width: int, dtype: torch.dtype, numbers: Mapping[str, Any]
) -> Modulation:
    generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
    return kind(in_features, width, 2, generator, device, dtype, **{**kind.numbers, **numbers})


def _fail(kind: type[Modulation], what: str) -> NoReturn:
    raise AssertionError(f"{kind.__name__} breaks the contract of modulations: {what}")
