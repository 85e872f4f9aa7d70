"""What a network and a fused layer take as activation and omega, and how they describe it."""

import numpy as np
import pytest
import torch

import inrfast as inr
from inrfast.nn import FusedLinear


def layers_of(**options):
    return [(own.name, *own.numbers) for own in inr.INR(2, 1, width=4, hidden_layers=3, **options).bound_activations]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("relu",)] * 3),
        ({"activation": "sine"}, [("sine", 30.0)] * 3),
        ({"activation": "sine", "omega": 7}, [("sine", 7.0)] * 3),
        ({"activation": ["sine", "relu", "finer"], "omega": [1, 2, 3]}, [("sine", 1.0), ("relu",), ("finer", 3.0)]),
        ({"activation": "sine", "omega": {"first": 60, "hidden": 5}}, [("sine", 60.0), ("sine", 5.0), ("sine", 5.0)]),
        ({"activation": {"first": "sine", "hidden": "relu"}}, [("sine", 30.0), ("relu",), ("relu",)]),
        ({"activation": {"name": "sine", "omega": 4}, "omega": 9}, [("sine", 4.0)] * 3),
        (
            {"activation": {"first": {"name": "sine", "omega": 60}, "hidden": "sine"}, "omega": 5},
            [("sine", 60.0), ("sine", 5.0), ("sine", 5.0)],
        ),
    ],
)
def test_forms_of_activation_and_omega(options, expected):
    assert layers_of(**options) == expected
    net = inr.INR(2, 1, width=4, hidden_layers=3, **options)
    assert inr.INR.from_config(net.config()).bound_activations == net.bound_activations
    assert inr.INR.from_config(net.config()).config() == net.config() | {"init": "default"}


def test_configs_of_what_todays_files_hold_are_written_as_today():
    net = inr.INR(2, 1, width=4, hidden_layers=2, activation=["relu", "sine"], omega=[3.0, 5.0])
    assert (net.config()["activation"], net.config()["omega"]) == (["relu", "sine"], [3.0, 5.0])
    assert inr.INR(2, 1, width=4, hidden_layers=2).config()["omega"] == [30.0, 30.0]
    assert net.extra_repr() == "activations=('relu', 'sine'), omegas=(None, 5.0), norm_position='post'"
    assert FusedLinear(2, 3, activation="sine").extra_repr().endswith("activation='sine', omega=30")
    for module in (inr.INR(2, 1, width=4), FusedLinear(2, 3)):
        assert "omega" not in repr(module)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_frequencies_per_layer_come_in_any_kind_of_sequence(kind):
    net = inr.INR(2, 1, width=4, hidden_layers=2, activation="sine", omega=kind([3.0, 5.0]))
    assert net.omegas == (3.0, 5.0)


@pytest.mark.parametrize(
    "module", [inr.INR(2, 1, 4, activation=["sine", "relu", "finer"], omega=7.0), FusedLinear(2, 3)]
)
def test_names_and_frequencies_are_read_only_and_modules_pickled_before_they_were_are_read(module):
    several = isinstance(module, inr.INR)
    for name in ("activations", "omegas") if several else ("activation", "omega"):
        with pytest.raises(AttributeError):
            setattr(module, name, getattr(module, name))
    state = dict(vars(module))
    for new, old in (("bound_activations", "activations"), ("_omegas", "omegas")):
        new, old = (new, old) if several else (new.removesuffix("s"), old.removesuffix("s"))
        del state[new]
        state[old] = getattr(module, old)
    read = type(module).__new__(type(module))
    read.__setstate__(state)
    x = torch.rand(5, 2)
    assert torch.equal(read(x), module(x))
    assert set(vars(read)) == set(vars(module))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"activation": ["sine"]}, ValueError, "activation must be one value or 3 of them"),
        ({"activation": {"first": "sine"}}, ValueError, "'first' and 'hidden'.*got \\['first'\\]"),
        ({"activation": {"first": "sine", "hidden": "rleu"}}, ValueError, "Did you mean 'relu'"),
        ({"activation": {"name": "sine", "sigma": 1.0}}, ValueError, "sine has no number 'sigma'"),
        ({"activation": 3}, TypeError, "activation must be a name"),
        ({"omega": {"first": 1.0, "hiden": 2.0}}, ValueError, "omega as a mapping takes the keys"),
        ({"omega": 0.0}, ValueError, "omega must be above 0"),
        ({"omega": [1.0, "2", 3.0]}, TypeError, "omega must be a number"),
    ],
)
def test_bad_forms_are_refused_by_name(options, error, told):
    with pytest.raises(error, match=told):
        layers_of(**options)
