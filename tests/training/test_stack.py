"""A stack and its networks are the same numbers, and part as strangers."""

import torch
from torch import nn

import inrfast as inr
from inrfast.training.stack import ALIGNMENT, Stack


def networks(count: int) -> list[inr.INR]:
    return [inr.INR(2, 1, width=4, hidden_layers=1, seed=seed) for seed in range(count)]


def test_networks_and_their_stack_are_views_of_each_other() -> None:
    for count in (1, 3):
        nets = networks(count)
        before = [{name: p.detach().clone() for name, p in net.named_parameters()} for net in nets]
        stack = Stack(nets)
        assert len(stack) == count
        for place, values in enumerate(before):
            for name, value in values.items():
                assert torch.equal(stack.parameters[name][place], value)
        stack.parameters["layers.0.weight"].add_(1.0)
        nets[-1].layers[1].bias.data.fill_(7.0)
        assert torch.equal(nets[0].layers[0].weight, before[0]["layers.0.weight"] + 1)
        assert float(stack.parameters["layers.1.bias"][-1]) == 7.0


def test_kept_networks_keep_gradients_and_the_others_their_weights() -> None:
    nets = networks(3)
    nets[0].layers[0].bias.requires_grad_(False)
    for net in nets[1:]:
        net.layers[0].bias.requires_grad_(False)
    stack = Stack(nets)
    assert stack.trainable == ["layers.0.weight", "layers.1.weight", "layers.1.bias"]
    for grad in stack.grads.values():
        grad.copy_(torch.arange(3.0).reshape(3, *[1] * (grad.ndim - 1)).expand_as(grad))
    weights = [net.layers[0].weight.detach().clone() for net in nets]
    kept = stack.keep([2, 0])
    assert [float(grad[place].max()) for grad in kept.grads.values() for place in (0, 1)] == [2.0, 0.0] * 3
    for parameter in kept.parameters.values():
        parameter.zero_()
    assert torch.equal(nets[1].layers[0].weight, weights[1])
    assert float(nets[0].layers[0].weight.detach().abs().max()) == 0.0
    kept.release()
    assert (
        nets[0].layers[0].weight.untyped_storage().data_ptr() != nets[2].layers[0].weight.untyped_storage().data_ptr()
    )


def test_shared_parameters_and_buffers_of_one_network_stand_once() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.BatchNorm1d(3), layer)
    stack = Stack([net])
    assert list(stack.parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(stack.state) == 4 + 3
    assert stack.of(net[2].weight) is stack.parameters["0.weight"]
    stack.state[-1].fill_(5)
    assert int(net[1].num_batches_tracked) == 5


def test_a_flat_stack_holds_each_network_in_one_row() -> None:
    """Aligned, gradients too; released, networks have own memory and the same weights."""
    for count in (1, 3):
        nets = networks(count)
        before = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
        stack = Stack(nets, flat=True)
        assert stack.flat is not None
        assert stack.flat.shape == stack.flat_grads.shape == (count, 16 * 4)
        assert all(place % ALIGNMENT == 0 for place in stack.places.values())
        for index, values in enumerate(before):
            parts = [stack.parameters[name][index].flatten() for name in stack.places]
            assert torch.equal(torch.cat(parts), values)
        stack.flat.mul_(2.0)
        stack.grads["layers.1.weight"].fill_(3.0)
        assert float(stack.flat_grads.sum()) == 3.0 * 4 * count
        kept = stack.keep([count - 1])
        assert kept.flat is not None
        assert torch.equal(kept.flat_grads, stack.flat_grads[-1:])
        kept.flat.add_(1.0)
        kept.release()
        for index, (net, values) in enumerate(zip(nets, before, strict=True)):
            now = torch.cat([p.detach().flatten() for p in net.parameters()])
            assert torch.equal(now, 2 * values + (1.0 if index == count - 1 else 0.0))
            assert len({p.untyped_storage().data_ptr() for p in net.parameters()}) == 4
