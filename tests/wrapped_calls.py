"""What each of two processes does with networks that several share; tests/test_wrapped.py says what is to come out."""

import copy
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import inrfast as inr
from inrfast.nn import FusedLinear

COORDS = inr.grid((8, 6), dtype=torch.float64)
TARGET = (3 * COORDS).sin().prod(1, keepdim=True)


def network(kind):
    if kind == "INR":
        return inr.INR(2, 1, width=8, hidden_layers=2, activation="sine", omega=5.0, norm="sphere", seed=0).double()
    torch.manual_seed(0)
    layers = [FusedLinear(2, 8, activation="tanh"), FusedLinear(8, 8, activation="gelu"), nn.Linear(8, 1)]
    return nn.Sequential(*layers).double()


def train(net, coords, target):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (net(coords) - target).square().mean().backward()
        optimizer.step()


def sharded(kind, way):
    net, mesh = network(kind), init_device_mesh("cpu", (dist.get_world_size(),))
    if way == "DistributedDataParallel":
        return DistributedDataParallel(net)
    if way == "fully_shard":
        return fully_shard(net, mesh=mesh)
    return FullyShardedDataParallel(net, device_id=torch.device("cpu"))


def whole(net, kind):
    """The network of one process, got as errors advise."""
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    alone = network(kind)
    alone.load_state_dict(state)
    return alone


def trained(kind, way):
    """Weights after some steps, each process on its own points."""
    warnings.simplefilter("ignore")
    net, own = sharded(kind, way), slice(dist.get_rank(), None, dist.get_world_size())
    train(net, COORDS[own], TARGET[own])
    return dict(whole(net, kind).state_dict())


def refusals(way):
    """What every door says of a network in pieces."""
    warnings.simplefilter("ignore")
    net = sharded("INR", way)
    signals = torch.stack([TARGET, TARGET])
    doors = {
        "ntk": lambda: inr.ntk(net, COORDS),
        "distributed.ntk": lambda: inr.distributed.ntk(net, COORDS),
        "jacobian": lambda: inr.jacobian(net, COORDS),
        "diagnose": lambda: inr.diagnose(net, COORDS, progress=False),
        "representation": lambda: inr.representation(net, COORDS),
        "dictionary": lambda: inr.dictionary(net, COORDS),
        "fit": lambda: inr.fit(net, COORDS, TARGET, steps=1, progress=False),
        "fit_many": lambda: inr.fit_many([net], COORDS, TARGET, steps=1, progress=False),
        "watch": lambda: inr.watch(net, COORDS),
        "apply_": lambda: inr.init.apply_(net, "rank_expanding", coords=COORDS),
        "adapt": lambda: inr.adapt(net, COORDS, signals, steps=1),
        "meta_learn": lambda: inr.meta_learn(net, COORDS, signals, steps=1, progress=False),
    }
    if way == "fully_shard":  # the other one gathers its state
        doors["import_network"] = lambda: inr.import_network(net.state_dict(), "sequential")
    if way == "fully_shard":
        doors["init"] = lambda: inr.init.siren_(net.layers[0])
    return told(doors)


def pieces_of_points():
    """What doors say of points and values in pieces."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    points, values = (distribute_tensor(own, mesh, [Shard(0)]) for own in (COORDS, TARGET))
    net = network("INR")
    doors = {
        "coords, of ntk": lambda: inr.ntk(net, points),
        "coords, of diagnose": lambda: inr.diagnose(net, points, progress=False),
        "coords, of fit": lambda: inr.fit(net, points, TARGET, steps=1, progress=False),
        "target, of fit": lambda: inr.fit(net, COORDS, values, steps=1, progress=False),
        "V, of a product": lambda: inr.ntk(net, COORDS) @ values,
        "y, of solve": lambda: inr.ntk(net, COORDS).solve(values, progress=False),
        "coords, of watch": lambda: inr.watch(net, points),
        "coords, of apply_": lambda: inr.init.apply_(net, "rank_expanding", coords=points),
    }
    return told(doors)


def told(doors):
    found = {}
    for name, door in doors.items():
        try:
            found[name] = f"no refusal: {door()}"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def kernels():
    """The kernel of a network in DistributedDataParallel, whose processes need not take part together."""
    net = sharded("INR", "DistributedDataParallel")
    if dist.get_rank() == 0:
        return inr.ntk(net, COORDS, precision="highest").to_dense()
    return inr.ntk(copy.deepcopy(net.module), COORDS, precision="highest").to_dense()
