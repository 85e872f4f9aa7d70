"""How close fitted signed distances are to exact ones: of meshes, and of clouds of points with and without normals.

    python bench/shapes.py [--steps N] [--width N] [--omega W] [--mesh FILE ...] [--out FILE]

Three bodies whose signed distance has a formula (a ball, a torus, a box; the longest side is 1.8, in the box [-1, 1]^3)
are given as a mesh of 100,000 sampled distances, and as 20,000 random points with and without normals. ``siren``: the
points with normals and SIREN's loss alone. Errors are means at 40,000 uniform points of the box that no fit has seen,
and at those nearer to the surface than 0.05; ``wrong sign`` is the share of the 40,000. Each ``--mesh`` is fitted from
sampled distances, and from its own vertices without normals; errors are those of libigl's distances of the mesh, in
1/1.8 of its longest side, and chamfer distances of 30,000 points on both surfaces, the reconstruction's grid 128^3.
Times are the processor's, the fit's alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trimesh
from torch import Tensor

import inrfast as inr
from inrfast.metrics import chamfer
from inrfast.signals.mesh import Placement, load_mesh, surface_points
from inrfast.signals.points import PointCloud, sample_cloud
from inrfast.signals.render import render
from inrfast.signals.sdf import apart, sample_sdf, signed_distance

POINTS, SAMPLES, UNSEEN, NEAR, SIDE = 20_000, 100_000, 40_000, 0.05, 128
LONGEST = 1.8
SIDES = torch.tensor([1.8, 0.9, 0.9], dtype=torch.float64)
MAJOR, MINOR = 0.9 / 1.4, 0.4 * 0.9 / 1.4

Distance = Callable[[Tensor], Tensor]


def ball(x: Tensor) -> Tensor:
    return x.norm(dim=1) - 0.9


def torus(x: Tensor) -> Tensor:
    return torch.hypot(x[:, :2].norm(dim=1) - MAJOR, x[:, 2]) - MINOR


def box(x: Tensor) -> Tensor:
    outside = x.abs() - SIDES / 2
    return outside.clamp_min(0).norm(dim=1) + outside.amax(1).clamp_max(0)


BODIES: dict[str, tuple[Distance, trimesh.Trimesh]] = {
    "ball": (ball, trimesh.creation.icosphere(5, 0.9)),
    "torus": (torus, trimesh.creation.torus(MAJOR, MINOR, major_sections=256, minor_sections=128)),
    "box": (box, trimesh.creation.box(SIDES.numpy())),
}


def cloud_of(mesh: trimesh.Trimesh, distance: Distance) -> PointCloud:
    """Return random points of the body, moved onto its surface, and its normals there, the gradient of the distance."""
    points = surface_points(mesh, POINTS, torch.Generator().manual_seed(0)).requires_grad_()
    (normals,) = torch.autograd.grad(distance(points).sum(), points)
    with torch.no_grad():
        return PointCloud(points - distance(points)[:, None] * normals, normals)


def fitted(problem: tuple[Tensor, Tensor, Any], asked: argparse.Namespace) -> tuple[inr.INR, float]:
    coords, distances, terms = problem
    net = inr.INR(3, 1, width=asked.width, hidden_layers=3, activation="sine", omega=asked.omega, init="siren")
    start = time.process_time()
    inr.fit(
        net, coords, distances, loss="l1", steps=asked.steps, lr=1e-3, batch_size=4096, regularizers=terms,
        progress=False,
    )  # fmt: skip
    return net, time.process_time() - start


def scores(net: inr.INR, distance: Distance, seconds: float) -> dict[str, float]:
    x = 2 * torch.rand(UNSEEN, 3, generator=torch.Generator().manual_seed(7)) - 1
    with torch.no_grad():
        found, truth = net(x)[:, 0].double(), distance(x.double())
    errors = (found - truth).abs()
    return {
        "error": float(errors.mean()),
        "near": float(errors[truth.abs() < NEAR].mean()),
        "wrong sign": float(((found < 0) != (truth < 0)).double().mean()),
        "eikonal residual": float(inr.Eikonal(x[:4096], rows="all")(net, 0).detach()),
        "seconds": seconds,
    }


def of_bodies(asked: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, (distance, mesh) in BODIES.items():
        cloud = cloud_of(mesh, distance)
        directed = sample_cloud(cloud)
        bare = (cloud.points.float(), torch.zeros(POINTS, 1), directed[2])
        problems = {
            "mesh": (*sample_sdf(mesh, SAMPLES, progress=False), ()),
            "points, normals": directed,
            "points": sample_cloud(PointCloud(cloud.points)),
            "siren": bare,
        }
        for given, problem in problems.items():
            rows.append({"body": name, "given": given, **scores(*_with(distance, fitted(problem, asked)))})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _with(distance: Distance, fit: tuple[inr.INR, float]) -> tuple[inr.INR, Distance, float]:
    return fit[0], distance, fit[1]


def of_meshes(asked: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for path in asked.mesh:
        mesh = load_mesh(path)
        placement = Placement.of(mesh)

        def distance(x: Tensor, mesh: trimesh.Trimesh = mesh, placement: Placement = placement) -> Tensor:
            return signed_distance(mesh, placement.to_world(x), progress=False) / placement.scale

        on = placement.to_unit(surface_points(mesh, 30_000, torch.Generator().manual_seed(1)))
        again = placement.to_unit(surface_points(mesh, 30_000, torch.Generator().manual_seed(2)))
        problems = {
            "mesh": (*sample_sdf(mesh, SAMPLES, progress=False), ()),
            "points": sample_cloud(PointCloud(torch.tensor(mesh.vertices))),
        }
        for given, problem in problems.items():
            net, seconds = fitted(problem, asked)
            grid = render(net, (SIDE,) * 3, progress=False)
            row = {"mesh": path.name, "points": len(problem[0]), "given": given, **scores(net, distance, seconds)}
            rows.append({**row, **apart(grid, on, 3), "chamfer of samples": chamfer(on, again)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--omega", type=float, default=10.0)
    parser.add_argument("--mesh", type=Path, nargs="*", default=[])
    parser.add_argument("--bodies", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    settings = {name: getattr(asked, name) for name in ("steps", "width", "omega")}
    found = {"settings": settings | {"lr": 1e-3, "batch_size": 4096, "loss": "l1", "hidden_layers": 3}}
    found["bodies"] = of_bodies(asked) if asked.bodies else []
    found["meshes"] = of_meshes(asked)
    assert not math.isnan(sum(row["error"] for row in found["bodies"] + found["meshes"]))
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
