"""The seed where none is given: a number from torch's global generator, as torch's own layers draw theirs."""

from __future__ import annotations

from typing import Any

import torch

from inrfast.errors import check_seed

DRAWN_BITS = 32
"""Bits of a drawn seed: as many as every generator here takes."""


def seed_of(argument: str, given: Any, bits: int = DRAWN_BITS) -> int:
    """Return a seed of so many bits, or one drawn from torch's global CPU generator where none (None) is given.

    ``torch.manual_seed`` thereby decides on it, as it does on the numbers of ``torch.nn.Linear``; two calls in a row
    have seeds of their own. One number is drawn, whatever is made of it.

    Raises
    ------
    ValueError, TypeError
        See :func:`inrfast.errors.check_seed`.
    """
    return drawn() if given is None else check_seed(argument, given, bits)


def drawn() -> int:
    """Return a seed from torch's global CPU generator."""
    return int(torch.randint(2**DRAWN_BITS, (), device="cpu"))
