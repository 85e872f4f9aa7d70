"""Copies between host and device: the numbers of the moment at which they were asked for, in either direction."""

import torch

from inrfast.linalg.transfer import fetched, sent


def test_what_is_asked_for_is_what_arrives(device):
    numbers = torch.arange(6.0, dtype=torch.float64)
    near, flags = sent(numbers, device), torch.tensor([True, False], device=device)
    assert near.device.type == device.type
    wait = fetched(2 * near[1:], flags)
    near.add_(1)
    found, told = wait()
    assert found.device.type == told.device.type == "cpu"
    assert torch.equal(found, 2 * torch.arange(1.0, 6.0, dtype=torch.float64))
    assert told.tolist() == [True, False]
