"""The fused layer by chunks: whatever their size, the result, slope and gradients of the formula."""

import pytest
import torch
import torch.nn.functional as F

from inrfast.activations import ACTIVATIONS, bind
from inrfast.ops import chunked_linear
from inrfast.ops.fused_linear import fused_linear_backward_reference, kept


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_chunks_of_any_size_give_the_formula(monkeypatch, activation, rows):
    monkeypatch.setattr(chunked_linear, "cached_rows", lambda widest, like, cached: rows)
    rng = torch.Generator().manual_seed(0)
    shapes = ((20, 3), (5, 3), (5,), (20, 5))
    x, weight, bias, gradient = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes)
    u = F.linear(x, weight, bias)
    own = bind(activation, 1.3)
    value, derivative = own.value(u), own.slope(u)
    what = kept(activation, "torch")
    for slope in (None, torch.full_like(u, float("nan"))):
        y = torch.full_like(u, float("nan"))
        chunked_linear.forward_(x, weight, bias, own, "high", y, slope)
        torch.testing.assert_close(y, value)
    torch.testing.assert_close(slope, derivative)

    saved = y if what == "result" else slope
    out = [torch.full_like(t, float("nan")) for t in (x, weight, bias)]
    chunked_linear.backward_(gradient, x, weight, saved, own.kind, "high", *out)
    one = (gradient.unsqueeze(0), x.unsqueeze(0), weight.unsqueeze(0), bias.unsqueeze(0))
    expected = fused_linear_backward_reference(*one, act=own)
    for found, truth in zip(out, expected, strict=True):
        torch.testing.assert_close(found, truth[0])
