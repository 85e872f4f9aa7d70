"""A network inside a wrapper is that network under its own names; one in pieces is refused by name, with a way out."""

import pytest
import torch
import wrapped_calls
from shared_processes import processes
from torch import nn
from torch.optim.swa_utils import AveragedModel
from wrapped_calls import COORDS, TARGET, network

import inrfast as inr
from inrfast.errors import UnsupportedModuleError
from inrfast.wrapped import unwrapped


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with processes(2, tmp_path_factory.mktemp("two")) as found:
        yield found


@pytest.mark.parametrize("way", ["DistributedDataParallel", "fully_shard", "FullyShardedDataParallel"])
@pytest.mark.parametrize("kind", ["INR", "fused layers"])
def test_several_processes_train_to_the_weights_of_one(two, kind, way):
    """Each with half of the points, and the mean of their gradients."""
    alone = network(kind)
    wrapped_calls.train(alone, COORDS, TARGET)
    for state in two.call("wrapped_calls", "trained", kind, way):
        for name, parameter in alone.state_dict().items():
            torch.testing.assert_close(state[name], parameter, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["fully_shard", "FullyShardedDataParallel"])
def test_pieces_are_refused_by_name_at_every_door(two, way):
    """What the message advises is what ``trained`` above does."""
    for found in two.call("wrapped_calls", "refusals", way):
        for door, message in found.items():
            assert message.startswith("UnsupportedModuleError: "), (door, message)
            assert ("DTensor" if way == "fully_shard" else "FullyShardedDataParallel") in message, (door, message)
            assert ("get_model_state_dict" in message) == (door != "init"), (door, message)
            argument = message.split()[1].partition(".")[0]
            names = {"init": "linear", "apply_": "module", "fit_many": "nets[0]", "import_network": "source"}
            assert argument == names.get(door, "net"), message


def test_points_and_values_in_pieces_are_refused_by_name(two):
    for found in two.call("wrapped_calls", "pieces_of_points"):
        for door, message in found.items():
            argument = door.partition(",")[0]
            assert message.startswith(f"TypeError: {argument} must be a plain tensor, got a DTensor"), (door, message)


def test_gradients_shared_with_other_processes_are_no_matter_of_one_fit(two):
    for found in two.call("wrapped_calls", "refusals", "DistributedDataParallel"):
        refused = {door for door, message in found.items() if "give net" in message}
        assert refused == {"fit", "fit_many", "adapt", "meta_learn"}
        others = [message for door, message in found.items() if door not in refused]
        assert all("no refusal" in message for message in others)
    first, second = two.call("wrapped_calls", "kernels")
    assert torch.equal(first, second)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compile": lambda net: torch.compile(net, backend="eager"),
    "an average of compiled": lambda net: AveragedModel(torch.compile(net, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["INR", "fused layers"])
def test_a_wrapped_network_is_the_network(kind, wrapper):
    net = network(kind)
    K = inr.ntk(net, COORDS)
    wrapped = WRAPPERS[wrapper](net)
    found = inr.ntk(wrapped, COORDS)
    assert torch.equal(found.to_dense(), K.to_dense())
    assert list(found.layers) == list(K.layers)
    first = next(iter(K.layers))
    ours, theirs = (inr.jacobian(one, COORDS, params=[first]).rows() for one in (wrapped, net))
    assert torch.equal(ours, theirs)
    if kind == "INR":
        assert str(inr.diagnose(wrapped, COORDS, progress=False)) == str(inr.diagnose(net, COORDS, progress=False))
    assert inr.representation(wrapped, COORDS, first) == inr.representation(net, COORDS, first)


def test_a_wrapper_that_computes_something_else_is_taken_as_it_is():
    net = network("INR")
    hooked = nn.DataParallel(net)
    hooked.register_forward_hook(lambda module, given, output: 2 * output)

    class Doubled(nn.DataParallel):
        def forward(self, x):
            return 2 * super().forward(x)

    K = inr.ntk(net, COORDS, precision="highest").to_dense()
    for wrapper in (hooked, Doubled(net)):
        assert unwrapped(wrapper) is wrapper
        torch.testing.assert_close(inr.ntk(wrapper, COORDS, precision="highest").to_dense(), 4 * K)


class Marked(nn.Parameter):
    """A parameter of a class of one's own, which changes nothing."""


class Halves(torch.Tensor):
    """Numbers kept as halves of what they stand for: torch's operations do not see the whole."""

    @staticmethod
    def __new__(cls, half):
        return torch.Tensor._make_wrapper_subclass(cls, half.shape, dtype=half.dtype)

    def __init__(self, half):
        self.half = half

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].half)
        whole = [2 * a.half if isinstance(a, cls) else a for a in args]
        return func(*whole, **(kwargs or {}))


def test_parameters_of_other_classes_are_taken_where_they_are_plain_numbers_and_refused_by_name_where_not():
    net, plain = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), nn.Linear(2, 1)
    K = inr.ntk(net, COORDS.float()).to_dense()
    net[0].weight = Marked(net[0].weight.detach())
    assert torch.equal(inr.ntk(net, COORDS.float()).to_dense(), K)
    plain.weight = nn.Parameter(Halves(plain.weight.detach()))
    with pytest.raises(UnsupportedModuleError, match="'weight' is a Halves"):
        inr.ntk(plain, COORDS.float())


@pytest.mark.filterwarnings("ignore")
def test_a_network_without_any_observed_layer_is_diagnosed():
    """Scripted, its modules take no hooks: every parameter is differentiated point by point."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    report = inr.diagnose(torch.jit.script(net), COORDS, progress=False)
    known = inr.diagnose(net, COORDS, progress=False)
    assert report.representations == ()
    torch.testing.assert_close(report.kernel.whole.eigenvalues, known.kernel.whole.eigenvalues)
