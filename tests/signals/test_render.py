"""Rendering: the grid's predictions, bit for bit its coordinates, within the budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inrfast as inr
from inrfast.errors import MemoryBudgetError
from inrfast.grids import ENDPOINTS, axes
from inrfast.signals import render as rendering
from inrfast.signals.render import grid_rows, render


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from(ENDPOINTS),
    st.floats(-3, 0),
    st.floats(0.5, 4),
    st.sampled_from([torch.float32, torch.float64]),
    st.data(),
)
def test_rows_of_the_grid_are_bit_by_bit_those_of_the_grid(shape, endpoint, low, high, dtype, data) -> None:
    whole = inr.grid(shape, endpoint, (low, high), dtype)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    got = grid_rows(axes(shape, endpoint, (low, high), dtype), slice(start, stop))
    assert got.dtype == dtype
    assert torch.equal(got, whole[start:stop])


@pytest.mark.parametrize("shape", [(50,), (23, 31), (7, 8, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_are_those_of_the_network_in_eval_mode(monkeypatch, shape, dtype) -> None:
    monkeypatch.setattr(rendering, "cached_rows", lambda *arguments: 16)  # many chunks
    net = inr.INR(len(shape), 2, width=8, hidden_layers=2, norm="batch", dtype=dtype)
    coords = inr.grid(shape, "center", (0, 2), dtype)
    net.train()(coords)  # leaves running statistics that are not those of the coordinates
    net.norms[0].eval()
    with torch.no_grad():
        expected = net.eval()(coords).view(*shape, 2)
    net.train()
    net.norms[0].eval()
    got = render(net, shape, (0, 2), "center", progress=False)
    assert net.training and not net.norms[0].training
    assert not got.requires_grad
    assert got.dtype == dtype
    assert torch.allclose(got, expected, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-6)


def test_any_module_is_rendered() -> None:
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh())
    with torch.no_grad():
        assert torch.allclose(render(net, 5), net(inr.grid(5)))


def test_a_small_budget_takes_smaller_chunks_and_a_smaller_one_is_refused(monkeypatch) -> None:
    net = inr.INR(2, 1, width=64, hidden_layers=2)
    seen = []
    rows_of = rendering.grid_rows
    monkeypatch.setattr(rendering, "grid_rows", lambda c, rows: seen.append(rows.stop - rows.start) or rows_of(c, rows))
    whole = render(net, (64, 64))
    most = max(seen)
    seen.clear()
    assert torch.allclose(render(net, (64, 64), memory_budget=4 * 64 * 64 + 40_000), whole, atol=1e-6)
    assert max(seen) < min(most, 40)
    with pytest.raises(MemoryBudgetError, match=r"a grid of 100000000 points needs 381\.\d+ MiB.*smaller"):
        render(net, (10_000, 10_000), memory_budget=10**6)


def test_bad_input_is_refused_by_name() -> None:
    net = inr.INR(2, 1, width=4, hidden_layers=1)
    with pytest.raises(ValueError, match="net does not take"):
        render(net, (4, 4, 4))
    with pytest.raises(ValueError, match="shape must be at least 1"):
        render(net, (0, 4))
    with pytest.raises(ValueError, match="endpoint"):
        render(net, (4, 4), endpoint="middle")
    with pytest.raises(ValueError, match="no parameters"):
        render(nn.Identity(), (4, 4))
    with pytest.raises(ValueError, match="one row per point"):
        render(nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)), (4, 4))
    with pytest.raises(TypeError, match="net must be"):
        render("net", (4, 4))
