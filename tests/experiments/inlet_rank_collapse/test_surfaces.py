"""Drawn surfaces: a ball is a disc of its radius seen from anywhere, and no surface is said to be none."""

import numpy as np
import torch
from matplotlib.figure import Figure

from inrfast.experiments.inlet_rank_collapse.surfaces import draw_surface
from inrfast.grids import grid


def test_a_ball_is_a_disc_whose_triangles_all_face_the_eye():
    axes = Figure().subplots()
    values = 0.6 - grid((24,) * 3, endpoint="center").norm(dim=1).view(24, 24, 24)
    draw_surface(axes, values.numpy(), 0.0, "ball")
    (seen,) = axes.collections
    corners = np.stack([path.vertices[:3] for path in seen.get_paths()])
    radii = np.linalg.norm(corners, axis=2)
    assert abs(radii.max() - 0.6) < 0.02
    sides = corners[:, 1:] - corners[:, :1]
    areas = (sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]) / 2
    assert (areas > 0).all()
    assert abs(areas.sum() - np.pi * 0.36) < 0.03


def test_without_a_surface_it_says_so():
    axes = Figure().subplots()
    draw_surface(axes, torch.zeros(4, 4, 4).numpy(), 0.5, "empty")
    assert not axes.collections
    assert [text.get_text() for text in axes.texts] == ["empty", "no surface"]
