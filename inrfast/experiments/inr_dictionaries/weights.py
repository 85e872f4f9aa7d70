"""Weights of a meta-learned sine network from a file: the authors' own as arrays, or a network kept by this project."""

from __future__ import annotations

from pathlib import Path

from inrfast.errors import MemoryBudgetError
from inrfast.files import shown
from inrfast.importing.network import import_network
from inrfast.nn import INR
from inrfast.training.networks import load_network

FORM = (
    "the authors' arrays siren.siren_layer.linear.w and .b, siren.siren_layer_1.linear.w and so on in an .npz file, or "
    "a network that inrfast saved in a .safetensors file"
)


def read_weights(path: Path) -> INR:
    """Return the sine network in a file, fp32, with 2 inputs and 1 output.

    The authors' code adds 0.5 to the output, which is left to the targets here: a tangent kernel does not know it.
    Nothing is ever unpickled.

    Raises
    ------
    ValueError
        Another kind of file, or a damaged one; layers that do not follow on each other; NaN or Inf; a network of other
        inputs or outputs.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        net = (import_network(path, "meta_siren", shift=0.0) if is_zip else load_network(path)[0]).float()
        if (net.in_features, net.out_features) != (2, 1):
            raise ValueError(f"it is a network of {net.in_features} inputs and {net.out_features} outputs, not 2 and 1")
    except (ValueError, TypeError, OSError, MemoryBudgetError) as error:
        raise ValueError(f"weights must be {FORM}, and {shown(path)} is none: {error}") from error
    return net
