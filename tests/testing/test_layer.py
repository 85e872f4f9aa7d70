"""The public check of layers: what it accepts, and the faults that it finds."""

import pytest
import torch
import torch.nn.functional as F
from random_networks import exact_jacobian, random_coords
from torch import nn

import inrfast as inr
from inrfast import backends
from inrfast.layers import LAYERS, Factors, Layer
from inrfast.layers.affine import Affine
from inrfast.layers.linear import Linear
from inrfast.nn import FusedLinear
from inrfast.testing import check_layer

INPUTS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


def frozen_batch_norm():
    norm = nn.BatchNorm1d(4)
    norm(3 * INPUTS + 1)
    return norm.eval()


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 3),
        nn.Linear(4, 3, bias=False),
        FusedLinear(4, 5, activation="sine"),
        nn.LayerNorm(4, bias=False),
        nn.RMSNorm(4),
        frozen_batch_norm(),
        nn.PReLU(4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_librarys_own_keep_their_contract(module):
    check_layer(module, INPUTS)


class Convolution(Layer):
    """Per-point convolutions, as a user may add them: rows made of patches and sensitivities."""

    kind = "convolution"

    @classmethod
    def takes(cls, module, names):
        return [name for name in ("weight", "bias") if name in names] if type(module) is nn.Conv1d else []

    def reason_against(self, module, given, points):
        return None if given.ndim == 3 and len(given) == points else "one row of channels per point is needed"

    def features(self, module, given):
        (size,), (padding,) = module.kernel_size, module.padding
        return F.pad(given, (padding, padding)).unfold(2, size, 1)  # (n, channels, positions, size)

    def factors(self, features, sensitivities):
        rows = {
            "weight": lambda: torch.einsum("nmop,ncps->nmocs", sensitivities, features).flatten(2),
            "bias": lambda: sensitivities.sum(-1),
        }
        return Factors(None, torch.cat([rows[name.rpartition(".")[2]]() for name in self.parameters], dim=2))


def test_a_users_handler_takes_part_once_it_is_added(monkeypatch):
    module = nn.Conv1d(2, 3, 3, padding=1)
    inputs = INPUTS[:, :, None].expand(-1, -1, 2).reshape(9, 2, 4)
    check_layer(module, inputs, Convolution)
    monkeypatch.setattr(LAYERS, "_items", dict(LAYERS))
    LAYERS.add("convolution", Convolution)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Unflatten(1, (2, 4)), module, nn.Flatten(), nn.Linear(12, 2))
    coords = random_coords(20, 2, 0)
    backends.warn_once.cache_clear()
    J = inr.jacobian(net, coords, precision="highest")
    assert [layer.kind for layer in J.specs] == ["linear", "convolution", "linear"]
    torch.testing.assert_close(J.rows(), exact_jacobian(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)


class WrongRows(Affine):
    def factors(self, features, sensitivities):
        return super().factors(features * (1 + 1e-6), sensitivities)


class WrongBlock(Linear):
    def divide(self, block):
        return super().divide(block.flip(1))


class WrongOnes(Linear):
    ends_with_ones = True


class WrongParts(Linear):
    def parts(self, factors, ones=True):
        yield from reversed(list(super().parts(factors, ones)))


class WrongTap(Linear):
    def tap(self, module, given, output):
        return output, 2 * output


class Takes(Linear):
    @classmethod
    def takes(cls, module, names):
        return ["weight", "gain"]


class Looks(Linear):
    """Normalises over the points: right rows need all of them."""

    def features(self, module, given):
        return super().features(module, given - given.mean(0) + given.mean(0).detach().sign() * len(given) / 9)


class Narrow(Linear):
    def factors(self, features, sensitivities):
        return super().factors(features.float(), sensitivities)


class WrongSum(Affine):
    def added(self, calls):
        return calls[0]


class NoSum(Linear):
    adds = True


class Broken(Linear):
    def factors(self, features, sensitivities):
        raise RuntimeError("no such thing")


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


FAULTS = {
    "rows": (WrongRows, nn.LayerNorm(4), "rows of checked.weight .* differ from those of autograd"),
    "block": (WrongBlock, nn.Linear(4, 3), r"from_block\(\) does not give back"),
    "ones": (WrongOnes, nn.Linear(4, 3, bias=False), "do not end with a column of ones"),
    "parts": (WrongParts, nn.Linear(4, 3), r"parts\(\) of checked.weight"),
    "tap": (WrongTap, nn.Linear(4, 3), r"output that tap\(\) returns"),
    "takes": (Takes, nn.Linear(4, 3), "some of the names"),
    "points": (Looks, nn.Linear(4, 3), "checked.weight"),
    "dtype": (Narrow, nn.Linear(4, 3), "fp64"),
    "calls": (WrongSum, nn.LayerNorm(4), "rows of checked.*, its module called twice"),
    "two factors of calls": (NoSum, nn.Linear(4, 3), "rows of checked.*, its module called twice"),
    "raises": (Broken, nn.Linear(4, 3), "RuntimeError: no such thing"),
    "nothing": (Linear, nn.PReLU(4), "finds nothing"),
    "coupling": (None, Centred(4, 3), "couples points"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_named(name):
    handler, module, message = FAULTS[name]
    with pytest.raises(AssertionError, match=message):
        check_layer(module, INPUTS, handler)


@pytest.mark.parametrize(
    ("module", "inputs", "handler", "error"),
    [
        (F.relu, INPUTS, None, TypeError),
        (nn.ReLU(), INPUTS, None, ValueError),
        (nn.Linear(4, 3), INPUTS[:3], None, ValueError),
        (nn.Linear(4, 3), INPUTS, Linear.kind, TypeError),
        (nn.Embedding(4, 3), torch.arange(3), None, ValueError),
        (nn.Embedding(4, 3), torch.ones(5, dtype=torch.bool), None, ValueError),
    ],
)
def test_bad_arguments(module, inputs, handler, error):
    with pytest.raises(error):
        check_layer(module, inputs, handler)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factors": lambda self, features, sensitivities: None}, r"factors\(\) must return Factors.*, got NoneType"),
        ({"features": lambda self, module, given: None}, "features must be"),
        ({"tap": lambda self, module, given, output: None}, "NoneType"),
        ({"takes": classmethod(lambda cls, module, names: None)}, r"takes\(\) raises TypeError"),
        ({"to_block": lambda self, flat: None}, r"to_block\(\) must return .*, got NoneType"),
        ({"representation": lambda self, factors: factors.nothing}, r"representation\(\) raises AttributeError"),
    ],
)
def test_what_returns_something_else_is_named(changes, said):
    kind = type("Planted", (Linear,), changes)
    with pytest.raises(AssertionError, match=f"Planted breaks the contract of layers: .*{said}"):
        check_layer(nn.Linear(4, 3), INPUTS, kind)


def test_inputs_that_tell_nothing_are_refused():
    for inputs, said in (
        (torch.zeros(9, 4), "got zeros alone"),
        (INPUTS.where(INPUTS > 0, float("nan")), "must be finite"),
        (-INPUTS.abs(), "every derivative in the module's parameters vanishes"),
    ):
        with pytest.raises(ValueError, match=f"inputs .*{said}"):
            check_layer(Gated() if said.startswith("every") else nn.Linear(4, 3), inputs)


class Gated(nn.Module):
    """A gain of positive inputs alone."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, features):
        return self.gain * features.relu()
