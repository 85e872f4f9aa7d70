"""Walk every public path on the pretend device and print what each cost and how far it is from the CPU's, as JSON.

``python tests/pretend_walk.py [EXPRESSION]`` prints a line for each path whose name the expression is found in, and for
each such loop how often the host waits in its turns; with ``--places`` the counts' places follow on standard error.
:mod:`tests.test_pretend_gpu` holds the lines to their bounds.
"""

# ruff: noqa: E402  (what is imported asks which devices there are: the pretend machine comes first)
from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pretend_gpu
import torch

pretend_gpu.install("interpret")  # before anything asks which devices there are

import inrfast as inr
from inrfast import backends, init
from inrfast.linalg import block_ldl, counting, largest_eigenvalue
from inrfast.linalg.certificates import CertifiedCount
from inrfast.linalg.lanczos import spectral_bounds
from inrfast.linalg.operators import DenseOperator
from inrfast.linalg.pivoted_cholesky import PivotedCholesky
from inrfast.nn import FusedLinear
from inrfast.ops import grid_init
from inrfast.tangent.kernel_operator import KernelOperator
from inrfast.training import group

grid_init.load_cuda = pretend_gpu.without_cuda
backends.interpreted = lambda: False  # tensors of the CPU take the CPU's own path
group.LONGEST = 1e9  # interpretation is slow, which is no reason to take one step at a time
block_ldl.WINDOW = block_ldl.PANEL_GPU = 9  # several windows and blocks of so few rows
counting.WHOLE = largest_eigenvalue.WHOLE = 8  # which are counted as many are

SIDE = 6
"""Points along each axis of the grid."""


class Machine:
    """The same network and points on one device, and what is made of them there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.coords = inr.grid((SIDE, SIDE)).to(device)
        self.net = inr.INR(2, 2, width=32, hidden_layers=2, activation="sine", seed=0).to(device)
        self.target = torch.sin(3 * self.coords)

    @functools.cached_property
    def K(self) -> inr.NTK:
        return inr.ntk(self.net, self.coords)

    @functools.cached_property
    def exact(self) -> inr.NTK:
        return inr.ntk(self.net, self.coords, precision="highest")

    @functools.cached_property
    def level(self) -> float:
        """In the middle of the widest gap between the larger eigenvalues of the exact kernel."""
        values = torch.linalg.eigvalsh(Machine("cpu").exact.to_dense()).flip(0)[:20].log()
        gap = int((values[:-1] - values[1:])[4:].argmax()) + 4
        return float(((values[gap] + values[gap + 1]) / 2).exp())

    @functools.cached_property
    def J(self) -> inr.LayerwiseJacobian:
        return inr.jacobian(self.net, self.coords)

    def numbers(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(shape, generator=generator).to(self.device)

    def normed(self, position: str) -> inr.INR:
        """Return the network with a batch norm."""
        options = {"width": 32, "hidden_layers": 2, "activation": "sine", "norm_position": position, "seed": 0}
        return inr.INR(2, 2, norm=["batch", None], **options).to(self.device)

    def fit(self, count: int = 1, net: inr.INR | None = None, **options: Any) -> torch.Tensor:
        """Return the losses of a short fit: steps one by one, a capture, and a replay."""
        nets = [copy.deepcopy(net or self.net) for _ in range(count)]
        options = {"steps": 6, "eval_every": 2, "progress": False, "seed": 1} | options
        if count == 1:
            return torch.tensor(inr.fit(nets[0], self.coords, self.target, **options).losses)
        fits = inr.fit_many(nets, self.coords, self.target, **options)
        return torch.tensor([fit.losses for fit in fits])

    def layer(self, backend: str) -> torch.Tensor:
        layer = FusedLinear(32, 32, activation="sine", omega=30.0, backend="auto" if self.device == "cpu" else backend)
        init.siren_(layer, generator=torch.Generator().manual_seed(0))
        layer = layer.to(self.device)
        x = self.numbers(16, 32).requires_grad_()
        out = layer(x)
        out.backward(self.numbers(16, 32))
        return torch.cat([t.flatten() for t in (out, x.grad, layer.weight.grad, layer.bias.grad)])


def eigenvalues(K: inr.NTK, **options: Any) -> torch.Tensor:
    return K.spectrum(progress=False, **options).eigenvalues[:4]


def factored(machine: Machine, K: inr.NTK, precision: str) -> inr.Factorization:
    """Factor a kernel on a stream of the caller's, who lets fp32 products be in TF32, which none of ours may be."""
    on_cpu, before = machine.device == "cpu", pretend_gpu.record.operators.copy()
    torch.set_float32_matmul_precision("high")
    try:
        with contextlib.nullcontext() if on_cpu else torch.cuda.stream(torch.cuda.Stream(machine.device)):
            F = K.factor(machine.level, precision=precision, progress=False)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not [what for what, _ in pretend_gpu.record.operators - before if "TF32" in what]
    return F


def interval(count: CertifiedCount) -> torch.Tensor:
    return torch.tensor([count.lower, count.upper])


def ranks(machine: Machine) -> torch.Tensor:
    """Return the numbers of a diagnosis in the order of its JSON."""

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [x for v in value.values() for x in numbers(v)]
        if isinstance(value, list | tuple):
            return [x for v in value for x in numbers(v)]
        return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []

    report = inr.diagnose(machine.net, machine.coords, jacobian_pixels=4, progress=False)
    return torch.tensor(numbers(json.loads(report.to_json())))


def encoded(machine: Machine, encoding: Any) -> torch.Tensor:
    net = inr.INR(2, 1, width=32, hidden_layers=1, encoding=encoding, seed=3).to(machine.device)
    return inr.ntk(net, machine.coords).to_dense()


PATHS: dict[str, tuple[str, Callable[[Machine, Any], torch.Tensor]]] = {
    "network": ("net", lambda m, net: inr.INR(2, 2, width=32, hidden_layers=2, device=m.device, seed=5)(m.coords)),
    "ntk": ("net", lambda m, net: inr.ntk(net, m.coords).coords),
    "dense medium": ("net", lambda m, net: inr.ntk(net, m.coords, precision="medium").to_dense()),
    "dense high": ("K", lambda m, K: K.to_dense()),
    "dense highest": ("net", lambda m, net: inr.ntk(net, m.coords, precision="highest").to_dense()),
    "dense of two grids": ("net", lambda m, net: inr.ntk(net, m.coords, 0.5 * m.coords[:7]).to_dense()),
    "dense of all outputs": ("net", lambda m, net: inr.ntk(net, m.coords[:8], output="full").to_dense()),
    "columns": ("K", lambda m, K: K.columns([0, 3, 17])),
    "submatrix": ("K", lambda m, K: K.submatrix([0, 3, 17])),
    "diagonal": ("K", lambda m, K: K.diagonal()),
    "Frobenius norm": ("K", lambda m, K: torch.tensor(K.frobenius())),
    "product": ("K", lambda m, K: K @ m.numbers(SIDE**2)),
    "product of 64": ("K", lambda m, K: K @ m.numbers(SIDE**2, 64)),
    "quadratic form": ("K", lambda m, K: K.quadratic_form(m.numbers(SIDE**2))),
    "row sums": ("K", lambda m, K: K.row_sums()),
    "layer's kernel": ("K", lambda m, K: next(iter(K.layers.values())).to_dense()),
    "rows": ("J", lambda m, J: J.rows(slice(0, 5))),
    "J p": ("J", lambda m, J: J @ m.numbers(J.shape[1])),
    "J^T v": ("J", lambda m, J: J.T @ m.numbers(J.shape[0])),
    "spectrum dense": ("K", lambda m, K: eigenvalues(K, method="dense")),
    "spectrum cholesky": ("K", lambda m, K: eigenvalues(K, method="cholesky", rtol=1e-3)),
    "spectrum lanczos": ("K", lambda m, K: eigenvalues(K, method="lanczos", k=4)),
    "spectrum inertia": (
        "K",
        lambda m, K: interval(K.spectrum(method="inertia", levels=[m.level], progress=False).certified[0]),
    ),
    "spectrum quadrature": ("K", lambda m, K: eigenvalues(K, method="quadrature")[:1]),
    "solve": ("K", lambda m, K: K.solve(m.numbers(SIDE**2), ridge=1.0)),
    "factor, solve": ("exact", lambda m, K: factored(m, K, "high").solve(m.numbers(SIDE**2), tol=1e-10)),
    "factor, logdet": ("exact", lambda m, K: torch.tensor(factored(m, K, "highest").logdet())),
    "diagnose": ("net", lambda m, net: ranks(m)),
    "fit": ("net", lambda m, net: m.fit()),
    "fit medium": ("net", lambda m, net: m.fit(precision="medium")),
    "fit mini-batches": ("net", lambda m, net: m.fit(batch_size=16)),
    "fit by torch": ("net", lambda m, net: m.fit(backend="torch", steps=2)),
    "fit batch norm": ("net", lambda m, net: m.fit(net=m.normed("post"), eval_every=3)),
    "fit batch norm by torch": ("net", lambda m, net: m.fit(net=m.normed("pre"), backend="torch", steps=2)),
    "fit_many": ("net", lambda m, net: m.fit(count=2)),
    "fused layer": ("net", lambda m, net: m.layer("auto")),
    "fused layer's kernels": ("net", lambda m, net: m.layer("triton")),
    "rank_expanding": (
        "net",
        lambda m, net: torch.cat([t.flatten() for t in inr.rank_expanding(32, 2, device=m.device)]),
    ),
    "encoding fourier": ("net", lambda m, net: encoded(m, inr.RandomFourier(16))),
    "encoding positional": ("net", lambda m, net: encoded(m, inr.PositionalEncoding(4))),
    "encoding polynomial": ("net", lambda m, net: encoded(m, inr.Polynomial(5))),
}
"""Every public path: what is made before anything is counted (an attribute of Machine), and a function of the machine
and of that; it returns what is the same on every machine but for rounding."""


def pivots(machine: Machine, turn: Callable[[], Any]) -> None:
    """Grow a factor block by block, and ask it each time what decides whether to go on."""
    factor = PivotedCholesky(KernelOperator(machine.exact))
    for _ in range(4):
        assert factor.grow(4) > 0
        assert not factor.exhausted
        assert min(factor.norm_estimate, factor.largest_estimate) > 0
        turn()


def lanczos(machine: Machine, turn: Callable[[], Any], residual: bool) -> None:
    """Bound the spectrum of a matrix, or of what a factor leaves of a kernel, by batches of four products."""
    factor = PivotedCholesky(KernelOperator(machine.exact))
    factor.grow(4)
    product = factor.apply_residual if residual else DenseOperator(machine.exact.to_dense()).__matmul__
    spectral_bounds(product, factor.diagonal, 16, 1e-3, 0, enough=lambda bounds: bool(turn()))


def windows(machine: Machine, turn: Callable[[], Any], dtype: torch.dtype) -> None:
    """Factor the kernel window by window."""
    operator, level = KernelOperator(machine.exact), machine.level
    block_ldl.block_ldl(operator, level, dtype, window=8, panel=8, progress=False)
    block_ldl.block_ldl(operator, level, dtype, window=8, panel=8, progress=False, save=lambda state: turn())


LOOPS: dict[str, Callable[[Machine, Callable[[], Any]], None]] = {
    "blocks of pivots": pivots,
    "batches of Lanczos": functools.partial(lanczos, residual=False),
    "batches of Lanczos on a residual": functools.partial(lanczos, residual=True),
    "windows of a factor": functools.partial(windows, dtype=torch.float64),
    "windows of a factor in fp32": functools.partial(windows, dtype=torch.float32),
}
"""What goes on until something is met: a function of the machine, and of what it calls after each turn."""


def go_round(name: str, machine: Machine, places: bool) -> dict[str, Any]:
    """Return waits and launches of each turn of a loop but the first, which makes what others find."""
    last, waits, kernels = copy.deepcopy(pretend_gpu.record), [], []

    def turn() -> None:
        nonlocal last
        found, last = pretend_gpu.record.since(last), copy.deepcopy(pretend_gpu.record)
        waits.append(found.waits)
        kernels.append(found.kernels)
        if places:
            print(f"{name}\n{found.listing()}", file=sys.stderr, flush=True)

    LOOPS[name](machine, turn)
    return {"loop": name, "waits": waits[1:], "kernels": kernels[1:]}


def walk(name: str, places: bool) -> dict[str, Any]:
    """Return what a path costs on both devices, and its distance from the CPU's result relative to its largest."""
    what, path = PATHS[name]
    machine, begin = Machine("cpu"), time.process_time()
    truth = path(machine, getattr(machine, what)).detach().double()
    found: dict[str, Any] = {"path": name}
    for device in ("cuda:0", "cuda:1"):
        machine, before = Machine(device), pretend_gpu.record.violations.copy()
        made = getattr(machine, what)
        try:
            with pretend_gpu.counted() as count:
                result = path(machine, made).detach()
            error = float((result.cpu().double() - truth).abs().max() / truth.abs().max())
            cost = {"kernels": count.kernels, "waits": count.waits, "replays": count.replays}
            found[device] = cost | {"error": error, "on": str(result.device)}
            if places:
                print(f"{name} on {device}\n{count.listing()}", file=sys.stderr, flush=True)
        except Exception as error:
            if places:
                raise
            found[device] = {"failed": f"{type(error).__name__}: {error}"}
        new = pretend_gpu.record.violations - before
        found[device]["violations"] = [f"{what}, {where}" for what, where in new]
    return found | {"seconds": time.process_time() - begin}


def main() -> None:
    """Walk the paths that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("expression", nargs="?", default="")
    parser.add_argument("--places", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in PATHS:
        if re.search(chosen.expression, name):
            print(json.dumps(walk(name, chosen.places)), flush=True)
    machine = Machine("cuda:1")
    for name in LOOPS:
        if re.search(chosen.expression, name):
            print(json.dumps(go_round(name, machine, chosen.places)), flush=True)


if __name__ == "__main__":
    main()
