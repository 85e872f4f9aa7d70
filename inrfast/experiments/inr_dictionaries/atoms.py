"""What a figure keeps of a network's dictionary on faces: energies, and the first atoms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from inrfast.analysis.dictionary import Dictionary, dictionary
from inrfast.experiments.inr_dictionaries.faces import Faces, faces
from inrfast.experiments.inr_dictionaries.starts import Start, images, points, sizes
from inrfast.experiments.paper import Cell, Found, Request, Work
from inrfast.signals.image import MID_GREY

THRESHOLDS = tuple(10 ** (-i / 10) for i in range(101))
"""From 1 to 1e-10, as in the paper's figure, below which fp64 resolves nothing either."""

RTOL, FINE_RTOL = 1e-12, 1e-3
"""To which eigenvalues are computed: of a whole spectrum, and of the largest ones on the finer grid."""

FINE_BYTES = 3 * 2**30
"""Memory of a spectrum on the finer grid: the same on every machine, since it decides how many pivots there are."""

FIRST = (10, 20, 50, 100, 200, 500, 1000)
"""Numbers of atoms whose energy is kept beside that above the thresholds."""

ATOMS = 10
"""That are kept, as in the paper's figures."""


def atoms_cell(start: Start, request: Request, found: Mapping[str, Found]) -> Cell:
    """Return the cell of a network's whole dictionary on the images' grid."""
    there = images(request)

    def run(work: Work) -> Found:
        net = start.network(request, found, work.device, torch.float64)
        coords = points(there.side, work.device, torch.float64)
        made = dictionary(net, coords, there.side**2, rtol=RTOL, method="dense", progress=work.progress)
        with torch.no_grad():
            picture = net(coords)[:, 0].cpu() + MID_GREY
        return _found(made, there, picture)

    settings = start.settings(request) | {"faces": there.settings, "first": list(FIRST)}
    return Cell(f"atoms.{start.name}", settings, run, (there.side / 32) ** 6, shared=True)


def fine_cell(start: Start, request: Request, found: Mapping[str, Found]) -> Cell:
    """Return the cell of the largest eigenpairs on the finer grid, on which the paper has none."""
    own = sizes(request)

    def run(work: Work) -> Found:
        there = faces(request, own.fine_side, own.learned, own.held_out)
        net = start.network(request, found, work.device, torch.float64)
        coords = points(own.fine_side, work.device, torch.float64)
        made = dictionary(
            net, coords, own.fine_atoms, rtol=FINE_RTOL, method="cholesky", memory_budget=FINE_BYTES,
            seed=request.seed, progress=work.progress,
        )  # fmt: skip
        with torch.no_grad():
            picture = net(coords)[:, 0].cpu() + MID_GREY
        return _found(made, there, picture)

    settings = start.settings(request) | {
        "faces": images(request).settings | {"side": own.fine_side}, "rtol": FINE_RTOL, "atoms": own.fine_atoms,
        "first": list(FIRST),
    }  # fmt: skip
    return Cell(f"fine.{start.name}", settings, run, (own.fine_side / 32) ** 4, shared=True)


def _found(made: Dictionary, there: Faces, picture: Tensor) -> Found:
    device = made.atoms.device
    signals = there.centred.to(device)
    energy = made.energy(signals, THRESHOLDS)
    shares = made.coefficients(signals).square() / signals.square().sum((1, 2)).unsqueeze(1)
    by_number = shares.mean(0).cumsum(0)
    lower, upper = (bound.cpu().numpy() for bound in energy.interval)
    first = made.images(ATOMS).cpu()
    numbers = {
        "floor": made.floor if np.isfinite(made.floor) else None,
        "smallest": energy.smallest,
        "listed": len(made),
        "first": {str(count): float(by_number[count - 1]) for count in FIRST if count <= len(made)},
        "size": made.spectrum.size,
        "method": made.spectrum.method,
    }
    relative = (made.eigenvalues / made.eigenvalues[0]).cpu().numpy()
    arrays = {"lower": lower, "upper": upper, "eigenvalues": relative, "atoms": first.numpy().astype(np.float32)}
    return Found(numbers, arrays | {"picture": picture.reshape(there.side, there.side).numpy().astype(np.float32)})


def energy_at(found: Found, threshold: float) -> tuple[float, float]:
    """Return bounds on E(lambda) at one of the thresholds."""
    at = min(range(len(THRESHOLDS)), key=lambda i: abs(np.log10(THRESHOLDS[i] / threshold)))
    return float(found.arrays["lower"][at]), float(found.arrays["upper"][at])
