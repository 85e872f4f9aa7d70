"""Where a network's numbers lie changes nothing of its fit, and nothing beside them is written."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import inrfast as inr
from inrfast.errors import MemoryBudgetError
from inrfast.training.data import check_net
from inrfast.training.fit import fit, fit_many

COORDS = inr.grid((9, 8))
TARGET = 0.5 + 0.4 * (3 * COORDS).sin().prod(1, keepdim=True)
BESIDE = 7.0

VIEWS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "at an offset": lambda room, shape: room[3 : 3 + torch.Size(shape).numel()].view(shape),
    "every second": lambda room, shape: room[1 : 1 + 2 * torch.Size(shape).numel() : 2].view(shape),
    "some columns": lambda room, shape: room[: shape[0] * (shape[-1] + 3)].view(shape[0], -1)[:, 1 : 1 + shape[-1]],
    "transposed": lambda room, shape: room[: torch.Size(shape).numel()].view(shape[::-1]).t(),
    "transposed, with gaps": lambda room, shape: room[: 6 * shape[0] * shape[-1]].view(2 * shape[-1], -1).t()[::3, ::2],
}


def spread_out(net: nn.Module, draw: Callable[[Any], Any]) -> list[tuple[Tensor, Tensor]]:
    """Move every parameter into a wider block of memory; return the blocks and which of their entries lie beside it."""
    blocks = []
    for module in net.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            shape = tuple(parameter.shape)
            kinds = ["at an offset", "every second"] if len(shape) == 1 else sorted(VIEWS)
            block = torch.full((6 * parameter.numel() + 20 * shape[0],), BESIDE)
            view = VIEWS[draw(st.sampled_from(kinds))](block, shape)
            with torch.no_grad():
                view.copy_(parameter)
            beside = torch.ones_like(block, dtype=torch.bool)
            beside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
            module._parameters[name] = nn.Parameter(view)
            blocks.append((block, beside))
    return blocks


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "module":
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return inr.INR(2, 1, width=8, hidden_layers=2, activation="tanh" if kind == "tensors" else "relu")


@settings(max_examples=25)
@given(data=st.data())
def test_parameters_of_any_strides_follow_torch_s_own_loop_and_nothing_beside_them_changes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["adam", "adamw", "sgd"]))
    plain = made(data.draw(st.sampled_from(["module", "tensors", "native"])))
    many = data.draw(st.booleans())
    nets = [copy.deepcopy(plain) for _ in range(2 if many else 1)]
    blocks = [pair for net in nets for pair in spread_out(net, data.draw)]
    places = [parameter.data_ptr() for net in nets for parameter in net.parameters()]
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    optimizer = make(plain.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(4):
        optimizer.zero_grad()
        (plain(COORDS) - TARGET).square().mean().backward()
        optimizer.step()
    options: dict[str, Any] = {"steps": 4, "lr": 1e-2, "schedule": "constant", "optimizer": name}
    if many:
        fit_many(nets, COORDS, TARGET, **options)
    else:
        fit(nets[0], COORDS, TARGET, **options)
    for net in nets:
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [parameter.data_ptr() for net in nets for parameter in net.parameters()] == places
    assert all(bool((block[beside] == BESIDE).all()) for block, beside in blocks)


def with_weight(*tensors: Tensor) -> nn.Module:
    net = nn.Module()
    for number, tensor in enumerate(tensors):
        net.register_parameter(f"p{number}", nn.Parameter(tensor))
    return net


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    strides=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    offset=st.integers(0, 12),
    frozen=st.booleans(),
)
def test_entries_that_share_memory_are_refused_and_no_others(
    shape: list[int], strides: list[int], offset: int, frozen: bool
) -> None:
    """Against a count of the places, one by one; the second tensor takes places 6 to 11."""
    room = torch.zeros(80)
    view = room.as_strided(shape, strides[: len(shape)], offset)
    places = torch.arange(80).as_strided(shape, strides[: len(shape)], offset).flatten().tolist()
    net = with_weight(view, room[6:12])
    if frozen:
        net.p0.requires_grad_(False)
    if len(set(places)) < len(places):
        message = "p0 overlaps itself in memory"
    elif set(places) & set(range(6, 12)):
        message = "net.p1 and net.p0 overlap in memory"
    else:
        check_net(net)
        return
    with pytest.raises(ValueError, match=message):
        check_net(net)


def test_networks_that_overlap_are_refused_and_those_side_by_side_are_trained_where_they_are() -> None:
    room = torch.linspace(-1, 1, 6).repeat(2)
    nets = [nn.Sequential(nn.Linear(2, 1)) for _ in range(2)]
    for number, net in enumerate(nets):
        net[0].weight = nn.Parameter(room[3 * number : 3 * number + 2].view(1, 2))
    fit_many(nets, COORDS, TARGET, steps=2)
    assert torch.equal(room.view(4, 3)[:2, :2], torch.stack([net[0].weight[0].detach() for net in nets]))
    nets[1][0].weight = nn.Parameter(room[1:3].view(1, 2))
    with pytest.raises(ValueError, match=r"nets\[1\].0.weight and nets\[0\].0.weight overlap in memory"):
        fit_many(nets, COORDS, TARGET, steps=2)


def test_a_fused_optimiser_of_torch_s_is_refused_where_it_would_write_beside() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].weight = nn.Parameter(torch.rand(4, 5)[:, 1:3])
    with pytest.raises(ValueError, match=r"fused update writes beside 0\.weight"):
        fit(net, COORDS, TARGET, optimizer=torch.optim.Adam(net.parameters(), fused=True))
    fit(net, COORDS, TARGET, steps=1, optimizer=torch.optim.Adam(net.parameters(), fused=False))


def test_a_fit_that_cannot_begin_leaves_networks_in_their_memory() -> None:
    nets = [inr.INR(2, 1, width=8, hidden_layers=2, seed=seed) for seed in range(2)]
    before = [(parameter.data_ptr(), parameter.detach().clone()) for net in nets for parameter in net.parameters()]
    with pytest.raises(MemoryBudgetError):
        fit_many([*nets, inr.INR(2, 1, width=9)], COORDS, TARGET, steps=2, memory_budget=10)
    for (place, values), parameter in zip(before, [p for net in nets for p in net.parameters()], strict=True):
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, values)
