"""Blocks of a kernel's entries: any rows of any columns, into memory of any strides, by either backend."""

import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import inrfast as inr
from inrfast.tangent.kernel_operator import KernelOperator


def memory(kind, rows, columns, dtype):
    """Return an uninitialised block (rows, columns), and the memory it lies in."""
    if kind == "rows":
        whole = torch.full((rows, columns), float("nan"), dtype=dtype)
        return whole, whole
    if kind == "turned":
        whole = torch.full((columns, rows), float("nan"), dtype=dtype)
        return whole.t(), whole
    whole = torch.full((rows, 2 * columns + 3, 2), float("nan"), dtype=dtype)
    return whole[:, 3 : columns + 3, 1 if kind == "scattered" else 0], whole


@settings(max_examples=3, phases=[Phase.explicit, Phase.generate])
@example("triton", "full", torch.float32, "turned", 100, 295, 0)  # a ragged beginning, and most of what is in memory
@example("triton", "trace", torch.float64, "rows", 128, 150, 1)
@given(
    st.sampled_from(["triton", "torch"]),
    st.sampled_from(["trace", "full", 1]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["rows", "turned", "part", "scattered"]),
    st.integers(0, 299),
    st.integers(1, 300),
    st.integers(0, 2**31),
)
def test_blocks_are_entries_of_the_kernel(backend, output, dtype, kind, start, stop, seed):
    coords = inr.grid((15, 10))
    net = inr.INR(2, 2, width=16, hidden_layers=1, activation="sine", seed=seed % 97)
    K = inr.ntk(net, coords, output=output, precision="highest", backend=backend)
    truth = inr.ntk(net, coords, output=output, precision="highest", backend="torch").to_dense()
    stop = min(stop, len(truth))
    start = min(start, stop - 1)
    index = torch.randint(len(truth), (1 + seed % 40,), generator=torch.Generator().manual_seed(seed))
    parts = [slice(start, stop), slice(0, start + 1)]
    blocks = [memory(kind, part.stop - part.start, len(index), dtype) for part in parts]
    KernelOperator(K).blocks_([(out, part) for (out, _), part in zip(blocks, parts, strict=True)], index, dtype)
    size = truth.diagonal().sqrt()
    for (out, whole), part in zip(blocks, parts, strict=True):
        error = ((out.double() - truth[part, index]).abs() / torch.outer(size[part], size[index])).max()
        assert float(error) <= (1e-12 if dtype == torch.float64 else 2e-6)
        assert int(whole.isnan().sum()) == whole.numel() - out.numel()  # nothing else is written
