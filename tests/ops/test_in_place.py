"""The in-place activations are those of the table, value and derivative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.activations import ACTIVATIONS
from inrfast.ops import in_place
from inrfast.ops.in_place import IN_PLACE, VALUE_IN_PLACE, times_relu_slope, times_tanh_slope


def test_every_activation_has_an_in_place_form() -> None:
    assert set(IN_PLACE) == set(VALUE_IN_PLACE) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), omega=st.floats(0.5, 30), scale=st.sampled_from([0.01, 1.0, 50.0]))
def test_value_and_derivative_agree_with_the_table(name: str, seed: int, omega: float, scale: float) -> None:
    u = scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u[0, :3] = torch.tensor([0.0, 1e-300, -1e-300])
    table = ACTIVATIONS[name]
    value, slope, scratch = torch.full_like(u, 7.0), u.clone(), torch.full_like(u, 7.0)
    IN_PLACE[name](slope, omega, value, scratch)
    torch.testing.assert_close(value, table.value(u, omega), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(slope, table.derivative(u, omega), rtol=1e-9, atol=1e-8)
    alone = u.clone()
    VALUE_IN_PLACE[name](alone, omega, scratch.fill_(7.0))
    torch.testing.assert_close(alone, table.value(u, omega), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_nothing_is_allocated_anew_and_nan_stays_visible(name: str) -> None:
    u = torch.tensor([[float("nan"), 1.0]])
    value, scratch = torch.empty_like(u), torch.empty_like(u)
    addresses = [t.data_ptr() for t in (u, value, scratch)]
    IN_PLACE[name](u, 1.0, value, scratch)
    assert [t.data_ptr() for t in (u, value, scratch)] == addresses
    assert torch.isnan(value[0]).tolist() == [True, False]


@pytest.mark.parametrize("private", [True, False], ids=["torch's own operators", "without them"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slopes_times_gradients_are_those_of_autodiff(
    private: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not private:
        for name in ("RELU_BACKWARD", "TANH_BACKWARD", "GELU"):
            monkeypatch.setattr(in_place, name, None)
    u, gradient = (torch.randn(50, 7, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    u[0, :3] = 0.0
    for name, times in (("relu", times_relu_slope), ("tanh", times_tanh_slope)):
        at = u.clone().requires_grad_()
        value = getattr(torch, name)(at)
        (truth,) = torch.autograd.grad(value, at, gradient)
        own, out = gradient.clone(), torch.full_like(u, float("nan"))
        found = times(own, value.detach(), out)
        assert found.data_ptr() == out.data_ptr()
        torch.testing.assert_close(found, truth)
        if name == "relu":
            torch.testing.assert_close(times(own, value.detach(), own), truth)
    value = u.clone()
    assert VALUE_IN_PLACE["gelu"](value, 1.0, out).data_ptr() == value.data_ptr()
    torch.testing.assert_close(value, torch.nn.functional.gelu(u))


def test_an_operator_that_torch_does_not_have_is_none() -> None:
    assert in_place._operator("threshold_backward", "no such overload") is None
    assert in_place._operator("no_such_operator", "default") is None
