"""Laws of every registered activation, and what the registry and the numbers of a layer's activation refuse."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrfast.activations import (
    ACTIVATIONS,
    Activation,
    BoundActivation,
    activation,
    bind,
    rectifiers,
    register,
    tanh,
    torch_operator,
)

FORMULAS = {
    "identity": lambda u: u,
    "relu": lambda u: max(u, 0.0),
    "sine": lambda u, w: math.sin(w * u),
    "gaussian": lambda u, w: math.exp(-((w * u) ** 2)),
    "finer": lambda u, w: math.sin(w * (abs(u) + 1) * u),
    "tanh": lambda u: math.tanh(u),
    "gelu": lambda u: 0.5 * u * (1 + math.erf(u / math.sqrt(2))),
    "softplus": lambda u: math.log1p(math.exp(u)),
    "wire": lambda u, w, s: math.cos(w * u) * math.exp(-((s * u) ** 2)),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_the_value_is_that_of_its_formula(name: str, omega: float) -> None:
    u = torch.linspace(-3, 3, 101, dtype=torch.float64)
    own = bind(name, omega)
    expected = torch.tensor([FORMULAS[name](x, *own.numbers) for x in u.tolist()], dtype=torch.float64)
    torch.testing.assert_close(own.value(u), expected)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.01, 1.0, 50.0]), data=st.data())
def test_slopes_and_in_place_passes_are_those_of_autodiff(name: str, seed: int, scale: float, data: st.DataObject):
    kind = ACTIVATIONS[name]
    own = kind.bind(**{number: data.draw(st.floats(0.5, 30)) for number in kind.numbers})
    u = scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u[0, :3] = torch.tensor([0.0, 1e-300, -1e-300])
    at = u.clone().requires_grad_()
    truth = own.value(at)
    (derivative,) = torch.autograd.grad(truth.sum(), at)
    truth = truth.detach()
    value, slope, scratch = torch.full_like(u, 7.0), u.clone(), torch.full_like(u, 7.0)
    own.in_place(slope, value, scratch)
    alone = u.clone()
    own.value_in_place(alone, scratch.fill_(7.0))
    for found, expected in ((own.slope(u), derivative), (value, truth), (slope, derivative), (alone, truth)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)
    if own.bound is not None:
        assert truth.abs().max() <= own.bound
    if kind.times_slope is not None:
        found = kind.times_slope(u, truth, torch.full_like(u, float("nan")))
        torch.testing.assert_close(found, u * derivative, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_in_place_passes_allocate_no_results_and_nan_stays_visible(name: str) -> None:
    u = torch.tensor([[float("nan"), 1.0]])
    value, scratch = torch.empty_like(u), torch.empty_like(u)
    addresses = [t.data_ptr() for t in (u, value, scratch)]
    bind(name, 1.0).in_place(u, value, scratch)
    assert [t.data_ptr() for t in (u, value, scratch)] == addresses
    assert torch.isnan(value[0]).tolist() == [True, False]


@pytest.mark.parametrize("private", [True, False], ids=["torch's own operators", "without them"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slopes_times_gradients_are_those_of_autodiff(
    private: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not private:
        monkeypatch.setattr(rectifiers, "RELU_BACKWARD", None)
        monkeypatch.setattr(rectifiers, "GELU_IN_PLACE", None)
        monkeypatch.setattr(tanh, "TANH_BACKWARD", None)
    u, gradient = (torch.randn(50, 7, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    u[0, :3] = 0.0
    for name, times in (("relu", rectifiers.times_relu_slope), ("tanh", tanh.times_tanh_slope)):
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
    bind("gelu").value_in_place(value, out)
    torch.testing.assert_close(value, torch.nn.functional.gelu(u))


def test_an_operator_that_torch_does_not_have_is_none() -> None:
    assert torch_operator("threshold_backward", "no such overload") is None
    assert torch_operator("no_such_operator", "default") is None


def test_relu_has_slope_zero_at_zero() -> None:
    assert float(activation("relu").slope(torch.zeros(1))) == 0


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_copies_and_pickles_are_the_registered_one(name: str) -> None:
    own = bind(name)
    for again in (
        copy.deepcopy(own),
        copy.copy(own),
        pickle.loads(pickle.dumps(own)),
        bind(own.config(), own.named.get("omega")),
    ):
        assert again == own
        assert again.kind is own.kind


def test_what_is_not_registered_is_not_pickled() -> None:
    stranger = Activation("stranger", torch.sin, torch.cos)
    with pytest.raises(TypeError, match="register 'stranger' first"):
        pickle.dumps(BoundActivation(stranger))
    assert copy.deepcopy(stranger) is stranger


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("sin", ValueError, "Did you mean 'sine'"),
        (3, TypeError, "activation must be a name"),
        ({"omega": 3.0}, ValueError, "needs a 'name'"),
        ({"name": "sine", "omga": 3.0}, ValueError, "sine has no number 'omga'.*Did you mean 'omega'"),
        ({"name": "relu", "omega": 3.0}, ValueError, "relu has no number 'omega'; it has no numbers"),
        ({"name": "sine", "omega": 0.0}, ValueError, "omega must be above 0"),
        ({"name": "sine", "omega": math.nan}, ValueError, "omega must be finite"),
        ({"name": "sine", "omega": "3"}, TypeError, "omega must be a number"),
    ],
)
def test_unknown_names_and_bad_numbers_are_refused(given, error, told) -> None:
    with pytest.raises(error, match=told):
        bind(given)


def test_numbers_come_from_the_spelling_then_omega_then_the_default() -> None:
    assert bind("sine").numbers == (30.0,)
    assert bind("sine", 7).numbers == (7.0,)
    assert bind({"name": "sine", "omega": 2}, 7).numbers == (2.0,)
    assert bind("relu", 7).numbers == ()
    with pytest.raises(ValueError, match="omega must be above 0"):
        bind("relu", -1.0)


def test_a_registered_activation_is_complete() -> None:
    for settings_, told in (
        ({"numbers": {"name": 1.0}}, "identifier"),
        ({"numbers": {"a": -1.0}}, "a must be above 0"),
        ({"keeps": "sign"}, "keeps of bad"),
        ({"keeps": "result"}, "times_slope of bad"),
        ({"times_slope": torch.mul}, "times_slope of bad"),
        ({"bound": -1.0}, "bound of bad"),
        ({"numbers": dict.fromkeys("abc", 1.0), "device": "sine"}, "of 1 numbers, but it has 3"),
    ):
        with pytest.raises(ValueError, match=told):
            Activation("bad", torch.sin, torch.cos, **settings_)
    with pytest.raises(ValueError, match="called 'sine' already"):
        register(Activation("sine", torch.sin, torch.cos))
    assert Activation("good", torch.sin, torch.cos, numbers={"a": -1.0}, signed=("a",)).numbers["a"] == -1
