"""Networks come back from their files as they were; what would not is refused when it is saved, at no cost."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.training.checkpoint import load_network, save_network
from inrfast.training.fit import fit, fit_many
from inrfast.training.schema import NETWORK_SCHEMA, OLD_NETWORK_SCHEMA
from inrfast.training.trees import write_tree

COORDS = inr.grid((12, 12))
TARGET = torch.cat([(3 * COORDS).sin(), (2 * COORDS[:, :1]).cos()], dim=1) / 2

LARGE = st.integers(10**4, 10**15)
ENCODINGS = st.one_of(
    st.builds(lambda n: {"name": "RandomFourier", "n": n, "sigma": 1.0}, LARGE),
    st.builds(lambda n: {"name": "PositionalEncoding", "n": n}, LARGE),
    st.builds(lambda n: {"name": "Polynomial", "degree": n, "coefficients": [1.0] * (n + 1)}, st.integers(100, 5000)),
)


def small(seed: int = 0, **options: Any) -> inr.INR:
    return inr.INR(2, 3, **{"width": 16, "hidden_layers": 2, "seed": seed, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"activation": ["sine", "relu"], "omega": [20.0, 1.0], "init": {"first": "siren", "hidden": "kaiming"}},
        {"encoding": inr.RandomFourier(8, 2.0), "norm": ["batch", None], "norm_position": "post"},
        {"encoding": inr.Polynomial(2, [1.0, 0.5, 0.25]), "bias": False, "norm": "sphere", "norm_position": "pre"},
        {"encoding": inr.PositionalEncoding(3), "dtype": torch.float64},
        {"init": "rank_expanding"},
        {"encoding": inr.Polynomial(0), "dtype": torch.bfloat16},
    ],
)
def test_networks_come_back_from_their_files(options: dict[str, Any], tmp_path: Path) -> None:
    """And a network that came back gives the same file again."""
    net = small(**options)
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            tensor.add_(0.1 * torch.rand_like(tensor))
    path, again = tmp_path / "net.safetensors", tmp_path / "again.safetensors"
    save_network(net, path, {"kind": "image", "shape": (3, 4)})
    loaded, signal = load_network(path)
    assert signal == {"kind": "image", "shape": [3, 4]}
    coords = COORDS.to(next(net.parameters()).dtype)
    assert torch.equal(loaded(coords), net.eval()(coords))
    assert not loaded.training
    assert loaded.config() == {**net.config(), "init": "default"}
    loaded.init = net.init
    save_network(loaded, again, signal)
    assert again.read_bytes() == path.read_bytes()


def test_a_checkpoint_is_a_network_too(tmp_path: Path) -> None:
    net = small()
    fit(net, COORDS, TARGET, steps=6, checkpoint=tmp_path / "run")
    assert torch.equal(load_network(tmp_path / "run")[0](COORDS), net(COORDS))


def test_files_that_hold_no_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    fit_many([small(0), small(1)], COORDS, TARGET, steps=2, checkpoint=path)
    with pytest.raises(ValueError, match=r"2 network\(s\)"):
        load_network(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_network(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_network(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"pipe is a named pipe, not a safetensors file"):
        load_network(tmp_path / "pipe")
    with pytest.raises(TypeError, match=r"must be an inrfast\.INR"):
        save_network(nn.Linear(2, 1), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must name a \.safetensors file"):
        save_network(small(), tmp_path / "net.pt")


def test_a_file_is_a_state_dict_for_programs_without_this_library(tmp_path: Path) -> None:
    """What a plain module of torch needs, only its names of layers being the same."""
    net, path = small(activation="relu", seed=3), tmp_path / "net.safetensors"
    save_network(net, path)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                x = layer(x).relu()
            return self.layers[-1](x)  # type: ignore[no-any-return]

    plain = Plain()
    plain.load_state_dict(safetensors.torch.load_file(path))
    assert torch.equal(plain(COORDS), net(COORDS))


def test_files_of_old_are_read(tmp_path: Path) -> None:
    """Those before had ``net.`` before each name."""
    net, path = small(norm="layer", encoding=inr.PositionalEncoding(2)), tmp_path / "net.safetensors"
    write_tree(
        path, OLD_NETWORK_SCHEMA, {"net": dict(net.state_dict())}, {"net": net.config(), "signal": {"kind": "image"}}
    )
    assert all(name.startswith("net.") for name in safetensors.torch.load_file(path))
    loaded, signal = load_network(path)
    assert torch.equal(loaded(COORDS), net(COORDS)) and signal == {"kind": "image"}


@given(data=st.data())
def test_stated_sizes_are_compared_before_anything_is_built(data: st.DataObject, tmp_path_factory: Any) -> None:
    """A small file that states a large network costs what a small file costs."""
    path = tmp_path_factory.mktemp("large") / "net.safetensors"
    save_network(small(), path)
    with safetensors.safe_open(path, "pt") as file:
        about, tree = (json.loads(file.metadata()[key]) for key in ("about", "tree"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sizes = st.sampled_from(["width", "hidden_layers", "in_features", "out_features"])
    stated = data.draw(st.dictionaries(sizes, LARGE) | st.fixed_dictionaries({"encoding": ENCODINGS}))
    about["net"].update(stated)
    metadata = {"schema": NETWORK_SCHEMA, "tree": json.dumps(tree), "about": json.dumps(about)}
    safetensors.torch.save_file(tensors, path, metadata)
    if not stated:
        load_network(path)
        return
    start = time.process_time()
    with pytest.raises(ValueError, match=r"net\.safetensors does not hold the network it describes: ") as caught:
        load_network(path)
    assert time.process_time() - start < 0.2
    assert len(str(caught.value)) < 400


class Wider(inr.INR):
    def forward(self, coords: Tensor) -> Tensor:
        return 2 * super().forward(coords)


class Mine(inr.encodings.Encoding):
    def build(self, in_features: int, *arguments: Any) -> "Mine":
        built = Mine()
        built.in_features = built.out_features = in_features
        return built

    def forward(self, coords: Tensor) -> Tensor:
        return coords

    def config(self) -> dict[str, Any]:
        return {"name": "Mine"}


def changed(how: str) -> inr.INR:
    net = small(norm="batch")
    if how == "hook":
        net.layers[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif how == "dtype":
        net.layers[1].double()
    elif how == "epsilon":
        net.norms[0].eps = 0.1  # type: ignore[assignment]
    elif how == "module":
        net.add_module("more", nn.ReLU())
    elif how == "parameter":
        net.register_parameter("more", nn.Parameter(torch.ones(2)))
    elif how == "layer":
        net.layers[0] = nn.Linear(2, 16, bias=False)
    elif how == "norm":
        net.norms[0] = nn.LayerNorm(16)
    elif how == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(net.layers[0])
    elif how == "forward":
        net.forward = lambda coords: coords  # type: ignore[method-assign]
    elif how == "meta":
        net.to("meta")
    return net


@pytest.mark.parametrize(
    "how",
    ["hook", "dtype", "epsilon", "module", "parameter", "layer", "norm", "weight norm", "forward", "meta"],
)
def test_a_network_that_would_not_come_back_is_not_saved(how: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"net must be an inrfast\.INR as its constructor makes it") as caught:
        save_network(changed(how), tmp_path / "net.safetensors")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    ("net", "signal", "named"),
    [
        (Wider(2, 3, width=4), {}, "it is a Wider"),
        (small(encoding=Mine()), {}, "files know by name, got Mine"),
        (small(init={"name": "siren", "omega": np.float32(3)}), {}, r"net\.init\.omega must be a number"),
        (small(), {"rate": np.int64(3)}, r"signal\.rate must be a number, a text, a list or a dict, got int64"),
        (small(), {"a": {"b": [1.0, float("nan")]}}, r"signal\.a\.b\[1\] must be a finite number"),
        (small(), {"a": {1: 2}}, r"signal\.a must have texts as keys"),
        (small(), {"a": deep(60)}, "at most 32 lists and dicts"),
        (small(), [1], "signal must be a dict"),
    ],
)
def test_what_no_file_could_give_back_is_not_saved(net: inr.INR, signal: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        save_network(net, tmp_path / "net.safetensors", signal)
    assert not list(tmp_path.iterdir())
