"""What each of several processes calls on the kernel that they share, and what it found."""

import pytest
import torch

import inrfast as inr
from inrfast import distributed
from inrfast.linalg import eigenvalues, systems
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


def different():
    """Return what is said of networks that differ between processes."""
    try:
        distributed.ntk(network(seed=torch.distributed.get_rank()), COORDS)
    except ValueError as error:
        return str(error)
    return ""
