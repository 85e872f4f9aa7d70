"""A pretend CUDA machine: tensors that say ``cuda:0`` or ``cuda:1`` and compute on the CPU, watched as CUDA would be.

``install("interpret")`` must run before anything else touches ``torch.cuda``, in a process of its own with
``TRITON_INTERPRET=1``: kernels are interpreted. ``install("compile")``, without that variable, compiles every kernel
for sm_90 exactly as Triton's JIT specialises it and does not run it; tensors that kernels would fill are zeros then.

- Tensors of different devices in one operation raise, as CUDA's do; so does a kernel that gets a tensor of the CPU, or
  of another device than the one it is launched on.
- What is copied to pinned memory without waiting may be read on the host after an event that was recorded on its
  device's current stream, or any other wait; before that it raises.
- :data:`record` counts launches, torch operators that start kernels, and host synchronisations, each with the place in
  the project's code that it comes from.
- A graph captures what touches its stream's device and replays it into the same memory. What must not happen inside is
  kept in ``record.violations``: allocation, compilation, a host copy, a synchronisation, another device.

``torch.compile`` returns its argument: there is no machine to compile for.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import inspect
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 2
CPU = torch.device("cpu")
OUTSIDE = "outside"
"""Where nothing of the project's code is being run."""

PROPERTIES = types.SimpleNamespace(
    name="pretend GPU",
    major=9,
    minor=0,
    multi_processor_count=132,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    total_memory=80 << 30,
    warp_size=32,
    L2_cache_size=50 << 20,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
)
"""What an H100 has."""

SYNCHRONISING = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "histc", "multinomial", "_linalg_check_errors", "_linalg_eigh", "linalg_eig",
    "_linalg_svd", "linalg_lstsq", "_assert_async_never",
}  # fmt: skip
"""Operators of torch that wait for the GPU: the size of their result, or an error, is known there alone."""

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "addmv_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
COPYING = {"_to_copy", "copy_", "copy", "_copy_from", "_copy_from_and_resize"}
BETWEEN_DEVICES = COPYING | {"set_", "detach", "lift", "lift_fresh", "lift_fresh_copy", "alias"}
EMPTY = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}


@dataclasses.dataclass
class Record:
    """What was asked of the device: counts by (what, place), and what must not happen inside a capture."""

    launches: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    operators: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    synchronisations: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    violations: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    replays: int = 0

    @property
    def kernels(self) -> int:
        """Kernels that the host started: Triton's, and one for each operator of torch that is no view."""
        return self.launches.total() + self.operators.total()

    @property
    def waits(self) -> int:
        """How often the host waited for the device."""
        return self.synchronisations.total()

    def since(self, before: Record) -> Record:
        """Return what came after a copy taken earlier."""
        names = ("launches", "operators", "synchronisations", "violations")
        parts = {name: getattr(self, name) - getattr(before, name) for name in names}
        return Record(**parts, replays=self.replays - before.replays)

    def listing(self, most: int = 12) -> str:
        """Return the most frequent entries, a line each."""
        lines = [f"{self.kernels} kernels, {self.waits} synchronisations, {self.replays} replays"]
        for name in ("launches", "operators", "synchronisations", "violations"):
            lines += [
                f"  {count:6} {name[:-1]:15} {what}  {place}"
                for (what, place), count in getattr(self, name).most_common(most)
            ]
        return "\n".join(lines)


record = Record()
compiled: dict[Any, tuple[str, float]] = {}
"""Specialisations seen so far: the kernel's name, and the seconds that compiling took."""

_current = [0]
_captures: list[Graph] = []
_generators: list[torch.Generator] = []
_streams: dict[int, Stream] = {}
"""The current stream of every device that was asked for one."""
_fills_empty = [False]
_arriving: dict[int, tuple[Any, int]] = {}
"""Copies to the host that nothing waited for yet, by the address of their memory: that memory, kept, and the device."""


@contextlib.contextmanager
def counted() -> Iterator[Record]:
    """Yield a record that holds, after the block, what happened inside."""
    before = copy.deepcopy(record)
    found = Record()
    try:
        yield found
    finally:
        found.__dict__.update(record.since(before).__dict__)


def place() -> str:
    """Return the innermost line of the project's code that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(str(ROOT)) and not name.startswith((str(ROOT / "tests"), str(ROOT / ".venv"))):
            return f"{name[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return OUTSIDE


def _count(counter: collections.Counter[tuple[str, str]], what: str) -> None:
    """Count what comes from the project's code; what a test or a script asks for itself is not the project's."""
    where = place()
    if where != OUTSIDE:
        counter[what, where] += 1


def waits(what: str, arrived: set[int] | None = None) -> None:
    """Record a host synchronisation, after which copies have arrived: all of them, or some by their addresses."""
    _count(record.synchronisations, what)
    for address in list(_arriving) if arrived is None else arrived:
        _arriving.pop(address, None)
    if _captures:
        violates(f"synchronisation: {what}")


def violates(what: str) -> None:
    """Record what must not happen inside a capture."""
    record.violations[what, place()] += 1


class OnDevice(torch.Tensor):
    """A tensor that says it is on a CUDA device, around one on the CPU.

    To torch's C++ it lies on ``meta:0`` or ``meta:1``: autograd and the indexing of a build without CUDA, or without a
    GPU, ask such a tensor for no stream, and what C++ makes like it comes back with the same number.
    """

    inner: torch.Tensor
    index: int

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta", index),
        )
        made.inner, made.index = inner, index
        return made

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index)

    is_cuda = True
    is_meta = False

    def get_device(self) -> int:
        return self.index

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r}, {self.device})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, **kwargs)

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Any) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.Tensor.__getitem__(self, _lists_to_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _lists_to_tensors(index), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                made: Any = OnDevice(self.inner.detach().clone(), self.device.index)
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(made) if parameter else made
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.detach().inner, self.device.index, self.requires_grad)


def _restored(inner: torch.Tensor, index: int, requires_grad: bool) -> OnDevice:
    return OnDevice(inner, index).requires_grad_(requires_grad)


def _lists_to_tensors(index: Any) -> Any:
    """Lists in an index are tensors of the CPU: torch copies them to the device at each use."""
    if isinstance(index, tuple):
        return tuple(torch.as_tensor(part) if isinstance(part, list) else part for part in index)
    return torch.as_tensor(index) if isinstance(index, list) else index


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def device_of(device: Any) -> torch.device | None:
    """Return the device with its number, or None for None."""
    if device is None:
        return None
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "meta":
        return torch.device("cuda", device.index) if device.index is not None else device
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", _current[0])
    if device.type == "cuda" and device.index >= DEVICES:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return device


class Call:
    """One call of a torch operator: which devices it touches, and what it means for host and device."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.name = func, func._opname
        self.kwargs = dict(kwargs)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        self.ours = [x for x in tensors if isinstance(x, OnDevice)]
        self.others = [x for x in tensors if not isinstance(x, OnDevice)]
        asked = self.kwargs.get("device")
        asked = next((a for a in args if isinstance(a, torch.device)), None) if asked is None else asked
        self.asked = device_of(asked)
        self.args = tuple(CPU if isinstance(a, torch.device) else a for a in args)
        if self.kwargs.get("device") is not None:
            self.kwargs["device"] = CPU
        self.kwargs.pop("pin_memory", None)
        self.arriving: int | None = None
        self.view = self._is_view()

    def _is_view(self) -> bool:
        returns = self.func._schema.returns
        aliased = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        return aliased or self.name in ("detach", "alias", "lift", "lift_fresh", "_unsafe_view", "set_", "is_pinned")

    def result_device(self) -> torch.device:
        """Return where the result lies."""
        if self.asked is not None:
            return self.asked
        if self.name in ("copy_", *INDEXING) and self.args:
            return self.args[0].device
        return self.ours[0].device if self.ours else CPU

    def check_devices(self) -> None:
        """Raise if the tensors are not all of one device, as CUDA does, or if the host reads what has not arrived."""
        for x in self.others if _arriving and not self.view else []:
            if _address(x) in _arriving:
                raise RuntimeError(f"{self.name} at {place()} reads a copy from the device before it has arrived")
        indices = {x.device for x in self.ours}
        strangers = [x for x in self.others if x.dim() > 0] if self.ours else []
        if self.name in INDEXING and self.ours and isinstance(self.args[0], OnDevice):
            values = [x for x in self.args[2:3] if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
            strangers = [x for x in values if x.dim() > 0]
        if self.name in BETWEEN_DEVICES:
            return
        if len(indices) > 1 or strangers:
            found = sorted({str(x.device) for x in (*self.ours, *strangers)})
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{' and '.join(found)}! ({self.name} at {place()})"
            )
        generator = self.kwargs.get("generator")
        if generator is not None:
            on = _generator_devices.get(generator._cdata)
            wanted = self.result_device()
            if (on is None) != (wanted.type != "cuda") or (on is not None and wanted.index != on):
                raise RuntimeError(f"Expected a '{wanted}' device type for generator ({self.name} at {place()})")

    def count(self) -> None:
        """Record what the call costs: a kernel, a synchronisation, or nothing for a view."""
        on_device = bool(self.ours) or self.result_device().type == "cuda"
        if not on_device or self.view or self.name in EMPTY:
            return
        self._count_waits()
        _count(record.operators, self.name + self._rounded())

    def _rounded(self) -> str:
        """Return a remark if this is a product of fp32 numbers that a GPU would take in TF32."""
        single = self.name in PRODUCTS and self.ours[0].dtype == torch.float32
        return " in TF32" if single and torch.get_float32_matmul_precision() != "highest" else ""

    def _count_waits(self) -> None:
        source: Any = None
        if self.name in COPYING:
            source = self.args[1] if self.name.startswith("copy") else self.args[0]
            if source.device.type != self.result_device().type:
                toward = "device to host" if isinstance(source, OnDevice) else "host to device"
                later = self.kwargs.get("non_blocking") or (self.name == "copy_" and self.args[2:3] == (True,))
                if _captures:
                    violates(f"copy from {toward}")
                if not later:
                    waits(f"copy, {toward}")
                elif isinstance(source, OnDevice):
                    self.arriving = source.device.index
        elif self.name in SYNCHRONISING or (self.name == "repeat_interleave" and not self.kwargs.get("output_size")):
            waits(self.name)
        if self.name in INDEXING and isinstance(self.args[0], OnDevice):
            indices = [i for i in self.args[1] if isinstance(i, torch.Tensor)]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                waits(f"{self.name} by a mask")
            if any(not isinstance(i, OnDevice) for i in indices):
                waits(f"{self.name} by indices of the host")

    def compute(self) -> Any:
        """Compute on the CPU; random numbers come from the device's own generator."""
        args, kwargs = tree_map(_inner, (self.args, self.kwargs))
        device = self.result_device()
        random = device.type == "cuda" and torch.Tag.nondeterministic_seeded in self.func.tags
        if random and kwargs.get("generator") is None:
            with _generator_of(device.index):
                return self.func(*args, **kwargs)
        result = self.func(*args, **kwargs)
        if _fills_empty[0] and self.name in EMPTY:
            result.zero_()
        return result

    def captured(self) -> Any:
        """Return the result of a call inside a capture, to be computed at each replay."""
        graph = _captures[-1]
        args, kwargs = tree_map(_inner, (self.args, self.kwargs))
        if self.func._schema.is_mutable:
            graph.calls.append(lambda: self.func(*args, **kwargs))
            changed = [a for a in self.func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
            if not self.func._schema.returns:  # torch._foreach_add_ and its kin
                return None
            found = [self._argument(a.name, args, kwargs) for a in changed]
            return found[0] if len(found) == 1 else tuple(found)
        result = self.compute()
        if self.view:
            return result
        violates(f"allocation by {self.name}")
        if self.name not in EMPTY:
            kept = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]

            def again() -> None:
                for old, new in zip(kept, tree_flatten(self.func(*args, **kwargs))[0], strict=True):
                    old.copy_(new)

            graph.calls.append(again)
        return result

    def _argument(self, name: str, args: Any, kwargs: Any) -> Any:
        position = [a.name for a in self.func._schema.arguments].index(name)
        return kwargs[name] if name in kwargs else args[position]


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operator: the project's own as Python, torch's on the CPU, with checks and counts."""
    if func.namespace == "inrfast":
        return _own(func, args, kwargs)
    call = Call(func, args, kwargs)
    call.check_devices()
    call.count()
    device = call.result_device()
    if call.arriving is not None:
        result = call.compute()
        _arriving[_address(result)] = (result.untyped_storage(), call.arriving)
        return result
    if _captures and device.type == "cuda" and device.index != _captures[-1].device:
        violates(f"{call.name} on {device} in a capture on a stream of cuda:{_captures[-1].device}")
        result = call.compute()
    else:
        result = call.captured() if _captures and device.type == "cuda" else call.compute()
    originals = {id(x.inner): x for x in call.ours}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in originals:
            original = originals[id(value)]
            if torch.Tag.inplace_view in func.tags:
                with _below():  # what C++ holds of the tensor changes as what it stands for did
                    func(*args, **kwargs)
            if original.shape != value.shape or original.stride() != value.stride():
                raise NotImplementedError(f"{call.name} changes the shape of a pretended tensor in place")
            return original
        return OnDevice(value, device.index) if device.type == "cuda" else value

    return tree_map(wrap, result)


def _own(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one of the project's own operators as the Python that it is."""
    from torch._library.custom_ops import OPDEFS

    name = f"{func.namespace}::{func._opname}"
    if name not in OPDEFS:
        return func.decompose(*args, **kwargs)
    functions = OPDEFS[name]._backend_fns
    with Mode():
        return functions.get("cuda", functions.get(None))(*args, **kwargs)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Mode(TorchDispatchMode):
    """Brings the operators without tensors here: those that make them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


@contextlib.contextmanager
def _generator_of(index: int) -> Iterator[None]:
    """Let torch's CPU operators draw from the generator of a device."""
    kept = torch.default_generator.get_state()
    torch.default_generator.set_state(_generators[index].get_state())
    try:
        yield
    finally:
        _generators[index].set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(kept)


class _GeneratorType(type(torch.Generator)):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _RealGenerator)


_RealGenerator = torch.Generator
_generator_devices: dict[int, int | None] = {}
"""By address: an operator sees a generator as one of torch's own."""


class Generator(_RealGenerator, metaclass=_GeneratorType):
    """A generator that knows for which device it was made."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")
        found = device_of(device)
        assert found is not None
        made.index = found.index if found.type == "cuda" else None
        _generator_devices[made._cdata] = made.index
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return CPU if self.index is None else torch.device("cuda", self.index)


class Event:
    """Takes the time of the host."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.time = 0.0
        self.before: set[int] = set()

    def record(self, stream: Any = None) -> None:
        """Stand behind the copies of the stream's device; a stream that is not its current one has none."""
        self.time = time.perf_counter()
        stream = stream or _current_stream()
        if stream is _current_stream(stream.device):
            self.before = {address for address, (_, index) in _arriving.items() if index == stream.device_index}

    def elapsed_time(self, other: Event) -> float:
        return max((other.time - self.time) * 1e3, 1e-6)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        waits("event", self.before)

    def wait(self, *_: Any) -> None:
        pass


class Stream:
    """Belongs to the device that is current when it is made."""

    cuda_stream = 0

    def __init__(self, device: Any = None, *_: Any, **__: Any) -> None:
        found = device_of("cuda" if device is None else device)
        assert found is not None
        self.device, self.device_index = found, found.index

    def synchronize(self) -> None:
        waits("stream")

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def wait_stream(self, _: Any) -> None:
        pass

    def wait_event(self, _: Any) -> None:
        pass


def _current_stream(device: Any = None) -> Stream:
    """Return the current stream of a device, by default of the current one."""
    found = device_of("cuda" if device is None else device)
    assert found is not None
    if found.index not in _streams:
        _streams[found.index] = Stream(found)
    return _streams[found.index]


class Current:
    """Makes a device the current one inside, as ``torch.cuda.device`` and ``torch.cuda.stream`` do."""

    def __init__(self, device: Any) -> None:
        self.stream = device if isinstance(device, Stream) else None
        device = device.device if isinstance(device, Stream) else device
        found = device_of(None if device == -1 else device)
        self.index = None if found is None or found.type != "cuda" else found.index

    def __enter__(self) -> Current:
        self.before = _current[0]
        if self.index is not None:
            _current[0] = self.index
        if self.stream is not None:
            self.last = _current_stream(self.stream.device)
            _streams[self.stream.device_index] = self.stream
        return self

    def __exit__(self, *_: Any) -> None:
        _current[0] = self.before
        if self.stream is not None:
            _streams[self.stream.device_index] = self.last


class Graph:
    """What was captured, to be done again."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.device = -1

    def replay(self) -> None:
        record.replays += 1
        with _below(), torch.no_grad():
            for call in self.calls:
                call()

    def reset(self) -> None:
        self.calls.clear()


class Capture:
    """``torch.cuda.graph``: as there, a stream that is not named is made once for all captures of the process."""

    default_capture_stream: Stream | None = None

    def __init__(self, graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> None:
        if Capture.default_capture_stream is None:
            Capture.default_capture_stream = Stream()
        self.graph, self.stream = graph, stream or Capture.default_capture_stream

    def __enter__(self) -> None:
        waits("torch.cuda.graph")  # it synchronises before it captures
        self.current = Current(self.stream)
        self.current.__enter__()
        self.graph.calls, self.graph.device = [], self.stream.device.index
        _captures.append(self.graph)

    def __exit__(self, *_: Any) -> None:
        _captures.pop()
        self.current.__exit__()
        if not self.graph.calls:
            violates("an empty capture")


@contextlib.contextmanager
def _below() -> Iterator[None]:
    """Let torch's operators pass unseen inside: what runs there stands for one kernel."""
    guard = torch._C._DisableTorchDispatch()
    try:
        yield
    finally:
        del guard


def install(kernels: str = "interpret", properties: types.SimpleNamespace = PROPERTIES) -> None:
    """Put the pretend devices in the place of ``torch.cuda``, for the rest of the process."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _generators[:] = [torch.Generator() for _ in range(DEVICES)]
    _fills_empty[0] = kernels == "compile"
    for name, value in _cuda(properties).items():
        setattr(torch.cuda, name, value)
    torch.Generator = Generator
    torch.compile = lambda function=None, **_: (lambda f: f) if function is None else function
    for name in ("tensor", "as_tensor", "asarray"):
        setattr(torch, name, _from_host(getattr(torch, name)))
    torch.Tensor.to = _to(torch.Tensor.to)
    torch.Tensor.cuda = lambda self, device=None, **kwargs: self.to(device_of(device or "cuda"), **kwargs)
    if kernels == "interpret":
        _interpret()
    else:
        _compile(properties)
    _taken_for_plain()
    Mode().__enter__()


def _taken_for_plain() -> None:
    """Let the library take tensors of the pretend devices for plain ones, without operations of their own."""
    from inrfast.tangent import refusals

    real = refusals.computes_itself
    refusals.computes_itself = lambda tensor: not isinstance(tensor, OnDevice) and real(tensor)


def _to(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``Tensor.to``: C++ is told the name by which it knows the device."""

    def inner(value: Any) -> Any:
        found = device_of(value) if isinstance(value, str | torch.device) else value
        cuda = isinstance(found, torch.device) and found.type == "cuda"
        return torch.device("meta", found.index) if cuda else found

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return real(self, *map(inner, args), **{name: inner(value) for name, value in kwargs.items()})

    return to


def without_cuda() -> Any:
    """Take the place of what loads the CUDA half of the native code: it would ask the driver."""
    from inrfast.errors import NotAvailableError

    raise NotAvailableError("the CUDA half of the native extension is not for a pretended GPU")


def _cuda(properties: types.SimpleNamespace) -> dict[str, Any]:
    """Return what stands in ``torch.cuda``, by name."""

    def state(device: Any = "cuda") -> torch.Tensor:
        return _generators[device_of(device).index].get_state()

    def set_state(new: torch.Tensor, device: Any = "cuda") -> None:
        _generators[device_of(device).index].set_state(new)

    def seed_all(seed: int) -> None:
        for generator in _generators:
            generator.manual_seed(seed)

    def none(*_: Any, **__: Any) -> None:
        pass

    def zero(*_: Any, **__: Any) -> int:
        return 0

    return {
        "_lazy_init": none,
        "init": none,
        "_is_in_bad_fork": lambda: False,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "device_count": lambda: DEVICES,
        "current_device": lambda: _current[0],
        "set_device": lambda device: _current.__setitem__(0, device_of(device).index),
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "mem_get_info": lambda device=None: (properties.total_memory - (5 << 30), properties.total_memory),
        "memory_reserved": zero,
        "memory_allocated": zero,
        "max_memory_allocated": zero,
        "reset_peak_memory_stats": none,
        "empty_cache": none,
        "synchronize": lambda *_: waits("torch.cuda.synchronize"),
        "current_stream": _current_stream,
        "default_stream": lambda device=None: Stream(device),
        "Stream": Stream,
        "Event": Event,
        "stream": Current,
        "device": Current,
        "CUDAGraph": Graph,
        "graph": Capture,
        "is_current_stream_capturing": lambda: bool(_captures),
        "default_generators": _generators,
        "manual_seed": lambda seed: _generators[_current[0]].manual_seed(seed) and None,
        "manual_seed_all": seed_all,
        "get_rng_state": state,
        "set_rng_state": set_state,
        "get_rng_state_all": lambda: [generator.get_state() for generator in _generators],
        "set_rng_state_all": lambda states: [set_state(s, k) for k, s in enumerate(states)] and None,
    }


def _from_host(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.tensor`` and its kin, which make their result below the operators."""

    def made(data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
        found = device_of(device)
        extra = {"requires_grad": True} if requires_grad else {}
        if isinstance(data, OnDevice):
            moved = data.to(device=found or data.device, dtype=kwargs.get("dtype"))
            return moved.detach().clone() if real.__name__ == "tensor" else moved
        if found is None or found.type != "cuda":
            return real(data, *args, device=device, **kwargs, **extra)
        inner = real(data, *args, **kwargs)
        if _captures:
            violates("copy from the host")
        waits("copy, host to device")
        _count(record.operators, real.__name__)
        return OnDevice(inner, found.index).requires_grad_(requires_grad)

    return made


def _arguments(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return a launch's arguments with tensors of the CPU; raise where a GPU would read what is not its own."""

    def opened(value: Any) -> Any:
        base = value.base if type(value).__name__ == "TensorDescriptor" else value
        if isinstance(base, torch.Tensor):
            if not isinstance(base, OnDevice):
                raise ValueError(f"Pointer argument cannot be accessed from Triton (cpu tensor?): {kernel}, {place()}")
            if base.device.index != _current[0]:
                raise RuntimeError(f"{kernel} runs on cuda:{_current[0]} with a tensor of {base.device}, {place()}")
        if base is not value:
            value = copy.copy(value)
            value.base = base.inner
            return value
        return _inner(value)

    return [opened(x) for x in args], {name: opened(x) for name, x in kwargs.items()}


def _grid(grid: Any, kwargs: dict[str, Any]) -> tuple[int, int, int]:
    found = tuple(grid(kwargs) if callable(grid) else grid)
    found += (1,) * (3 - len(found))
    if found[0] > 2**31 - 1 or found[1] > 65535 or found[2] > 65535:
        raise RuntimeError(f"Triton Error [CUDA]: invalid argument: grid {found}")
    return found


def _launched(name: str, new: bool) -> Graph | None:
    """Record a launch; return the graph that it goes to, if any."""
    _count(record.launches, name)
    if not _captures:
        return None
    if new:
        violates(f"compilation of {name}")
    if _current[0] != _captures[-1].device:
        violates(f"{name} on cuda:{_current[0]} in a capture on a stream of cuda:{_captures[-1].device}")
        return None
    return _captures[-1]


def _specialisation(kernel: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return what decides which machine code a launch takes, by the rules of Triton's JIT."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    fixed = set((getattr(kernel, "kwargs", None) or {}).get("do_not_specialize") or ())
    key: list[Any] = [kernel.fn.__module__, kernel.fn.__name__, _current[0]]
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        value = given.get(name, parameter.default)
        if "constexpr" in str(parameter.annotation):
            key.append(repr(getattr(value, "value", value)))
        elif isinstance(value, torch.Tensor):
            key.append((value.dtype, name in fixed or value.data_ptr() % 16 == 0))
        elif type(value).__name__ == "TensorDescriptor":
            key.append((value.base.dtype, tuple(value.block_shape)))
        elif isinstance(value, int) and not isinstance(value, bool):
            wide = not -(2**31) <= value < 2**31
            key.append(wide if name in fixed else (wide, value == 1, value % 16 == 0))
        else:
            key.append(type(value))
    options = sorted((name, value) for name, value in kwargs.items() if name in ("num_warps", "num_stages"))
    return (*key, *options)


def _interpret() -> None:
    from triton.runtime import interpreter

    real = interpreter.InterpretedFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = self.fn.__name__
        opened, named = _arguments(name, args, kwargs)
        shape = _grid(grid, named)
        key = _specialisation(self, opened, named)
        graph = _launched(name, key not in compiled)
        compiled.setdefault(key, (name, 0.0))

        def call() -> Any:
            with _below(), torch.no_grad():
                return real(self, *opened, grid=shape, warmup=warmup, **named)

        if graph is None:
            return call()
        graph.calls.append(call)

    interpreter.InterpretedFunction.run = run


def _compile(properties: types.SimpleNamespace) -> None:
    """Compile launches for the pretended GPU; Triton's own driver, which loads libcuda, is never made."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", 10 * properties.major + properties.minor, properties.warp_size)

    class Driver:
        def get_current_target(self) -> Any:
            return target

        def get_current_device(self) -> int:
            return _current[0]

        def get_current_stream(self, device: Any = None) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", _current[0])

    driver.set_active(Driver())
    real = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        opened, named = (list(args), kwargs) if warmup else _arguments(self.fn.__name__, args, kwargs)
        shape = _grid(grid, named)
        begin = time.perf_counter()
        with _below():
            kernel = real(self, *opened, grid=shape, warmup=True, **named)
        new = id(kernel) not in compiled
        if new:
            kernels_kept.append(kernel)
            compiled[id(kernel)] = (self.fn.__name__, time.perf_counter() - begin)
        if not warmup:
            graph = _launched(self.fn.__name__, new)
            if graph is not None:
                graph.calls.append(lambda: None)
        return kernel

    JITFunction.run = run


kernels_kept: list[Any] = []
"""What was compiled, as Triton gives it: kept so that its identity stays its own."""
