"""The sphere norm keeps its radius and its derivative at every size, and at 0."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_coords

import inrfast as inr


@given(st.integers(1, 9), st.integers(0, 100))
def test_sphere_norm(m, seed):
    z = random_coords(5, m, seed).double()
    z[2] = 0
    z[3] *= 1e-200
    norm = inr.SphereNorm()
    y = norm(z)
    assert torch.equal(y[2], torch.zeros(m, dtype=torch.float64))
    torch.testing.assert_close(y[[0, 1, 3, 4]].norm(dim=1), torch.full((4,), m**0.5, dtype=torch.float64))
    torch.testing.assert_close(norm(z * 7), y)
    jacobian = torch.func.vmap(torch.func.jacrev(norm))(z)
    assert torch.equal(jacobian[2], torch.zeros(m, m, dtype=torch.float64))
    unit = y[0] / m**0.5
    expected = m**0.5 / z[0].norm() * (torch.eye(m, dtype=torch.float64) - torch.outer(unit, unit))
    torch.testing.assert_close(jacobian[0], expected)
