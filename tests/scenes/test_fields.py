"""Radiance fields: the harmonics are orthonormal, densities are above 0 and never stuck."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from inrfast.encodings import PositionalEncoding
from inrfast.encodings.hash_grid import HashGrid
from inrfast.scenes.fields import RadianceField, harmonics, rising

SMALL = HashGrid(levels=3, table_size=2**8, coarsest=4, finest=16)


def test_harmonics_are_orthonormal_and_span_the_polynomials():
    """By a product quadrature that is exact for the degrees up to 6 of their products."""
    nodes, own = np.polynomial.legendre.leggauss(8)
    angles = 2 * math.pi * np.arange(16) / 16
    z, turn = np.repeat(nodes, 16), np.tile(angles, 8)
    flat = np.sqrt(1 - z**2)
    directions = torch.from_numpy(np.stack([flat * np.cos(turn), flat * np.sin(turn), z], 1))
    shares = torch.from_numpy(np.repeat(own, 16) * 2 * math.pi / 16)
    columns = harmonics(directions)
    gram = columns.T @ (shares[:, None] * columns)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)
    # 16 orthonormal columns whose space holds 1, x, x y, x^3 ...: all polynomials of degree 3 on the sphere
    x, y, z = directions.unbind(1)
    for polynomial in (x, x * y + z, x**3, y * y * z, z**2 * x - y):
        projected = columns @ (columns.T @ (shares * polynomial))
        torch.testing.assert_close(projected, polynomial, rtol=0, atol=1e-12)


def test_densities_are_exponential_at_first_and_finite_always():
    raw = torch.tensor([-40.0, -2.0, 0.0, 3.9, 4.0, 10.0, 1e30], dtype=torch.float64, requires_grad=True)
    density = rising(raw)
    torch.testing.assert_close(density[:4], raw[:4].exp(), rtol=1e-12, atol=1e-13)
    (slope,) = torch.autograd.grad(density.sum(), raw)
    assert bool((density >= 0).all() and torch.isfinite(density).all())
    assert bool((slope > 0).all()), "a step can always make it smaller"
    torch.testing.assert_close(slope[4:], torch.full((3,), math.exp(4.0), dtype=torch.float64))


def test_a_new_field_is_nearly_clear_and_its_colours_are_in_range():
    field = RadianceField(bounds=(-2.0, 2.0), encoding=SMALL, seed=3)
    points = 4 * torch.rand(200, 3) - 2
    directions = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    density, colours = field(points, directions)
    torch.testing.assert_close(density, field.density(points))
    torch.testing.assert_close(density, torch.full((200,), math.exp(-2.0)), rtol=0.05, atol=0)
    assert bool(((colours > 0) & (colours < 1)).all())
    torch.testing.assert_close(field.unit(torch.tensor([[-2.0, 0.0, 2.0]])), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_any_encoding_serves_and_seeds_decide():
    first, second, other = (RadianceField(encoding=PositionalEncoding(4), width=16, seed=s) for s in (1, 1, 2))
    points, directions = torch.rand(9, 3), torch.eye(3).repeat(3, 1)
    assert torch.equal(first(points, directions)[1], second(points, directions)[1])
    assert not torch.equal(first(points, directions)[1], other(points, directions)[1])
    assert not torch.equal(first.geometry.layers[0].weight[:, :3], first.appearance.layers[0].weight[:, :3])


def test_the_polynomial_scales_the_coordinates_and_is_trained():
    plain, own = (RadianceField(encoding=SMALL, polynomial=polynomial, seed=4) for polynomial in (False, True))
    points = 2 * torch.rand(50, 3) - 1
    assert plain.scale is None and own.scale == pytest.approx(1.0)
    torch.testing.assert_close(own.density(points), plain.density(points))
    torch.nn.init.normal_(own.geometry.encoding.encodings[1].table)
    own.density(points).sum().backward()
    roots = own.geometry.encoding.encodings[0].roots
    assert float(roots.grad.abs().sum()) > 0
    whole = own.density(points / 2)
    roots.data.fill_(0.5)
    torch.testing.assert_close(own.density(points), whole)
    assert own.scale == pytest.approx(0.25)


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (0.0, 0.0), (0.0, math.inf), "ab", 3, (0, 1, 2)])
def test_boxes_without_volume_are_refused(bounds):
    with pytest.raises((ValueError, TypeError), match="bounds"):
        RadianceField(bounds=bounds)
