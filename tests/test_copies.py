"""What the public functions return can be pickled, deep-copied and saved by torch, and stays the same."""

import copy
import io
import pickle
from dataclasses import is_dataclass

import pytest
import torch

import inrfast as inr
from inrfast.nn import FusedLinear

COORDS = inr.grid((6, 5), dtype=torch.float64)
TARGET = (3 * COORDS).sin().prod(1, keepdim=True)
SIGNALS = torch.stack([TARGET, TARGET + 1])


def made():
    """Everything by name, each with what is to be the same afterwards."""
    net = inr.INR(2, 1, width=6, hidden_layers=2, activation="sine", norm="sphere", encoding=inr.RandomFourier(4, 1.0))
    net = net.double()
    K, J = inr.ntk(net, COORDS, precision="highest"), inr.jacobian(net, COORDS, precision="highest")
    s = K.spectrum(eigenvectors=True)
    watch = inr.watch(net, COORDS, every=1)
    watch.step(0.5)
    dictionary = inr.dictionary(net, COORDS, progress=False)
    layer = FusedLinear(2, 3, activation="finer", omega=3.0).double()
    factor = K.factor(-1.0, "highest", progress=False)
    fitted = inr.fit(copy.deepcopy(net), COORDS, TARGET, steps=4, progress=False)
    adapted = inr.adapt(net, COORDS, SIGNALS, steps=2)
    report = inr.diagnose(net, COORDS, progress=False)
    return {
        "network": (net, lambda own: own(COORDS)),
        "layer": (layer, lambda own: own(COORDS)),
        "kernel": (K, lambda own: own.to_dense()),
        "kernel of a layer": (K.layers["layers.1"], lambda own: own.to_dense()),
        "Jacobian": (J, lambda own: own.rows()),
        "transposed Jacobian": (J.T, lambda own: own @ TARGET[:, 0]),
        "factorisation": (factor, lambda own: own.solve(TARGET)),
        "spectrum": (s, lambda own: (own.eigenvalues, own.eigenvectors, own.rank(1e-6))),
        "dictionary": (dictionary, lambda own: own.images(3)),
        "diagnosis": (report, lambda own: own.to_json()),
        "representation": (report.representations[0], lambda own: own),
        "fit": (fitted, lambda own: (own.losses, own.psnrs, own.config, own.best_state)),
        "adaptation": (adapted, lambda own: own.psnrs),
        "watch": (watch, lambda own: own.history),
        "cost": (K.cost(), str),
    }


def saved(own):
    file = io.BytesIO()
    torch.save(own, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"pickle": lambda own: pickle.loads(pickle.dumps(own)), "deepcopy": copy.deepcopy, "torch.save": saved}


@pytest.fixture(scope="module")
def results():
    return made()


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_the_same(results, way):
    for name, (own, shown) in results.items():
        other = WAYS[way](own)
        assert type(other) is type(own), name
        assert same(shown(other), shown(own)), name


def test_what_a_checkpoint_of_one_s_own_holds_is_read_without_running_code(results):
    """States, numbers and descriptions are plain: ``torch.load`` takes them with ``weights_only``, its default."""
    net, fitted = results["network"][0], results["fit"][0]
    kept = {"state": net.state_dict(), "config": fitted.config, "losses": fitted.losses, "best": fitted.best_state}
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=True), kept)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a):
        return same(vars(a), vars(b))
    return a == b
