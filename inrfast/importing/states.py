"""States of networks from files and dictionaries: tensors by key, without wrappers, prefixes and weight norms."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from inrfast.arrays import is_distributed
from inrfast.errors import InrfastError, MemoryBudgetError, UnsupportedModuleError
from inrfast.files import opened, shown
from inrfast.importing.base import LEAVES
from inrfast.memory import is_refusal, require_free
from inrfast.words import one_line
from inrfast.wrapped import GATHER

DEEPEST = 4
"""Dictionaries inside each other in which a state is searched."""

NORMED = {
    "weight_v": ("weight_g", "weight"),
    "parametrizations.weight.original1": ("parametrizations.weight.original0", "weight"),
}
"""Keys of torch's weight norms, old and new: of the direction, and by it of the length and of the weight they make."""


def state_of(source: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file or dictionary by their keys, real and finite, as they are or in another dtype.

    Nothing is unpickled.

    Raises
    ------
    TypeError
        No path and no mapping; a value that is no tensor or array; complex or whole numbers, masked arrays.
    ValueError
        A file of another kind, or a damaged one; several states; NaN or Inf; a batch norm; a ``DTensor``.
    FileNotFoundError, OSError
        There is no such file, or it cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        loaded, place = _loaded(source), shown(source)
    elif isinstance(source, Mapping):
        loaded, place = source, "source"
    else:
        hint = "; give its state_dict()" if isinstance(source, nn.Module) else ""
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}{hint}")
    state = _without_wrappers(_inner(loaded, place, 0), place)
    needed = sum(
        tensor.numel() * max(tensor.element_size(), (dtype or tensor.dtype).itemsize) for tensor in state.values()
    )
    require_free(3 * needed, f"importing {place}", "import it where more memory is free")
    _check_numbers(state, place)
    made = _without_norms({key: tensor.to(dtype or tensor.dtype) for key, tensor in state.items()})
    _check_numbers(made, place)
    return made


# ---- files -------------------------------------------------------------------------------------------------------


def _loaded(path: str | os.PathLike[str]) -> Any:
    """Return what a file holds, by its content: arrays of NumPy, safetensors, or what torch saves without code."""
    with opened(path, "a file of weights") as file:
        size = os.fstat(file.fileno()).st_size
        require_free(3 * size, f"reading {shown(path)}", "read it where more memory is free")
        start = file.read(9)
        file.seek(0)
        try:
            if start[:2] == b"PK":
                return _of_archive(file, path)
            if start[8:] == b"{":
                return safetensors.torch.load(file.read())
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each reader raises its own types for damaged files
            if isinstance(error, InrfastError):
                raise
            if is_refusal(error):
                raise MemoryBudgetError(
                    f"reading {shown(path)} takes more memory than there is ({one_line(error)}); read it where more is "
                    "free, if it is not damaged"
                ) from error
            raise ValueError(
                f"{shown(path)} is no file of tensors (.pt, .pth, .safetensors, .npz), is damaged, or holds Python "
                f"objects beside them, which are never unpickled; load it yourself and give the state dict: "
                f"{one_line(error)}"
            ) from error


def _of_archive(file: IO[bytes], path: str | os.PathLike[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        require_free(3 * size, f"reading {shown(path)}", "read it where more memory is free")
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise ValueError(f"it holds {next(name for name in names if names.count(name) > 1)!r} twice")
        # torch.load compares no checksums; all are 0 where torch.save was told to compute none.
        wrong = archive.testzip() if any(member.CRC for member in members) else None
        if wrong is not None:
            raise ValueError(f"the checksum of its part {wrong!r} is wrong: it is damaged")
    file.seek(0)
    if members and any(not member.filename.endswith(".npy") for member in members):
        return torch.load(file, map_location="cpu", weights_only=True)
    with np.load(file, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}


# ---- dictionaries ------------------------------------------------------------------------------------------------


def _inner(loaded: Any, place: str, depth: int) -> Mapping[str, Any]:
    """Return the state in a checkpoint: the one mapping in it that holds tensors, or the mapping itself."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{place} must hold a state dict, got {type(loaded).__name__}")
    inner = {key: value for key, value in loaded.items() if isinstance(value, Mapping) and _has_tensors(value, depth)}
    beside = [key for key, value in loaded.items() if isinstance(value, (Tensor, np.ndarray))]
    named = [key for key in beside if isinstance(key, str) and ("." in key or key in LEAVES)]
    if not loaded or (beside and (named or not inner)):
        return loaded
    if len(inner) == 1:
        return _inner(next(iter(inner.values())), place, depth + 1)
    if inner:
        raise ValueError(
            f"{place} holds several states, {', '.join(map(repr, inner))}; load it yourself and give the one you want"
        )
    raise ValueError(f"{place} holds no tensors, but {one_line(', '.join(map(repr, loaded)))}")


def _has_tensors(value: Mapping[Any, Any], depth: int) -> bool:
    """Return whether a mapping is, or holds, a state: keys that are texts, tensors with axes among the values."""
    if depth > DEEPEST or not all(isinstance(key, str) for key in value):
        return False
    return any(
        (isinstance(own, (Tensor, np.ndarray)) and own.ndim > 0)
        or (isinstance(own, Mapping) and _has_tensors(own, depth + 1))
        for own in value.values()
    )


def _without_wrappers(state: Mapping[str, Any], place: str) -> dict[str, Tensor]:
    """Return a state without the names that ``DataParallel``, ``AveragedModel`` and ``torch.compile`` add."""
    found: dict[str, Tensor] = {}
    averaged = "n_averaged" in state and all(key.startswith("module.") for key in state if key != "n_averaged")
    held = {key: value for key, value in state.items() if not (averaged and key == "n_averaged")}
    wrapped = bool(held) and all(isinstance(key, str) and re.match(r"(_orig_mod\.)*module\.", key) for key in held)
    for key, value in held.items():
        if not isinstance(key, str):
            raise TypeError(f"a state must have texts as keys, got {key!r:.80}")
        if isinstance(value, np.ndarray):
            value = _of_array(value, f"{one_line(key)} in {place}")
        if not isinstance(value, Tensor):
            raise TypeError(f"a state must hold tensors alone, got {type(value).__name__} as {one_line(key)!r}")
        parts = [part for part in key.split(".") if part != "_orig_mod"]
        name = ".".join(parts[1:] if wrapped else parts)
        if name in found:
            raise ValueError(f"it has {name!r} twice, with and without the prefix of a wrapper")
        found[name] = value.detach()
    return found


def _of_array(value: np.ndarray, told: str) -> Tensor:
    """Return an array as a tensor of its own."""
    if np.ma.is_masked(value):
        raise TypeError(f"{told} is an array with masked entries, which are no numbers")
    if value.dtype.kind not in "biufc" or value.dtype.itemsize > (16 if value.dtype.kind == "c" else 8):
        raise TypeError(f"{told} is an array of {value.dtype}, which torch does not have; convert it (.astype)")
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))


def _without_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with the weights that weight norms make, ``g v / |v|``."""
    found = dict(state)
    for key in state:
        for direction, (length, weight) in NORMED.items():
            prefix = key.removesuffix(direction)
            if key != prefix and (not prefix or prefix.endswith(".")) and prefix + length in state:
                v, g = found.pop(key), found.pop(prefix + length)
                summed = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
                if g.ndim not in (0, v.ndim) or any(g.shape[a] not in (1, v.shape[a]) for a in range(g.ndim)):
                    raise ValueError(f"{prefix + length} of shape {tuple(g.shape)} is no length of {key}")
                found[prefix + weight] = v * (g / torch.linalg.vector_norm(v, dim=summed, keepdim=g.ndim > 0))
    return found


def _check_numbers(state: dict[str, Tensor], place: str) -> None:
    """Refuse numbers that are not real and finite."""
    for key, tensor in state.items():
        told = f"{one_line(key)} in {place}"
        if is_distributed(tensor):
            raise UnsupportedModuleError(
                f"{place} holds a DTensor as {one_line(key)!r}, of which each process may hold a piece. {GATHER}"
            )
        if key.endswith("num_batches_tracked"):
            raise ValueError(
                f"{told} is the count of a batch norm, and no layout has norms: in eval mode each is an affine map, "
                "which the linear layer before it can take in (torch.nn.utils.fusion.fuse_linear_bn_eval)"
            )
        if tensor.is_complex():
            raise TypeError(
                f"{told} holds complex numbers ({tensor.dtype}), as the complex network of WIRE has; an INR has real "
                "weights"
            )
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise TypeError(f"{told} must hold floating-point numbers of 16 bits or more, got {tensor.dtype}")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise TypeError(f"{told} must be a dense tensor that holds numbers, got {tensor.device}, {tensor.layout}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{told} must be finite, and holds NaN or Inf")
