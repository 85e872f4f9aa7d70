"""A ray caster: posed images of a triangle mesh, shaded, smooth at their edges, with an opacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.errors import check_float, check_int, needs
from inrfast.progress import progress_bar
from inrfast.scenes.cameras import Camera
from inrfast.scenes.views import Views
from inrfast.signals.mesh import Placement
from inrfast.signals.meshes.files import check_mesh

if TYPE_CHECKING:
    import trimesh

Texture = Callable[[Tensor], Tensor]
"""Colours (n, 3) in [0, 1] at points (n, 3) of the mesh in placed coordinates, fp64."""

LIGHT = (0.45, -0.35, 0.82)
"""Direction to the light, of the world; z is upwards."""

AMBIENT, DIFFUSE = 0.4, 0.6
"""Shares of a colour that every side of a surface shows, and that the side towards the light adds."""

SHININESS = 30.0
"""Exponent of the highlight."""

RAYS = 2**16
"""Per call of libigl: Ctrl-C waits for one."""


def patches(points: Tensor) -> Tensor:
    """Return a texture by position: soft stripes and cells of three colours with a scale of about a fifth."""
    x, y, z = points.unbind(-1)
    first = torch.sin(9 * x + 3 * torch.sin(4 * y)) * torch.sin(8 * y + 2 * torch.sin(5 * z))
    second = torch.sin(11 * z + 2 * torch.sin(6 * x))
    stripes, cells = torch.sigmoid(6 * first), torch.sigmoid(8 * second - 2)
    tones = torch.tensor([[0.85, 0.35, 0.2], [0.2, 0.45, 0.7], [0.95, 0.8, 0.35]], dtype=points.dtype)
    mixed = tones[0] * stripes.unsqueeze(-1) + tones[1] * (1 - stripes).unsqueeze(-1)
    return mixed + (tones[2] - mixed) * cells.unsqueeze(-1)


class Caster:
    """A mesh, ready to be looked at.

    Intersections are libigl's, in fp64 by a tree of boxes; their places on a face have the digits of fp32. The mesh is
    placed so that its bounding box touches [-0.9, 0.9]^3 (:class:`inrfast.signals.mesh.Placement`).

    Parameters
    ----------
    mesh
        Surfaces are seen from both sides; they need not be closed.
    texture
        Colours by position.
    highlight
        Strength of the highlight, which moves with the camera; 0 leaves a surface that looks the same from everywhere.
    upward
        The axis of the mesh that points upwards in the world, 0, 1 or 2; meshes of files often have 1.

    Raises
    ------
    ValueError, TypeError
        No mesh, or one without faces; a highlight below 0.
    """

    def __init__(
        self, mesh: trimesh.Trimesh, texture: Texture = patches, highlight: float = 0.3, upward: int = 2
    ) -> None:
        with needs("mesh", "a rendered mesh"):
            import igl  # slow to import

        placed = Placement.of(check_mesh(mesh)).to_unit(torch.from_numpy(np.array(mesh.vertices, dtype=np.float64)))
        if check_int("upward", upward, minimum=0) > 2:
            raise ValueError(f"upward must be 0, 1 or 2, got {upward}")
        order = [(upward + 1) % 3, (upward + 2) % 3, upward]  # a rotation: no surface is mirrored
        self.vertices = np.ascontiguousarray(placed[:, order].numpy())
        self.faces = np.ascontiguousarray(np.asarray(mesh.faces, dtype=np.int64))
        self.texture, self.highlight = texture, check_float("highlight", highlight, minimum=0.0)
        self._tree = igl.AABB()
        self._tree.init(self.vertices, self.faces)
        sides = self.vertices[self.faces]
        normals = np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0])  # longer for larger triangles
        summed = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(summed, self.faces[:, corner], normals)
        self.normals = torch.from_numpy(summed)

    def hits(self, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what rays (n, 6) meet first.

        Returns
        -------
        faces, distances, places
            int64 (n,), -1 where they meet nothing; fp64 (n,) in lengths of the directions; and fp64 (n, 3), the
            barycentric coordinates.
        """
        given = rays.double().numpy()
        origins, directions = np.ascontiguousarray(given[:, :3]), np.ascontiguousarray(given[:, 3:])
        faces, distances, places = self._tree.intersect_ray_first(self.vertices, self.faces, origins, directions)
        u, v = torch.from_numpy(places).unbind(1)
        return torch.from_numpy(faces), torch.from_numpy(distances), torch.stack([1 - u - v, u, v], dim=1)

    def seen(self, rays: Tensor) -> Tensor:
        """Return colours and opacity (n, 4) along rays, fp64: 0 where they meet nothing."""
        faces, _, places = self.hits(rays)
        found = torch.zeros(len(rays), 4, dtype=torch.float64)
        there = faces >= 0
        if not bool(there.any()):
            return found
        corners = torch.from_numpy(self.faces)[faces[there]]
        shares = places[there].unsqueeze(-1)
        points = (torch.from_numpy(self.vertices)[corners] * shares).sum(1)
        normals = F.normalize((self.normals[corners] * shares).sum(1), dim=-1)
        towards = F.normalize(-rays[there, 3:].double(), dim=-1)
        facing = (normals * towards).sum(1, keepdim=True)
        normals = torch.where(facing < 0, -normals, normals)
        light = F.normalize(torch.tensor(LIGHT, dtype=torch.float64), dim=0)
        lit = (normals @ light).clamp_min(0).unsqueeze(1)
        halfway = F.normalize(light + towards, dim=-1)
        shine = (normals * halfway).sum(1, keepdim=True).clamp_min(0) ** SHININESS
        shaded = self.texture(points) * (AMBIENT + DIFFUSE * lit) + self.highlight * shine * (lit > 0)
        found[there] = torch.cat([shaded.clamp(0, 1), torch.ones(len(points), 1, dtype=torch.float64)], dim=1)
        return found

    def image(self, camera: Camera, supersampling: int = 3) -> Tensor:
        """Return the picture of a camera, fp32 (H, W, 4): colours, not multiplied by the opacity, and the opacity."""
        rays = camera.rays(torch.float64, supersampling).reshape(-1, 6)
        seen = torch.cat([self.seen(some) for some in rays.split(RAYS)])
        s = supersampling
        summed = seen.reshape(camera.height, s, camera.width, s, 4).sum((1, 3))
        colours = summed[..., :3] / summed[..., 3:].clamp_min(1)
        return torch.cat([colours, summed[..., 3:] / s**2], dim=-1).float()


def render_mesh(
    mesh: trimesh.Trimesh,
    cameras: Sequence[Camera],
    texture: Texture = patches,
    highlight: float = 0.3,
    upward: int = 2,
    supersampling: int = 3,
    progress: bool | None = None,
) -> Views:
    """Return posed images of a mesh, with 8 bits per channel as files have them.

    Parameters
    ----------
    mesh, texture, highlight, upward
        See :class:`Caster`.
    cameras
        All of one size; :func:`inrfast.scenes.cameras.sphere_of_cameras` makes some.
    supersampling
        Rays per pixel and axis, over whose average edges are smooth.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.

    Raises
    ------
    ValueError, TypeError
        See :class:`Caster`; no cameras, or of several sizes; supersampling below 1.
    """
    check_int("supersampling", supersampling, minimum=1)
    cameras = tuple(cameras)
    if not cameras:
        raise ValueError("cameras must be at least one, got none")
    for index, camera in enumerate(cameras):
        if not isinstance(camera, Camera):
            raise TypeError(f"cameras[{index}] must be a Camera, got {type(camera).__name__}")
        if (camera.height, camera.width) != (cameras[0].height, cameras[0].width):
            raise ValueError(
                f"cameras must be of one size, and cameras[{index}] is of {camera.height}x{camera.width} pixels, "
                f"cameras[0] of {cameras[0].height}x{cameras[0].width}"
            )
    caster = Caster(mesh, texture, highlight, upward)
    images = [
        caster.image(camera, supersampling) for camera in progress_bar(cameras, "views", leave=False, progress=progress)
    ]
    return Views((torch.stack(images) * 255).round() / 255, cameras)
