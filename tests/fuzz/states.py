"""Files of networks and checkpoints of fits: changed bytes, changed descriptions, crafted ones with right checksums.

A file whose bytes were changed is refused or gives the contents of a valid one: there is a checksum. One that was
written with its checksum after the change (only malice does that), or that is of the time before checksums, may be
another network, but keeps the other laws.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

import inrfast as inr
from fuzz.laws import Case, LawBroken
from fuzz.mutations import dump_json, mutate_bytes, mutate_json
from inrfast.encodings import Concatenate, HashGrid, Identity
from inrfast.errors import DivergedError, InrfastError
from inrfast.training import networks, schema, trees

INNER = ("tree", "about")
"""Texts of JSON within the metadata."""


@dataclass(frozen=True)
class States:
    """Files of one schema.

    Attributes
    ----------
    schema
        Under which such files are read.
    files
        Valid ones, each with a number that ``use`` may need.
    use
        Reads a file: from its path and the number to tensors by name.
    writes
        Whether reading one goes on writing to it.
    """

    schema: str
    files: Callable[[], list[bytes]]
    use: Callable[[Path, int], dict[str, torch.Tensor]]
    writes: bool = False

    def make(self, rng: random.Random, folder: Path) -> Case:
        """Return the case of one changed file."""
        files = self.files()
        index = rng.randrange(len(files))
        data, other = files[index], files[rng.randrange(len(files))]
        how = rng.choice(("bytes", "bytes", "header", "old", "old", "crafted", "crafted"))
        path = folder / "case.safetensors"
        if how == "bytes":
            data = mutate_bytes(data, other, rng)
        elif how == "header":
            data = _changed_header(data, rng)
        elif how == "old":
            data = _old_format(data, rng)
        else:
            data = _crafted(data, self.schema, folder / "crafted.safetensors", rng)
        path.write_bytes(data)
        return Case(
            lambda: self.use(path, index),
            (path,),
            named=str(path),
            refusals=(ValueError, OSError, InrfastError),
            check=self.check_same if how in ("bytes", "header") else check_finite,
            folder=folder if self.writes else None,
            words=how,
        )

    def check_same(self, found: dict[str, torch.Tensor]) -> None:
        """Check that a file that was accepted gave the contents of a valid one."""
        if not any(same(found, valid) for valid in self.valid()):
            raise LawBroken("a changed file is read, with other contents")

    def valid(self) -> list[dict[str, torch.Tensor]]:
        """Return what the valid files give."""
        return valid_contents(self)


@cache
def valid_contents(states: States) -> list[dict[str, torch.Tensor]]:
    """Return what the valid files give."""
    found = []
    with TemporaryDirectory() as folder:
        for index, data in enumerate(states.files()):
            path = Path(folder, f"{index}.safetensors")
            path.write_bytes(data)
            found.append(states.use(path, index))
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors are equal, bit by bit but for NaN."""
    if one.keys() != other.keys():
        return False
    pairs = ((one[name], other[name]) for name in one)
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def check_finite(found: dict[str, torch.Tensor]) -> None:
    """Check that the weights in a file are numbers (what follows from them may overflow)."""
    weights = (tensor for name, tensor in found.items() if name not in ("outputs", "losses"))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights if tensor.is_floating_point()):
        raise LawBroken("NaN or Inf are read")


# ---- changes -----------------------------------------------------------------------------------------------------


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header: str, rest: bytes) -> bytes:
    said = header.encode("utf-8", "surrogatepass")
    said += b" " * (-len(said) % 8)
    return struct.pack("<Q", len(said)) + said + rest


def _changed_header(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file: its table of tensors, or its texts."""
    header, rest = _header(data)
    return _with_header(dump_json(mutate_json(header, rng)), rest)


def _old_format(data: bytes, rng: random.Random) -> bytes:
    """Change the description in a file that has no checksum."""
    header, rest = _header(data)
    texts = header["__metadata__"]
    kept = {"schema": f"{texts['schema'].partition('/')[0]}/1", **{name: texts[name] for name in INNER}}
    name = rng.choice(INNER)
    kept[name] = dump_json(mutate_json(json.loads(texts[name]), rng))
    return _with_header(json.dumps({**header, "__metadata__": kept}), rest)


def _crafted(data: bytes, schema: str, path: Path, rng: random.Random) -> bytes:
    """Change the contents of a file, and let the product write them, with the checksum that goes with them."""
    path.write_bytes(data)
    found, tree, about = trees.read_tree(path, (schema,))
    pack = trees.pack
    where = rng.choice(("packed", "packed", "about", "tensors"))

    def changed(tree: Any, place: str, tensors: dict[str, torch.Tensor], depth: int = 0) -> Any:
        packed = pack(tree, place, tensors, depth)
        if place == "" and where == "packed":
            packed = mutate_json(packed, rng)
        elif place == "" and where == "tensors":
            _change_tensor(tensors, rng)
        return packed

    about = mutate_json(about, rng) if where == "about" else about
    cannot_be_written = (ValueError, TypeError, AttributeError, RecursionError)
    with mock.patch.object(trees, "pack", changed), contextlib.suppress(*cannot_be_written):
        trees.write_tree(path, found, tree, about)
    crafted = path.read_bytes()
    path.unlink()
    return crafted


def _change_tensor(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    """Change one tensor's shape, dtype, name or numbers."""
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: tensor.double(),
        lambda: tensor.to(torch.int8),
        lambda: tensor.to(torch.bfloat16),
        lambda: tensor.reshape(-1).clone(),
        lambda: tensor.unsqueeze(0).clone(),
        lambda: torch.cat([tensor.reshape(-1)] * 2),
        lambda: torch.full_like(tensor, rng.choice((0, 1, -1, 127))),
        lambda: (tensor.double() * float("nan")).to(tensor.dtype) if tensor.is_floating_point() else tensor - 1,
        lambda: torch.zeros(0, dtype=tensor.dtype),
    )
    if rng.random() < 0.15:
        del tensors[name]
    elif rng.random() < 0.1:
        tensors[name + ".more"] = tensor.clone()
    else:
        tensors[name] = rng.choice(changes)()


# ---- networks ----------------------------------------------------------------------------------------------------


@cache
def network_files() -> list[bytes]:
    """Networks of every activation, encoding and norm, and what a command line says about their signals."""
    about = {"kind": "image", "shape": [4, 4], "offset": 0.5, "scale": 1.0}
    nets = [
        inr.INR(2, 1, width=4, hidden_layers=2, activation=name) for name in ("relu", "sine", "gaussian", "softplus")
    ]
    nets += [inr.INR(2, 1, width=4, hidden_layers=1, norm=norm) for norm in ("batch", "sphere", "topk")]
    encodings = (inr.RandomFourier(3, 1.0), inr.PositionalEncoding(2), inr.Polynomial(2))
    encodings = (*encodings, HashGrid(2, 2, 16, 2, 5), Concatenate(Identity(), inr.Polynomial(2, trainable=True)))
    nets += [inr.INR(2, 2, width=4, hidden_layers=1, encoding=encoding) for encoding in encodings]
    nets.append(inr.INR(3, 1, width=4, hidden_layers=3, init="rank_expanding", dtype=torch.float64))
    with TemporaryDirectory() as folder:
        path = Path(folder, "net.safetensors")
        found = []
        for net in nets:
            networks.save_network(net, path, about)
            found.append(path.read_bytes())
    return found


def _load_network(path: Path, index: int) -> dict[str, torch.Tensor]:
    """Return a network's weights, its outputs at four points, and what it says about its signal, as numbers."""
    net, signal = networks.load_network(path)
    with torch.no_grad():
        outputs = net(torch.linspace(-1, 1, 4 * net.in_features, dtype=next(net.parameters()).dtype).view(4, -1))
    said = torch.frombuffer(bytearray(json.dumps([net.config(), signal], sort_keys=True).encode()), dtype=torch.uint8)
    return {**net.state_dict(), "outputs": outputs, "said": said}


# ---- checkpoints -------------------------------------------------------------------------------------------------

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"optimizer": "sgd", "batch_size": 5, "lr": 1e-2},
    {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.1, "clip_norm": 1.0},
    {"batch_size": 7, "patience": 3, "precision": "highest"},
)


@dataclass
class Interrupt:
    """Ctrl-C after a step; None: never."""

    step: int | None = None

    def on_step(self, state: Any) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


def _fit(path: Path, index: int, until: int | None = None) -> dict[str, torch.Tensor]:
    """Begin a fit or go on with it, to its end or to a step; return the weights and the losses."""
    settings = SETTINGS[index]
    dtype = torch.float64 if settings.get("precision") == "highest" else torch.float32
    coords = inr.grid((4, 4), dtype=dtype)
    net = inr.INR(2, 1, width=4, hidden_layers=1, activation="softplus", dtype=dtype)
    target = coords.sum(1, keepdim=True) / 4
    given = {"checkpoint": path, "resume": True, "callbacks": [Interrupt(until)], **settings}
    try:
        result = inr.fit(net, coords, target, steps=12, eval_every=2, progress=False, **given)
    except DivergedError:  # a crafted checkpoint may hold weights from which that follows
        return {}
    return {**net.state_dict(), "losses": torch.tensor(result.losses)}


@cache
def checkpoint_files() -> list[bytes]:
    """Checkpoints of fits of several settings, interrupted at their sixth step of twelve."""
    found = []
    with TemporaryDirectory() as folder:
        for index in range(len(SETTINGS)):
            path = Path(folder, f"{index}.safetensors")
            _fit(path, index, until=6)
            found.append(path.read_bytes())
    return found


NETWORKS = States(schema.NETWORK_SCHEMA, network_files, _load_network)
CHECKPOINTS = States(schema.FIT_SCHEMA, checkpoint_files, _fit, writes=True)
