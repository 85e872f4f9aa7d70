"""What holds for every tangent kernel, in one process or shared by several: each law against a dense fp64 matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from random_networks import exact_jacobian, exact_kernel
from torch import Tensor, nn

import inrfast as inr
from inrfast import distributed
from inrfast.errors import ResolutionError
from inrfast.linalg import block_ldl, systems
from inrfast.linalg.certificates import kernel_error
from inrfast.tangent.kernel import TangentKernel

TOLERANCE = {"highest": 1e-10, "high": 1e-5}


@dataclass
class Truth:
    """The exact kernel, by layer as well, and the size of its entries, ``sqrt(K_ii K_jj)`` by Cauchy and Schwarz."""

    matrix: Tensor
    layers: dict[str, Tensor]
    bound: Tensor
    tol: float
    seed: int

    @classmethod
    def of(cls, net: nn.Module, coords: Tensor, output: str | int, precision: str, seed: int) -> Truth:
        """Return the kernel of a network by automatic differentiation."""
        jacobian = exact_jacobian(net, coords)
        layers: dict[str, list[Tensor]] = {}
        parameters = [(name.rpartition(".")[0], parameter.numel()) for name, parameter in net.named_parameters()]
        for (name, _), part in zip(parameters, jacobian.split([size for _, size in parameters], 2), strict=True):
            layers.setdefault(name, []).append(part)
        own = {name: torch.cat(parts, 2) for name, parts in layers.items()}
        kernels = {name: exact_kernel(part, part, output) for name, part in own.items()}
        matrix = exact_kernel(jacobian, jacobian, output)
        size = (matrix.diagonal() + 1e-30 * (1 + matrix.diagonal().max())).sqrt()
        return cls(matrix, kernels, torch.outer(size, size), TOLERANCE[precision], seed)

    def vectors(self, k: int) -> Tensor:
        """Return random vectors (n, k), fp64."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(len(self.matrix), k, generator=generator, dtype=torch.float64)

    def close(self, found: Tensor, exact: Tensor, size: Tensor) -> None:
        """Require an error of at most the tolerance, in units of the size."""
        assert found.shape == exact.shape
        assert ((found - exact).abs() <= self.tol * size).all()


def structure(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Shape, dtype, layers that add up, and a cost that predicts the dense kernel."""
    n = len(truth.matrix)
    assert K.shape == (n, n) == (K.partition.size, K.partition.size)
    assert K.symmetric
    assert list(K.layers) == list(truth.layers)
    cost = K.cost()
    assert cost.dense_bytes == n * n * K.dtype.itemsize
    assert "dense kernel" in str(cost)
    assert type(K).__name__ in repr(K)
    for name, layer in K.layers.items():
        truth.close(torch.as_tensor(layer.to_dense()), truth.layers[name], truth.bound)
    return []


def dense(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Dense kernels, new or written into tensors and arrays of any layout, are symmetric to the last bit."""
    found = torch.as_tensor(K.to_dense())
    assert found.dtype == K.dtype
    assert torch.equal(found, found.t())
    truth.close(found, truth.matrix, truth.bound)
    n = len(found)
    wide = torch.full((n + 2, 2 * n + 1), 7.0, dtype=K.dtype)
    for out in (wide[1 : n + 1, 1::2], wide[1 : n + 1, 1 : n + 1].t(), np.empty((n, n), found.numpy().dtype)):
        assert K.to_dense(out=out) is out
        assert torch.equal(torch.as_tensor(out), found)
    assert (wide[0] == 7).all()
    return [found]


def entries(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Columns and submatrices, by int, list, slice and tensor, repeated and counted from the end."""
    n, found = len(truth.matrix), []
    for index in (0, [0, n - 1, 0], slice(None, None, -2), torch.tensor([-1, n // 2])):
        if isinstance(index, slice):
            picked = list(range(n))[index]
        else:
            picked = [int(i) % n for i in torch.as_tensor(index).reshape(-1)]
        columns, square = K.columns(index), K.submatrix(index)
        truth.close(columns, truth.matrix[:, picked], truth.bound[:, picked])
        truth.close(square, truth.matrix[picked][:, picked], truth.bound[picked][:, picked])
        assert torch.equal(square, square.t())
        found += [columns, square]
    return found


def multiplication(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Products with vectors, few and many columns, damped, as SciPy's operator and as row sums."""
    V, many = truth.vectors(3), truth.vectors(min(K.cost().break_even_columns, 4 * len(truth.matrix)) + 1)
    exact, size = truth.matrix @ V, truth.bound @ V.abs()
    found = K @ V
    truth.close(found, exact, size)
    truth.close(K @ V[:, 0], exact[:, 0], size[:, 0])
    truth.close(K @ many, truth.matrix @ many, truth.bound @ many.abs())
    truth.close(K.product(V, 0.5), exact + 0.5 * V, size + V.abs())
    truth.close(K.row_sums(), truth.matrix.sum(1), truth.bound.sum(1))
    operator = K.to_scipy()
    turned = V.numpy() * np.exp(1j)
    truth.close(torch.from_numpy(operator @ turned), exact * np.exp(1j), 2 * size)
    truth.close(torch.from_numpy(operator.H @ V.numpy()[:, 0]), exact[:, 0], size[:, 0])
    return [found, K @ many]


def reductions(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Diagonal, trace and Frobenius norm."""
    found = K.diagonal()
    truth.close(found, truth.matrix.diagonal(), truth.bound.diagonal())
    assert abs(K.trace() - truth.matrix.trace()) <= truth.tol * truth.bound.trace()
    assert abs(K.frobenius() - truth.matrix.norm()) <= truth.tol * truth.bound.norm()
    return [found, torch.tensor([K.trace(), K.frobenius()])]


def forms(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Quadratic forms of few columns and of many are symmetric to the last bit, fp64."""
    found = []
    for k in (1, 3, min(K.cost().break_even_columns, 4 * len(truth.matrix)) + 1):
        Y = truth.vectors(k)
        form = K.quadratic_form(Y)
        assert form.dtype == torch.float64
        assert torch.equal(form, form.t())
        truth.close(form, Y.t() @ truth.matrix @ Y, Y.t().abs() @ truth.bound @ Y.abs())
        found.append(form)
    alone = K.quadratic_form(truth.vectors(1)[:, 0])
    assert alone.ndim == 0
    assert abs(alone - found[0][0, 0]) <= truth.tol * float(truth.bound.sum() * Y.abs().max() ** 2)
    return found


def spectra(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """By whatever method, errors hold, eigenvectors fit, and ranks are intervals that contain the truth."""
    values = torch.linalg.eigvalsh(truth.matrix).flip(0)
    slack = 1e-11 * float(truth.bound.trace())  # of the exact matrix itself
    method = ("cholesky", "lanczos", "dense")[truth.seed % 3]
    found = [counted(K, values, slack)]
    k = min(3, len(values)) if method == "lanczos" else None
    s = K.spectrum(1e-6, k=k, method=method, eigenvectors=True, progress=False)
    assert (s.method, s.size, s.rank_bound) == (method, len(values), min(len(values), K.rank_bound))
    error, Q = values[: len(s.eigenvalues)] - s.eigenvalues, s.eigenvectors
    assert (error >= -s.lower_error - slack).all()
    assert (error <= s.upper_error + slack).all()
    assert Q is not None
    residual = torch.linalg.vector_norm(truth.matrix @ Q - Q * s.eigenvalues, dim=0)
    assert (residual <= max(s.lower_error, s.upper_error) + 1e-6 * s.eigenvalues[0] + slack).all()
    if k is None and s.floor < 1e-4:
        count = int((values > 1e-4 * values[0]).sum())
        assert count in s.rank(1e-4)
        assert count in inr.numerical_rank(K, 1e-4)
    return [*found, s.eigenvalues, Q]


def counted(K: TangentKernel, values: Tensor, slack: float) -> Tensor:
    """Require certified counts that contain the true ones, at relative tolerances and at levels; return them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_ldl, "WINDOW", 4)  # more windows than one in every process
        patch.setattr(block_ldl, "PANEL", 8)
        levels = [(float(values[0]) or 1.0) * share for share in (0.5, 1e-3)]
        s = K.spectrum(1e-2, method="inertia", levels=levels, progress=False)
        ranks = [s.count_above(level) for level in levels]
    if values[0] > 0:
        assert s.method == "inertia"
        assert s.lower_error - slack <= values[0] - s.eigenvalues[0] <= s.upper_error + slack
    for rank, level in zip(ranks, levels, strict=True):
        assert rank.lower <= int((values > level - slack).sum())
        assert rank.upper >= int((values > level + slack).sum())
    return torch.tensor([[rank.lower, rank.upper] for rank in ranks])


def systems_of(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Ridge systems, by factorisation and by iteration, to the residual that was asked for."""
    y, ridge, found = truth.vectors(2), 1e-3 * float(truth.matrix.diagonal().max()) or 1.0, []
    for small, way in ((0, "cg"), (0, "direct"), (4096, "auto")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(systems, "SMALL", small)
            x = K.solve(y, ridge, tol=1e-9, progress=False, method=way)
        residual = torch.linalg.vector_norm(y - truth.matrix @ x - ridge * x, dim=0)
        assert (residual <= 2e-9 * torch.linalg.vector_norm(y, dim=0) + 1e-10 * truth.bound.norm() * x.norm()).all()
        found.append(x)
    damped = truth.matrix + ridge * torch.eye(len(y), dtype=torch.float64)
    factor = torch.linalg.cholesky(damped)
    ways = ("none", "diagonal", "pivoted_cholesky", lambda residual: torch.cholesky_solve(residual, factor))
    for way in ways:
        x = K.solve(y, ridge, tol=1e-6, progress=False, preconditioner=way)
        assert (torch.linalg.vector_norm(y - damped @ x, dim=0) <= 2e-6 * torch.linalg.vector_norm(y, dim=0)).all()
        found.append(x)
    with pytest.raises(ValueError, match="not positive definite"):
        K.solve(y, ridge, preconditioner=torch.neg)
    return found


def factorisations(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Factors of ``K - t I``: counts by Weyl's inequality, solutions to their accuracy, determinants."""
    values = torch.linalg.eigvalsh(truth.matrix).flip(0)
    n, slack = len(values), 1e-11 * float(truth.bound.trace())  # of the exact matrix itself
    largest = float(values[0]) if values[0] > 0 else 1.0
    exact, found = K.at_precision("highest"), []
    rounding = kernel_error(exact.jacobian_error, exact.trace())  # what the network's own rounding does to K
    for shift in (-1e-3 * largest, (0.3, 1e-2, 1e-5)[truth.seed % 3] * largest):
        precision = ("highest", "high")[truth.seed // 3 % 2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_ldl, "WINDOW", 4)  # more windows than one in every process
            patch.setattr(block_ldl, "PANEL", 8)
            F = K.factor(shift, precision=precision, progress=False)
        assert F.shape == K.shape
        assert F.positive + F.negative == n
        count = F.count()
        assert count.lower <= int((values > shift - slack).sum())
        assert count.upper >= int((values > shift + slack).sum())
        off = F.residual + slack
        assert int((values > shift + off).sum()) <= F.positive <= int((values > shift - off).sum())
        gap = float((values - shift).abs().min())
        found.append(torch.tensor([F.positive, F.residual]))
        if gap < max(100 * off, 1e-6 * largest):
            continue
        assert F.positive == int((values > shift).sum())
        b = truth.vectors(2)
        x = F.solve(b, tol=1e-9, progress=False)
        left = torch.linalg.vector_norm(b - truth.matrix @ x + shift * x, dim=0)
        assert (left <= 2e-9 * torch.linalg.vector_norm(b, dim=0) + slack * torch.linalg.vector_norm(x, dim=0)).all()
        if 10 * n * (F.residual + rounding) < gap:
            assert abs(F.logdet(tol=1.0) - float((values - shift).abs().log().sum())) <= 1.0 + n * slack / gap
        found += [x, F(b[:, 0])]
    return found


def precisions(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """The same kernel at another precision."""
    exact = K.at_precision("highest")
    assert exact.dtype == torch.float64
    assert ((torch.as_tensor(exact.to_dense()) - truth.matrix).abs() <= 1e-10 * truth.bound).all()
    assert K.at_precision("high").at_precision("highest").shape == K.shape
    return []


def refusals(K: TangentKernel, truth: Truth) -> list[Tensor]:
    """Bad input is refused by name, in every process."""
    n = len(truth.matrix)
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: K @ torch.ones(n + 1), ValueError, "V must have shape"),
        (lambda: K @ torch.full((n,), float("nan")), ValueError, "V must be finite"),
        (lambda: K.columns([n]), IndexError, "out of range"),
        (lambda: K.columns([]), ValueError, "at least one"),
        (lambda: K.submatrix([0.5]), TypeError, "index must be an integer"),
        (lambda: K.to_dense(torch.empty(n, n + 1)), ValueError, "out must have shape"),
        (lambda: K.spectrum(method="dens"), ValueError, "Did you mean 'dense'"),
        (lambda: K.spectrum(rtol=1e-30), ResolutionError, "about the floor of fp64"),
        (lambda: K.product(torch.ones(n), damping=-1), ValueError, "damping"),
        (lambda: K.solve(torch.ones(n), ridge=-1), ValueError, "ridge"),
        (lambda: K.quadratic_form(torch.ones(n + 1)), ValueError, "Y must have shape"),
        (lambda: K.at_precision("hihg"), ValueError, "Did you mean 'high'"),
        (lambda: K.factor(float("nan")), ValueError, "shift"),
        (lambda: K.factor(1.0, precision="hihg"), ValueError, "Did you mean 'high'"),
        (lambda: K.factor(-1.0).solve(torch.ones(n + 1)), ValueError, "b must have shape"),
        (lambda: K.solve(torch.ones(n), method="dirct"), ValueError, "Did you mean 'direct'"),
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
    return []


LAWS: dict[str, Callable[[TangentKernel, Truth], list[Tensor]]] = {
    law.__name__: law
    for law in (
        structure,
        dense,
        entries,
        multiplication,
        reductions,
        forms,
        spectra,
        systems_of,
        factorisations,
        precisions,
        refusals,
    )
}


def shared(
    net: nn.Module, coords: Tensor, output: str | int, precision: str, truth: Truth, *names: str
) -> dict[str, str]:
    """Run laws, all if none is named, on a kernel shared by the processes of this group; return digests of what they
    found."""
    K = distributed.ntk(net, coords, output=output, precision=precision)
    return {name: _digest(law(K, truth)) for name, law in LAWS.items() if name in (names or LAWS)}


def _digest(found: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in found)).hexdigest()
