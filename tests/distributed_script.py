"""What every process of ``test_distributed`` runs: one kernel shared by all; results into a file of its own."""

import os
import sys

import torch
import torch.distributed as dist

import inrfast as inr
from inrfast import distributed
from inrfast.linalg import eigenvalues, systems


def main(folder, rank, world):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    eigenvalues.SMALL = systems.SMALL = 100
    coords = inr.grid((21, 13))
    found = {}
    for output in ("trace", "full"):
        net = inr.INR(2, 2, width=12, hidden_layers=2, activation="sine", init="siren", omega=6.0)
        K = distributed.ntk(net, coords, output=output, precision="highest")
        V = torch.randn(K.shape[0], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        s = K.spectrum(1e-6, eigenvectors=True)
        layer = K.layers["layers.1"].spectrum(1e-4)
        stores = K._network.stores["highest"]
        held = [f for f in stores[0]._kept for f in (f.features, f.sensitivities) if f is not None]
        found[output] = {
            "shape": K.shape,
            "rows": (K.partition.start, K.partition.stop),
            "diagonal": K.diagonal(),
            "trace": K.trace(),
            "columns": K.columns([3, 250, 17]),
            "product": K @ V,
            "vector": K @ V[:, 0],
            "method": s.method,
            "eigenvalues": s.eigenvalues,
            "eigenvectors": s.eigenvectors,
            "errors": (s.lower_error, s.upper_error),
            "layer": layer.eigenvalues,
            "lanczos": K.spectrum(1e-9, k=5, method="lanczos", eigenvectors=True).eigenvalues,
            "quadrature": K.spectrum(method="quadrature").counts.nodes,
            "solution": K.solve(V, ridge=1e-3 * float(s.eigenvalues[0]), tol=1e-9),
            "bytes": sum(f.numel() * f.element_size() for f in held),
            "nothing": stores[1]._kept is None,
        }
    try:
        distributed.ntk(inr.INR(2, 1, width=8, seed=rank), coords)
        found["different"] = ""
    except ValueError as error:
        found["different"] = str(error)
    torch.save(found, f"{folder}/found-{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's own threads abort the process now and then while it is taken down


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
