"""The in-place activations are those of the table, value and derivative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.activations import ACTIVATIONS
from inrfast.ops.in_place import IN_PLACE, VALUE_IN_PLACE


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
