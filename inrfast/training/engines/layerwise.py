"""Backpropagation of coordinate MLPs written out: chunks that stay in cache, buffers reused, one thread a core."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inrfast.memory import CACHED_BYTES, cached_rows, chunks, require
from inrfast.mlp import MLP, describe
from inrfast.ops import gemm, mlp_step
from inrfast.threads import MOST_THREADS, share
from inrfast.threads import cores as torch_cores
from inrfast.training.data import Data
from inrfast.training.engines.passes import NARROW, NativePass, Pass, TensorPass, gathered
from inrfast.training.stack import Stack

LEAST_ROWS, SHARES, MOST_SHARES = 256, 4, 16
"""Fewest rows that are worth a thread; shares of the rows a thread, the next one for whichever is free; and of all
threads, where more would take longer to add up than they save."""

SMALL = 2**15
"""Entries of features up to which an operation is over before a second core has joined in: torch's own grain."""

ENCODING_BUFFERS = 5
"""Buffers of an encoding's columns that it takes to make them: phases, cosines and sines, both together, a copy."""

LEAST_WORK, MOST_BYTES = 2**26, 2**22
"""FLOP of a product between hidden layers from which threads no longer wait for their turns at Python, and the size of
a buffer up to which narrow layers get there: larger than the cache is dear too."""


def reason_against(described: MLP | str) -> str | None:
    """Return why backpropagation is not written out for a network, by whichever kernels or operations, or None."""
    if isinstance(described, str):
        return described
    if described.norms:
        return "its hidden layers have norms"
    if described.hooked_backward:
        return "hooks see its backward passes"
    if not described.known_encoding:
        return f"its encoding is a {type(described.encoding).__name__}, none of the library's own"
    encoding = [] if described.encoding is None else list(described.encoding.parameters())
    if any(parameter.requires_grad for parameter in encoding):
        return "its encoding is trained"
    if len({(p.dtype, p.device) for p in [*described.parameters.values(), *encoding]}) > 1:
        return "its parameters have several dtypes or devices"
    if len(set(described.widths)) > 1:
        return f"its hidden layers have different widths ({', '.join(map(str, sorted(set(described.widths))))})"
    return None


class LayerwiseGradient:
    """Gradient of the mean squared error of INRs without norms, one or several of one shape; a ``Gradient`` of a fit.

    With ``u_l = Z_{l-1} W_l^T + b_l``, ``Z_l = act(u_l)`` and the error ``E_L = 2 w (f - y) / sum w`` at the head:
    ``dW_l = E_l^T Z_{l-1}``, ``db_l = sum_n E_l``, ``E_{l-1} = (E_l W_l) * act'(u_{l-1})``, each added up over chunks
    of rows: by native steps where they apply, else by torch's operations (:mod:`inrfast.training.engines.passes`).

    On a CPU each thread takes its own networks or, of a single one, its own shares of the rows, so that threads wait
    for each other once a step and not once an operation. Shares and their sums are fixed, whichever thread takes them:
    a step can be repeated bit by bit.

    Parameters
    ----------
    stack
        Networks without norms; each call overwrites their gradients.
    data
        Their points, values and weights.
    points
        Most points of a step.
    budget
        Bytes for the buffers, and for the encoded points if they fit half of it.
    cores
        Threads at most, and fewer where the matrix library has its own; None takes as many as torch may use now.
    narrow
        Products between hidden layers take operands in bfloat16 and round results to it; what meets the coordinates,
        predictions, weights and their gradients stays as it is. A gradient then has a relative error near 1e-2.

    Raises
    ------
    MemoryBudgetError
        Not even one row fits the budget.
    """

    name = "layerwise"

    def __init__(
        self, stack: Stack, data: Data, points: int, budget: int, narrow: bool = False, cores: int | None = None
    ) -> None:
        self.stack, self.data, self.narrow = stack, data, narrow
        mlp = describe(stack.nets[0])
        assert isinstance(mlp, MLP)
        self.mlp = mlp
        self.encoded, self.encodings = encoded(stack, mlp, data.coords, budget, NARROW if narrow else data.coords.dtype)
        if self.encoded is not data.coords:
            budget -= self.encoded.nbytes
        self.most_shares = max(1, min(MOST_SHARES, budget // (4 * sum(grad.nbytes for grad in stack.grads.values()))))
        self.rows = self.block = 1
        self.by_networks = False
        cores = torch.get_num_threads() if cores is None else cores
        self.passes: Sequence[Pass] = self._native_passes(points, budget, cores)
        self.native = mlp_step.instructions() if self.passes else ""
        self.passes = self.passes or self._tensor_passes(points, budget, cores)
        widest = max(*mlp.widths, mlp.outputs)
        self.one_core = len(self.passes) > 1 or self.block * self.rows * widest <= SMALL
        # The first share adds straight to the gradients; where there are several of the rows, the others have own sums.
        own = 1 if self.by_networks else self._shares_of(points)
        self.sums = [stack.grads, *({n: torch.zeros_like(g) for n, g in stack.grads.items()} for _ in range(own - 1))]

    def _native_passes(self, points: int, budget: int, cores: int) -> Sequence[Pass]:
        """Return the threads' parts by native steps, none where those do not apply or fit."""
        inputs, mlp = self.encoded, self.mlp
        if self.narrow or self.encodings is not None or NativePass.reason_against(mlp, self.stack, inputs, self.data):
            return ()
        widest = max(*mlp.widths, mlp.outputs, inputs.shape[2])
        cores = min(cores, MOST_THREADS)
        self.rows = mlp_step.chunk_rows(widest, points)
        self.block = math.ceil(len(self.stack) / (4 * cores))
        threads = self._threads(points, cores)
        first = NativePass(self)
        if threads * first.memory.nbytes > budget:
            return ()
        return [first, *(NativePass(self) for _ in range(threads - 1))]

    def _tensor_passes(self, points: int, budget: int, cores: int) -> Sequence[Pass]:
        """Return the threads' parts by torch's operations."""
        mlp, like = self.mlp, self.data.target
        widest = max(*mlp.widths, mlp.outputs)
        row_bytes = like.element_size() * ((2 * len(mlp.hidden) + 2) * mlp.widths[0] + mlp.outputs)
        if self.encodings is not None:
            row_bytes += ENCODING_BUFFERS * like.element_size() * mlp.columns
        require(row_bytes, budget, "one row of a training step", "a narrower network would fit")
        affordable = budget // row_bytes
        size = min(max(CACHED_BYTES, LEAST_WORK * like.element_size() // (2 * widest)), MOST_BYTES)
        self.rows = min(cached_rows(widest, like, size), points, affordable)
        with torch_cores(cores):
            cores = gemm.threads(like.dtype, like.device)
        together_fit = max(1, min(size // (points * widest * like.element_size()), affordable // points))
        self.block = min(together_fit, math.ceil(len(self.stack) / (2 * cores))) if self.rows == points else 1
        threads = min(self._threads(points, cores), max(1, affordable // (self.block * self.rows)))
        return [TensorPass(self) for _ in range(threads)]

    def _threads(self, points: int, cores: int) -> int:
        """Decide whether threads share the networks or the rows; return how many there are."""
        blocks = math.ceil(len(self.stack) / self.block)
        self.by_networks = blocks >= 2 * cores > 2
        return max(1, min(cores, blocks if self.by_networks else points // LEAST_ROWS))

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits of a gradient, beside the matrix library."""
        return {
            "gradient": self.name,
            "rows": self.rows,
            "networks": self.block,
            "threads": len(self.passes),
            "encoded": self.encodings is None,
            "products": "bf16" if self.narrow else str(self.data.target.dtype).removeprefix("torch."),
            "native": self.native or None,
        }

    @torch.no_grad()
    def __call__(self, batch: Tensor | None) -> Tensor:
        """Fill the gradients and return the losses (B,) of these rows, (B or 1, n) (None: all), in fp64."""
        scales = 1 / self._weights(batch)
        count = self._count(batch)
        used = self.sums[: 1 if self.by_networks else self._shares_of(count)]
        for sums in used:
            for total in sums.values():
                total.zero_()
        squares = self._each_share(batch, count, scales)
        for sums in used[1:]:
            for name, total in sums.items():
                self.stack.grads[name].add_(total)
        return squares * scales.cpu()

    @torch.no_grad()
    def mean_square(self) -> Tensor:
        """Return the mean squared errors (B,) over all points, unweighted, in fp64."""
        return self._each_share(None, self.data.points, None) / self.data.target[0].numel()

    def _count(self, batch: Tensor | None) -> int:
        return self.data.points if batch is None else batch.shape[1]

    def _shares_of(self, count: int) -> int:
        """Return into how many shares so many rows fall: a few a thread, since cores are rarely equally free."""
        threads = min(len(self.passes), max(1, count // LEAST_ROWS))
        if threads == 1:
            return 1
        most = threads * max(1, min(SHARES, MOST_SHARES // threads, count // (threads * LEAST_ROWS)))
        return min(most, self.most_shares)

    def _weights(self, batch: Tensor | None) -> Tensor:
        """Return the sum of weights (B,) of a batch over its points and outputs."""
        weight, outputs = self.data.weight, self.mlp.outputs
        if weight is None:
            total = torch.full((1,), float(self._count(batch) * outputs), dtype=torch.float64)
        else:
            some = weight if batch is None else gathered(weight, slice(None), batch)
            total = some.double().sum((1, 2)) * (outputs / some.shape[2])
        return total.expand(len(self.stack))

    def _each_share(self, batch: Tensor | None, count: int, scales: Tensor | None) -> Tensor:
        """Let each thread pass over its share of networks or rows; return the squared errors (B,), weighted for a step.

        ``scales`` are the factors of the losses; None: predictions alone, no gradient.
        """
        blocks = list(chunks(len(self.stack), self.block))
        pieces: list[tuple[int, list[slice], range]]  # which sums are theirs, networks, rows
        if self.by_networks:
            pieces = [(0, [block], range(count)) for block in blocks]
        else:
            rows = chunks(count, -(-count // self._shares_of(count)))
            pieces = [(place, blocks, range(some.start, some.stop)) for place, some in enumerate(rows)]
        found: list[Tensor] = [torch.zeros(0)] * len(pieces)

        def take(one: Pass, number: int) -> None:
            place, own, rows = pieces[number]
            sums = {} if scales is None else self.sums[place]
            found[number] = torch.cat([one.over(block, rows, batch, scales, sums) for block in own])

        jobs = self.passes[: len(pieces)]
        share(range(len(pieces)), [functools.partial(take, one) for one in jobs])
        return torch.cat(found) if self.by_networks else torch.stack(found).sum(0)


@torch.no_grad()
def encoded(
    stack: Stack, mlp: MLP, coords: Tensor, budget: int, dtype: torch.dtype
) -> tuple[Tensor, list[nn.Module] | None]:  # fmt: skip
    """Return the encoded points in a dtype, or points and encodings if keeping them would take over half the budget."""
    if mlp.encoding is None:
        return coords, None
    encodings = [net.get_submodule(mlp.encoding_name) for net in stack.nets]
    columns = mlp.columns
    alike = len(coords) == 1 and all(_equal(encodings[0], other) for other in encodings[1:])
    count = 1 if alike else len(stack)
    if 2 * count * coords.shape[1] * columns * dtype.itemsize > budget:
        return coords, encodings
    inputs = coords.new_empty(count, coords.shape[1], columns, dtype=dtype)
    for own, encode, points in zip(inputs, encodings, coords.expand(len(stack), -1, -1), strict=False):
        for rows in chunks(len(points), cached_rows(columns, coords)):
            own[rows] = encode(points[rows])
    return inputs, None


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two encodings of one class have the same numbers."""
    first, second = ([*encoding.buffers(), *encoding.parameters()] for encoding in (one, other))
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
