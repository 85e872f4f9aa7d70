"""Pinhole cameras: where they stand, the rays through their pixels, and where rays pass a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrfast.arrays import ArrayLike
from inrfast.errors import check_float, check_int, check_seed, check_tensor
from inrfast.memory import counted

ORTHONORMAL = 1e-3
"""Largest entry of ``R^T R - I`` of a rotation: files state 6 digits or more, and a scale of 1.001 is a mistake."""

FARTHEST = 2.0**24
"""Distance of a camera from the origin at most: beyond it rays in fp32 start at even numbers only."""

MOST_SIDE = 2**16
"""Pixels per side of an image at most."""

LEAST_ANGLE = 1e-6
"""Radians of view, at least: fp32 directions of narrower ones are too few to tell pixels apart."""

VIEW_ANGLE = 0.6911112070083618
"""Horizontal angle of view in radians of the scenes of the NeRF paper, of a lens of 50 mm on a sensor of 36 mm."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera whose axis passes through the middle of the picture.

    Its own axes are those of OpenGL and Blender: x to the right of the picture, y up, and it looks along -z.

    Parameters
    ----------
    pose
        Camera to world, (4, 4): a rotation, a translation and the last row (0, 0, 0, 1). Kept in fp64 on the CPU.
    height, width
        Pixels of its picture.
    angle
        Horizontal angle of view in radians, above 0 and below pi; the left edge of the picture to the right one.
    angle_y
        Vertical angle of view in radians, from the upper edge to the lower one; None: that of square pixels.

    Raises
    ------
    ValueError, TypeError
        A pose that is no rigid motion, an angle out of range, a size below 1.

    Examples
    --------
    >>> Camera(torch.eye(4), height=2, width=4, angle=math.pi / 2).focal
    2.0
    """

    pose: Tensor
    height: int
    width: int
    angle: float = VIEW_ANGLE
    angle_y: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pose", check_pose("pose", self.pose))
        for name in ("height", "width"):
            side = check_int(name, getattr(self, name), minimum=1)
            if side > MOST_SIDE:
                raise ValueError(f"{name} must be at most {MOST_SIDE} pixels, got {counted(side)}")
            object.__setattr__(self, name, side)
        object.__setattr__(self, "angle", check_angle("angle", self.angle))
        if self.angle_y is not None:
            object.__setattr__(self, "angle_y", check_angle("angle_y", self.angle_y))

    @property
    def focal(self) -> float:
        """Focal length in widths of a pixel, ``width / 2 / tan(angle / 2)``, to 15 digits."""
        return focal_of(self.width, self.angle)

    @property
    def focal_y(self) -> float:
        """Focal length in heights of a pixel; that of :attr:`focal` where pixels are square."""
        return self.focal if self.angle_y is None else focal_of(self.height, self.angle_y)

    @property
    def position(self) -> Tensor:
        """Where it stands, fp64 (3,)."""
        return self.pose[:3, 3].clone()

    def rays(self, dtype: torch.dtype = torch.float32, supersampling: int = 1) -> Tensor:
        """Return the rays through the middle of its pixels, (height, width, 6): origins and unit directions.

        Row 0 is the top of the picture.

        Parameters
        ----------
        dtype
            Of the result; computed in fp64.
        supersampling
            Rays per pixel and axis: the picture has so many times the rows and columns.
        """
        rows, columns = self.height * supersampling, self.width * supersampling
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) / supersampling - self.width / 2
        y = self.height / 2 - (torch.arange(rows, dtype=torch.float64) + 0.5) / supersampling
        down, across = torch.meshgrid(y, x, indexing="ij")
        down = down * (self.focal / self.focal_y)
        own = torch.stack([across, down, torch.full_like(across, -self.focal)], dim=-1)
        directions = torch.nn.functional.normalize(own @ self.pose[:3, :3].T, dim=-1)
        return torch.cat([self.position.expand_as(directions), directions], dim=-1).to(dtype)

    def resized(self, height: int, width: int) -> Camera:
        """Return the camera that sees the same in another number of pixels, which are not square at another ratio."""
        same = height * self.width == width * self.height
        angle_y = self.angle_y if same else angle_of(self.height, self.focal_y)
        return Camera(self.pose, height, width, self.angle, angle_y)


def focal_of(pixels: float, angle: float) -> float:
    """Return the focal length in pixels at which so many of them cover an angle of view in radians, to 15 digits."""
    return float(f"{pixels / 2 / math.tan(angle / 2):.15g}")


def angle_of(pixels: float, focal: float) -> float:
    """Return the angle of view in radians that so many pixels cover at a focal length in pixels."""
    return 2 * math.atan2(pixels / 2, focal)


def check_angle(argument: str, got: Any) -> float:
    """Return an angle of view in radians, at least 1e-6 and below pi."""
    angle = check_float(argument, got, minimum=LEAST_ANGLE)
    if angle >= math.pi:
        raise ValueError(f"{argument} must be below pi (it is an angle of view in radians), got {angle:g}")
    return angle


def check_pose(argument: str, got: Any) -> Tensor:
    """Return a camera-to-world matrix as an fp64 tensor (4, 4) of its own on the CPU, if it is a rigid motion."""
    given = torch.tensor(got, dtype=torch.float64) if isinstance(got, list | tuple) else got
    pose = check_tensor(argument, given).detach().to("cpu", torch.float64, copy=True)
    if tuple(pose.shape) != (4, 4):
        raise ValueError(f"{argument} must be a matrix (4, 4), camera to world, got shape {tuple(pose.shape)}")
    if not torch.equal(pose[3], pose.new_tensor([0.0, 0.0, 0.0, 1.0])):
        raise ValueError(f"the last row of {argument} must be 0, 0, 0, 1, got {pose[3].tolist()}")
    away = float(pose[:3, 3].abs().max())
    if away > FARTHEST:
        raise ValueError(f"{argument} must be at most {FARTHEST:g} from the origin along an axis, got {away:g}")
    rotation = pose[:3, :3]
    error = float((rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    if error > ORTHONORMAL:
        raise ValueError(
            f"{argument} must hold a rotation, whose columns are orthonormal; R^T R is off the identity by {error:.3g}"
        )
    if float(torch.linalg.det(rotation)) < 0:
        raise ValueError(f"{argument} must hold a rotation, got a reflection (its determinant is -1)")
    return pose


Place = ArrayLike | Sequence[float]
"""Three numbers."""


def look_at(position: Place, target: Place = (0.0, 0.0, 0.0), up: Place = (0.0, 0.0, 1.0)) -> Tensor:
    """Return the pose, fp64 (4, 4), of a camera at ``position`` that looks at ``target`` with ``up`` upwards.

    Raises
    ------
    ValueError
        The two places are one; a direction ``up`` along the view, which then leaves the turn about it open.
    """
    eye, aim, above = (_place(name, own) for name, own in (("position", position), ("target", target), ("up", up)))
    back = eye - aim
    right = torch.linalg.cross(above, back)
    if float(right.norm()) <= 1e-9 * float(above.norm() * back.norm()):
        raise ValueError(f"position and target must differ, and not along up; got {eye.tolist()}, {aim.tolist()}")
    back, right = back / back.norm(), right / right.norm()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, torch.linalg.cross(back, right), back, eye], dim=1)
    return pose


def _place(argument: str, got: Any) -> Tensor:
    """Return three numbers, fp64 (3,) on the CPU."""
    given = torch.tensor(got, dtype=torch.float64) if isinstance(got, list | tuple) else got
    place = check_tensor(argument, given, ndim=1).detach().cpu().double()
    if len(place) != 3:
        raise ValueError(f"{argument} must be 3 numbers, got {len(place)}")
    return place


def sphere_of_cameras(
    count: int, height: int, width: int, distance: float = 3.5, angle: float = VIEW_ANGLE, seed: int = 0
) -> list[Camera]:
    """Return cameras on a sphere around the origin that look at it, z upwards, evenly spread and turned by the seed.

    Their heights are those of a golden spiral between 65 degrees above and 25 degrees below the plane z = 0. Two
    seeds give two sets with no camera in common.
    """
    count = check_int("count", count, minimum=1)
    distance = check_float("distance", distance, minimum=0.0, exclusive=True)
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    turn, lift = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    cameras = []
    low, high = math.sin(math.radians(-25)), math.sin(math.radians(65))
    for index in range(count):
        up = low + (high - low) * ((index + lift) / count)
        around = 2 * math.pi * (turn + index * (3 - math.sqrt(5)) / 2)
        flat = math.sqrt(1 - up * up)
        place = distance * torch.tensor([flat * math.cos(around), flat * math.sin(around), up], dtype=torch.float64)
        cameras.append(Camera(look_at(place), height, width, angle))
    return cameras


def through_box(rays: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances (n,) at which rays (n, 6) enter and leave a box; both are equal where they miss it.

    Distances are not negative: of a ray that starts inside, the first is 0.

    Source: Kay and Kajiya, Ray tracing complex scenes, SIGGRAPH 1986 (slabs).
    """
    origins, directions = rays[:, :3], rays[:, 3:]
    tiny = torch.finfo(rays.dtype).tiny
    safe = torch.where(directions.abs() < tiny, torch.full_like(directions, tiny).copysign(directions), directions)
    first, second = (low - origins) / safe, (high - origins) / safe
    near = torch.minimum(first, second).amax(1).clamp_min(0)
    far = torch.maximum(first, second).amin(1)
    return near, torch.maximum(near, far)
