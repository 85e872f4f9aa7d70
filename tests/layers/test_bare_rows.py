"""Bare parameters in elementwise functions and in mixed use: rows of their own, against automatic differentiation."""

import pytest
import torch
import torch.nn.functional as F
from random_modules import jacobian_by_points
from random_networks import random_coords
from torch import nn

import inrfast as inr
from inrfast import backends
from inrfast.errors import MemoryBudgetError
from inrfast.layers import LAYERS

SHAPES = {"gain": (3,), "one": (), "row": (1, 3), "square": (3, 3), "code": (4,)}


class Uses(nn.Module):
    """Parameters of several shapes, of which one function is made."""

    def __init__(self, use):
        super().__init__()
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(0.2 + torch.rand(shape)))
        self.inlet, self.head, self.use = nn.Linear(2, 3), nn.Linear(3, 2), use

    def forward(self, x):
        return self.head(torch.sin(self.use(self, self.inlet(x))))


def in_place(p, h):
    h = 1 * h
    h.mul_(p.gain).add_(p.row, alpha=0.5)
    h /= p.one
    h[:, :2] -= p.gain[1:]
    return h.tanh_()


def loop(p, h):
    for row in p.square:
        h = torch.sin(row * h)
    return h + sum(column.sum() for column in p.square.unbind(1))


def batched(p, h):
    codes = torch.cat([p.code.repeat(1, len(h), 1), p.row.expand(1, len(h), 3)], dim=2)
    return (h[None] * codes[..., :3] + p.one * codes[..., 4:])[0]


def modulated(p, h):
    gain, shift = F.linear(p.code[:3], p.square, p.gain).tanh(), (p.square @ p.code[1:]).exp()
    h *= gain.unsqueeze(0)
    return h + shift


def normalised(p, h):
    weight = p.one * p.square / p.square.norm(dim=1, keepdim=True)
    return F.linear(h, weight, p.gain) + torch.addmm(p.row, h, weight.t())


def complex_inside(p, h):
    return torch.exp(1j * p.gain * h - (p.one * h).square()).real


USES = {
    "products": (lambda p, h: p.gain * h * p.one + h / p.row - (p.code[:3] - h) * (2 - p.one), "gain one row code"),
    "powers": (lambda p, h: (h.abs() + 1) ** p.gain + p.row ** h.tanh() + 2**p.one * h, "gain one row"),
    "choices": (
        lambda p, h: torch.where(h > 0, p.gain, h) + torch.maximum(h, p.row) + h.clamp(max=p.one),
        "gain row one",
    ),
    "formulas": (lambda p, h: torch.lerp(h, h.cos(), p.gain) + torch.addcmul(p.row, h, p.code[1:]), "gain row code"),
    "angles": (lambda p, h: torch.atan2(p.gain, h) + torch.hypot(h, p.row) + torch.logaddexp(h, p.one), "gain row one"),
    "in place": (in_place, "gain row one"),
    "positions": (lambda p, h: (h[:, None] * p.square + p.square[0] * h[:, :, None]).sum(1), "square"),
    "views": (
        lambda p, h: h * p.square[0] + h * p.square.t()[1] + p.square.diagonal() * h + h * p.square[:, -1],
        "square",
    ),
    "loop": (loop, "square"),
    "latent": (lambda p, h: F.pad(h, (0, 1)).mul(p.code.expand(len(h), -1))[:, 1:] + p.row.expand_as(h), "code row"),
    "batched": (batched, "code row one"),
    "modulated": (modulated, "code square gain"),
    "normalised": (normalised, "square one gain row"),
    "complex": (complex_inside, "gain one"),
    "several uses": (lambda p, h: (h * p.square[0]) @ p.square + p.square[(h[:, 0] > 0).long()], "square"),
}


def rows_agree(use, names):
    torch.manual_seed(0)
    net, coords = Uses(use), random_coords(6, 2, 0)
    J = inr.jacobian(net, coords, precision="highest")
    torch.testing.assert_close(J.rows(), jacobian_by_points(net, coords).flatten(0, 1), rtol=1e-10, atol=1e-12)
    return {name: layer.kind for layer in J.specs for name in layer.parameters if name in names}


@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors .*no function that takes it")
@pytest.mark.parametrize("name", USES)
def test_known_uses_of_bare_parameters_have_rows(name):
    use, names = USES[name]
    assert rows_agree(use, names.split()) == dict.fromkeys(names.split(), "bare_rows")


def untaken(p, h):
    out = torch.zeros_like(h)
    out[:, 0] = p.gain[0]
    return h + out + torch.cat([p.row[:, :1], p.row[:, 1:]], 1) + p.gain


def from_points(p, h):
    return h + p.square[: len(h) % 2 + 1, :3].sum() * 0 + torch.stack([p.gain] * len(h)) * h


def mapped(p, h):
    return torch.vmap(lambda row: torch.sin(p.gain * row) @ p.square + p.row[0])(h) * p.row


UNKNOWN = {"mapped": (mapped, "gain"), "written into": (untaken, "gain"), "stacked": (from_points, "gain")}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_uses_keep_automatic_differentiation_and_say_what_they_enter(name):
    backends.warn_once.cache_clear()
    use, parameter = UNKNOWN[name]
    with pytest.warns(
        RuntimeWarning, match=r"'gain'.* have no form of two factors \(.*(it enters|must share it|is seen)"
    ):
        assert rows_agree(use, [parameter]) == {parameter: "autodiff"}


@pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors")
def test_values_and_shapes_of_a_parameter_are_no_uses():
    def use(p, h):
        with torch.no_grad():
            level = p.gain * p.one
        h = h * level + (h > p.gain) * p.gain.detach() + h.to(p.row) * float(p.gain.detach().sum()) + h.view_as(h)
        return h * p.gain.data + p.gain * h * p.gain.shape[0]

    assert rows_agree(use, ["gain", "one"]) == {"gain": "bare_rows", "one": "autodiff"}


def test_the_first_kind_that_knows_a_use_takes_it():
    """Two factors before sparse rows, sparse rows before rows, these before automatic differentiation."""
    kinds = [handler.kind for handler in sorted(LAYERS.values(), key=lambda handler: handler.order)]
    wanted = ["linear", "bare_linear", "bare_table", "bare_rows", "autodiff"]
    assert [kind for kind in kinds if kind in wanted] == wanted and kinds[-1] == "autodiff"


def test_a_budget_must_hold_wide_rows_of_any_kind():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 8000))

        def forward(self, x):
            return (torch.sin(x @ self.weight) @ self.weight.t())[:, :1]

    net, coords = Wide(), random_coords(40, 2, 0)
    with pytest.raises(MemoryBudgetError, match=r"rows of 'weight' at 32 points needs .* params="):
        inr.ntk(net, coords, memory_budget=2**23)


def test_costs_say_which_way_parameters_go():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.pair = nn.Linear(2, 4), nn.Bilinear(2, 2, 4)
            self.weight, self.omega = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.ones(4))
            self.table = nn.Parameter(torch.randn(5, 4))

        def forward(self, x):
            h = torch.sin(self.omega * self.lin(x)) + self.pair(x, x) + self.table[(x[:, 0] + 1).long()]
            return F.linear(h, self.weight)

    backends.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="'pair.weight', 'pair.bias' have.*enters bilinear"):
        cost = inr.ntk(Mixed(), random_coords(9, 2, 0)).cost()
    assert cost.ways == {
        "weight": "two factors (bare_linear)",
        "omega": "rows (bare_rows)",
        "table": "sparse rows (bare_table)",
        "lin": "two factors (linear)",
        "pair": "automatic differentiation: it enters bilinear",
    }
    assert "2 by two factors, 1 by rows, 1 by sparse rows, 1 by automatic differentiation" in str(cost)
