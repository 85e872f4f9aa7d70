"""Every operator of the library keeps torch's contract: schema, shapes without numbers, autograd, compilation."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch
from acceptance import graded
from random_networks import random_coords

import inrfast as inr
from inrfast.activations import bind
from inrfast.ops import factors, fused_linear, gram, tangent_product
from inrfast.ops.operands import LayerShape, Layout, Plan, allocate, make_plan
from inrfast.tangent.capture import Capture

CHECKS = ["test_schema", "test_autograd_registration", "test_faketensor"]
if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11):  # with newer versions of SymPy 2.8 fails at shapes
    CHECKS.append("test_aot_dispatch_dynamic")

SHAPES = (LayerShape(2, 12, True), LayerShape(12, 12, True), LayerShape(12, 0, True))


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def operands(format, rows, seed, device):
    """Operands of two models, full of random numbers."""
    made = allocate(Plan(Layout(SHAPES, "trace", 2, format), (0, 0, 0)), 2, rows, torch.device("cpu"))
    parts = {name: getattr(made, name) for name in ("slabs", "narrow", "scale")}
    filled = {name: normal(*own.shape, seed=seed).clamp(-2, 2).to(own.dtype).to(device) for name, own in parts.items()}
    return dataclasses.replace(made, **filled)


def grams(device):
    rows, columns = operands("fp16x3", 20, 0, device), operands("fp16x3", 9, 5, device)
    sides, tables = gram.operator_arguments(rows, columns)
    out = torch.zeros(2, 20, 9, device=device)
    V = normal(2, 9, 4, dtype=torch.float32).to(device)
    return {
        "gram_": [(*sides, out, *tables, False, "fp16x3")],
        "gram_norm": [(*sides, 20, 9, *tables, False, "fp16x3")],
        "gram_product": [(*sides, V, 20, *tables, "fp16x3")],
    }


def tangent_products(device):
    made = operands("fp64", 20, 0, device)
    (slabs, narrow, *_), (segments, values, narrow_layers) = gram.operator_arguments(made, made)
    V = normal(2, 20, 3).to(device)
    sums = tangent_product.transposed_product_op(slabs, narrow, V, segments, narrow_layers)
    return {
        "tangent_transposed_product": [(slabs, narrow, V, segments, narrow_layers)],
        "tangent_product": [(slabs, narrow, sums, 20, segments, values, narrow_layers)],
    }


def slabs(device):
    coords = random_coords(9, 2, 0).double().to(device)
    nets = [Capture(inr.INR(2, 1, width=12, hidden_layers=2, seed=seed).to(device), coords).mlp for seed in range(2)]
    layout = Layout(factors.layer_shapes(nets[0]), "trace", 1, "fp64")
    plan = make_plan("high", layout, [(4.0, 1.0)] * 3)
    parameters = torch.stack([factors.flat_parameters(one) for one in nets])
    tables = ([2, 12, 12, 1], True, "relu", [1.0, 1.0], "trace", "fp64", list(plan.exponents))
    return {"mlp_slabs": [(coords.unsqueeze(0), parameters, *tables)]}


def rows(device):
    """The operators of users with a gradient, those that compute without."""
    z, s, p, v = (normal(*shape).to(device) for shape in ((3, 2), (3, 2, 4), (5, 4, 3), (3, 2, 5)))
    z_, s_ = (t.clone().requires_grad_() for t in (z, s))
    one = [t.unsqueeze(0) for t in (z, s, p, v)]
    return {
        "jacobian_rows": [(z_, s, 2), (None, s_, 2)],
        "jacobian_product": [(z, s_, p, True)],
        "jacobian_transposed_product": [(z, s_, v, True)],
        "jacobian_rows_": [(torch.zeros(3, 2, 4, 2, dtype=torch.float64, device=device), z, s)],
        "_jacobian_rows": [(None, s, 2)],
        "_jacobian_product": [(one[0], one[1], one[2], True)],
        "_jacobian_transposed_product": [(one[0], one[1], one[3], True)],
    }


def layers(device):
    x, weight, bias = (normal(*shape).to(device) for shape in ((3, 9), (11, 9), (11,)))
    found = {"fused_linear": [], "fused_linear_forward": [], "fused_linear_backward": []}
    for backend, kinds in (("torch", {"relu": bias, "sine": None}), ("triton", {"relu": bias, "tanh": None})):
        for activation, own in kinds.items():
            settings = activation, list(bind(activation, 1.3).numbers), "high", backend
            leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, own)]
            found["fused_linear"].append((*leaves, *settings))
            raw = [None if t is None else t.unsqueeze(0) for t in (x, weight, own)]
            found["fused_linear_forward"].append((*raw, *settings, True))
            y, saved = fused_linear.fused_linear_forward(*raw, *settings, True)
            kept = y if fused_linear.kept(activation, backend) == "result" else saved
            needs = [False, True, own is not None]
            found["fused_linear_backward"].append((torch.ones_like(y), raw[0], raw[1], kept, *settings, needs))
    return found


def pivots(device):
    return {"accept_pivots": [graded(9, 6, 4)]}


SAMPLES = (grams, tangent_products, slabs, rows, layers, pivots)


@pytest.mark.parametrize("samples", SAMPLES, ids=lambda samples: samples.__name__)
def test_operators_keep_torchs_contract(device, samples):
    for name, calls in samples(device).items():
        operator = getattr(torch.ops.inrfast, name).default
        for arguments in calls:
            torch.library.opcheck(operator, arguments, test_utils=CHECKS)


def test_every_operator_has_a_sample(device):
    """One that is added comes here too: all modules that could register one are imported."""
    for found in pkgutil.walk_packages(inr.__path__, "inrfast."):
        if not found.name.endswith("__main__") and ".kernels" not in found.name:
            importlib.import_module(found.name)
    registered = {
        name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("inrfast::")
    }
    assert registered == {f"inrfast::{name}" for samples in SAMPLES for name in samples(device)}
