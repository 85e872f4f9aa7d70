"""What stacks of batch norms must have in common, and which norms are left to autograd."""

import re

import pytest

import inrfast as inr
from inrfast.training.engines.batch_norms import against_norms, norms_of


def made(**options: object) -> inr.INR:
    return inr.INR(2, 1, width=4, hidden_layers=2, norm="batch", **options).train()  # type: ignore[arg-type]


def changed(net: inr.INR, change: str) -> inr.INR:
    if change == "eps":
        net.norms[0].eps = 0.1  # type: ignore[assignment]
    elif change == "momentum":
        net.norms[0].momentum = None  # type: ignore[assignment]
    elif change == "eval mode":
        net.norms[0].eval()
    elif change == "several layers":
        net.norms[1] = net.norms[0]
    elif change == "dtypes":
        net.norms[0].double()
    return net


@pytest.mark.parametrize("change", ["eps", "momentum"])
def test_norms_of_other_numbers_or_places_are_others(change: str) -> None:
    assert norms_of(made()) == norms_of(made(seed=3))
    assert norms_of(made()) != norms_of(changed(made(), change))
    assert norms_of(made(norm_position="pre")) != norms_of(made(norm_position="post"))


@pytest.mark.parametrize("change", ["eval mode", "several layers", "dtypes"])
def test_norms_that_are_not_taken_are_named(change: str) -> None:
    assert against_norms(made()) is None
    assert re.search(change, against_norms(changed(made(), change)) or "")
