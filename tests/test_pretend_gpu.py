"""Every public path on a pretend GPU: the CPU's results, no mixed devices, captures that replay, few kernels and waits.

The walk runs in a process of its own, where ``torch.cuda`` is the pretend machine of ``pretend_gpu.py``. What one call
may ask of the device stands in :data:`CEILINGS`; ``python tests/pretend_walk.py NAME --places`` says from where.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inrfast.backends import reason_against_package

pytestmark = pytest.mark.skipif(reason_against_package() is not None, reason=str(reason_against_package()))

HERE = Path(__file__).parent

CEILINGS = {
    "network": (13, 7),
    "ntk": (235, 5),
    "dense medium": (265, 12),
    "dense high": (31, 6),
    "dense highest": (256, 10),
    "dense of two grids": (303, 16),
    "dense of all outputs": (290, 12),
    "columns": (51, 9),
    "submatrix": (51, 9),
    "diagonal": (42, 4),
    "Frobenius norm": (33, 7),
    "product": (48, 7),
    "product of 64": (47, 7),
    "quadratic form": (66, 8),
    "row sums": (48, 7),
    "layer's kernel": (95, 5),
    "rows": (37, 0),
    "J p": (59, 2),
    "J^T v": (64, 2),
    "spectrum dense": (275, 17),
    "spectrum cholesky": (2921, 33),
    "spectrum lanczos": (304, 22),
    "spectrum inertia": (2250, 115),
    "spectrum quadrature": (3253, 21),
    "solve": (67, 8),
    "factor, solve": (720, 34),
    "factor, logdet": (1011, 39),
    "diagnose": (772, 70),
    "fit": (345, 33),
    "fit medium": (370, 38),
    "fit mini-batches": (537, 38),
    "fit by torch": (371, 28),
    "fit batch norm": (600, 46),
    "fit batch norm by torch": (580, 37),
    "fit_many": (609, 62),
    "fused layer": (3, 0),
    "fused layer's kernels": (6, 0),
    "rank_expanding": (4, 3),
    "encoding fourier": (247, 14),
    "encoding positional": (242, 14),
    "encoding polynomial": (284, 14),
}
"""Kernels that one call may launch, operators of torch among them, and how often the host may wait for the device."""

ERRORS = {"medium": 2e-4, "highest": 1e-13, "fit": 1e-4, "fit medium": 5e-2, "fit by torch": 1e-4, "solve": 1e-8}
"""Distance from the CPU's result, relative to its largest entry, by a word of the path's name; else :data:`ERROR`.

A fit in "medium" is in fp16 here and in bf16 on the CPU.
"""
ERROR = 2e-6

ON_THE_HOST = ("Frobenius norm", "factor, logdet", "spectrum inertia", "diagnose", "fit")
"""Paths that return numbers of the host."""


@pytest.fixture(scope="module")
def lines():
    """Return what the walk prints: what each path cost and how far it is from the CPU's, the waits of each loop."""
    command = [sys.executable, "-W", "ignore", str(HERE / "pretend_walk.py")]
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def walked(lines):
    """Return what each path cost by its name."""
    found = {entry["path"]: entry for entry in lines if "path" in entry}
    print(f"{'path':24} kernels  waits  replays")
    for name, entry in found.items():
        costs = (entry["cuda:0"].get(what, "-") for what in ("kernels", "waits", "replays"))
        print(f"{name:24} " + "  ".join(f"{cost:>6}" for cost in costs))
    return found


def test_every_path_has_its_ceilings(walked):
    assert set(walked) == set(CEILINGS)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("path", CEILINGS)
def test_paths(walked, path, device):
    """The CPU's result, on the device that was asked for, with no violation in a capture, within the ceilings."""
    found = walked[path][device]
    assert "failed" not in found, found["failed"]
    assert not found["violations"]
    bound = ERRORS.get(path, next((e for word, e in ERRORS.items() if word in path), ERROR))
    assert found["error"] <= bound
    assert found["on"] == ("cpu" if path.startswith(ON_THE_HOST) else device)
    kernels, waits = CEILINGS[path]
    assert found["kernels"] <= kernels
    assert found["waits"] <= waits
    replayed = path.startswith("fit") and not path.endswith("by torch")
    assert (found["replays"] > 0) == replayed


@pytest.mark.parametrize(
    ("loop", "most"),
    [
        ("blocks of pivots", None),
        ("batches of Lanczos", None),
        ("batches of Lanczos on a residual", None),
        ("windows of a factor", 80),
        ("windows of a factor in fp32", 85),
    ],
)
def test_loops_wait_once_a_turn(lines, loop, most):
    """What decides whether to go on is read at once, and all kernels of a turn follow each other until then."""
    (found,) = (entry for entry in lines if entry.get("loop") == loop)
    assert len(found["waits"]) >= 2
    assert set(found["waits"]) == {1}
    assert most is None or max(found["kernels"]) <= most


LAWS = """
import pretend_gpu as gpu
import torch

gpu.install("interpret")
x, y = torch.arange(6.0, device="cuda"), torch.arange(6.0).to("cuda:1")


def refused(action, words, error=RuntimeError):
    try:
        action()
    except error as raised:
        assert words in str(raised), raised
    else:
        raise AssertionError(words)


assert (str(x.device), str(y.device), x.is_cuda) == ("cuda:0", "cuda:1", True)
refused(lambda: x + y, "same device")
refused(lambda: x + torch.ones(6), "same device")
refused(lambda: x.numpy(), "Tensor.cpu()", TypeError)
refused(lambda: torch.randn(2, device="cuda", generator=torch.Generator()), "generator")
refused(lambda: torch.ones(2, device="cuda:2"), "ordinal")
assert float((x + torch.tensor(1.0)).sum()) == 21  # a scalar of the CPU may join
assert torch.equal(x[[1, 2]].cpu(), torch.tensor([1.0, 2.0]))

# Numbers are drawn from each device's own generator, and those of the CPU are left alone.
torch.manual_seed(0)
expected = torch.rand(3)
torch.manual_seed(0)
torch.rand(3, device="cuda")
assert torch.equal(torch.rand(3), expected)

# Autograd gives gradients on the device.
w = torch.nn.Parameter(torch.ones(6, device="cuda:1"))
(w * y).square().sum().backward()
assert str(w.grad.device) == "cuda:1"
assert torch.equal(w.grad.cpu(), 2 * torch.arange(6.0) ** 2)

# What is on its way to the host is not read there before an event of its own device and stream has come.
host = torch.empty(6, pin_memory=True).copy_(y, non_blocking=True)
for stream in (None, torch.cuda.Stream("cuda:1"), torch.cuda.current_stream("cuda:1")):
    refused(lambda: host + 1, "before it has arrived")
    event = torch.cuda.Event()
    event.record(stream)
    event.synchronize()
assert torch.equal(host + 1, y.cpu() + 1)

# A graph is not run when captured, and replays into the same memory.
graph, total = torch.cuda.CUDAGraph(), torch.zeros(6, device="cuda")
with torch.cuda.graph(graph):
    total.add_(x)
assert float(total.sum()) == 0
graph.replay()
graph.replay()
assert torch.equal(total.cpu(), 2 * torch.arange(6.0))
assert not gpu.record.violations


def violated(action, words, **options):
    before = gpu.record.violations.copy()
    with torch.cuda.graph(torch.cuda.CUDAGraph(), **options):
        action()
        total.add_(x)
    found = [what for what, _ in gpu.record.violations - before]
    assert any(words in what for what in found), (words, found)


violated(lambda: total.sum().item(), "synchronisation")
violated(lambda: x + 1, "allocation")
violated(lambda: torch.ones(3).to("cuda"), "copy")
violated(lambda: y.add_(1), "cuda:1 in a capture on a stream of cuda:0")
with torch.cuda.device("cuda:1"):  # the stream was made before, on the first device
    violated(lambda: y.add_(1), "cuda:1 in a capture on a stream of cuda:0")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, stream=torch.cuda.Stream("cuda:1")):
    y.add_(1)
graph.replay()
assert float(y.sum()) == 15 + 3 * 6  # twice while it was no part of the capture
"""

COMPILED = """
import pretend_gpu as gpu
import torch

gpu.install("compile")
import triton
import inrfast as inr

hits = []
triton.knobs.compilation.listener = lambda **found: hits.append(found["cache_hit"])
for device in ("cuda:0", "cuda:1"):
    net = inr.INR(2, 1, width=16, hidden_layers=1).to(device)
    inr.ntk(net, inr.grid((4, 4)).to(device), precision="highest").to_dense()
assert {name for name, _ in gpu.compiled.values()} == {"mlp_slabs", "gram_tile"}
assert all(b"ELF" in kernel.asm["cubin"][:4] for kernel in gpu.kernels_kept)
half = len(hits) // 2
assert half == 2 and hits[half:] == [True] * half, hits  # the second device finds the first one's machine code
"""


@pytest.mark.parametrize(("program", "interpreted"), [(LAWS, "1"), (COMPILED, "0")], ids=["laws", "compiled"])
def test_pretend_machine(program, interpreted, tmp_path):
    """It raises what CUDA raises, sees what must not be captured, and compiles what the JIT would."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    environment |= {"TRITON_INTERPRET": interpreted}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
