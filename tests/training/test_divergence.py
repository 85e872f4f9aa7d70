"""The culprit of a NaN is the first place where it shows."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import inrfast as inr
from inrfast.losses import LOSSES, loss_of
from inrfast.training.divergence import first_nonfinite, growth


def finite_net() -> inr.INR:
    return inr.INR(2, 1, width=4, hidden_layers=2)


def test_the_first_place_is_named() -> None:
    coords = inr.grid((3, 3))
    net = finite_net()
    assert first_nonfinite(net, coords) == "the loss"

    net.layers[1].weight.grad = torch.full_like(net.layers[1].weight, float("nan"))
    assert first_nonfinite(net, coords) == "the gradient of layers.1.weight"

    with torch.no_grad():
        net.layers[1].weight.fill_(3e38)
    assert first_nonfinite(net, 1e3 * coords + 1e3) == "the output of layers.1"

    with torch.no_grad():
        net.layers[0].bias[1] = float("inf")
    assert first_nonfinite(net, coords) == "the weights of layers.0.bias"
    assert not any(module._forward_hooks for module in net.modules())


def test_an_operation_between_modules_shows_in_the_predictions() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, coords: Tensor) -> Tensor:
            return torch.log(-self.layer(coords).abs() - 1)

    assert first_nonfinite(Logarithm(), inr.grid((3, 3))) in ("the predictions", "the output of the network")


def test_growth_is_told_from_the_start_and_from_the_signal_s_range() -> None:
    falling, mse = [0.5**step for step in range(40)], loss_of("mse")
    assert growth(falling, mse, 1.0, True) is None
    assert growth(falling[::-1], mse, 1.0, True).startswith("ended with a loss of")
    assert growth([4.0 * value for value in falling[::-1]], None, 1.0, False) is not None
    assert growth([1e-9 * 2.0**step for step in range(9)], mse, 1.0, True) is None  # too few to tell
    assert growth([1e-12 * 1.5**step for step in range(20)], mse, 1.0, True) is None  # beyond 60 dB it means nothing
    assert growth([1.0, *[1e5] * 5, *[0.9] * 20], mse, 1.0, True).startswith("had a loss of up to 1e+05")
    assert growth([1.0, *[1e5] * 5, *[0.1] * 20], mse, 1.0, True) is None
    assert growth([0.1] * 20, mse, 1e-2, True) is None  # a small signal: outputs begin near 1
    assert growth([1e6] * 20, None, 1.0, True) is None  # a loss of one's own may be of any size


@pytest.mark.parametrize("name", list(LOSSES))
def test_growth_of_every_named_loss_is_told_by_what_errors_cost(name: str) -> None:
    loss = loss_of(name)
    small, large = loss.cost(1e-4), loss.cost(1e3)
    assert growth([small * 1.1**step for step in range(20)], loss, 1.0, True) is None
    assert growth([large] * 20, loss, 1.0, True).startswith(f"ended with a mean {name} loss of")
    assert growth([loss.cost(1.0)] * 20, loss, 1.0, True) is None


@pytest.mark.parametrize("degree", [64, 128])
def test_an_encoding_that_is_too_large_is_named(degree: int) -> None:
    coords = inr.grid((8, 8))
    net = inr.INR(2, 1, width=8, hidden_layers=1, encoding=inr.Polynomial(degree))
    with pytest.warns(RuntimeWarning, match=r"makes the features of Polynomial as large as \d.*its degree"):
        inr.fit(net, coords, coords[:, :1], steps=12)


def test_a_fit_that_gets_worse_says_so_once_and_a_good_one_says_nothing() -> None:
    coords = inr.grid((8, 8))
    target = (3 * coords[:, :1]).sin()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inr.fit_many([finite_net() for _ in range(2)], coords, target, steps=40, lr=[1e-3, 2e-3])
        assert not caught
        inr.fit_many([inr.INR(2, 1, width=4, seed=s) for s in range(3)], coords, target, steps=20, lr=3.0)
    assert len(caught) == 1
    assert "networks are like this" in str(caught[0].message)
    assert caught[0].filename == __file__
