"""Weights of a meta-learned sine network from a file: the authors' own as arrays, or a network kept by this project."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from inrfast.experiments.inr_dictionaries.networks import HIDDEN_OMEGA
from inrfast.files import shown
from inrfast.nn import INR
from inrfast.training.networks import load_network

KEY = re.compile(r"siren\.siren_layer(?:_([1-9]\d?))?\.linear\.([wb])")
"""Names of the authors' arrays: the layer, of which the first has no number, and weight or bias."""

MOST_BYTES = 2**28
"""Of all arrays together: their network is of 0.8 MB."""

FORM = (
    "the authors' arrays siren.siren_layer.linear.w and .b, siren.siren_layer_1.linear.w and so on in an .npz file, or "
    "a network that inrfast saved in a .safetensors file"
)


def read_weights(path: Path) -> INR:
    """Return the sine network in a file, fp32, with 2 inputs and 1 output.

    The authors' code has ``w`` of shape (inputs, outputs), omega 30 in every layer, and adds 0.5 to the output, which
    is left to the targets here: a tangent kernel does not know it. Nothing is ever unpickled.

    Raises
    ------
    ValueError
        Another kind of file, or a damaged one; layers that do not follow on each other; NaN or Inf; a network of other
        inputs or outputs.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        net = _of_arrays(_arrays(path)) if is_zip else load_network(path)[0].float()
        if (net.in_features, net.out_features) != (2, 1):
            raise ValueError(f"it is a network of {net.in_features} inputs and {net.out_features} outputs, not 2 and 1")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"weights must be {FORM}, and {shown(path)} is none: {error}") from error
    return net


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MOST_BYTES:
        raise ValueError(f"its arrays have {size:,} bytes, above {MOST_BYTES:,}")
    with np.load(path, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}


def _of_arrays(arrays: dict[str, np.ndarray]) -> INR:
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        found = KEY.fullmatch(name)
        if not found:
            raise ValueError(f"it holds {shown(name)}")
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(f"{name} holds something else than finite floating-point numbers")
        layers.setdefault(int(found[1] or 0), {})[found[2]] = values
    count = len(layers)
    if count < 2 or set(layers) != set(range(count)) or any(set(layer) != {"w", "b"} for layer in layers.values()):
        raise ValueError(f"it holds {', '.join(arrays) or 'nothing'}, and not w and b of every layer from the first on")
    width = layers[0]["b"].size
    sizes = [2, *[width] * (count - 1), 1]
    for i, layer in layers.items():
        for name, shape in (("w", (sizes[i], sizes[i + 1])), ("b", (sizes[i + 1],))):
            if layer[name].shape != shape:
                raise ValueError(f"layer {i} has {name} of shape {layer[name].shape}, and {shape} would fit")
    net = INR(2, 1, width, count - 1, "sine", HIDDEN_OMEGA)
    with torch.no_grad():
        for i, linear in enumerate(net.layers):
            linear.weight.copy_(torch.from_numpy(layers[i]["w"].astype(np.float32)).T)  # type: ignore[operator]
            linear.bias.copy_(torch.from_numpy(layers[i]["b"].astype(np.float32)))  # type: ignore[operator]
    return net
