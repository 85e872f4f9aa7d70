"""Networks of others: kernel, Jacobian, ranks, diagnosis and fit agree with torch, and leave them as they were."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from others_modules import OTHERS, REFUSED, Size
from random_networks import random_coords
from torch.func import functional_call, jacrev, vmap

import inrfast as inr

POINTS = 9

pytestmark = pytest.mark.filterwarnings("ignore:parameters .* form of two factors:RuntimeWarning")


def made(name):
    """Return a network with every parameter in general position, what is known of it, and points."""
    torch.manual_seed(sorted([*OTHERS, *REFUSED]).index(name))
    other = OTHERS[name]
    return other, other.make(Size()), random_coords(POINTS, other.dimensions, 3)


def exact_jacobian(other, net, coords):
    """Return d f_m(x_n) / d theta in fp64, (N, M, P), by vmap of jacrev, parameters in parameters_to_vector order."""
    twin = copy.deepcopy(net).double()
    if other.inner is not None:
        twin, other = other.inner(twin), type(other)(other.make)
    parameters = {k: p.detach() for k, p in twin.named_parameters() if p.requires_grad}

    def outputs(chosen, x):
        return other.output(functional_call(twin, chosen, (x.expand(2, -1),)))[0]  # two points, for what squeezes

    found = vmap(jacrev(outputs), (None, 0))(parameters, coords.double())
    return torch.cat([found[name].flatten(2) for name in parameters], dim=2)


def assert_same(got, truth):
    """To 1e-10 of the largest entry."""
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-10 * float(truth.abs().max()))


def state_of(net):
    """Everything of a network that an operation might change, by value; tensors as copies."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    flags = {name: (module.training, sorted(vars(module))) for name, module in net.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in net.named_modules()}
    kept = {name: p.grad for name, p in net.named_parameters()}
    given = {name: (p.requires_grad, p.dtype, p.data_ptr()) for name, p in tensors.items()}
    return flags, hooks, kept, given, {name: p.detach().clone() for name, p in tensors.items()}


def assert_unchanged(before, net):
    after = state_of(net)
    assert before[:4] == after[:4]
    assert all(torch.equal(value, after[4][name]) for name, value in before[4].items())


def check_jacobian(net, coords, select, J):
    found, flat = inr.jacobian(net, coords, select=select, precision="highest"), J.flatten(0, 1)
    assert_same(found.rows(), flat)
    v, u = (torch.linspace(-1, 1, size, dtype=torch.float64) for size in flat.t().shape)
    assert_same(found @ v, flat @ v)
    assert_same(found.T @ u, flat.t() @ u)


def check_kernel(net, coords, select, J):
    truth = torch.einsum("imp,jmp->ij", J, J)
    K = inr.ntk(net, coords, select=select, precision="highest")
    assert_same(K.to_dense(), truth)
    assert_same(sum(layer.to_dense() for layer in K.layers.values()), truth)
    assert_same(K @ truth[:, :2], truth @ truth[:, :2])
    spectrum, eigenvalues = K.spectrum(), torch.linalg.eigvalsh(truth).flip(0)
    assert_same(spectrum.eigenvalues, eigenvalues)
    for rtol in (1e-2, 1e-6):
        assert int((eigenvalues > rtol * eigenvalues[0]).sum()) in spectrum.rank(rtol)


def check_diagnosis(net, coords, select, J):
    report = inr.diagnose(net, coords, select=select, rtols=(1e-3,), progress=False)
    assert (report.points, report.outputs, report.parameters) == J.shape
    assert report.kernel.whole.trace == pytest.approx(float(J.square().sum()), rel=1e-10)
    assert sum(block.trace for block in report.kernel.blocks) == pytest.approx(report.kernel.whole.trace, rel=1e-10)


@pytest.mark.parametrize("name", OTHERS)
def test_threads_that_share_a_network_agree_with_torch_func_and_leave_it_as_it_was(name):
    other, net, coords = made(name)
    before, drawn = state_of(net), torch.get_rng_state()
    J = exact_jacobian(other, net, coords)
    checks = [check_jacobian, check_kernel, check_diagnosis]
    with ThreadPoolExecutor(len(checks)) as pool:
        for result in [pool.submit(check, net, coords, other.select, J) for check in checks]:
            result.result()
    assert_unchanged(before, net)
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("name", OTHERS)
def test_a_fit_takes_the_steps_of_the_plain_loop(name):
    other, net, coords = made(name)
    net, coords = net.double(), coords.double()
    twin = copy.deepcopy(net)
    target = torch.sin(2 * coords[:, :1] + torch.arange(other.output(net(coords)).shape[1]))
    options = {"schedule": "constant", "precision": "highest", "progress": False}
    inr.fit(net, coords, target, steps=3, lr=1e-3, select=other.select, **options)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(other.output(twin(coords)), target).backward()
        optimizer.step()
    for own, plain in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-9)
