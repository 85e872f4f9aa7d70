"""Weights of a file: the network is the authors' formula, and everything else is refused in one sentence."""

import numpy as np
import pytest
import torch
from tiny_faces import arrays

from inrfast.experiments.inr_dictionaries.weights import read_weights
from inrfast.nn import INR
from inrfast.training.networks import save_network


@pytest.mark.parametrize("layers", [1, 3])
def test_arrays_become_the_authors_network_without_their_offset(layers, tmp_path):
    given = arrays(layers=layers)
    np.savez(tmp_path / "w.npz", **given)
    coords = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features = coords.numpy()
    for i in range(layers + 1):
        name = "siren.siren_layer" + (f"_{i}" if i else "") + ".linear."
        features = features @ given[f"{name}w"].astype(np.float64) + given[f"{name}b"]
        features = features if i == layers else np.sin(30 * features)
    with torch.no_grad():
        found = read_weights(tmp_path / "w.npz").double()(coords)
    np.testing.assert_allclose(found, features, atol=1e-12)


def test_a_network_that_was_saved_comes_back(tmp_path):
    net = INR(2, 1, 6, 2, "sine", init="siren", seed=3)
    save_network(net, tmp_path / "w.safetensors")
    state = read_weights(tmp_path / "w.safetensors").state_dict()
    assert all(torch.equal(state[name], values) for name, values in net.state_dict().items())


FIRST = "siren.siren_layer.linear."


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: a | {"more": np.zeros(3)}, "it holds 'more'"),
        (lambda a: {name: values for name, values in a.items() if name != f"{FIRST}b"}, "no bias beside"),
        (lambda a: {name: values for name, values in a.items() if "_1" not in name}, "lacks the layer 1"),
        (lambda a: a | {f"{FIRST}w": a[f"{FIRST}w"].T}, "shape"),
        (lambda a: a | {f"{FIRST}w": a[f"{FIRST}w"] * np.nan}, "finite"),
        (lambda a: a | {f"{FIRST}b": a[f"{FIRST}b"].astype(int)}, "floating-point"),
        (lambda a: a | {f"{FIRST}b": np.array([print] * 7)}, "pickle"),
        (lambda a: {}, "nothing"),
    ],
)
def test_other_arrays_are_refused(change, told, tmp_path):
    np.savez(tmp_path / "w.npz", **change(arrays()))
    with pytest.raises(ValueError, match=r"^weights must be .*w\.npz is none: ") as caught:
        read_weights(tmp_path / "w.npz")
    assert told in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04K\x01.", b"text"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"^weights must be .*w\.npz is none"):
        read_weights(tmp_path / "w.npz")


def test_networks_of_other_signals_are_refused(tmp_path):
    save_network(INR(2, 3, 6, 2, "sine"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="2 inputs and 3 outputs, not 2 and 1"):
        read_weights(tmp_path / "w.safetensors")
