"""Random networks and their exact Jacobians by automatic differentiation: the independent truth of many tests."""

import contextlib
import copy

import torch
from hypothesis import strategies as st
from torch.func import functional_call, jacrev, vmap

import inrfast as inr
from inrfast.activations import ACTIVATIONS
from inrfast.norms import NORMS


@contextlib.contextmanager
def registered(kind):
    """Register an activation for the time of a test."""
    inr.activations.register(kind)
    try:
        yield kind
    finally:
        del ACTIVATIONS._items[kind.name]


def mild(name, number=1.0):
    """An activation whose numbers but omega, which a network has apart, make no wild function."""
    others = {other: number for other in ACTIVATIONS[name].numbers if other != "omega"}
    return {"name": name, **others} if others else name


def random_coords(n, d, seed):
    """Points in [-1, 1]^d in general position, so that no ReLU sits exactly at its hinge."""
    return 2 * torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) - 1


@st.composite
def networks(draw, max_width=64, max_depth=5):
    """Networks of every activation, encoding, norm and initialiser, in eval mode, batch norms calibrated."""
    d, m = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    depth = draw(st.integers(1, max_depth))
    norm = draw(st.sampled_from([None, None, *sorted(NORMS)]))
    names = st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=depth, max_size=depth)
    activation = [mild(name) for name in draw(names)]
    # A frequency above 5 with another init than SIREN's makes a chaotic function: no dtype computes it to 1e-10.
    # The slope of FINER's phase, omega (2 |u| + 1), makes it one with SIREN's too.
    init = draw(st.sampled_from(["default", "kaiming", "xavier", "siren"]))
    frequencies = (1.0, 3.0) if "finer" in activation else (1.0, 3.0, 30.0)
    omega = draw(st.sampled_from(frequencies)) if init == "siren" else 1.0
    encoding = draw(
        st.sampled_from(
            [None, None, inr.RandomFourier(5, 1.0), inr.PositionalEncoding(2), inr.Polynomial(3, [1.0, 0.5, 2.0, 1.0])]
        )
    )
    net = inr.INR(
        d,
        m,
        width=draw(st.integers(1, max_width)),
        hidden_layers=depth,
        activation=activation,
        omega=omega,
        encoding=encoding,
        norm=norm,
        norm_position=draw(st.sampled_from(["pre", "post"])),
        init=init,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )
    if norm == "batch":
        inr.calibrate_batchnorm_(net, random_coords(50, d, 1))
    return net.eval()


def exact_jacobian(net, coords, names=None):
    """Return d f_m(x_n) / d theta in fp64, shape (N, M, P), parameters in parameters_to_vector order."""
    net = copy.deepcopy(net).double()
    parameters = {
        k: p.detach() for k, p in net.named_parameters() if (p.requires_grad if names is None else k in names)
    }

    def outputs(chosen, x):
        return functional_call(net, chosen, (x.unsqueeze(0),))[0]

    jacobian = vmap(jacrev(outputs), (None, 0))(parameters, coords.double())
    return torch.cat([jacobian[name].flatten(2) for name in parameters], dim=2)


def exact_kernel(left, right, output):
    """Return the kernel of two exact Jacobians for ``output``."""
    if output == "trace":
        return torch.einsum("imp,jmp->ij", left, right)
    if output == "full":
        return left.flatten(0, 1) @ right.flatten(0, 1).t()
    return left[:, output] @ right[:, output].t()
