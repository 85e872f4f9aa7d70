"""Whether several processes make the same call: digests of its arguments, compared by one small exchange."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from inrfast.errors import InrfastError
from inrfast.memory import chunks

F = TypeVar("F", bound=Callable[..., Any])

NUMBERS = 16
"""Largest number of arguments that are compared at a time."""

TEXT_BYTES = 1024
"""Bytes of what a process says of an argument or of its error."""

ENTRIES = 1 << 17
"""Entries of a tensor that are mixed at a time: they stay in cache."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

LOCAL = ("progress",)
"""Arguments that may differ between processes."""


class Agreement:
    """The processes of a group, which must make the same calls.

    Parameters
    ----------
    group
        A process group; None: all processes.
    device
        Where this process's tensors are.

    Raises
    ------
    ValueError
        The group does not hold this process.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group = group
        self.rank, self.processes = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must hold this process; call with the group that the kernel's processes are in")
        self.device = torch.device("cpu")
        if dist.get_backend(group) == "nccl":  # which sends what is on a GPU only
            current = torch.device("cuda", torch.cuda.current_device())
            self.device = device if device.type == "cuda" else current
        self.inside = False

    def exchange(self, numbers: Tensor) -> list[Tensor]:
        """Return the ``numbers`` of every process, of one shape and dtype."""
        own = numbers.to(self.device)
        found = [torch.empty_like(own) for _ in range(self.processes)]
        dist.all_gather(found, own, group=self.group)
        return [part.cpu() for part in found]

    def texts(self, text: str) -> list[str]:
        """Return the ``text`` of every process, cut to :data:`TEXT_BYTES`."""
        coded = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES)
        found = self.exchange(torch.frombuffer(bytearray(coded), dtype=torch.uint8))
        return [part.numpy().tobytes().decode(errors="replace").rstrip() for part in found]

    def check(self, given: Mapping[str, Any]) -> list[int]:
        """Return digests of arguments; raise a ValueError in every process if they differ, naming the first."""
        digests = torch.zeros(NUMBERS, dtype=torch.int64, device="cpu")
        for place, value in enumerate(given.values()):
            digests[place] = digest(value)
        every = torch.stack(self.exchange(digests))
        if bool((every == every[0]).all()):
            return digests.tolist()
        place = int((every != every[0]).any(0).nonzero()[0])
        name, value = list(given.items())[place] if place < len(given) else ("arguments", None)
        told = self.texts(f"{name}\n{_described(value)}")
        other = int((every[:, place] != every[0, place]).nonzero()[0])
        name, first = told[0].split("\n", 1)
        second = told[other].split("\n", 1)[-1]
        second = "one with other numbers" if first == second else second
        raise ValueError(
            f"{name} must be the same in every process, got {first} in process 0 and {second} in process {other}. "
            "Every process must make the same calls, of the same network, with the same arguments"
        )

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Run a block that exchanges nothing; an error in one process is raised in all of them.

        Raises
        ------
        ValueError, TypeError, InrfastError
            In processes without an error of their own: what the first one with an error says.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = self.exchange(torch.tensor([error is not None], dtype=torch.uint8, device="cpu"))
        if not any(bool(part) for part in failed):
            return
        told = self.texts("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        rank = next(rank for rank, part in enumerate(failed) if bool(part))
        kind = {"TypeError": TypeError, "ValueError": ValueError}.get(told[rank].partition(":")[0], InrfastError)
        raise kind(f"process {rank} raised {told[rank]}")

    @contextmanager
    def call(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Compare the arguments of a call, unless it is part of another one, which all processes make."""
        if self.inside:
            yield
            return
        self.check(given)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


def collective(method: F) -> F:
    """Decorate a method of a shared kernel so that all processes compare its arguments before it begins."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            given = {name: value for name, value in list(bound.arguments.items())[1:] if name not in LOCAL}
        except TypeError as error:  # raised by the method too
            given = {"arguments": str(error)}
        with self.together(method.__name__, given):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def digest(given: Any) -> int:
    """Return 64 bits that two arguments share if they are the same: tensors by shape, dtype and every entry.

    Functions and other objects are told apart by the names of their types alone.
    """
    mixed = hashlib.blake2b(digest_size=8)
    _feed(mixed.update, given)
    return int.from_bytes(mixed.digest(), "little", signed=True)


def _feed(update: Callable[[bytes], None], given: Any) -> None:
    if isinstance(given, np.generic):
        given = given.item()
    if isinstance(given, Tensor) and given.layout == torch.strided:
        update(f"{given.dtype}{tuple(given.shape)}".encode())
        update(_mixed(given).to_bytes(8, "little", signed=True))
    elif isinstance(given, np.ndarray) and given.dtype != object:
        update(f"{given.dtype.str}{given.shape}".encode())
        update(np.ascontiguousarray(given).tobytes())
    elif isinstance(given, nn.Module):
        update(type(given).__qualname__.encode())
        for name, tensor in given.state_dict().items():
            update(name.encode())
            _feed(update, tensor)
    elif isinstance(given, (list, tuple)):
        update(f"{type(given).__name__}{len(given)}".encode())
        for part in given:
            _feed(update, part)
    elif isinstance(given, slice):
        _feed(update, ("slice", given.start, given.stop, given.step))
    else:
        update(_described(given).encode())


def _mixed(tensor: Tensor) -> int:
    """Return the sum modulo 2^64 of the mixed bits of all entries, each with its place: the same on every device."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    flat = tensor.detach().resolve_neg().contiguous().flatten()
    flat = flat.view(INTEGERS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for part in chunks(len(flat), ENTRIES):
        bits = torch.arange(part.start, part.stop, dtype=torch.int64, device=flat.device)
        # Multipliers of splitmix64: Steele, Lea and Flood, OOPSLA 2014.
        bits.mul_(-7046029254386353131).add_(flat[part])
        bits.bitwise_xor_(bits >> 30).mul_(-4658895280553007687)
        bits.bitwise_xor_(bits >> 27).mul_(-7723592293110705685)
        total += bits.bitwise_xor_(bits >> 31).sum()
    return int(total)


def _described(given: Any) -> str:
    """Return what a process says of an argument that differs; without the addresses of objects."""
    if isinstance(given, (Tensor, np.ndarray)):
        return f"{given.dtype} {tuple(given.shape)}"
    if given is None or isinstance(given, (bool, int, float, complex, str, bytes, range, np.generic)):
        return repr(given)
    if isinstance(given, (list, tuple)):
        return f"[{', '.join(map(_described, given[:8]))}{', ...' if len(given) > 8 else ''}]"
    if isinstance(given, slice):
        return f"slice({given.start}, {given.stop}, {given.step})"
    named = given if hasattr(given, "__qualname__") else type(given)
    return f"{named.__module__}.{named.__qualname__}"
