"""Spectra of single representations against dense fp64 SVDs of what hooks see, and against a diagnosis."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks, random_coords
from torch import nn

import inrfast as inr
from inrfast.analysis import representations
from inrfast.analysis.diagnosis import diagnose
from inrfast.errors import MemoryBudgetError, ResolutionError, UnsupportedModuleError

RTOLS = (1e-1, 1e-3, 1e-6)


def outputs(net, coords):
    """What enters every linear layer, in fp64, by hooks."""
    net, found = copy.deepcopy(net).double(), []
    for layer in (module for module in net.modules() if isinstance(module, nn.Linear)):
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    net(coords.double())
    return found


def is_spectrum_of(matrix, found, rtols):
    """Whether a spectrum is that of ``matrix`` within the error it states, by NumPy."""
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    off = (found.floor + 1e-13) * values[0]
    known = np.array(found.singular_values)
    assert (found.rows, found.columns) == tuple(matrix.shape)
    assert np.all(np.abs(known - values[: len(known)]) <= off)
    assert np.all(values[len(known) :] <= 2 * off)
    assert all(int((values > r * values[0]).sum()) in rank for r, rank in zip(rtols, found.ranks, strict=True))
    squares = values**2
    assert found.stable_rank == pytest.approx(squares.sum() / squares[0] if squares[0] else 0.0, rel=1e-8)
    return True


@settings(max_examples=8)
@given(net=networks(max_width=24, max_depth=3), rows=st.sampled_from([1, 7, 512]), seed=st.integers(0, 10**6))
def test_each_is_the_spectrum_of_the_dense_matrix_and_the_entry_of_a_diagnosis(net, rows, seed):
    coords = random_coords(19, net.in_features, seed)
    entries = diagnose(net, coords, rtols=RTOLS, ntk_points=0, jacobian_pixels=0, progress=False).representations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representations, "_chunk_rows", lambda *arguments: rows)
        for z, entry in zip(outputs(net, coords), entries, strict=True):
            found = inr.representation(net, coords, entry.name, RTOLS, progress=False)
            assert is_spectrum_of(z, found.spectrum, RTOLS)
            assert is_spectrum_of(torch.cat([z, z.new_ones(len(z), 1)], 1), found.with_ones, RTOLS)
            assert found.dead_units == entry.dead_units == int((z == 0).all(0).sum())
            assert found.dead_pixels == entry.dead_pixels == int((z == 0).all(1).sum())
            sizes = [len(own.spectrum.singular_values) for own in (found, entry)]
            ours, theirs = (np.array(own.spectrum.singular_values[: min(sizes)]) for own in (found, entry))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=3 * entry.spectrum.floor * max(theirs, default=0))


def test_tolerances_below_the_gram_matrix_and_any_module_are_taken_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 12), nn.Sigmoid(), nn.Linear(12, 1))
    coords, rtols = inr.grid((12, 12)), (1e-3, 1e-10)
    for z, name in zip(outputs(net, coords), ("input", "0", "2"), strict=True):
        found = inr.representation(net, coords, name, rtols, progress=False)
        assert found.spectrum.method == "tsqr"
        assert is_spectrum_of(z, found.spectrum, rtols)


def test_a_layer_keeps_its_name_whichever_parameters_are_differentiated():
    net, coords = inr.INR(2, 1, width=6, hidden_layers=2), inr.grid((5, 5))
    (found,) = diagnose(net, coords, params=["layers.1"], ntk_points=0, progress=False).representations
    whole = inr.representation(net, coords, "layers.0")
    assert found.name == whole.name == "layers.0"
    assert found.spectrum.singular_values == pytest.approx(whole.spectrum.singular_values, rel=1e-6)


def test_a_small_budget_gives_the_same_numbers():
    net, coords = inr.INR(2, 1, width=16, hidden_layers=2), inr.grid((40, 40))
    large, small = (inr.representation(net, coords, "layers.1", memory_budget=b) for b in (None, 100_000))
    assert small.spectrum.ranks == large.spectrum.ranks
    count = min(len(large.spectrum.singular_values), len(small.spectrum.singular_values))
    ours, theirs = (np.array(z.spectrum.singular_values[:count]) for z in (small, large))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 * large.spectrum.floor * theirs[0])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"layer": "layers.3"}, ValueError, "layer must be one of .*'input', 'layers.0'.*got 'layers.3'"),
        ({"layer": "layer.0"}, ValueError, "Did you mean 'layers.0'"),
        ({"layer": 0}, TypeError, "layer must be a name"),
        ({"net": lambda x: x}, TypeError, r"net must be a torch\.nn\.Module"),
        ({"coords": torch.zeros(4, 3)}, ValueError, "coords"),
        ({"coords": torch.full((4, 2), float("nan"))}, ValueError, "coords"),
        ({"coords": [[0.0, 0.0]]}, TypeError, "coords"),
        ({"rtols": 1e-3}, TypeError, "rtols must be a sequence"),
        ({"rtols": (2.0,)}, ValueError, "rtols"),
        ({"rtols": (1e-17,)}, ResolutionError, "below the floor"),
        ({"memory_budget": 0}, ValueError, "memory_budget"),
        ({"net": inr.INR(2, 1, width=4, norm="batch")}, UnsupportedModuleError, "batch"),
        ({"net": inr.INR(2, 1, width=700), "memory_budget": 10**6}, MemoryBudgetError, "Gram matrix of layers.0"),
    ],
)
def test_bad_input_is_named(arguments, error, match):
    good = {"net": inr.INR(2, 1, width=4, hidden_layers=2), "coords": inr.grid((4, 4)), "layer": "layers.0"}
    with pytest.raises(error, match=match):
        inr.representation(**good | arguments)


def test_the_default_layer_is_the_first_output_and_networks_without_layers_say_why():
    coords, modules = inr.grid((6, 6)), (nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1))
    net = nn.Sequential(*modules)
    found = inr.representation(net, coords)
    values = torch.linalg.svdvals(net[:2].double()(coords.double()).detach())
    assert found.name == "0"
    torch.testing.assert_close(torch.as_tensor(found.spectrum.singular_values).double().cpu()[: len(values)], values)
    with pytest.raises(ValueError, match=r"'0', '2', 'input'.*got 'layers\.0'"):
        inr.representation(net, coords, "layers.0")

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.scale * x).sin()

    with pytest.raises(UnsupportedModuleError, match=r"no linear layer that is observed.*'scale': rows"):
        inr.representation(Scale(), coords)
    assert "There are no representations and weights" in str(inr.diagnose(Scale(), coords, rtols=(1e-2,)))
