"""Predicted costs against what is held and computed."""

import pytest

import inrfast as inr


def test_cost_predicts_the_factors_and_the_dense_kernel():
    net = inr.INR(2, 1, width=16, hidden_layers=2)
    K = inr.ntk(net, inr.grid((20, 20)))
    kept = K.left.store.all()
    held = sum(t.numel() * t.element_size() for f in kept for t in (f.features, f.sensitivities) if t is not None)
    cost = K.cost()
    dense = K.to_dense()
    assert cost.factor_bytes == held
    assert cost.dense_bytes == dense.numel() * dense.element_size()
    # N^2 sum (D_in + 1 + D_out) for one output, the head without a D_out.
    assert cost.dense_flops == pytest.approx(400**2 * ((3 + 16) + (17 + 16) + 17), rel=0.02)
    assert "columns" in str(cost)
