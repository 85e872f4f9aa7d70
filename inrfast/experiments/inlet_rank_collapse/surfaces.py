"""Surfaces of values on a grid, drawn as the shaded triangles of marching cubes, all from one side."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

AZIMUTH, ELEVATION = 35.0, 20.0
"""Degrees by which the eye stands to the right of the third axis and above the plane of the first and third."""

LIGHT = (-0.35, 0.55, 0.75)
"""Direction to the light, in the eye's axes: to the right, up, towards the eye."""

COLOUR = (0.62, 0.72, 0.86)


def draw_surface(axes: Axes, values: np.ndarray, level: float, title: str) -> None:
    """Draw the surface on which values (R, R, R) cross a level, the second axis up; without one, say so.

    Beyond the grid values count as low, so that a surface which reaches its end is closed there.
    """
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.7), aspect="equal")
    axes.axis("off")
    axes.text(0, 1.2, title, ha="center", va="bottom", fontsize=9)
    padded = np.pad(values.astype(np.float32), 1, constant_values=float(values.min()))
    if not padded.min() < level < padded.max():
        axes.text(0, 0, "no surface", ha="center", va="center", color="0.4")
        return
    from skimage.measure import marching_cubes  # slow to import

    places, faces, normals, _ = marching_cubes(padded, level, gradient_direction="ascent")
    places = 2 * (places - 0.5) / np.array(values.shape) - 1
    corners, shades = _seen(places[faces], normals[faces].mean(axis=1))
    colours = np.clip(np.outer(shades, COLOUR), 0, 1)
    axes.add_collection(PolyCollection(list(corners), facecolors=colours, edgecolors=colours, linewidths=0.15))


def _seen(triangles: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the triangles (n, 3, 2) that face the eye as it sees them, far ones first, and their brightness (n,)."""
    eye = _axes_of_the_eye()
    across = triangles @ eye.T
    outward = np.cross(across[:, 1] - across[:, 0], across[:, 2] - across[:, 0])
    front = outward[:, 2] > 0
    across, normals = across[front], normals[front] @ eye.T
    order = np.argsort(across[:, :, 2].mean(axis=1))
    light = np.array(LIGHT) / np.linalg.norm(LIGHT)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    facing = (normals / np.where(lengths > 0, lengths, 1)) @ light
    return across[order][:, :, :2], (0.35 + 0.75 * np.clip(facing, 0, 1))[order]


def _axes_of_the_eye() -> np.ndarray:
    """Return its right, its up and the direction towards it as the rows of a rotation."""
    turn, lift = np.deg2rad(AZIMUTH), np.deg2rad(ELEVATION)
    towards = np.array([np.sin(turn) * np.cos(lift), np.sin(lift), np.cos(turn) * np.cos(lift)])
    right = np.array([np.cos(turn), 0.0, -np.sin(turn)])
    return np.stack([right, np.cross(towards, right), towards])
