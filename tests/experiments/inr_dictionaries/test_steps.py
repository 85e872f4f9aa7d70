"""The first steps: gradient descent by hand, on one half of the pixels, measured on both."""

import math

import pytest
import torch
from tiny_faces import tiny

from inrfast.experiments.inr_dictionaries.faces import targets
from inrfast.experiments.inr_dictionaries.starts import ADAM_LR, INNER_LR, META, SIRENS, images, points, weights_cells
from inrfast.experiments.inr_dictionaries.steps import halves, steps_cell
from inrfast.experiments.paper import Request, Work

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small():
    with tiny():
        yield


def test_halves_are_apart_and_hold_all_pixels():
    for count in (2, 9, 64):
        first, second = halves(count, 3)
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(count))
        assert abs(len(first) - len(second)) <= 1
    assert not torch.equal(halves(64, 3)[0], halves(64, 4)[0])


@pytest.mark.parametrize("start", [META, SIRENS[3]], ids=lambda start: start.name)
def test_paths_are_those_of_steps_by_hand(start, tmp_path):
    request, steps = Request(), 4
    found = {cell.name: cell.run(Work(CPU, tmp_path / "a.fit", False)) for cell in weights_cells([start], request)}
    numbers = steps_cell(start, request, found, steps).run(Work(CPU, tmp_path / "b.fit", False)).numbers
    there = images(request)
    coords, values = points(there.side, CPU, torch.float64), targets(there.held_out, torch.float64)
    seen, unseen = halves(there.side**2, request.seed)
    train, test = torch.zeros(len(values), steps + 1), torch.zeros(len(values), steps + 1)
    for image, value in enumerate(values):
        net = start.network(request, found, CPU, torch.float64)
        rule = (torch.optim.SGD, INNER_LR) if start.meta else (torch.optim.Adam, ADAM_LR)
        optimizer = rule[0](net.parameters(), rule[1])
        for step in range(steps + 1):
            loss = (net(coords[seen]) - value[seen]).square().mean()
            train[image, step] = -10 * math.log10(float(loss.detach()))
            with torch.no_grad():
                test[image, step] = -10 * math.log10(float((net(coords[unseen]) - value[unseen]).square().mean()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(torch.tensor(numbers["train"]), train.mean(0), rtol=0, atol=1e-2)
    torch.testing.assert_close(torch.tensor(numbers["test"]), test.mean(0), rtol=0, atol=1e-2)
    torch.testing.assert_close(torch.tensor(numbers["last"]), test[:, -1], rtol=0, atol=2e-2)
