"""The backward pass of the Triton backend: the reference's gradients for one model and many, whatever torch's modes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.activations import ACTIVATIONS, bind
from inrfast.modes import products
from inrfast.ops import fused_linear as op
from inrfast.ops import triton_linear


@settings(max_examples=25)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    models=st.sampled_from([(1, 1), (3, 1), (3, 3)]),
    n=st.sampled_from([0, 1, 35]),
    sizes=st.sampled_from([(1, 1), (3, 9), (20, 300)]),
    wanted=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    autocast=st.booleans(),
)
def test_gradients_are_the_references(device, activation, models, n, sizes, wanted, autocast):
    (count, shared), (inputs, outputs), rng = models, sizes, torch.Generator().manual_seed(n)
    shapes = ((shared, n, inputs), (count, outputs, inputs), (count, outputs), (count, n, outputs))
    x, weight, bias, g = (torch.randn(*shape, generator=rng, dtype=torch.float64).to(device) for shape in shapes)
    act, kept = bind(activation, 1.3), op.kept(activation, "triton")
    y = torch.empty_like(g)
    saved = op._saved(y, activation, "triton", True)
    triton_linear.forward_(x, weight, bias, activation, act.numbers, "high", y, saved, kept)
    made = [
        torch.full(shape, 7.0, dtype=torch.float64, device=device)
        for shape in ((count, n, inputs), weight.shape, bias.shape)
    ]
    given_ = [t if needed else None for t, needed in zip(made, wanted, strict=True)]
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        kept_tensor = y if kept == "result" else saved
        triton_linear.backward_(g, x, weight, kept_tensor, activation, "high", kept, *given_)
    for found, truth in zip(given_, op.fused_linear_backward_reference(g, x, weight, bias, act=act), strict=True):
        if found is not None:
            torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_products_of_a_gpu_have_the_precision_asked_for(setting):
    """Whatever torch's own setting is, and that is as it was afterwards."""
    x = torch.empty(0, device="meta")
    x32 = type("OnGpu", (), {"dtype": torch.float32, "device": torch.device("cuda", 0)})()
    with products(setting):
        for precision, wanted in (("high", "highest"), ("medium", "high")):
            with triton_linear._products(x32, precision):
                assert torch.get_float32_matmul_precision() == wanted
            with triton_linear._products(x, precision):
                assert torch.get_float32_matmul_precision() == setting
        assert torch.get_float32_matmul_precision() == setting
