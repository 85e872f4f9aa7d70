"""What each of several processes calls on the kernel that they share, and what it found."""

import pytest
import torch

import inrfast as inr
from inrfast import distributed
from inrfast.linalg import block_ldl, eigenvalues, systems
from inrfast.tangent import sharded

COORDS = inr.grid((21, 13))


def network(seed=0):
    """The network of all processes."""
    return inr.INR(2, 2, width=12, hidden_layers=2, activation="sine", init="siren", omega=6.0, seed=seed)


def large(output):
    """Spectra and a system of an order at which nothing dense is taken."""
    eigenvalues.SMALL = systems.SMALL = 100
    K = distributed.ntk(network(), COORDS, output=output, precision="highest")
    V = torch.randn(K.shape[0], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = K.spectrum(1e-6, eigenvectors=True)
    own, every = K._network.stores["highest"]
    held = [f for pair in own._kept for f in pair if f is not None]
    return {
        "rows": (K.partition.start, K.partition.stop),
        "bytes": sum(f.numel() * f.element_size() for f in held),
        "nothing": every._kept is None,
        "method": s.method,
        "eigenvalues": s.eigenvalues,
        "eigenvectors": s.eigenvectors,
        "errors": torch.tensor([s.lower_error, s.upper_error]),
        "layer": K.layers["layers.1"].spectrum(1e-4).eigenvalues,
        "quadrature": K.spectrum(method="quadrature").counts.nodes,
        "product": K @ V,
        "form": K.quadratic_form(V),
        "frobenius": torch.tensor(K.frobenius(), dtype=torch.float64),
        "solution": K.solve(V, ridge=1e-3 * float(s.eigenvalues[0]), tol=1e-9),
    }


def factored(output):
    """Factorisations with many windows, of which this process keeps its rows."""
    K = distributed.ntk(network(), COORDS, output=output, precision="highest")
    V = torch.randn(K.shape[0], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_ldl, "WINDOW", 24)
        patch.setattr(block_ldl, "PANEL", 48)
        for precision in ("high", "highest"):
            F = K.factor(1e-4 * K.trace(), precision=precision)
            count = F.count()
            found[precision] = {
                "inertia": (F.positive, F.negative, count.lower, count.upper),
                "residual": F.residual,
                "solution": F.solve(V, tol=1e-9),
                "inverse": F(V),
                "nbytes": F.nbytes,
            }
            held = F._ldl.lower.nbytes
    return found | {"held": held, "panels": [step.owner for step in F._ldl.steps]}


def faults():
    """Return what is said of faults of one process alone, by what they are."""
    rank = torch.distributed.get_rank()
    K = distributed.ntk(network(), COORDS, precision="highest")
    small = distributed.ntk(network(), COORDS, precision="highest", memory_budget=400_000 if rank else None)

    def broken(*given):
        return torch.ones(2, dtype=torch.bool)

    def overflown(self, strip, faults=None):
        strip = torch.full_like(strip, torch.inf) if rank == 1 else strip
        return diagonalised(self, strip, faults)

    def exhausted(*given):
        raise MemoryError("of this process")

    diagonalised, found = block_ldl.Elimination._diagonalised, []
    for what, place, name, fault in (
        ("must be finite", block_ldl, "_faults", broken),
        ("has NaN or Inf in rows", block_ldl.Elimination, "_diagonalised", overflown),
        ("process 1 raised MemoryError: of this process", block_ldl, "LowerRows", exhausted),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(place, name, fault)
            found.append((what, _message(lambda: K.factor(1.0, progress=False))))
    found.append(("MemoryBudgetError: the factor of order", _message(lambda: small.factor(1.0))))
    found.append(("out= is of a kernel in one process", _message(lambda: K.factor(1.0, out=f"/nowhere/{rank // 2}"))))
    return found, K.factor(1.0).positive


def recomputed(output):
    """A budget that one of the processes sets so low that no factors are kept; rows are sent a few at a time."""
    budget = 100_000 if torch.distributed.get_rank() == 1 else None
    K = distributed.ntk(network(), COORDS, output=output, precision="highest", memory_budget=budget)
    assert K.memory_budget <= 100_000
    assert not K.left.store.fits
    out = torch.full(K.shape, torch.nan, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "EXCHANGED_ROWS", 50)
        K.to_dense(out=out)
    found = {"dense": out, "frobenius": K.frobenius(), "submatrix": K.submatrix([3, 200, 77])}
    return found | {"matrix error": K.matrix_error, "jacobian error": K.jacobian_error}


def _message(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _of_this_process(output):
    return output if torch.distributed.get_rank() == 0 else output.flip(1)


def options():
    """Return what is said of networks, coordinates and options that differ between processes, by what differs."""
    rank = torch.distributed.get_rank()
    first, *others = (
        {"net": network(seed=rank)},
        {"coords": COORDS if rank == 0 else COORDS.flip(0)},
        {"coords": COORDS[: len(COORDS) - rank]},
        {"output": ("trace", 0)[rank]},
        {"params": (None, ["layers.1"])[rank]},
        {"select": _of_this_process},
        {"precision": ("high", "highest")[rank]},
        {"process 0 raised": None, "output": (5, 0)[rank]},
        {"process 1 raised": None, "precision": ("high", "hi")[rank]},
    )
    found = []
    for case in (first, *others):
        given = {"net": network(), "coords": COORDS} | {name: x for name, x in case.items() if " " not in name}
        found.append((next(iter(case)), _message(lambda given=given: distributed.ntk(**given))))
    return found


def arguments():
    """Return what is said of calls that differ between processes, by what differs, and a product made at the end."""
    eigenvalues.SMALL = systems.SMALL = 100
    rank = torch.distributed.get_rank()
    K = distributed.ntk(network(), COORDS, precision="highest")
    n = len(COORDS)
    v = torch.linspace(-1, 1, n, dtype=torch.float64)
    signs = torch.where(torch.arange(n) % (2 + rank) == 0, 1.0, -1.0)

    F, other = K.factor(-1.0), K.factor(-1.0, precision="high")

    def fails(residual):
        if rank == 1:
            raise ZeroDivisionError("of this process")
        return residual

    cases = [
        ("V", lambda: K @ (v + rank)),
        ("V", lambda: K @ signs),
        ("V", lambda: K @ v[: n - rank]),
        ("V", lambda: K @ (v if rank else None)),
        ("V", lambda: K.product(v * (1 + rank))),
        ("damping", lambda: K.product(v, damping=0.1 + rank)),
        ("index", lambda: K.columns([rank])),
        ("index", lambda: K.submatrix(slice(0, 3 + rank))),
        ("ridge", lambda: K.solve(v, ridge=0.1 + rank)),
        ("preconditioner", lambda: K.solve(v, 1.0, preconditioner=("none", "diagonal")[rank])),
        ("process 1 raised ZeroDivisionError: of this process", lambda: K.solve(v, 1.0, preconditioner=fails)),
        ("Y", lambda: K.quadratic_form(v.flip(0) if rank else v)),
        ("k", lambda: K.spectrum(k=3 + rank)),
        ("levels", lambda: K.spectrum(levels=[0.5, 1.0 + rank])),
        ("arguments", lambda: K.frobenius(*[1] * rank)),
        ("the method", lambda: K.frobenius() if rank else K.trace()),
        ("the method", lambda: K.jacobian_error if rank else K.matrix_error),
        ("the kernel", lambda: (K if rank else K.layers["layers.1"]).trace()),
        ("out", lambda: K.to_dense(out=torch.empty(n, n + rank, dtype=torch.float64))),
        ("precision", lambda: K.at_precision(("high", "medium")[rank])),
        ("shift", lambda: K.factor(0.1 + rank)),
        ("method", lambda: K.solve(v, 1.0, method=("direct", "cg")[rank])),
        ("b", lambda: F.solve(v + rank)),
        ("V", lambda: F(v + rank)),
        ("the method", lambda: F.residual if rank else F.logdet()),
        ("the factor's precision", lambda: (F, other)[rank].count()),
    ]
    return [(what, _message(call)) for what, call in cases], K @ v


def proven_counts():
    """Counts of a shared kernel that a complement proves, with products in fp32."""
    net = inr.INR(2, 1, width=128, hidden_layers=3, init="rank_expanding", seed=0)
    kernel = distributed.ntk(net, inr.grid((48, 48)), precision="highest")
    s = kernel.spectrum(1e-5, method="cholesky")
    rank = s.rank(1e-5)
    return {"rank": (rank.lower, rank.upper), "eigenvalues": s.eigenvalues, "certified": len(s.certified)}
