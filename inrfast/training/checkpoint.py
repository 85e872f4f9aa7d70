"""Checkpoints of fits and files of networks: safetensors with a description, written whole or not at all.

A state is a tree of dicts, lists, tensors and plain values. Its tensors are stored under their place in the tree
(``net.layers.0.weight``), the rest as JSON in the file's metadata, so that other programs read the weights too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inrfast.files import whole_file
from inrfast.nn import INR

FIT_SCHEMA = "inrfast.checkpoint/1"
NETWORK_SCHEMA = "inrfast.network/1"

TENSOR = "tensor of this place"
"""What stands in the JSON for a tensor."""


# ---- trees -------------------------------------------------------------------------------------------------------


def pack(tree: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``tree`` as JSON holds it, and put its tensors into ``tensors`` under their places.

    Raises
    ------
    TypeError
        A value that is neither a tensor nor plain.
    """
    if isinstance(tree, Tensor):
        tensors[place] = tree.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: place}
    if isinstance(tree, dict):
        keys = [[key, pack(value, f"{place}.{key}".removeprefix("."), tensors)] for key, value in tree.items()]
        return {"dict": keys}  # as pairs, since JSON would turn keys that are numbers into strings
    if isinstance(tree, (list, tuple)):
        return {
            "list": [pack(value, f"{place}.{index}".removeprefix("."), tensors) for index, value in enumerate(tree)]
        }
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(
        f"a checkpoint holds tensors, numbers, strings, dicts and lists, got {type(tree).__name__} at {place}"
    )


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the tree that :func:`pack` took apart; tuples have become lists."""
    if not isinstance(packed, dict):
        return packed
    if TENSOR in packed:
        return tensors[packed[TENSOR]]
    if "dict" in packed:
        return {key: unpack(value, tensors) for key, value in packed["dict"]}
    return [unpack(value, tensors) for value in packed["list"]]


def write_tree(path: str | os.PathLike[str], schema: str, tree: dict[str, Any], about: dict[str, Any]) -> None:
    """Write a tree with what is said about it (plain values); the file is whole, or what was there before."""
    tensors: dict[str, Tensor] = {}
    metadata = {"schema": schema, "tree": json.dumps(pack(tree, "", tensors)), "about": json.dumps(about)}
    content = save(tensors, metadata)
    with whole_file(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the new name must not reach the disk before what it names


def read_tree(path: str | os.PathLike[str], schemas: Iterable[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return schema, tree and description of a file of one of these schemas.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it cannot be read.
    ValueError
        The file is empty, truncated, damaged, or of another kind.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no file {file}")
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder, not a safetensors file")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            # The file's tensors begin anywhere. Where vector registers begin decides in which order numbers are
            # added up, so a state goes on bit by bit only in memory that is aligned as it was.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{file} is empty, truncated or no safetensors file: {error}") from error
    schema = metadata.get("schema", "")
    if schema not in schemas:
        kind = f"of the kind {schema!r}" if schema else "of some other program"
        raise ValueError(f"{file} is a safetensors file {kind}; this takes {' or '.join(map(repr, schemas))}")
    try:
        return schema, unpack(json.loads(metadata["tree"]), tensors), json.loads(metadata["about"])
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: its description does not fit its tensors ({error!r})") from error


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
        if isinstance(mine, dict) and isinstance(other, dict):
            found += [f"{key}.{inner}" for inner in differences(mine, other)]
        elif mine != other:
            found.append(f"{key} (now {_short(mine)}, in the checkpoint {_short(other)})")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# ---- networks ----------------------------------------------------------------------------------------------------


def save_network(net: INR, path: str | os.PathLike[str], signal: dict[str, Any] | None = None) -> None:
    """Write a network, its shape and what it stands for; :func:`load_network` builds it again.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` on any device. (Of other modules save the ``state_dict``: only an INR's shape is known.)
    path
        A ``.safetensors`` file; an older one is replaced.
    signal
        Plain values about the signal it was fitted to, for :func:`load_network` to give back.

    Raises
    ------
    TypeError
        ``net`` is no INR; something in ``signal`` is no plain value.
    OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    if not isinstance(net, INR):
        raise TypeError(f"net must be an inrfast.INR, got {type(net).__name__}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must name a .safetensors file, got {str(path)!r}")
    write_tree(path, NETWORK_SCHEMA, {"net": net.state_dict()}, {"net": net.config(), "signal": signal or {}})


def load_network(path: str | os.PathLike[str]) -> tuple[INR, dict[str, Any]]:
    """Return the network in a file, on the CPU and in eval mode, and what was saved about its signal.

    Takes files of :func:`save_network` and checkpoints of a fit of an INR (then its last weights).

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        There is no such file, or it cannot be read.
    ValueError
        The file is truncated, of another kind, of several networks or of no INR, or its weights do not fit.
    """
    schema, tree, about = read_tree(path, (NETWORK_SCHEMA, FIT_SCHEMA))
    if schema == FIT_SCHEMA:
        if len(tree["networks"]) != 1 or not isinstance(about["nets"][0], dict):
            raise ValueError(f"{path} is a checkpoint of {len(tree['networks'])} network(s) that is no single INR")
        state, config, signal = tree["networks"][0]["net"], about["nets"][0], {}
    else:
        state, config, signal = tree["net"], about["net"], about["signal"]
    dtype = next(tensor.dtype for name, tensor in state.items() if name.startswith("layers."))
    try:
        net = INR.from_config(config, dtype=dtype)
        net.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not hold the network it describes: {reason}") from error
    return net.eval(), signal
