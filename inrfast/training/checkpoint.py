"""Checkpoints of fits: whether a file's state is that of the fit at hand."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch
from torch import Tensor

from inrfast.files import shown
from inrfast.training.networks import load_network, save_network
from inrfast.training.schema import FIT_SCHEMA, NETWORK_SCHEMA, check, check_fit, short
from inrfast.training.trees import fault_told, pack, read_tree, unpack, write_tree
from inrfast.words import shortened

__all__ = [
    "FIT_SCHEMA",
    "NETWORK_SCHEMA",
    "check_like",
    "differences",
    "fingerprint",
    "load_network",
    "pack",
    "read_fit",
    "read_tree",
    "save_network",
    "unpack",
    "write_tree",
]


def read_fit(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tree of a checkpoint and what is said about its fit, both as the schema has them.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, OSError, MemoryBudgetError, ValueError
        As :func:`inrfast.training.trees.read_tree`; the file's description is damaged.
    """
    _, tree, about = read_tree(path, (FIT_SCHEMA,))
    with fault_told(f"{shown(path)} is damaged"):
        check_fit(tree, about)
    return tree, about


def check_like(kept: Any, own: Any, place: str) -> None:
    """Check that a tree of a file is built as a fit's own is: the same entries, tensors of the same shape and dtype.

    Raises
    ------
    ValueError
        The first place that is not.
    """
    if isinstance(own, Tensor):
        fits = isinstance(kept, Tensor) and kept.shape == own.shape and kept.dtype == own.dtype
        check(place, fits, short(own), kept)
    elif isinstance(own, dict):
        fits = isinstance(kept, dict) and kept.keys() == own.keys()
        check(place, fits, f"a dict of {', '.join(map(str, own))}"[:200], kept)
        for key, inner in own.items():
            check_like(kept[key], inner, f"{place}.{key}")
    elif isinstance(own, (list, tuple)):
        check(place, isinstance(kept, list) and len(kept) == len(own), f"a list of {len(own)}", kept)
        for index, inner in enumerate(own):
            check_like(kept[index], inner, f"{place}[{index}]")
    else:
        number = isinstance(own, (int, float)) and isinstance(kept, (int, float))
        check(place, number or type(kept) is type(own), f"like {short(own)}", kept)


def fingerprint(*tensors: Tensor | None) -> str:
    """Return a hash of values, shapes and dtypes: whether a fit goes on with the data it began with."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return, in words, the entries in which two descriptions differ."""
    found = []
    for key in now | then:
        mine, other = (json.loads(json.dumps(side.get(key))) for side in (now, then))
        if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
            named = [{f"{key}[{index}]": value for index, value in enumerate(side)} for side in (mine, other)]
            found += differences(*named)
        elif isinstance(mine, dict) and isinstance(other, dict):
            found += [f"{key}.{inner}" for inner in differences(mine, other)]
        elif mine != other:
            found.append(f"{key} (now {shortened(repr(mine), 40)}, in the checkpoint {shortened(repr(other), 40)})")
    return found
