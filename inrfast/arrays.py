"""Arrays of other libraries as tensors, at one place for all public functions, and tensors as what came in."""

from __future__ import annotations

import sys
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor


class Exported(Protocol):
    """An array of another library that offers its memory."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any:
        """Return its memory as a capsule of DLPack."""

    def __dlpack_device__(self) -> Any:
        """Return where its memory is."""


ArrayLike = Tensor | np.ndarray | Exported
"""What public functions take where they take numbers; they return tensors, except where they say otherwise."""

Array = TypeVar("Array", Tensor, np.ndarray)
"""Of functions that return what came in: NumPy for NumPy, a tensor for tensors and arrays of other libraries."""

ACCEPTED = "a torch.Tensor, a NumPy array or an object with __dlpack__"
"""What stands for numbers wherever a public function takes some."""


def is_array(given: Any) -> bool:
    """Return whether something is a tensor, a NumPy array or, by ``__dlpack__``, another library's array."""
    return isinstance(given, Tensor | np.ndarray) or (hasattr(given, "__dlpack__") and not isinstance(given, type))


def is_distributed(given: Any) -> bool:
    """Return whether something is a ``DTensor``, of which each process may hold a piece."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)  # slow to import
    return kind is not None and isinstance(given, kind)


def as_tensor(argument: str, given: Any, device: torch.device | None = None) -> Tensor:
    """Return an array as a tensor of the same numbers, and of its memory where torch can share it.

    Parameters
    ----------
    argument
        What it is called in messages.
    given
        A tensor, returned as it is. A NumPy array of numbers up to fp64 in any byte order; of a read-only one, one of
        the other byte order, or one with negative strides a copy is made. Any other object with ``__dlpack__`` (JAX,
        CuPy), on its own device.
    device
        Where a NumPy array goes, which has no device of its own; None: it stays on the CPU.

    Raises
    ------
    TypeError
        It is none of these: a list, an array of objects, strings, records or ``numpy.longdouble``, a masked array, a
        ``DTensor``.
    """
    if is_distributed(given):
        raise TypeError(f"{argument} must be a plain tensor, got a DTensor, held in pieces; .full_tensor() makes one")
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ndarray):
        tensor = torch.from_numpy(_as_torch_takes_it(argument, given))
        return tensor if device is None else tensor.to(device)
    if not is_array(given):
        cure = "; .to_numpy() makes one" if hasattr(given, "to_numpy") else ""
        cure = f"; torch.tensor({argument.partition('[')[0]}) makes one" if isinstance(given, list | tuple) else cure
        raise TypeError(f"{argument} must be {ACCEPTED}, got {type(given).__name__}{cure}")
    try:
        return torch.from_dlpack(given)
    except Exception as error:  # each library has its own
        raise TypeError(
            f"{argument} must be {ACCEPTED}, and torch does not take the memory of this {type(given).__name__}: {error}"
        ) from error


def _as_torch_takes_it(argument: str, array: np.ndarray) -> np.ndarray:
    """Return an array of a dtype, byte order and strides that torch knows, the same one if it is so already."""
    if isinstance(array, np.ma.MaskedArray) and bool(np.ma.getmaskarray(array).any()):
        raise TypeError(f"{argument} must be a plain array, got one with masked entries; fill them first")
    array = np.asarray(array)  # of a subclass the numbers
    if array.dtype.kind not in "fiubc":
        raise TypeError(f"{argument} must hold numbers, got a NumPy array of dtype {array.dtype}")
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        raise TypeError(f"{argument} must be fp64 or narrower, got {array.dtype}: numpy.longdouble is too wide")
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if odd or not array.flags.writeable or not array.dtype.isnative:
        return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return array


def like(given: Any, result: Tensor) -> Any:
    """Return a result as the kind of array that came in: NumPy for NumPy, else the tensor."""
    return result.detach().cpu().numpy() if isinstance(given, np.ndarray) else result


def as_numpy(computed: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """Return a tensor that was computed for ``numpy.asarray(...)``, whose arguments these are, as NumPy's array."""
    if copy is False:
        raise ValueError("the numbers are computed when they are asked for: copy=False cannot be had")
    return np.asarray(computed.detach().cpu().numpy(), dtype=dtype)
