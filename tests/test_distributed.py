"""Two processes give the numbers of one, and each holds half."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import inrfast as inr
from inrfast import distributed
from inrfast.distributed import ShardedNTK
from inrfast.errors import NotAvailableError
from inrfast.linalg import eigenvalues, systems

SCRIPT = Path(__file__).parent / "distributed_script.py"


def run(folder, world):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, SCRIPT, folder, str(rank), str(world)], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(timeout=600) for process in running] == [0] * world
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module", params=["trace", "full"])
def alone(request):
    net = inr.INR(2, 2, width=12, hidden_layers=2, activation="sine", init="siren", omega=6.0)
    return request.param, inr.ntk(net, inr.grid((21, 13)), output=request.param, precision="highest")


def test_the_same_calls_give_the_same_numbers_in_every_process(found, alone, monkeypatch):
    for module in (eigenvalues, systems):
        monkeypatch.setattr(module, "SMALL", 100)
    output, K = alone
    V = torch.randn(K.shape[0], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = K.spectrum(1e-6, eigenvectors=True)
    ridge = 1e-3 * float(s.eigenvalues[0])
    size = float(s.eigenvalues[0])
    for shared in (of_rank[output] for of_rank in found):
        assert tuple(shared["shape"]) == K.shape
        close(shared["diagonal"], K.diagonal())
        assert shared["trace"] == pytest.approx(K.trace(), rel=1e-12)
        close(shared["columns"], K.columns([3, 250, 17]))
        close(shared["product"], K @ V)
        close(shared["vector"], K @ V[:, 0])
        assert shared["method"] == s.method == "cholesky"
        assert len(shared["eigenvalues"]) == len(s.eigenvalues)
        assert (shared["eigenvalues"] - s.eigenvalues).abs().max() <= 1e-10 * size
        Q = shared["eigenvectors"]
        assert Q.shape == s.eigenvectors.shape
        residuals = torch.linalg.vector_norm(K @ Q - Q * s.eigenvalues, dim=0)
        assert residuals.max() <= max(s.lower_error, s.upper_error)
        assert (shared["layer"] - K.layers["layers.1"].spectrum(1e-4).eigenvalues).abs().max() <= 1e-10 * size
        assert (shared["lanczos"] - torch.linalg.eigvalsh(K.to_dense()).flip(0)[:5]).abs().max() <= 1e-8 * size
        close(shared["quadrature"][:, 0], K.spectrum(method="quadrature").counts.nodes[:, 0])
        residual = torch.linalg.vector_norm(K.product(shared["solution"], ridge) - V, dim=0)
        assert (residual <= 1.1e-9 * torch.linalg.vector_norm(V, dim=0)).all()
    first, second = (of_rank[output] for of_rank in found)
    for name in ("eigenvalues", "errors", "product", "solution"):
        assert torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])), name


def test_each_process_holds_half(found, alone):
    output, K = alone
    held = sum(
        f.numel() * f.element_size()
        for pair in K.left.store.all()
        for f in (pair.features, pair.sensitivities)
        if f is not None
    )
    parts = [of_rank[output] for of_rank in found]
    assert parts[0]["rows"][1] == parts[1]["rows"][0]
    assert (parts[0]["rows"][0], parts[1]["rows"][1]) == (0, K.shape[0])
    assert sum(part["bytes"] for part in parts) == held
    assert max(part["bytes"] for part in parts) <= 0.51 * held
    assert all(part["nothing"] for part in parts)


def test_different_networks_are_refused(found):
    messages = [of_rank["different"] for of_rank in found]
    assert all("networks differ between processes" in message for message in messages)


def test_without_a_process_group_it_says_how_to_start():
    with pytest.raises(NotAvailableError, match="torchrun"):
        distributed.ntk(inr.INR(2, 1, width=4), inr.grid((4, 4)))


def close(found, truth):
    assert (found - truth).abs().max() <= 1e-11 * truth.abs().max()


def test_a_shared_kernel_is_neither_pickled_nor_copied():
    kernel = object.__new__(ShardedNTK)
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="belongs to a process group"):
            call(kernel)
