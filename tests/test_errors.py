"""Door checks: each says the argument, what came and what is accepted."""

import numpy as np
import pytest
import torch

from inrfast.errors import (
    Hinting,
    MissingLibraryError,
    called,
    check_choice,
    check_coords,
    check_float,
    check_int,
    check_module,
    check_tensor,
    nearest,
    needs,
    tells_arguments,
)


def test_good_values_pass_through():
    assert check_choice("x", "a", ("a", "b")) == "a"
    assert check_int("x", np.int64(3), minimum=3) == 3
    assert check_float("x", np.float32(0.5), minimum=0, exclusive=True) == 0.5
    t = torch.ones(2, 3)
    assert check_tensor("x", t, ndim=2) is t
    assert check_coords("x", t, 3, torch.device("cpu")) is t


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_choice("mode", "fulll", ("full", "trace")), ValueError, "mode.*'fulll'.*Did you mean 'full'"),
        (lambda: check_choice("mode", None, ("full",)), TypeError, "mode must be a name.*NoneType"),
        (lambda: check_int("n", True), TypeError, "n must be an integer, got True"),
        (lambda: check_int("n", 2.0), TypeError, "n must be an integer"),
        (lambda: check_int("n", 0, minimum=1), ValueError, "n must be at least 1, got 0"),
        (lambda: check_float("t", 10**400), ValueError, "t must be at most 1.8e308 in size, got a larger integer"),
        (lambda: check_float("t", torch.ones(2)), TypeError, r"t must be one number, got Tensor of shape \(2,\)"),
        (lambda: check_float("t", np.ones((2, 2))), TypeError, r"t must be one number, got ndarray of shape \(2, 2\)"),
        (lambda: check_float("t", "1"), TypeError, "t must be a number"),
        (lambda: check_float("t", float("inf")), ValueError, "t must be finite"),
        (lambda: check_float("t", 0, minimum=0, exclusive=True), ValueError, "t must be above 0"),
        (lambda: check_tensor("a", [1.0]), TypeError, r"a must be a torch\.Tensor, .* got list"),
        (lambda: check_tensor("a", torch.ones(2), ndim=2), ValueError, r"2 dimensions, got shape \(2,\)"),
        (lambda: check_tensor("a", torch.ones(2).int()), TypeError, "floating-point dtype, got torch.int32"),
        (lambda: check_tensor("a", torch.ones(0)), ValueError, "must not be empty"),
        (lambda: check_tensor("a", torch.tensor([1.0, float("nan")])), ValueError, "1 NaN or Inf among its 2"),
        (lambda: check_tensor("a", torch.ones(2, device="meta")), ValueError, "a is on the meta device"),
        (lambda: check_tensor("a", torch.ones(2).to_sparse()), TypeError, "a must be a dense tensor, got layout"),
        (lambda: check_tensor("a", torch.ones(2).to(torch.float8_e5m2)), TypeError, "a must have .* 16 bits or more"),
        (lambda: check_coords("a", torch.ones(2, 3), 2), ValueError, r"shape \(N, 2\)"),
        (lambda: check_coords("a", torch.ones(2, 2), 2, torch.device("meta")), ValueError, "cpu.*meta"),
    ],
)
def test_bad_values_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("choices", [("relu", "sine", "gaussian", "wire", "finer"), ("RandomFourier", "HashGrid")])
def test_the_nearest_match_is_one_that_is_near(choices):
    for choice in choices:
        mistyped = {choice[:-1], choice + choice[-1], choice[1:], choice.upper(), choice.lower(), f"{choice}2"}
        for word in mistyped - {choice}:
            assert nearest(word, choices) == f" Did you mean {choice!r}?"
    for word in ("linear", "none", "swish", "", "n", "x" * 80, 3):
        assert nearest(word, choices) == ""


def test_an_attribute_that_raises_tells_its_own_error():
    class Thing(Hinting):
        @property
        def broken(self):
            return self.missing_inside

    with pytest.raises(AttributeError, match="no attribute 'missing_inside'"):
        _ = Thing().broken


def trained(net, lr=1.0, *, batch_size=None):
    """A function that users call."""
    if lr < 0:
        raise TypeError("lr must be a number that is not negative")
    return net, lr, batch_size


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"learning_rate": 1.0}, r"trained\(\) takes no argument 'learning_rate'. Did you mean 'lr'\?"),
        ({"batchsize": 1}, r"no argument 'batchsize'. Did you mean 'batch_size'\?"),
        ({"colour": 1}, r"no argument 'colour'. It takes net, lr, batch_size"),
        ({"lr": -1.0}, "lr must be a number that is not negative"),  # its own error, as it is
    ],
)
def test_an_unknown_argument_is_told_the_nearest(given, told):
    for call in (lambda: called(trained, (1,), given), lambda: tells_arguments(trained)(1, **given)):
        with pytest.raises(TypeError, match=told):
            call()
    assert tells_arguments(trained)(1, lr=2.0) == (1, 2.0, None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'net'"):
        tells_arguments(trained)()


def test_a_class_of_modules_is_told_from_its_objects():
    assert check_module("net", net := torch.nn.Identity()) is net
    with pytest.raises(
        TypeError, match=r"net must be a torch.nn.Module, got the class Identity; write Identity\(...\)"
    ):
        check_module("net", torch.nn.Identity)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got int"):
        check_module("net", 3)


@pytest.mark.parametrize(("got", "choice"), [("siren", "sine"), ("SIREN", "siren"), ("l2", "mse"), ("w0", "omega")])
def test_words_of_other_libraries_are_known(got, choice):
    assert nearest(got, ["sine", "mse", "omega", *(["siren"] if got.isupper() else [])]) == f" Did you mean {choice!r}?"


@pytest.mark.parametrize("error", [ImportError("std::bad_cast"), OSError("sndfile library not found")])
def test_a_library_that_is_there_and_broken_is_not_told_as_missing(error: Exception) -> None:
    with pytest.raises(MissingLibraryError, match=rf"cannot be loaded.*\({error}\)") as told, needs("mesh", "a fit"):
        raise error
    assert "pip install" not in str(told.value)
    with (
        pytest.raises(MissingLibraryError, match=r"a fit needs libigl: pip install 'inrfast\[mesh\]'"),
        needs("mesh", "a fit"),
    ):
        raise ModuleNotFoundError("none", name="igl")
