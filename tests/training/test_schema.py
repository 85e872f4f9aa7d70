"""Whatever stands in the JSON of a checkpoint or a network: it is refused in a sentence, or it runs."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast.encodings import Compose, Concatenate, HashGrid, Identity
from inrfast.errors import InrfastError
from inrfast.training import schema
from inrfast.training.callbacks import TrackNTK
from inrfast.training.checkpoint import load_network, save_network
from inrfast.training.trees import digest

COORDS = inr.grid((6, 6))
TARGET = (3 * COORDS).sin()
ODD: list[Any] = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 2**70, 10**400, -(10**400), 0.5, math.inf, math.nan, 1e300),
    *("", "x", "relu", "a" * 10_000, [], {}, [[]], [None], {"dict": []}, {"list": []}, {"tensor of this place": "x"}),
]


def small(seed: int = 1, **options: Any) -> inr.INR:
    return inr.INR(2, 2, **{"width": 6, "hidden_layers": 2, "seed": seed, **options})


def one(**more: Any) -> None:
    inr.fit(small(norm="batch"), COORDS, TARGET, steps=6, schedule="constant", callbacks=[TrackNTK(points=5)], **more)


def many(**more: Any) -> None:
    options: dict[str, Any] = {"lr": [1e-3, 1e30, 1e-3], "target_psnr": [None, None, 5.0], "eval_every": 2}
    inr.fit_many([small(), small(2), small(3)], COORDS, TARGET, steps=6, schedule="constant", **options, **more)


def other(**more: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.5)
    inr.fit(net, COORDS, TARGET, steps=6, schedule="constant", optimizer=optimizer, **more)


def network(**options: Any) -> tuple[Callable[[Path], object], Callable[[Path], object]]:
    def write(path: Path) -> None:
        save_network(small(**options), path, {"shape": [3, 4], "kind": "image"})

    return write, lambda path: load_network(path)[0](COORDS)


def checkpoint(fit: Callable[..., None]) -> tuple[Callable[[Path], object], Callable[[Path], object]]:
    return lambda path: fit(checkpoint=path), lambda path: fit(checkpoint=path, resume=True)


FILES = {
    "one": checkpoint(one),
    "many": checkpoint(many),
    "other": checkpoint(other),
    "fourier": network(encoding=inr.RandomFourier(3)),
    "polynomial": network(encoding=inr.Polynomial(3), norm=["batch", None]),
    "siren": network(activation="sine", init={"first": {"name": "siren", "omega": 20.0}}, bias=False),
    "positional": network(encoding=inr.PositionalEncoding(3)),
    "trained": network(
        encoding=Concatenate(
            Identity(),
            inr.RandomFourier(frequencies=[[1.0, 2.0]], trainable=True),
            Compose(HashGrid(2, 2, 16, 2, 5), inr.Polynomial(2, trainable=True)),
        )
    ),
}
"""Ways to write a file, and to use it."""


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything in a JSON tree."""
    yield at
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in entries:
        yield from places(inner, (*at, key))


def found(tree: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        tree = tree[key]
    return tree


def mutated(tree: Any, draw: random.Random) -> Any:
    """Return a JSON tree with one thing in it removed, doubled, moved, renamed, moved on, or replaced by an odd one."""
    tree = copy.deepcopy(tree)
    ways = list(places(tree))
    at = draw.choice(ways[1:] or ways)
    if not at:
        return draw.choice(ODD)
    parent, key, how = found(tree, at[:-1]), at[-1], draw.randrange(6)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif how == 2:
        parent[key] = copy.deepcopy(found(tree, draw.choice(ways)))
    elif how == 3 and isinstance(parent, dict):
        parent[key + draw.choice(["", "2"])] = parent.pop(key)
    elif how == 4 and isinstance(parent[key], (int, float)):
        parent[key] += draw.choice([-1, 1, 1000, -1000, 0.5])
    else:
        parent[key] = copy.deepcopy(draw.choice(ODD))
    return tree


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_altered_descriptions_are_refused_in_a_sentence_or_run(name: str, tmp_path: Path) -> None:
    """Their hash is right: it is the schema that is tried, and what the fit and the network compare themselves."""
    write, use = FILES[name]
    path, altered, draw = tmp_path / "good.safetensors", tmp_path / "altered.safetensors", random.Random(name)
    write(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    refused = []
    for _ in range(60):
        key = draw.choice(["tree", "about"])
        mine = {**metadata, key: json.dumps(mutated(json.loads(metadata[key]), draw))}
        mine["sha256"] = digest(mine, tensors)
        safetensors.torch.save_file(tensors, altered, mine)
        try:
            use(altered)
        except ValueError as error:
            refused.append(error)
    assert len(refused) > 20
    for error in refused:
        assert not isinstance(error, InrfastError)
        assert "altered.safetensors" in str(error) and "\n" not in str(error) and len(str(error)) < 1500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.integers(2**1024, 2**1025),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(value=JSON | st.builds(np.int64, st.integers(0, 3)) | st.builds(object))
def test_plain_values_are_those_that_json_gives_back(value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
        fits = json.loads(text) == value and all(abs(n) < 1e308 for n in numbers(value))
    except (TypeError, ValueError, OverflowError):
        fits = False
    if fits:
        schema.plain(value, "value")
    else:
        with pytest.raises((TypeError, ValueError), match="value"):
            schema.plain(value, "value")


def numbers(value: Any) -> list[Any]:
    if isinstance(value, (list, dict)):
        return [n for inner in (value.values() if isinstance(value, dict) else value) for n in numbers(inner)]
    return [value] if isinstance(value, (int, float)) else []
