"""What a program has switched on around a fit and must not change it: autocast, inference mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICES = ("cpu", "cuda")


def own_modes(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function run outside inference mode and without the caller's autocast, whatever surrounds the call.

    Autocast keeps 16-bit copies of weights until the outermost block ends, and would go on with those of weights that
    have changed since. Inside there is no such cache; the caller's is emptied at the end, since its copies are old.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            stack.callback(torch.clear_autocast_cache)
            stack.enter_context(torch.inference_mode(False))
            for device in DEVICES:
                stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
            return function(*args, **kwargs)

    return alone
