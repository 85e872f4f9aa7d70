"""Plain networks: probed once per configuration, and exact whatever their numbers; others are probed each time."""

import contextlib
import copy
import pickle
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import exact_jacobian, random_coords
from torch import nn
from torch.nn.utils import parametrizations

import inrfast as inr
from inrfast.errors import UnsupportedModuleError
from inrfast.ops import mlp_step
from inrfast.tangent import capture as captures
from inrfast.tangent import plain

NATIVE = bool(mlp_step.instructions())


def network(seed, **options):
    return inr.INR(**{"in_features": 2, "out_features": 2, "width": 17, "hidden_layers": 3, **options}, seed=seed)


def exact_kernel(net, coords):
    rows = exact_jacobian(net, coords).flatten(0, 1)
    return rows @ rows.t()


def is_exact(net, coords):
    """Whether all entries of the kernel are those of automatic differentiation, at both precisions."""
    truth = exact_kernel(net, coords)
    sizes = torch.outer(truth.diagonal().sqrt(), truth.diagonal().sqrt())
    found = [inr.ntk(net, coords, output="full", precision=precision).to_dense() for precision in ("high", "highest")]
    errors = [float(((own - truth).abs() / sizes.clamp_min(1e-30)).max()) for own in found]
    return errors[0] <= 1e-6 and errors[1] <= 1e-9


@given(
    st.sampled_from(["relu", "sine", "finer"]),
    st.integers(1, 40),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=20, deadline=None)
def test_kernels_of_a_known_configuration_are_exact(activation, width, depth, bias, seed, dtype):
    options = {"width": width, "hidden_layers": depth, "activation": activation, "bias": bias, "dtype": dtype}
    coords = random_coords(20, 2, seed).to(dtype)
    for number in (seed, seed + 1, seed + 2):
        net = network(number, **options, omega=2.0)
        assert is_exact(net, coords)
        assert plain.form_of(net) == plain.form_of(network(0, **options, omega=2.0))


def test_a_known_configuration_is_not_compared_again(monkeypatch):
    coords = random_coords(20, 2, 0)
    inr.ntk(network(0), coords)
    compared = []
    monkeypatch.setattr(captures, "check_jacobian", lambda *args: compared.append(args))
    if NATIVE:
        inr.ntk(network(1), coords)
        inr.jacobian(network(2), coords)
    assert not compared


def test_training_does_not_change_a_kernel_made_before_and_a_copy_is_the_same():
    net, coords = network(0), random_coords(300, 2, 0)
    inr.ntk(net, coords)
    truth = exact_kernel(net, coords)
    K, outputs = inr.ntk(net, coords, output="full"), net(coords).detach()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
        net.bound_activations = network(0, activation="sine").bound_activations
    copied = pickle.loads(pickle.dumps(K))
    for kernel in (K, copied, K.at_precision("highest")):
        assert float((kernel.to_dense() - truth).abs().max() / truth.abs().max()) <= 1e-6
        module = kernel.capture.network.module
        torch.testing.assert_close(module(coords.double()).float(), outputs)
        assert type(module) is inr.INR
        assert {p.dtype for p in module.parameters()} == {torch.float64}


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Subclass(inr.INR):
    def forward(self, x):
        return super().forward(x) ** 2


def shared(net):
    net.layers[2].weight = net.layers[1].weight


def thrice(self, x):
    return 3 * type(self).forward(self, x)


def bind(module, name, function):
    """Give one object a method of its own, which a copy of it has bound to itself."""
    setattr(module, name, types.MethodType(function, module))


CHANGES = {
    "forward": lambda net: bind(net, "forward", thrice),
    "activate": lambda net: setattr(net, "activate", lambda index, u: torch.tanh(u)),
    "forward of a layer": lambda net: bind(net.layers[1], "forward", thrice),
    "hook": lambda net: net.register_forward_hook(lambda module, given, found: 2 * found),
    "hook before a layer": lambda net: net.layers[1].register_forward_pre_hook(lambda module, given: (given[0] ** 2,)),
    "hook behind a layer": lambda net: net.layers[1].register_forward_hook(lambda module, given, found: found**2),
    "class of a layer": lambda net: setattr(net.layers[1], "__class__", Doubled),
    "class": lambda net: setattr(net, "__class__", Subclass),
    "norm": lambda net: net.norms.__setitem__(1, nn.Tanh()),
    "shared": shared,
    "frozen": lambda net: net.layers[1].weight.requires_grad_(False),
    "no bias": lambda net: setattr(net.layers[1], "bias", None),
    "weight norm": lambda net: parametrizations.weight_norm(net.layers[1]),
    "buffer": lambda net: net.register_buffer("scale", torch.ones(1)),
    "activations": lambda net: setattr(net, "bound_activations", list(net.bound_activations)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_of_a_known_configuration_is_exact_or_refused(change):
    net, coords = network(0), random_coords(20, 2, 0)
    assert is_exact(net, coords)
    known = plain.form_of(net)
    CHANGES[change](net)
    assert plain.form_of(net) != known
    with contextlib.suppress(UnsupportedModuleError):
        assert is_exact(net, coords)


def test_hooks_of_all_modules_are_seen():
    net, coords = network(0), random_coords(20, 2, 0)
    inr.ntk(net, coords)
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, found: None)
    try:
        assert plain.form_of(net) is None
    finally:
        handle.remove()
    assert plain.form_of(net) is not None


def test_numbers_that_no_kernel_has_are_refused_although_the_configuration_is_known():
    options, coords = {"activation": "sine", "init": "siren", "out_features": 1}, random_coords(20, 2, 0)
    net = network(0, **options)
    inr.ntk(net, coords)
    wild = copy.deepcopy(net)
    with torch.no_grad():
        for layer in wild.layers[:-1]:
            layer.weight.mul_(1e8)
    with pytest.raises(UnsupportedModuleError, match="ill-conditioned"):
        inr.ntk(wild, coords)
    with torch.no_grad():
        net.layers[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or Inf in 'layers\.1\.weight'"):
        inr.ntk(net, coords)


def test_bad_coordinates_are_refused_as_ever():
    net = network(0)
    inr.ntk(net, random_coords(20, 2, 0))
    with pytest.raises(ValueError, match=r"coords must have shape \(N, 2\)"):
        inr.ntk(net, random_coords(20, 3, 0))
    with pytest.raises(ValueError, match="coords must be finite"):
        inr.ntk(net, torch.full((4, 2), torch.nan))
