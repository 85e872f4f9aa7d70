"""Kernels and Jacobians in SciPy's solvers, and as precomputed kernels of kernel methods."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, cg, eigsh, gmres, lobpcg, lsmr, lsqr, minres, svds

import inrfast as inr

GENERATOR = np.random.default_rng(0)
COORDS = inr.grid((6, 7), dtype=torch.float64)
OTHERS = torch.from_numpy(GENERATOR.uniform(-1, 1, (9, 2)))
NET = inr.INR(2, 2, width=8, hidden_layers=2, activation="sine", init="siren", dtype=torch.float64)
RIDGE = 1.0

K = inr.ntk(NET, COORDS, precision="highest")
CROSS = inr.ntk(NET, OTHERS, COORDS, precision="highest")
J = inr.jacobian(NET, COORDS, precision="highest")
OPERATORS = {"kernel": K, "cross": CROSS, "full": inr.ntk(NET, OTHERS, COORDS, "full", precision="highest"), "J": J}


def close(one, other, tolerance=1e-10):
    return np.abs(one - other).max() <= tolerance * np.abs(other).max()


def damped():
    """Return ``K + ridge I`` as SciPy makes it of operators, and as a matrix."""
    identity = LinearOperator(K.shape, matvec=lambda v: v, rmatvec=lambda v: v, dtype=np.float64)
    return K.to_scipy() + RIDGE * identity, np.asarray(K) + RIDGE * np.eye(len(COORDS))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128, np.float32, np.int64, ">f8"])
def test_products_are_those_of_the_matrix(name, dtype):
    matrix, operator = np.asarray(OPERATORS[name]), OPERATORS[name].to_scipy()
    assert operator.shape == matrix.shape and operator.dtype == matrix.dtype
    rows, columns = ((5 * GENERATOR.standard_normal((n, 3))).astype(dtype) for n in matrix.shape)
    if dtype == np.complex128:
        rows, columns = rows + 2j * rows[::-1], columns - 3j * columns[::-1]
    for column in (columns[:, 0], columns[:, :1], columns[::-1][:, 1]):
        assert (operator @ column).shape == (matrix @ column).shape
        assert close(operator @ column, matrix @ column)
    products = {
        "matmat": (operator @ columns, matrix @ columns),
        "one column": (operator.matmat(columns[:, :1]), matrix @ columns[:, :1]),
        "rmatvec": (operator.rmatvec(rows[:, 0]), matrix.T @ rows[:, 0]),
        "rmatmat": (operator.rmatmat(rows), matrix.T @ rows),
        "adjoint": (operator.H @ rows, matrix.T @ rows),
        "transpose": (operator.T @ rows, matrix.T @ rows),
        "from the left": (rows.T @ operator, rows.T @ matrix),
    }
    for product, truth in products.values():
        assert product.shape == truth.shape and close(product, truth)
    assert (operator @ columns).dtype == (matrix @ columns).dtype
    if dtype == np.float64:
        sent = pickle.loads(pickle.dumps(operator))
        assert np.array_equal(sent @ columns, operator @ columns) and np.array_equal(sent.H @ rows, operator.H @ rows)


def test_eigenvalues_and_singular_values():
    values = np.linalg.eigvalsh(np.asarray(K))[::-1]
    start = np.ones(len(COORDS))
    assert close(eigsh(K.to_scipy(), 5, v0=start, return_eigenvectors=False)[::-1], values[:5])
    found, _ = lobpcg(K.to_scipy(), GENERATOR.standard_normal((len(COORDS), 4)), tol=1e-9, maxiter=200)
    assert close(np.sort(found)[::-1], values[:4], 1e-8)
    for operator in (CROSS, J):
        truth = np.linalg.svd(np.asarray(operator), compute_uv=False)[:4]
        assert close(svds(operator.to_scipy(), 4, return_singular_vectors=False, rng=0)[::-1], truth, 1e-8)


@pytest.mark.parametrize("solver", [cg, minres, gmres])
@pytest.mark.parametrize("complex_", [False, True])
def test_systems(solver, complex_):
    operator, matrix = damped()
    right = GENERATOR.standard_normal(len(COORDS))
    if complex_:
        if solver is minres:
            pytest.skip("minres is of real systems")
        right = right + 1j * right[::-1]
    found, stopped = solver(operator, right, rtol=1e-12, maxiter=2000)
    assert stopped == 0 and close(found, np.linalg.solve(matrix, right), 1e-8)


@pytest.mark.parametrize("solver", [lsqr, lsmr])
def test_least_squares_with_the_jacobian(solver):
    """A damped Gauss-Newton step: ``min |J p - r|^2 + damp^2 |p|^2``."""
    residual = GENERATOR.standard_normal(J.shape[0])
    found = solver(J.to_scipy(), residual, damp=1.0, atol=1e-13, btol=1e-13)[0]
    matrix = np.asarray(J)
    truth = np.linalg.solve(matrix.T @ matrix + np.eye(J.shape[1]), matrix.T @ residual)
    assert close(found, truth, 1e-8)


def test_kernel_ridge_regression():
    """On a precomputed kernel, by its definition in NumPy: the weights, and predictions at other points."""
    target = GENERATOR.standard_normal((len(COORDS), 2))
    weights = np.linalg.solve(np.asarray(K) + RIDGE * np.eye(len(COORDS)), target)
    found = K.solve(target, ridge=RIDGE, tol=1e-12)
    assert isinstance(found, np.ndarray) and close(found, weights, 1e-9)
    assert close(CROSS @ found, np.asarray(CROSS) @ weights, 1e-9)


def test_scikit_learn_takes_kernels_and_cross_kernels():
    pytest.importorskip("sklearn")
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.svm import SVC

    target = GENERATOR.standard_normal(len(COORDS))
    ridge = KernelRidge(alpha=RIDGE, kernel="precomputed").fit(K, target)
    weights = K.solve(target, ridge=RIDGE, tol=1e-12)
    assert close(ridge.dual_coef_, weights, 1e-9) and close(ridge.predict(CROSS), CROSS @ weights, 1e-9)
    classes = COORDS[:, 0].numpy() > 0.1
    machine = SVC(kernel="precomputed").fit(K.to_dense(), classes)
    coefficients = np.zeros(len(COORDS))
    coefficients[machine.support_] = machine.dual_coef_[0]
    assert close(machine.decision_function(CROSS), CROSS @ coefficients + machine.intercept_, 1e-9)
