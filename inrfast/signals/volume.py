"""Volumes: NumPy files to float tensors (D, H, W, C) and back."""

from __future__ import annotations

import os
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrfast.errors import check_tensor
from inrfast.files import whole_file
from inrfast.signals.paths import VOLUME_SUFFIXES, readable, writable

MOST_CHANNELS = 4
"""A longer last axis is more likely a fourth dimension than channels."""


def load_volume(path: str | os.PathLike[str]) -> Tensor:
    """Return the volume in a NumPy file as an fp32 tensor (D, H, W, C).

    Parameters
    ----------
    path
        A ``.npy`` file, (D, H, W) or (D, H, W, C) with C <= 4, in any byte and memory order. Unsigned integers and
        booleans are divided by the largest value of their dtype, to [0, 1]; floats stay as they are, rounded to fp32.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        The file is missing, a folder, or not readable.
    ValueError
        The file is empty, truncated or no NumPy array; another shape; NaN, Inf or values beyond fp32; signed integers
        (their range is not stated: convert them to floats), complex numbers or objects.
    TypeError
        ``path`` is no path.
    """
    file = readable(path, "a NumPy array", VOLUME_SUFFIXES)
    array = _open(file)
    if array.ndim not in (3, 4) or array.size == 0 or (array.ndim == 4 and array.shape[3] > MOST_CHANNELS):
        raise ValueError(
            f"{file} must hold a volume (D, H, W) or (D, H, W, C) with C <= {MOST_CHANNELS}, got shape {array.shape}"
        )
    divisor = _divisor(file, array.dtype)
    values = torch.empty(*array.shape[:3], array.shape[3] if array.ndim == 4 else 1)
    for into, part in zip(values, array, strict=True):  # slice by slice: a file may nearly fill the memory
        with np.errstate(over="ignore"):
            into.copy_(torch.from_numpy((part.astype(np.float64) / divisor).astype(np.float32)).reshape(into.shape))
        if not bool(torch.isfinite(into).all()):
            raise ValueError(f"{file} holds NaN, Inf or values beyond fp32")
    return values


def save_volume(values: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a volume as a NumPy file of fp32 numbers. The file is whole or absent.

    Parameters
    ----------
    values
        Floating tensor (D, H, W) or (D, H, W, C) with C <= 4, any device.
    path
        Ends in ``.npy``; its folder must exist. An older file is replaced.

    Raises
    ------
    ValueError, TypeError
        Another shape, NaN or Inf (also those that only fp32 makes), another suffix.
    FileNotFoundError, NotADirectoryError, OSError
        The folder is missing or cannot be written to; nothing is left behind.
    """
    values = check_tensor("values", values).detach()
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] > MOST_CHANNELS):
        raise ValueError(
            f"values must have shape (D, H, W) or (D, H, W, C) with C <= {MOST_CHANNELS}, got {tuple(values.shape)}"
        )
    target = writable(path, "a NumPy array", VOLUME_SUFFIXES)
    single = check_tensor("values in fp32", values.float()).cpu().contiguous().numpy()
    with whole_file(target) as opened:
        np.lib.format.write_array(opened, single, allow_pickle=False)


def _open(file: Path) -> np.ndarray[Any, Any]:
    """Return the array without reading it: its size is checked against the file's first."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError, TypeError, OverflowError) as error:
        raise ValueError(f"{file} is not a NumPy array that can be read: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{file} is an archive of arrays (.npz); save the one array with numpy.save")
    return array


def _divisor(file: Path, dtype: np.dtype[Any]) -> float:
    """Return the value that becomes 1."""
    if dtype.kind == "u":
        return float(np.iinfo(dtype).max)
    if dtype.kind in "bf":
        return 1.0
    if dtype.kind == "i":
        raise ValueError(f"{file} holds signed integers ({dtype}), whose range is not stated; convert them to floats")
    raise ValueError(f"{file} holds {dtype}; a volume has real numbers (floats, unsigned integers or booleans)")
