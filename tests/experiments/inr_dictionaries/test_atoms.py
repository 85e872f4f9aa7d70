"""What is kept of a dictionary against autograd's kernel and numpy's eigenvalues."""

import numpy as np
import pytest
import torch
from tiny_faces import TINY, tiny

from inrfast.experiments.inr_dictionaries.atoms import THRESHOLDS, atoms_cell, energy_at, fine_cell
from inrfast.experiments.inr_dictionaries.faces import faces
from inrfast.experiments.inr_dictionaries.starts import FFNS, RELU, SIRENS, points
from inrfast.experiments.paper import Request, Work


@pytest.fixture(autouse=True)
def small():
    with tiny():
        yield


def work(tmp_path):
    return Work(torch.device("cpu"), tmp_path / "x.fit", False)


def kernel(net, coords):
    rows = []
    for point in coords:
        gradients = torch.autograd.grad(net(point).sum(), list(net.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows).numpy()
    return jacobian @ jacobian.T


def truth(start, side, there):
    """Return E(lambda) at every threshold from LAPACK, the kernel, and the energy on its first eigenvectors."""
    net = start.network(Request(), {}, torch.device("cpu"), torch.float64)
    matrix = kernel(net, points(side, torch.device("cpu"), torch.float64))
    values, vectors = np.linalg.eigh(matrix)
    images = there.held_out.flatten(1).numpy()
    images = images - images.mean(1, keepdims=True)
    shares = (images @ vectors) ** 2 / (images**2).sum(1, keepdims=True)
    # Levels a roundoff to either side, since lambda_1 itself is at the threshold 1.
    by_number = shares.mean(0)[::-1].cumsum()
    return (
        [
            [float(shares[:, values >= (1 + slack) * level * values[-1]].sum(1).mean()) for level in THRESHOLDS]
            for slack in (1e-9, -1e-9)
        ],
        matrix,
        by_number,
    )


@pytest.mark.parametrize("start", [SIRENS[0], SIRENS[-1], RELU, FFNS[1]], ids=lambda start: start.name)
def test_energies_and_atoms_are_those_of_autograds_kernel(start, tmp_path):
    found = atoms_cell(start, Request(), {}).run(work(tmp_path))
    (below, above), matrix, by_number = truth(
        start, TINY.side, faces(Request(), TINY.side, TINY.learned, TINY.held_out)
    )
    resolved = np.array(THRESHOLDS) > 1e-9
    assert (found.arrays["lower"] <= np.array(above) + 1e-6)[resolved].all()
    assert (found.arrays["upper"] >= np.array(below) - 1e-6)[resolved].all()
    assert (found.arrays["upper"] - found.arrays["lower"])[resolved].max() < 0.05
    low, high = energy_at(found, 1e-2)
    assert low <= above[20] + 1e-6 and high >= below[20] - 1e-6
    values = found.arrays["eigenvalues"]
    for count, energy in found.numbers["first"].items():
        last, following = values[int(count) - 1], values[int(count)]
        if last > 1e-9 and following < 0.999 * last:  # else any basis would do
            assert energy == pytest.approx(by_number[int(count) - 1], abs=1e-5)
    atoms = found.arrays["atoms"].reshape(10, -1).astype(np.float64)
    np.testing.assert_allclose(atoms @ atoms.T, np.eye(10), atol=1e-5)
    largest = np.linalg.eigvalsh(matrix)[-1]
    residual = matrix @ atoms.T / largest - atoms.T * found.arrays["eigenvalues"][:10]
    assert np.abs(residual).max() < 1e-5


def test_bounds_on_the_finer_grid_hold_the_truth(tmp_path):
    for start in (SIRENS[0], SIRENS[3]):
        found = fine_cell(start, Request(), {}).run(work(tmp_path))
        there = faces(Request(), TINY.fine_side, TINY.learned, TINY.held_out)
        (below, above), *_ = truth(start, TINY.fine_side, there)
        # The eigenvectors have an error too: near the floor they mix, by the error over the gap.
        resolved = np.array(THRESHOLDS) > 30 * found.numbers["floor"]
        assert (found.arrays["lower"] <= np.array(above) + 1e-3)[resolved].all() and resolved.sum() > 20
        assert (found.arrays["upper"] >= np.array(below) - 1e-3)[resolved].all()
        assert found.numbers["size"] == TINY.fine_side**2 and found.numbers["listed"] <= TINY.fine_atoms
