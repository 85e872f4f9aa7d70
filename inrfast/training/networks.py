"""Files of networks: an INR, its shape and what it stands for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inrfast.encodings import Encoding, from_config
from inrfast.files import shown, whole_file
from inrfast.mlp import describe
from inrfast.nn import INR, KNOWN_ENCODINGS
from inrfast.norms import NORMS
from inrfast.training.schema import (
    FIT_SCHEMA,
    NETWORK,
    NETWORK_ABOUT,
    NETWORK_SCHEMA,
    NETWORK_TREE,
    check,
    check_fit,
    plain,
    short,
)
from inrfast.training.trees import content_of, fault_told, read_tree

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that networks have."""

Shape = tuple[int, ...]


def save_network(net: INR, path: str | os.PathLike[str], signal: dict[str, Any] | None = None) -> None:
    """Write a network, its shape and what it stands for; :func:`load_network` builds it again.

    What the file would give back is compared with ``net`` before anything is written. The same network and signal give
    the same bytes.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` on any device, as its constructor makes it. (Of other modules, and of one that was
        changed or has hooks, save the ``state_dict``: only an INR's shape is known.)
    path
        A ``.safetensors`` file; an older one is replaced.
    signal
        Plain values about the signal it was fitted to, for :func:`load_network` to give back; tuples become lists.

    Raises
    ------
    TypeError
        ``net`` is no INR, or has an encoding of your own; something in ``signal`` or its ``init`` is no plain value.
    ValueError
        ``net`` is not what its description says; a number in its description or in ``signal`` is not finite.
    OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    if not isinstance(net, INR):
        raise TypeError(f"net must be an inrfast.INR, got {type(net).__name__}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must name a .safetensors file, got {shown(path)!r}")
    if type(net.encoding) not in KNOWN_ENCODINGS:
        raise TypeError(f"net must have an encoding of inrfast, got {type(net.encoding).__name__}; save its state_dict")
    if not isinstance(signal, (dict, type(None))):
        raise TypeError(f"signal must be a dict, got {type(signal).__name__}")
    about = {"net": net.config(), "signal": signal or {}}
    plain(about["net"], "net")
    plain(about["signal"], "signal")
    state = net.state_dict()
    wrong = _changes(net, state, json.loads(json.dumps(about)))
    if wrong:
        raise ValueError(
            f"net must be an inrfast.INR as its constructor makes it, which a file can give back: {wrong}; save its "
            "state_dict instead"
        )
    content = content_of(NETWORK_SCHEMA, {"net": dict(state)}, about)
    with whole_file(path, durable=True) as file:
        file.writelines(content)


def _changes(net: INR, state: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Return what a file would not give back of a network, or an empty string."""
    found = describe(net)
    if isinstance(found, str):
        return found
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        return f"{empty[0]} holds no numbers (it is on the device meta)"
    try:
        again = str(_network({"net": state}, about, "net"))
    except ValueError as error:
        return str(error)
    return "" if again == str(net) else "its modules were changed, replaced or added to"


def load_network(path: str | os.PathLike[str]) -> tuple[INR, dict[str, Any]]:
    """Return the network in a file, on the CPU and in eval mode, and what was saved about its signal.

    Takes files of :func:`save_network` and checkpoints of a fit of an INR (then its last weights). The sizes that the
    file states are compared with its tensors before anything is built.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, OSError
        There is no such file, it is no file, or it cannot be read.
    ValueError
        The file is truncated, damaged, of another kind, of several networks or of no INR, or its weights do not fit.
    """
    schema, tree, about = read_tree(path, (NETWORK_SCHEMA, FIT_SCHEMA))
    with fault_told(f"{shown(path)} does not hold the network it describes"):
        if schema == FIT_SCHEMA:
            check_fit(tree, about)
            tree, about = _only_network(tree, about)
        else:
            NETWORK_TREE(tree, "tree")
            NETWORK_ABOUT(about, "about")
        return _network(tree, about, "about.net").eval(), about["signal"]


def _only_network(tree: dict[str, Any], about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's network as a file of it would hold it."""
    count, config = len(tree["networks"]), about["nets"][0]
    if count != 1 or not isinstance(config, dict):
        raise ValueError(f"it is a checkpoint of {count} network(s), not of a single INR")
    return {"net": tree["networks"][0]["net"]}, {"net": config, "signal": {}}


def _network(tree: dict[str, Any], about: dict[str, Any], place: str) -> INR:
    """Build the network that is described, if the tensors of a tree are its.

    Raises
    ------
    ValueError
        They are not; the description is none.
    """
    config, state = about["net"], tree["net"]
    NETWORK(config, place)
    first = state.get("layers.0.weight")
    check("layers.0.weight", isinstance(first, Tensor) and first.dtype in DTYPES, "a tensor of real numbers", first)
    _check_state(config, state, first.dtype)
    arguments = {**config, "init": "default", "encoding": None, "dtype": first.dtype}
    arguments["seed"] %= 2**32  # files of old have larger ones, of which this is what counted
    if config["encoding"] is not None:
        arguments["encoding"] = _encoding(config, state)
    net = INR(**arguments)
    if net.encoding is not None:
        del net.encoding.build
    net.load_state_dict(state)
    return net


# ---- sizes -------------------------------------------------------------------------------------------------------


def _check_state(config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Compare the sizes that a description states with the tensors, whatever they are: nothing is built from them."""
    layers = config["hidden_layers"]
    held = sum(name.startswith("layers.") and name.endswith(".weight") for name in state)
    check("hidden_layers", layers == held - 1, f"{held - 1}, as the file has tensors for", layers)
    for argument in ("activation", "omega", "norm"):
        given = config[argument]
        fits = not isinstance(given, list) or len(given) == layers
        check(argument, fits, f"one value or {layers} of them, one a hidden layer", given)
    expected = dict(_shapes(config, state))
    for name in (*expected, *(name for name in state if name not in expected)):
        if name not in state or name not in expected:
            raise ValueError(f"{name} is {'missing' if name in expected else 'no tensor of this network'}")
        kind = torch.int64 if name.endswith(("exponents", "num_batches_tracked")) else dtype
        fits = state[name].dtype == kind and tuple(state[name].shape) == expected[name]
        check(name, fits, f"a tensor {_printed(expected[name])} of {str(kind).removeprefix('torch.')}", state[name])


def _shapes(config: dict[str, Any], state: dict[str, Tensor]) -> Iterator[tuple[str, Shape]]:
    """Yield the shapes of all tensors of a network, by its description; the encoding's are compared on the way."""
    layers, width, inlet = config["hidden_layers"], config["width"], config["in_features"]
    if config["encoding"] is not None:
        inlet, shapes = _encoded(config["encoding"], inlet, state)
        yield from shapes.items()
    sizes = [inlet, *[width] * layers, config["out_features"]]
    for index in range(layers + 1):
        yield f"layers.{index}.weight", (sizes[index + 1], sizes[index])
        if config["bias"]:
            yield f"layers.{index}.bias", (sizes[index + 1],)
    norms = config["norm"] if isinstance(config["norm"], list) else [config["norm"]] * layers
    for index, norm in enumerate(norms):
        if norm is not None:
            yield from ((f"norms.{index}.{name}", shape) for name, shape in NORMS[norm].state(width).items())


def _encoded(config: dict[str, Any], coords: int, state: dict[str, Tensor]) -> tuple[int, dict[str, Shape]]:
    """Return the columns of an encoding of so many coordinates, and the shapes of its buffers."""
    if config["name"] == "RandomFourier":
        return 2 * config["n"], {"encoding.frequencies": (config["n"], coords)}
    if config["name"] == "PositionalEncoding":
        return 2 * config["n"] * coords, {"encoding.octaves": (config["n"],)}
    degree, given = config["degree"], config["coefficients"]
    check("encoding.coefficients", len(given) == degree + 1, f"degree + 1 = {degree + 1} numbers", given)
    exponents = state.get("encoding.exponents", torch.empty(0, 0))
    # The number of monomials may have a million digits; but it is not below d k + 1.
    fits = exponents.ndim == 2 and exponents.shape[1] == coords and degree * coords < len(exponents)
    columns = math.comb(degree + coords, degree) if fits else 0
    check("encoding.exponents", fits and columns == len(exponents), f"of degree {degree} in {coords}", exponents)
    fits = exponents.dtype == torch.int64 and int(exponents.min()) >= 0 and int(exponents.max()) <= degree
    check("encoding.exponents", fits, f"whole numbers from 0 to {degree}", exponents)
    return columns, {"encoding.exponents": (columns, coords), "encoding.scales": (columns,)}


def _encoding(config: dict[str, Any], state: dict[str, Tensor]) -> Encoding:
    """Return an encoding that is built already, of the file's tensors: to draw or list its own may take long."""
    encoding = from_config(config["encoding"])
    encoding.in_features = config["in_features"]
    encoding.out_features, shapes = _encoded(config["encoding"], config["in_features"], state)
    for name in shapes:
        encoding.register_buffer(name.removeprefix("encoding."), state[name].clone())
    encoding.build = lambda *arguments: encoding  # type: ignore[method-assign]
    return encoding


def _printed(shape: Shape) -> str:
    text = str(shape)
    return text if len(text) <= 60 else short(text)
