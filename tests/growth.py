"""How much memory public functions take beyond what a process has: each call in a process of its own.

``python growth.py`` reads one JSON object a line (the arguments of :func:`measured`) and answers with one: ``growth``
(bytes of the peak above what was resident before the call) and ``seconds``, and of an error its text, its kind, and
what it names as sufficient. The parent imports everything once, computes nothing, and forks a child for every request.
The child runs the case on a tiny problem first, so that libraries loaded at first use do not count.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import inrfast as inr
from inrfast.signals.meshes.winding import winding_numbers
from inrfast.signals.render import render
from inrfast.training.derivatives import gradient, laplacian

Call = Callable[..., Any]
"""The call to be measured, of a budget (and a batch size); its own arguments exist before."""

SIZES = {"tiny": (6, 8, 8), "small": (56, 40, 48), "large": (160, 96, 128)}
"""Points per side of a grid, of the grid of what is dense, and width."""

CASES: dict[str, Callable[[str], Call]] = {}


def case(make: Callable[[str], Call]) -> Callable[[str], Call]:
    CASES[make.__name__] = make
    return make


def kernel_case(
    name: str, use: Callable[[Any, Any], Any], dense: bool = False, columns: int = 0, **options: Any
) -> None:
    """Add a case that makes a kernel under the budget and uses it; ``use`` also gets its order, or so many vectors."""

    def make(size: str) -> Call:
        side, order, width = SIZES[size]
        outputs = options.get("outputs", 1)
        net = inr.INR(2, outputs, width=width, hidden_layers=2, activation=options.get("activation", "relu"))
        coords = inr.grid((order if dense else side,) * 2)
        given = {k: v for k, v in options.items() if k not in ("outputs", "activation")}
        order = len(coords) * (outputs if given.get("output") == "full" else 1)
        beside: Any = torch.ones(order, columns) if columns else order
        return lambda budget: use(inr.ntk(net, coords, memory_budget=budget, **given), beside)

    CASES[name] = make


kernel_case("diagonal", lambda K, n: K.diagonal())
kernel_case("diagonal_full", lambda K, n: K.diagonal(), output="full", outputs=3)
kernel_case("trace", lambda K, n: K.trace())
kernel_case("frobenius", lambda K, n: K.frobenius(), dense=True)
kernel_case("row_sums", lambda K, n: K.row_sums())
kernel_case("product", lambda K, V: K @ V, columns=3)
kernel_case("product_highest", lambda K, V: K @ V, columns=3, precision="highest")
kernel_case("product_wide", lambda K, V: K @ V, columns=200, dense=True)
kernel_case("product_tiles", lambda K, V: K @ V, columns=800, dense=True)
kernel_case("product_full", lambda K, V: K @ V, columns=8, output="full", outputs=3)
kernel_case("product_damped", lambda K, V: K.product(V, damping=0.1), columns=64)
kernel_case("quadratic_form", lambda K, V: K.quadratic_form(V), columns=40)
kernel_case("columns", lambda K, n: K.columns(slice(0, min(n, 300))))
kernel_case("columns_shuffled", lambda K, n: K.columns(list(range(min(n, 300)))[::-1]))
kernel_case("submatrix", lambda K, n: K.submatrix(slice(0, min(n, 2000))))
kernel_case("to_dense", lambda K, n: K.to_dense(), dense=True)
kernel_case("layers", lambda K, n: [block.trace() for block in K.layers.values()])
kernel_case("dense", lambda K, n: K.spectrum(method="dense", progress=False), dense=True)
kernel_case("dense_vectors", lambda K, n: K.spectrum(method="dense", eigenvectors=True, progress=False), dense=True)
kernel_case("cholesky", lambda K, n: K.spectrum(1e-6, method="cholesky", progress=False))
kernel_case("cholesky_vectors", lambda K, n: K.spectrum(1e-4, None, "cholesky", True, progress=False))
kernel_case("cholesky_pairs", lambda K, n: K.spectrum(1e-5, 20, "cholesky", True, progress=False))
kernel_case("lanczos_vectors", lambda K, n: K.spectrum(1e-4, 10, "lanczos", True, progress=False))
kernel_case("quadrature", lambda K, n: K.spectrum(method="quadrature", progress=False))
kernel_case("solve", lambda K, n: K.solve(torch.ones(n), ridge=10.0, progress=False))
kernel_case("solve_dense", lambda K, n: K.solve(torch.ones(n), ridge=10.0, progress=False), dense=True)
kernel_case("solve_direct", lambda K, n: K.solve(torch.ones(n), ridge=1e-3, method="direct", progress=False))
kernel_case(
    "factor", lambda K, n: (F := K.factor(-1.0, "high", progress=False)).logdet(1e9) + F.solve(torch.ones(n))[0]
)
kernel_case("rank", lambda K, n: inr.numerical_rank(K, 1e-3))
kernel_case("diagonal_sine", lambda K, n: K.diagonal(), activation="sine")


@case
def predict(size: str) -> Call:
    side, _, width = SIZES[size]
    net, coords = inr.INR(2, 1, width=width, hidden_layers=2), inr.grid((side, side))
    y = torch.ones(len(coords), 2)

    def run(budget: int | None) -> Any:
        s = inr.ntk(net, coords, memory_budget=budget).spectrum(1e-1, 5, "lanczos", eigenvectors=True, progress=False)
        return s.predict(y, 0 * y, 1e-9, 10), s.energy(y)

    return run


def kernel_between(size: str) -> Call:
    _, order, width = SIZES[size]
    net, coords, others = inr.INR(2, 2, width=width), inr.grid((order, order)), inr.grid((order + 1, order))
    return lambda budget: inr.ntk(net, coords, others, memory_budget=budget).to_dense()


CASES["between"] = kernel_between


@case
def hooked(size: str) -> Call:
    side, _, width = SIZES[size]
    net = torch.nn.Sequential(
        torch.nn.Linear(2, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, 2),
    )
    coords = inr.grid((side, side))
    return lambda budget: inr.ntk(net, coords, memory_budget=budget) @ torch.ones(len(coords), 2)


def jacobian_case(name: str, use: Callable[[Any], Any], outputs: int = 2) -> None:
    def make(size: str) -> Call:
        side, _, width = SIZES[size]
        net, coords = inr.INR(2, outputs, width=width, hidden_layers=2), inr.grid((side, side))
        return lambda budget: use(inr.jacobian(net, coords, memory_budget=budget))

    CASES[name] = make


jacobian_case("jacobian_rows", lambda J: J.rows(slice(0, min(J.shape[0] // 2, 500))))
jacobian_case("jacobian_layer", lambda J: J.layers["layers.1"].rows(slice(0, min(J.shape[0] // 2, 500))))
jacobian_case("jvp", lambda J: J @ torch.ones(J.shape[1], 8))
jacobian_case("vjp", lambda J: J.T @ torch.ones(J.shape[0], 8))


def diagnose_case(name: str, **options: Any) -> None:
    def make(size: str) -> Call:
        _, order, width = SIZES[size]
        net = inr.INR(2, options.get("outputs", 1), width=width, hidden_layers=2, norm=options.get("norm"))
        coords = inr.grid((order, order))
        if options.get("norm") == "batch":
            inr.calibrate_batchnorm_(net, coords)
        net.eval()
        given = {"rtols": options.get("rtols", (1e-2, 1e-3)), "ntk_points": options.get("points")}
        return lambda budget: inr.diagnose(net, coords, memory_budget=budget, progress=False, **given)

    CASES[name] = make


diagnose_case("diagnose")
diagnose_case("diagnose_outputs", outputs=3, points=400)
diagnose_case("diagnose_tsqr", rtols=(1e-3, 1e-9), points=100)
diagnose_case("diagnose_sphere", norm="sphere", points=100)


def fit_case(name: str, **options: Any) -> None:
    def make(size: str) -> Call:
        side, _, width = SIZES[size]
        coords = inr.grid((2 * side, 2 * side))
        target = (3 * coords).sin()[:, :1].contiguous()
        given = {"steps": 3, "progress": False, "data_range": 2.0} | {
            k: v for k, v in options.items() if k not in ("net", "count", "weight", "share")
        }
        if "share" in options:
            given["batch_size"] = len(coords) // options["share"]
        if options.get("weight"):
            given["weight"] = torch.linspace(0, 1, len(coords))

        def net() -> Any:
            if "net" in options:
                return options["net"](width)
            return inr.INR(2, 1, width=width, hidden_layers=2, activation="softplus")

        if "count" in options:
            nets = [net() for _ in range(options["count"])]
            return lambda budget, **more: inr.fit_many(nets, coords, target, memory_budget=budget, **given | more)
        one = net()
        return lambda budget, **more: inr.fit(one, coords, target, memory_budget=budget, **given | more)

    CASES[name] = make


def _mse(pred, target):
    return (pred - target).square().mean()


def _absolute(pred, target):
    return (pred - target).abs().mean() + 0.01 * (pred * target).tanh().square().mean()


def _eikonal(pred, target, coords):
    return _mse(pred, target) + 0.1 * (gradient(pred, coords).norm(dim=-1) - 1).square().mean()


def _pairs(pred, target):
    return _mse(pred, target) + 1e-3 * (pred - pred.T).abs().mean()


def _distances(pred, target):
    return _mse(pred, target) + 1e-3 * torch.cdist(pred, pred).mean()


class _Attention(torch.nn.Module):
    """Every point attends to all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Linear(2, width), torch.nn.Linear(width, 1)

    def forward(self, x: Any) -> Any:
        h = self.before(x)
        return self.after(torch.softmax(h @ h.T, 1) @ h)


def _poisson(pred, target, coords):
    return (laplacian(pred, coords) - target).square().mean()


def _sequential(width):
    return torch.nn.Sequential(
        torch.nn.Linear(2, width),
        torch.nn.GELU(),
        torch.nn.Linear(width, width),
        torch.nn.GELU(),
        torch.nn.Linear(width, 1),
    )


fit_case("fit", net=lambda width: inr.INR(2, 1, width=width, hidden_layers=2))
fit_case("fit_tanh", net=lambda width: inr.INR(2, 1, width=width, hidden_layers=2, activation="tanh"))
fit_case("fit_encoded", net=lambda width: inr.INR(2, 1, width=width, hidden_layers=2, encoding=inr.RandomFourier(128)))
fit_case("fit_batch", share=4)
fit_case("fit_weighted", weight=True)
fit_case("fit_module", net=_sequential)
fit_case("fit_norm", net=lambda width: inr.INR(2, 1, width=width, hidden_layers=2, norm="batch"))
fit_case("fit_callable", loss=_mse)
fit_case("fit_callable_batch", loss=_absolute, share=4)
fit_case("fit_eikonal", loss=_eikonal)
fit_case("fit_eikonal_batch", loss=_eikonal, share=4)
fit_case("fit_poisson", loss=_poisson, share=4)
fit_case("fit_pairs", loss=_pairs, share=3)
fit_case("fit_distances", loss=_distances)
fit_case("fit_attention", net=_Attention)
fit_case("fit_attention_batch", net=_Attention, share=16)
fit_case("fit_many", count=3, net=lambda width: inr.INR(2, 1, width=width, hidden_layers=2))
fit_case("fit_many_callable", count=2, loss=_mse)


@case
def render_image(size: str) -> Call:
    side, _, width = SIZES[size]
    net = inr.INR(2, 3, width=width, hidden_layers=2)
    return lambda budget: render(net, (8 * side, 8 * side), memory_budget=budget, progress=False)


@case
def render_encoded(size: str) -> Call:
    side, _, width = SIZES[size]
    net = inr.INR(2, 1, width=width, hidden_layers=2, encoding=inr.Polynomial(12))
    return lambda budget: render(net, (3 * side, 3 * side), memory_budget=budget, progress=False)


@case
def render_module(size: str) -> Call:
    side, _, width = SIZES[size]
    net = _sequential(width)
    return lambda budget: render(net, (4 * side, 4 * side), memory_budget=budget, progress=False)


@case
def winding(size: str) -> Call:
    count = 50 * SIZES[size][0]
    generator = torch.Generator().manual_seed(0)
    triangles = torch.rand(count, 3, 3, generator=generator) * 0.1 + torch.rand(count, 1, 3, generator=generator)
    points = torch.rand(4 * count, 3, generator=generator)
    return lambda budget: winding_numbers(triangles, points, memory_budget=budget, progress=False)


# ---- the processes -----------------------------------------------------------------------------------------------


def resident(field: str = "VmRSS") -> int:
    """Return a number of bytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(name: str, budget: int | None, size: str, options: dict[str, Any], room: int | None) -> dict[str, Any]:
    """Return what one call took, in this process, which may get ``room`` bytes of addresses more."""
    CASES[name]("tiny")(None)
    call = CASES[name](size)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        field = "VmHWM"
    except OSError:
        field = ""
    before, start, found = resident(), time.perf_counter(), {}
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + room, most))
    try:
        kept = call(budget, **options)
        del kept
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        batch = re.search(r"batch_size=(\d+) would fit", str(error))
        found = {
            "error": str(error),
            "kind": type(error).__name__,
            "needed": getattr(error, "needed", None),
            "batch": int(batch[1]) if batch else None,
        }
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    peak = resident(field) if field else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"growth": peak - before, "seconds": round(time.perf_counter() - start, 2), **found}


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            print(json.dumps(measured(**request)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            print(json.dumps({"growth": 0, "seconds": 0.0, "error": f"status {status}", "kind": "crash"}), flush=True)


if __name__ == "__main__":
    main()
