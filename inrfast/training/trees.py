"""Trees of tensors and plain values as files: safetensors with a description and a hash, written whole or not at all.

A tree is made of dicts, lists, tensors and plain values. Its tensors are stored under their place in it
(``net.layers.0.weight``), the rest as JSON in the file's metadata, so that other programs read the weights too. A
SHA-256 of all of it is in the metadata; files of old have none and are taken without.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from inrfast import system
from inrfast.files import opened, shown, whole_file
from inrfast.memory import available_bytes, require
from inrfast.words import one_line

TENSOR = "tensor of this place"
"""What stands in the JSON for a tensor."""

HASH = "sha256"
"""The entry of the metadata that holds the hash of everything else (the fastest of Python's where processors help)."""

DEEPEST = 64
"""Dicts and lists inside each other."""

TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "BOOL": torch.bool, "C64": torch.complex64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""Dtypes by their names in safetensors files."""

NAMES = {dtype: name for name, dtype in TYPES.items()}


# ---- trees -------------------------------------------------------------------------------------------------------


def pack(tree: Any, place: str, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    """Return ``tree`` as JSON holds it, and put its tensors into ``tensors`` under their places.

    Raises
    ------
    TypeError, ValueError
        A value that is neither a tensor nor plain; dicts and lists more than :data:`DEEPEST` inside each other.
    """
    if depth > DEEPEST:
        raise ValueError(f"a checkpoint holds up to {DEEPEST} dicts and lists inside each other, got more at {place}")
    if isinstance(tree, Tensor):
        if tree.dtype not in NAMES or tree.layout != torch.strided:
            raise TypeError(
                f"a checkpoint holds dense tensors of plain numbers, got {tree.dtype}, {tree.layout} at {place}"
            )
        name = place
        while name in tensors:  # as of {"a.b": ..., "a": {"b": ...}}
            name += "'"
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if isinstance(tree, dict):
        wrong = [key for key in tree if not (key is None or isinstance(key, (bool, int, float, str)))]
        if wrong:
            raise TypeError(f"a checkpoint holds dicts with plain keys, got {type(wrong[0]).__name__} at {place}")
        keys = [[key, pack(value, _at(place, key), tensors, depth + 1)] for key, value in tree.items()]
        return {"dict": keys}  # as pairs, since JSON would turn keys that are numbers into strings
    if isinstance(tree, (list, tuple)):
        return {"list": [pack(value, _at(place, index), tensors, depth + 1) for index, value in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(
        f"a checkpoint holds tensors, numbers, strings, dicts and lists, got {type(tree).__name__} at {place}"
    )


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the tree that :func:`pack` took apart; tuples have become lists.

    Raises
    ------
    ValueError
        It is nothing that :func:`pack` makes, or these are not its tensors.
    """
    left = dict(tensors)
    tree = _unpack(packed, "", left, 0)
    if left:
        raise ValueError(f"the tensor {next(iter(left))[:80]!r} belongs to no place of the tree")
    return tree


def _unpack(packed: Any, place: str, left: dict[str, Tensor], depth: int) -> Any:
    """Take the tensors out of those that are ``left``."""
    if packed is None or isinstance(packed, (bool, int, float, str)):
        return packed
    if depth > DEEPEST:
        raise ValueError(f"{place[:80]} lies more than {DEEPEST} dicts and lists deep")
    if isinstance(packed, dict) and len(packed) == 1:
        ((kind, inner),) = packed.items()
        if kind == TENSOR and isinstance(inner, str) and inner in left and inner.rstrip("'") == place.rstrip("'"):
            return left.pop(inner)
        if kind == "list" and isinstance(inner, list):
            return [_unpack(value, _at(place, index), left, depth + 1) for index, value in enumerate(inner)]
        if kind == "dict" and isinstance(inner, list) and all(_is_pair(pair) for pair in inner):
            tree = {key: _unpack(value, _at(place, key), left, depth + 1) for key, value in inner}
            if len(tree) == len(inner):
                return tree
    raise ValueError(f"{place[:80] or 'tree'} is no value, dict, list or tensor of the file")


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    return pair[0] is None or isinstance(pair[0], (bool, int, float, str))


def _at(place: str, key: object) -> str:
    return f"{place}.{key}".removeprefix(".")


# ---- files -------------------------------------------------------------------------------------------------------


def write_tree(
    path: str | os.PathLike[str], schema: str, tree: dict[str, Any], about: dict[str, Any], durable: bool = True
) -> None:
    """Write a tree with what is said about it (plain values); the file is whole, or what was there before.

    The same tree gives the same bytes. After a crash of the machine the file is one of the two, and the new one if this
    was ``durable``.

    Raises
    ------
    OSError
        As :func:`inrfast.files.whole_file`.
    TypeError, ValueError
        As :func:`pack`.
    """
    content = content_of(schema, tree, about)
    with whole_file(path, durable=durable) as file:
        file.writelines(content)
        file.flush()
        system.sync(file.fileno())  # the new name must not reach the disk before what it names


def content_of(schema: str, tree: dict[str, Any], about: dict[str, Any]) -> list[bytes | memoryview]:
    """Return the bytes of a file in parts: its header, then the numbers of its tensors, which are not copied again."""
    tensors: dict[str, Tensor] = {}
    metadata = {"schema": schema, "tree": json.dumps(pack(tree, "", tensors)), "about": json.dumps(about)}
    metadata[HASH] = digest(metadata, tensors)
    entries: dict[str, Any] = {"__metadata__": metadata}
    parts, at = [], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # each begins at its own size
        tensor = tensors[name]
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        parts.append(_bytes(tensor))
        at += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [len(header).to_bytes(8, "little") + header, *parts]


def _bytes(tensor: Tensor) -> memoryview:
    """Return the numbers of a contiguous tensor on the CPU as they lie in memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of tensors on the CPU (names, dtypes, shapes, numbers) and of what the metadata says of them."""
    total = hashlib.sha256()
    for key in sorted(metadata.keys() - {HASH}):
        _add(total, key.encode(errors="surrogatepass"), metadata[key].encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        _add(total, json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), _bytes(tensor))
    return total.hexdigest()


def _add(total: Any, *parts: bytes | memoryview) -> None:
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)


def read_tree(path: str | os.PathLike[str], schemas: Iterable[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return schema, tree and description of a file of one of these schemas.

    The file is opened once: one that is replaced meanwhile gives what was there, or what is there now. That tree and
    description are those of its schema is for the caller to check.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, OSError
        There is no such file, it is no file, or it cannot be read.
    ValueError
        The file is empty, truncated, damaged, or of another kind.
    MemoryBudgetError
        The file is larger than the memory that is free.
    """
    file = shown(path)
    metadata, content = _read(path, tuple(schemas))
    try:
        tensors = _tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{file} is empty, truncated or no safetensors file: {one_line(error)}") from error
    del content
    with fault_told(f"{file} is damaged"):
        if HASH in metadata and metadata[HASH] != digest(metadata, tensors):
            raise ValueError("its contents are not those that were written: their hash is another")
        tree, about = unpack(_parsed(metadata, "tree"), tensors), _parsed(metadata, "about")
        if not isinstance(tree, dict) or not isinstance(about, dict):
            raise ValueError("its tree and its description must be dicts")
    return metadata["schema"], tree, about


@contextmanager
def fault_told(fault: str) -> Iterator[None]:
    """Say what is wrong with a file before the details, which hold names of the file: any signs, of any length."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{fault}: {one_line(error)}") from error


def _read(path: str | os.PathLike[str], schemas: tuple[str, ...]) -> tuple[dict[str, str], bytes]:
    """Return metadata and content of a file of one of these schemas; of another one no more than the header is read."""
    file = shown(path)
    with opened(path, "a safetensors file") as source:
        size = os.fstat(source.fileno()).st_size
        length = source.read(8)
        stated = int.from_bytes(length, "little")
        if len(length) < 8 or stated > size - 8:
            raise ValueError(f"{file} is empty, truncated or no safetensors file: it has {size} bytes")
        require(3 * size, available_bytes(), f"reading {file}", "read it where more memory is free")
        header = source.read(stated)
        metadata = _metadata(header, file)
        schema = metadata.get("schema", "")
        if schema not in schemas:
            kind = f"of the kind {schema[:40]!r}" if schema else "of some other program"
            raise ValueError(f"{file} is a safetensors file {kind}; this takes {' or '.join(map(repr, schemas))}")
        source.seek(0)
        content = source.read()
    if not content.startswith(length + header):
        raise ValueError(f"{file} was written to while it was read; read it again")
    return metadata, content


def _metadata(header: bytes, file: str) -> dict[str, str]:
    """Return the metadata in a header; no more of it is looked at than is needed to tell whose file it is."""
    try:
        metadata = json.loads(header).get("__metadata__", {})
        if all(isinstance(value, str) for value in metadata.values()):
            return dict(metadata)
        raise ValueError("its metadata must be texts")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is empty, truncated or no safetensors file: its header is no JSON of one") from error


def _tensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file's content, each in memory of its own.

    The file's tensors begin anywhere. Where vector registers begin decides in which order numbers are added up, so a
    state goes on bit by bit only in memory that is aligned as it was.
    """
    tensors = {}
    for name, view in deserialize(content):
        if view["dtype"] not in TYPES:
            raise ValueError(f"the tensor {name[:80]!r} has the dtype {view['dtype']}, which none here has")
        raw = torch.frombuffer(view["data"], dtype=torch.uint8) if len(view["data"]) else torch.empty(0).byte()
        if view["dtype"] == "BOOL" and raw.numel() and int(raw.max()) > 1:
            raise ValueError(f"the tensor {name[:80]!r} of truth values holds other numbers than 0 and 1")
        tensors[name] = raw.clone().view(TYPES[view["dtype"]]).reshape(view["shape"])
    return tensors


def _parsed(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata has no {key!r} that is JSON ({type(error).__name__})") from error
