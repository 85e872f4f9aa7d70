"""Where a dense kernel is written to: a tensor or NumPy array that the caller gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_target(out: Any, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor or NumPy array into which a matrix of this shape, dtype and device can be written, as a tensor.

    Raises
    ------
    ValueError, TypeError
        It cannot; the message says what came and what is accepted.
    """
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise ValueError("out must be writable")
        if device.type != "cpu":
            raise ValueError(f"out is a NumPy array but the kernel is on {device}; pass a tensor there")
        if not out.dtype.isnative:
            raise ValueError(f"out must have this machine's byte order, got dtype {out.dtype.str!r}")
        if any(stride < 0 for stride in out.strides):
            raise ValueError(f"out must have no negative strides, got {out.strides} (a reversed view)")
        if any(stride % out.itemsize for stride in out.strides):
            raise ValueError(f"out must have strides in whole entries of {out.itemsize} bytes, got {out.strides}")
        if out.dtype not in (np.float32, np.float64):
            raise ValueError(f"out must have dtype {str(dtype)[6:]}, got {out.dtype}")
        out = torch.from_numpy(out)
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor or a NumPy array, got {type(out).__name__}")
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != device:
        raise ValueError(
            f"out must have shape {shape}, dtype {dtype} and device {device}, got "
            f"{tuple(out.shape)}, {out.dtype}, {out.device}"
        )
    extent = 0
    for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
        if size > 1 and stride <= extent:
            raise ValueError(f"out must have memory of its own for every entry, got strides {out.stride()}")
        extent += stride * (size - 1)
    return out
