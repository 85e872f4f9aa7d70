"""Dictionaries of eigenfunctions against dense NumPy and automatic differentiation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, exact_kernel, networks, random_coords

import inrfast as inr


@settings(max_examples=10)
@given(
    net=networks(max_width=16, max_depth=3), output=st.sampled_from(["trace", "full", 0]), seed=st.integers(0, 10**6)
)
def test_atoms_are_orthonormal_eigenvectors_of_the_exact_kernel(net, output, seed):
    coords = random_coords(15, net.in_features, seed)
    jacobian = exact_jacobian(net, coords)
    kernel = exact_kernel(jacobian, jacobian, output).numpy()
    if not kernel.any():
        return
    D = inr.dictionary(net, coords, output=output, progress=False)
    atoms, values = D.atoms.numpy(), D.eigenvalues.numpy()
    error = max(D.spectrum.lower_error, D.spectrum.upper_error) + 1e-14 * values[0]
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(len(kernel)), atol=1e-12)
    assert np.linalg.norm(kernel @ atoms - atoms * values, axis=0).max() <= error
    largest = np.abs(atoms).argmax(0)
    assert (np.take_along_axis(atoms, largest[None], 0) > 0).mean() > 0.9  # but for ties
    if net.in_features > 1:
        with pytest.raises(ValueError, match="on a grid"):
            D.images()
