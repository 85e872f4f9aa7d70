"""Parts of ``bench/gpu.py``: certified ranks and whole diagnoses, against eigenvalues by ``torch.linalg``."""

from __future__ import annotations

from typing import Any

import torch
from gpu_bench import Bench, network

import inrfast as inr

RANK_SECONDS = 0.6
"""The certified rank of a 256x256 grid at rtol 1e-6, network and grid given."""

DIAGNOSE_SECONDS = 5.0
"""``inrfast.diagnose`` of a 256x256 grid."""

RTOL = 1e-6


def spectrum(bench: Bench) -> None:
    """The certified rank at rtol 1e-6: on a grid whose eigenvalues torch can give first, then on the full one."""
    net = network(bench, "relu")
    few = inr.grid((64, 64) if bench.large else (4, 4), device=bench.device)
    exact = inr.ntk(net, few, precision="highest", backend="torch").to_dense()
    truth = torch.linalg.eigvalsh(exact)
    count = int((truth > RTOL * truth[-1]).sum())
    for method in ("dense", "cholesky"):
        interval = inr.ntk(net, few).spectrum(rtol=RTOL, method=method, progress=False).rank(RTOL)
        bench.found[f"{method} on {len(few)} points"] = {"rank": str(interval), "torch": count}
        bench.check(count in interval, f"{method}: {interval} does not hold {count}, torch's rank")
    bench.found["torch.linalg.eigvalsh"] = bench.seconds(lambda: torch.linalg.eigvalsh(exact), 3)
    bench.found["ours of the same points"] = bench.seconds(
        lambda K: K.spectrum(rtol=RTOL, method="cholesky", progress=False), 3, lambda: inr.ntk(net, few)
    )
    coords = inr.grid((bench.grid, bench.grid), device=bench.device)

    def rank() -> Any:
        return inr.ntk(net, coords).spectrum(rtol=RTOL, progress=False).rank(RTOL)

    bench.found["rank"] = str(rank())
    bench.found["certified rank"] = bench.seconds(rank, 3) | {"target": RANK_SECONDS}
    if not bench.found["certified rank"]["seconds"] <= RANK_SECONDS:
        bench.profile("profile", rank)


def products(bench: Bench) -> None:
    """``K v`` in fp64 for 1 and 8 vectors, what Lanczos and the certificates rest on, against torch's own."""
    net, coords = network(bench, "relu"), inr.grid((bench.grid, bench.grid), device=bench.device)
    K = inr.ntk(net, coords, precision="highest")
    other = inr.ntk(net, coords, precision="highest", backend="torch")
    for k in (1, 8):
        V = torch.randn(len(coords), k, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        V = V.to(bench.device)
        truth = other @ V
        error = float((K @ V - truth).norm() / truth.norm())
        bench.found[f"error of {k}"] = error
        bench.check(error <= 1e-12, f"K v of {k}: error {error:.1e} above 1e-12")
        bench.found[f"K v, {k}"] = bench.seconds(lambda V=V: K @ V, 5)
        bench.found[f"torch, {k}"] = bench.seconds(lambda V=V: other @ V, 3)


def diagnose(bench: Bench) -> None:
    """A whole diagnosis; first a small one against the CPU's."""
    net, few = network(bench, "relu"), inr.grid((12, 12) if bench.large else (4, 4))
    options: dict[str, Any] = {"progress": False, "jacobian_pixels": 8}
    ours = _ranks(inr.diagnose(net, few.to(bench.device), **options).to_dict())
    theirs = _ranks(inr.diagnose(network(bench, "relu").cpu(), few, **options).to_dict())
    differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
    bench.found["ranks"] = {"compared": len(ours), "other than the CPU's": differing}
    bench.check(not differing, f"{differing} of {len(ours)} ranks are not the CPU's")
    coords = inr.grid((bench.grid, bench.grid), device=bench.device)

    def run() -> Any:
        return inr.diagnose(net, coords, progress=False)

    bench.found["diagnose"] = bench.seconds(run, 1) | {"target": DIAGNOSE_SECONDS}
    if not bench.found["diagnose"]["seconds"] <= DIAGNOSE_SECONDS:
        bench.profile("profile", run)


def _ranks(report: Any) -> list[Any]:
    """Return every entry of a report that its name calls a rank, in order."""
    if isinstance(report, dict):
        inner = [(name, value) for name, value in report.items() if isinstance(value, dict | list | tuple)]
        own = [value for name, value in report.items() if name == "rank"]
        return own + [rank for name, value in inner if name != "rank" for rank in _ranks(value)]
    return [rank for value in report for rank in _ranks(value)] if isinstance(report, list | tuple) else []
