"""How each layer of a network is captured, and that its rows and kernels are those of automatic differentiation."""

from random_modules import jacobian_by_points
from random_networks import exact_kernel, random_coords

import inrfast as inr


def agrees(net, kinds=None, widths=None, n=12, d=2):
    """Compare Jacobian and kernels with automatic differentiation in fp64; return the kind of every layer by its name.

    ``kinds`` and ``widths`` are what some of the layers must be, by name.
    """
    kinds, widths, coords = kinds or {}, widths or {}, random_coords(n, d, 0)
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    truth = jacobian_by_points(net, coords, names)
    J = inr.jacobian(net, coords, precision="highest")
    found = {layer.name: layer.kind for layer in J.specs}
    captured = dict(zip(found, J.capture.widths, strict=True))
    assert {name: found[name] for name in kinds} == kinds
    assert {name: captured[name] for name in widths} == widths
    size = truth.abs().amax()
    assert ((J.rows() - truth.flatten(0, 1)).abs() <= 1e-10 * size).all()
    for output in ("trace", "full"):
        exact = exact_kernel(truth, truth, output)
        K = inr.ntk(net, coords, output=output, precision="highest")
        assert ((K.to_dense() - exact).abs() <= 1e-10 * exact.abs().amax()).all()
    return found
