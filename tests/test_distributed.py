"""Two processes give the numbers of one, and each holds half."""

import copy
import pickle
from itertools import groupby

import pytest
import torch
from kernel_laws import Truth
from random_networks import random_coords
from shared_calls import COORDS, network
from shared_processes import processes

import inrfast as inr
from inrfast import distributed
from inrfast.errors import NotAvailableError
from inrfast.linalg import eigenvalues, systems
from inrfast.linalg.certificates import kernel_error
from inrfast.tangent.sharded import ShardedNTK


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with processes(2, tmp_path_factory.mktemp("two")) as found:
        yield found


@pytest.mark.parametrize("output", ["trace", "full"])
def test_large_kernels_have_the_numbers_of_one_process_and_half_in_each(two, output, monkeypatch):
    for module in (eigenvalues, systems):
        monkeypatch.setattr(module, "SMALL", 100)
    K = inr.ntk(network(), COORDS, output=output, precision="highest")
    V = torch.randn(K.shape[0], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = K.spectrum(1e-6, eigenvectors=True)
    size = float(s.eigenvalues[0])
    first, second = two.call("shared_calls", "large", output)
    for name, found in first.items():
        assert not isinstance(found, torch.Tensor) or torch.equal(found, second[name]), name
    close(first["product"], K @ V)
    close(first["form"], K.quadratic_form(V))
    close(first["frobenius"], torch.tensor(K.frobenius(), dtype=torch.float64))
    close(first["quadrature"][:, 0], K.spectrum(method="quadrature").counts.nodes[:, 0])
    assert first["method"] == s.method == "cholesky"
    assert first["eigenvectors"].shape == s.eigenvectors.shape
    assert (first["eigenvalues"] - s.eigenvalues).abs().max() <= 1e-10 * size
    assert (first["layer"] - K.layers["layers.1"].spectrum(1e-4).eigenvalues).abs().max() <= 1e-10 * size
    residual = torch.linalg.vector_norm(K.product(first["solution"], 1e-3 * size) - V, dim=0)
    assert (residual <= 1.1e-9 * torch.linalg.vector_norm(V, dim=0)).all()

    held = sum(f.numel() * f.element_size() for pair in K.left.store.all() for f in pair if f is not None)
    assert first["rows"][1] == second["rows"][0]
    assert (first["rows"][0], second["rows"][1]) == (0, K.shape[0])
    assert first["bytes"] + second["bytes"] == held
    assert max(first["bytes"], second["bytes"]) <= 0.51 * held
    assert first["nothing"]
    assert second["nothing"]


@pytest.mark.parametrize("output", ["trace", "full"])
def test_factorisations_are_shared_by_turns_and_prove_the_same(two, output):
    K = inr.ntk(network(), COORDS, output=output, precision="highest")
    n, shift = K.shape[0], 1e-4 * K.trace()
    matrix = K.to_dense()
    values = torch.linalg.eigvalsh(matrix)
    V = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = two.call("shared_calls", "factored", output)
    for precision, accuracy in (("high", 1e-4), ("highest", 1e-8)):
        here, there = first[precision], second[precision]
        assert all(torch.equal(torch.as_tensor(here[name]), torch.as_tensor(there[name])) for name in here)
        positive, negative, lower, upper = here["inertia"]
        assert lower == upper == positive == n - negative == int((values > shift).sum())
        assert 0 < here["residual"] <= accuracy * float(values[-1])
        left = torch.linalg.vector_norm(V - matrix @ here["solution"] + shift * here["solution"], dim=0)
        assert (left <= 1.1e-9 * torch.linalg.vector_norm(V, dim=0)).all()
        error = torch.linalg.vector_norm(here["inverse"] - here["solution"], dim=0)
        assert (error <= 2 * here["residual"] / float((values - shift).abs().min()) * here["solution"].norm()).all()
    held = first["held"], second["held"]
    assert sum(held) <= first["highest"]["nbytes"] <= 0.7 * 8 * n * n + 2 * 8 * 48 * n
    assert max(held) <= 0.62 * sum(held)
    owners = [owner for owner, _ in groupby(first["panels"])]
    assert owners == [0, 1] * (len(owners) // 2) + [0] * (len(owners) % 2)
    assert len(owners) >= 4


def test_faults_of_one_process_are_raised_in_all(two):
    first, second = two.call("shared_calls", "faults")
    (first, positive), (second, other) = first, second
    assert positive == other
    for (what, here), (_, there) in zip(first, second, strict=True):
        if "raised" in what:  # in the other one it is the error itself
            assert what in here
            assert "MemoryError: of this process" in there or "refused memory" in there
        else:
            assert what in here
            assert here == there


@pytest.mark.parametrize("output", ["trace", "full"])
def test_the_smallest_budget_counts_for_all_and_changes_no_number(two, output):
    K = inr.ntk(network(), COORDS, output=output, precision="highest")
    first, second = two.call("shared_calls", "recomputed", output)
    assert torch.equal(first["dense"], second["dense"])
    assert torch.equal(first["dense"], first["dense"].t())
    close(first["dense"], K.to_dense())
    close(first["submatrix"], K.submatrix([3, 200, 77]))
    assert first["frobenius"] == second["frobenius"] == pytest.approx(K.frobenius(), rel=1e-12)
    # Factors that are computed anew may round otherwise each time: the stated error says so.
    rounding = 2 * kernel_error(first["jacobian error"], K.trace())
    assert first["matrix error"] == second["matrix error"] == pytest.approx(K.matrix_error + rounding)


@pytest.mark.parametrize("calls", ["options", "arguments"])
def test_what_differs_between_processes_is_named_in_all_of_them(two, calls):
    first, second = two.call("shared_calls", calls)
    if calls == "arguments":
        (first, product), (second, other) = first, second
        assert torch.equal(product, other)
    for (what, here), (_, there) in zip(first, second, strict=True):
        if "raised" in what:  # elsewhere it is the error itself
            assert sum(f": {what}" in message for message in (here, there)) == 1
            assert "" not in (here, there)
        else:
            assert here == there
            assert here.startswith(f"ValueError: {what}")
            assert "must be the same in every process, got" in here


def test_three_processes_of_which_one_runs_out_of_rows(tmp_path):
    """Windows, panels and turns at numbers of rows that three does not divide."""
    with processes(3, tmp_path) as three:
        for points, output, laws in ((19, "trace", ["factorisations"]), (4, "full", ["spectra"])):
            coords = random_coords(points, 2, points)
            truth = Truth.of(network(), coords, output, "highest", points)
            found = three.call("kernel_laws", "shared", network(), coords, output, "highest", truth, *laws)
            assert found[0] == found[1] == found[2]


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


def test_a_complement_proves_the_same_in_every_process(two):
    net = inr.INR(2, 1, width=128, hidden_layers=3, init="rank_expanding", seed=0)
    exact = torch.linalg.eigvalsh(inr.ntk(net, inr.grid((48, 48)), precision="highest").to_dense())
    first, second = two.call("shared_calls", "proven_counts")
    assert torch.equal(first["eigenvalues"], second["eigenvalues"])
    assert first["rank"] == second["rank"]
    lower, upper = first["rank"]
    assert lower <= int((exact > 1e-5 * exact[-1]).sum()) <= upper
    assert first["certified"] == 1
