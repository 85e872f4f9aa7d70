"""Snapshots: copies of networks as users build them, in their own dtype and widened to fp64 as the same function."""

import collections
import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_networks import random_coords
from torch import nn
from torch.nn.utils import prune

import inrfast as inr
from inrfast.errors import UnsupportedModuleError
from inrfast.snapshot import rms_norm_epsilon, snapshot, widen_

Pair = collections.namedtuple("Pair", "first second")


class Box:
    def __init__(self, value):
        self.value = value


# How a module may hold a tensor outside parameters and buffers, and how it reads it again.
HOLDERS = {
    "attribute": (lambda t: t, lambda held: held),
    "list": (lambda t: [t, 1], lambda held: held[0]),
    "dictionary": (lambda t: {"a": {"b": t}}, lambda held: held["a"]["b"]),
    "tuple": (lambda t: (None, (t,)), lambda held: held[1][0]),
    "named tuple": (lambda t: Pair(t, "x"), lambda held: held.first),
    "object": (Box, lambda held: held.value),
    "object in a list": (lambda t: [Box((t,))], lambda held: held[0].value[0]),
}


class Holding(nn.Module):
    """Fourier features of fixed frequencies, and the activations of the last pass, kept in ``holder``."""

    def __init__(self, holder, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.holder = holder
        self.frequencies = HOLDERS[holder][0](torch.randn(3, 2))
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2)
        self.kept = None

    def forward(self, x):
        phase = x @ HOLDERS[self.holder][1](self.frequencies).to(x.device).T
        h = torch.tanh(self.a(torch.cat([phase.sin(), phase.cos()], 1)))
        self.kept = HOLDERS[self.holder][0](h)
        return self.b(h)


def kernel_by_autograd(net, x, dtype=torch.float64):
    """The trace kernel by torch, every output's gradient by itself."""
    net, x = widen_(snapshot(net)) if dtype == torch.float64 else net, x.to(dtype)
    parameters = [p for p in net.parameters() if p.requires_grad]
    kernel = 0.0
    for m in range(net(x).shape[1]):
        rows = []
        for i in range(len(x)):
            value = net(x[i : i + 2] if i + 1 < len(x) else x[i - 1 : i + 1])[0 if i + 1 < len(x) else 1, m]
            found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in found]).double())
        jacobian = torch.stack(rows)
        kernel = kernel + jacobian @ jacobian.t()
    return kernel


@given(st.sampled_from(sorted(HOLDERS)), st.integers(0, 10**6), st.booleans())
def test_tensors_that_modules_hold_are_copied_and_widened(holder, seed, called):
    net, twin = Holding(holder, seed), Holding(holder, seed).double()
    twin.frequencies = HOLDERS[holder][0](HOLDERS[holder][1](net.frequencies).double())
    x = random_coords(7, 2, seed)
    if called:
        net(x)
    expected = kernel_by_autograd(twin, x)
    before = HOLDERS[holder][1](net.frequencies).clone()
    torch.testing.assert_close(inr.ntk(net, x, precision="highest").to_dense(), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(HOLDERS[holder][1](net.frequencies), before)
    assert not called or HOLDERS[holder][1](net.kept).grad_fn is not None


def test_pruned_layers_and_unregistered_modules_are_copied():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    prune.l1_unstructured(net[0], "weight", 0.5)
    x = random_coords(6, 2, 0)
    net(x)
    K = inr.ntk(net, x, params=["2"], precision="highest").to_dense()
    h = torch.tanh(x.double() @ net[0].weight.double().T + net[0].bias.double())
    torch.testing.assert_close(K, (h @ h.T + 1).detach())
    net.extra = [nn.Linear(2, 2)]  # a list, so torch does not know it
    assert widen_(snapshot(net)).extra[0].weight.dtype == torch.float64
    assert net.extra[0].weight.dtype == torch.float32


def test_what_is_one_object_stays_one():
    net = nn.Module()
    net.a = torch.ones(2)
    net.b, net.c, net.d = net.a, (net.a,), [net.a]
    net.e = net.c
    copied = widen_(snapshot(net))
    assert copied.a.dtype == torch.float64
    assert copied.a is copied.b and copied.c[0] is copied.a and copied.d[0] is copied.a and copied.e[0] is copied.a


def test_what_cannot_be_copied_is_named():
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].guard = threading.Lock()
    with pytest.raises(UnsupportedModuleError, match="'guard' of module '0'"):
        inr.ntk(net, random_coords(3, 2, 0))


def with_rms_norms(seed, scale, affine, eps=None):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(2, 6), nn.RMSNorm(6, eps, affine), nn.Tanh(), nn.Linear(6, 6), nn.RMSNorm(6, eps), nn.Linear(6, 1)
    )
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[0].bias.mul_(scale)
        net[3].weight.mul_(scale)
        net[3].bias.mul_(scale)
    return net


@given(st.integers(0, 10**6), st.sampled_from([1.0, 1e-2, 1e-3, 1e-4, 1e-5]), st.booleans())
def test_a_norm_without_an_epsilon_keeps_that_of_its_dtype(seed, scale, affine):
    net, x = with_rms_norms(seed, scale, affine), random_coords(9, 2, seed)
    in_fp32 = kernel_by_autograd(net, x, torch.float32)
    size = float(in_fp32.abs().max())
    assert float((inr.ntk(net, x).to_dense() - in_fp32).abs().max()) <= 1e-3 * size
    written = with_rms_norms(seed, scale, affine, torch.finfo(torch.float32).eps)
    assert torch.equal(inr.ntk(net, x).to_dense(), inr.ntk(written, x).to_dense())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_epsilon_of_a_dtype_is_that_of_torch(dtype):
    z = torch.full((1, 8), 3e-4, dtype=dtype)
    expected = z.double() / (z.double().square().mean() + rms_norm_epsilon(dtype)).sqrt()
    assert float((F.rms_norm(z, [8]).double() - expected).abs().max()) <= 2 * torch.finfo(dtype).eps


def by_finfo(h):
    h = 1e-4 * h
    return h / (h.square().mean(1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt()


OTHER_IN_FP64 = {
    "an epsilon from the dtype": (by_finfo, "another function"),
    "a norm without an epsilon": (lambda h: F.rms_norm(1e-4 * h, (6,)), "without eps"),
    "a bound from the dtype": (lambda h: (h * 1e39).clamp(max=torch.finfo(h.dtype).max).log(), "another function|NaN"),
    "half precision inside": (lambda h: torch.sin(h.half()).to(h.dtype), "16 bits|ill-conditioned|another function"),
    "single precision inside": (lambda h: torch.sin(h.float()).to(h.dtype), "rounds to fp32"),
    "single precision behind": (lambda h: h.float(), "not in fp64"),
    "a constant of one dtype": (functools.partial(torch.matmul, other=torch.eye(6)), "not in fp64"),
}


class Through(nn.Module):
    def __init__(self, change, width=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.change = change
        self.a, self.b = nn.Linear(2, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.b(self.change(self.a(x)))


class InPlace(Through):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


def test_a_network_may_write_to_its_input():
    coords = random_coords(20, 2, 0)
    expected = inr.ntk(Through(torch.tanh), 0.5 * coords).to_dense()
    torch.testing.assert_close(inr.ntk(InPlace(torch.tanh), coords).to_dense(), expected)


@pytest.mark.parametrize("name", sorted(OTHER_IN_FP64))
def test_networks_that_are_another_function_in_fp64_are_refused(name):
    change, message = OTHER_IN_FP64[name]
    with pytest.raises((UnsupportedModuleError, ValueError), match=message):
        inr.ntk(Through(change), random_coords(40, 2, 0) + 2)


LEGAL = {
    "sine": lambda h: torch.sin(30 * h),
    "finer": lambda h: torch.sin(30 * (h.abs() + 1) * h),
    "gaussian": lambda h: torch.exp(-((10 * h) ** 2)),
    "relu": torch.relu,
    "kinks": lambda h: (8 * h - 3).abs(),
    "steps beside it": lambda h: h + 1e-3 * (h > 0),
    "a rounding with a slope of its own": lambda h: h + (torch.round(h) - h).detach(),
    "an input of no slope": lambda h: torch.unique(h.detach(), dim=0, return_inverse=True)[0].sum() * 0 + h,
    "cast to its own dtype": lambda h: torch.sin(h.double()).to(h.dtype),
    "a norm": lambda h: F.layer_norm(h, h.shape[1:]),
}


@given(
    st.sampled_from(sorted(LEGAL)),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([1.0, 255.0]),
    st.integers(0, 10**6),
    st.integers(1, 60),
)
def test_legal_networks_are_refused_in_no_dtype(name, dtype, size, seed, n):
    net = Through(LEGAL[name], 6, seed).to(dtype)
    x = (size * random_coords(n, 2, seed)).to(dtype)
    assert inr.ntk(net, x).trace() > 0
