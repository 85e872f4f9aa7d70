"""Files of networks: an INR, its shape and what it stands for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inrfast.encodings import ENCODINGS, Encoding, from_config
from inrfast.encodings.base import Shape
from inrfast.files import shown, whole_file
from inrfast.mlp import describe
from inrfast.modulations import MODULATIONS
from inrfast.nn import INR
from inrfast.norms import norm_config, norm_from
from inrfast.training.schema import (
    FIT_SCHEMA,
    NETWORK,
    NETWORK_ABOUT,
    NETWORK_SCHEMA,
    NETWORK_TREE,
    OLD_NETWORK_SCHEMA,
    check,
    check_fit,
    plain,
    short,
)
from inrfast.training.trees import content_of, fault_told, read_tree

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that networks have."""


def save_network(net: INR, path: str | os.PathLike[str], signal: dict[str, Any] | None = None) -> None:
    """Write a network, its shape and what it stands for; :func:`load_network` builds it again.

    What the file would give back is compared with ``net`` before anything is written. The same network and signal give
    the same bytes. The tensors have the names of ``net.state_dict()``, so that ``safetensors.torch.load_file(path)``
    gives what ``load_state_dict`` of the same module takes, here or in a program without this library.

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
        ``net`` is no INR, or has an encoding that is not registered; something in ``signal`` or its ``init`` is no
        plain value.
    ValueError
        ``net`` is not what its description says; a number in it, in its description or in ``signal`` is not finite.
    OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    if not isinstance(net, INR):
        raise TypeError(f"net must be an inrfast.INR, got {type(net).__name__}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must name a .safetensors file, got {shown(path)!r}")
    parts = [] if net.encoding is None else [part for part in net.encoding.modules() if isinstance(part, Encoding)]
    unknown = next((type(part) for part in parts if type(part) not in ENCODINGS.values()), None)
    if unknown is not None:
        raise TypeError(
            f"net must have encodings that files know by name, got {unknown.__name__}: decorate its class with "
            "inrfast.encodings.register, or save the state_dict"
        )
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
    content = content_of(NETWORK_SCHEMA, dict(state), about)
    with whole_file(path, durable=True) as file:
        file.writelines(content)


def _changes(net: INR, state: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Return what a file would not give back of a network, or an empty string."""
    found = describe(net, modulated=True)
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
        The file is truncated, damaged, of another kind, of several networks or of no INR, or its weights do not fit, or
        hold NaN or Inf.
    """
    schema, tree, about = read_tree(path, (NETWORK_SCHEMA, OLD_NETWORK_SCHEMA, FIT_SCHEMA))
    with fault_told(f"{shown(path)} does not hold the network it describes"):
        if schema == FIT_SCHEMA:
            check_fit(tree, about)
            tree, about = _only_network(tree, about)
        else:
            tree = tree if schema == OLD_NETWORK_SCHEMA else {"net": tree}
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
    encoding = None if config["encoding"] is None else from_config(config["encoding"])
    _check_sizes(config, encoding, state)
    arguments = {**config, "init": "default", "encoding": encoding, "dtype": first.dtype}
    arguments["seed"] %= 2**32  # files of old have larger ones, of which this is what counted
    net = INR(**arguments)
    _check_state(net, state)
    net.load_state_dict(state)
    return net


# ---- sizes -------------------------------------------------------------------------------------------------------


def _check_sizes(config: dict[str, Any], encoding: Encoding | None, state: dict[str, Tensor]) -> None:
    """Compare the sizes that a description states with the tensors, whatever they are: nothing is built from them."""
    layers = config["hidden_layers"]
    held = sum(name.startswith("layers.") and name.endswith(".weight") for name in state)
    check("hidden_layers", layers == held - 1, f"{held - 1}, as the file has tensors for", layers)
    for argument in ("activation", "omega", "norm", "modulation"):
        given = config.get(argument)
        fits = not isinstance(given, list) or len(given) == layers
        check(argument, fits, f"one value or {layers} of them, one per hidden layer", given)
    for norm in config["norm"] if isinstance(config["norm"], list) else [config["norm"]]:
        if norm is not None:
            norm_config(norm, config["width"], "about.net.norm")
    for name, shape in _shapes(config, encoding, state):
        if name not in state:
            raise ValueError(f"{name} is missing")
        check(name, tuple(state[name].shape) == shape, f"a tensor {_printed(shape)}", state[name])


def _shapes(config: dict[str, Any], encoding: Encoding | None, state: dict[str, Tensor]) -> Iterator[tuple[str, Shape]]:
    """Yield the shapes of the tensors of a network, by its description; but those that an encoding does not know."""
    layers, width, inlet = config["hidden_layers"], config["width"], config["in_features"]
    if encoding is not None:
        shapes = encoding.shapes(inlet)
        yield from ((f"encoding.{name}", shape) for name, shape in (shapes or {}).items())
        inlet = encoding.columns(inlet) or state["layers.0.weight"].shape[-1]
    sizes = [inlet, *[width] * layers, config["out_features"]]
    for index in range(layers + 1):
        yield f"layers.{index}.weight", (sizes[index + 1], sizes[index])
        if config["bias"]:
            yield f"layers.{index}.bias", (sizes[index + 1],)
    norms = config["norm"] if isinstance(config["norm"], list) else [config["norm"]] * layers
    for index, norm in enumerate(norms):
        if norm is not None:
            own = norm_from(norm)[0].state(width)
            yield from ((f"norms.{index}.{name}", shape) for name, shape in own.items())
    given = config.get("modulation")
    for index, filtered in enumerate(given if isinstance(given, list) else [given] * layers):
        if filtered is not None:
            own = MODULATIONS[filtered["name"]].state(config["in_features"], width)
            yield from ((f"modulations.{index}.{name}", shape) for name, shape in own.items())


def _check_state(net: INR, state: dict[str, Tensor]) -> None:
    """Compare names, shapes and dtypes with those of the network that was built, and the encoding's numbers."""
    built = net.state_dict()
    for name in (*built, *(name for name in state if name not in built)):
        if name not in state or name not in built:
            raise ValueError(f"{name} is {'missing' if name in built else 'no tensor of this network'}")
        shape, kind = tuple(built[name].shape), built[name].dtype
        fits = state[name].dtype == kind and tuple(state[name].shape) == shape
        check(name, fits, f"a tensor {_printed(shape)} of {str(kind).removeprefix('torch.')}", state[name])
        if kind.is_floating_point and not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{name} holds NaN or Inf")
    if net.encoding is not None:
        prefix = "encoding."
        net.encoding.check_state(
            {name.removeprefix(prefix): own for name, own in state.items() if name.startswith(prefix)}
        )


def _printed(shape: Shape) -> str:
    text = str(shape)
    return text if len(text) <= 60 else short(text)
