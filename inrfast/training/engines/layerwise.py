"""Backpropagation of coordinate MLPs written out: what the native and tensor engines share."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from inrfast.memory import cached_rows, chunks
from inrfast.mlp import MLP
from inrfast.ops import gemm
from inrfast.threads import share
from inrfast.training.engines.task import Task
from inrfast.training.stack import Stack

NARROW = torch.bfloat16
"""Dtype of products in 16 bits."""

LEAST_ROWS, SHARES, MOST_SHARES = 256, 4, 16
"""Fewest rows that are worth a thread; shares of the rows per thread, the next one for whichever is free; and of all
threads, where more would take longer to add up than they save."""

SMALL = 2**15
"""Entries of features up to which an operation is over before a second core has joined in: torch's own grain."""


class Pass(Protocol):
    """What one thread needs, its own buffers among it."""

    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """Return the losses of these networks on these rows, and with ``scales`` add the gradients to ``sums``.

        Without, these are squared errors, unweighted.
        """
        ...


class Plan(NamedTuple):
    """How the work is divided: points and networks of a chunk, threads, and whether these share networks or rows."""

    rows: int
    block: int
    threads: int
    by_networks: bool


def planned(networks: int, points: int, rows: int, block: int, cores: int) -> Plan:
    """Return the plan for chunks of so many rows and networks on so many cores."""
    blocks = math.ceil(networks / block)
    by_networks = blocks >= 2 * cores > 2
    return Plan(rows, block, max(1, min(cores, blocks if by_networks else points // LEAST_ROWS)), by_networks)


class LayerwiseGradient:
    """Gradient of a named loss l of INRs, one or several of one shape; of norms those without weights (``ROWWISE``).

    With ``u_l = Z_{l-1} W_l^T + b_l``, ``Z_l = act(u_l)`` and the error ``E_L = w l'(f, y) / sum w`` at the head:
    ``dW_l = E_l^T Z_{l-1}``, ``db_l = sum_n E_l``, ``E_{l-1} = (E_l W_l) * act'(u_{l-1})``, each added up over chunks
    of rows. A norm takes ``Z_l`` or ``u_l`` on their way, and ``E_l`` on its way back.

    On a CPU each thread takes its own networks or, of a single one, its own shares of the rows, so that threads wait
    for each other once per step and not once per operation. Shares and their sums are fixed, whichever thread takes
    them: a step can be repeated bit by bit.

    Parameters
    ----------
    stack
        Networks; each call overwrites their gradients.
    task
        What is wanted: see :class:`inrfast.training.engines.task.Task`. Encoded points are kept if they fit half of the
        budget. ``narrow``: products between hidden layers take operands in bfloat16 and round results to it; what meets
        the coordinates, predictions, weights and their gradients stays as it is. A gradient then has a relative error
        near 1e-2.

    Raises
    ------
    MemoryBudgetError
        Not even one row fits the budget.
    """

    name: ClassVar[str] = "layerwise"
    backend: ClassVar[str] = "torch"
    flat: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    coupled: bool = False
    draws: ClassVar[bool] = False
    several: ClassVar[bool] = False
    native = ""
    """The instructions of native steps."""

    def __init__(self, stack: Stack, task: Task) -> None:
        self.stack, self.data, self.narrow = stack, task.data, task.narrow
        self.measures = not task.narrow
        assert task.objective.named is not None
        self.mlp, self.loss, self.link = task.mlp, task.objective.named, task.link
        budget = task.buffers
        self.encoded, self.encodings = self._encode(budget)
        if self.encoded is not self.data.coords:
            budget -= self.encoded.nbytes
        self.most_shares = max(1, min(MOST_SHARES, budget // (4 * sum(grad.nbytes for grad in stack.grads.values()))))
        plan = self._plan(task, budget)
        self.rows, self.block, _, self.by_networks = plan
        self.passes: Sequence[Pass] = [self._pass() for _ in range(plan.threads)]
        widest = max(*self.mlp.widths, self.mlp.outputs)
        self.one_core = plan.threads > 1 or self.block * self.rows * widest <= SMALL
        # The first share adds straight to the gradients; where there are several of the rows, the others have own sums.
        own = 1 if self.by_networks else self._shares_of(task.points)
        self.sums = [stack.grads, *({n: torch.zeros_like(g) for n, g in stack.grads.items()} for _ in range(own - 1))]

    def _encode(self, budget: int) -> tuple[Tensor, list[nn.Module] | None]:
        """Return the encoded points, or points and encodings if they are encoded in each step."""
        dtype = NARROW if self.narrow else self.data.coords.dtype
        return encoded(self.stack.nets, self.mlp, self.data.coords, budget, dtype)

    def _plan(self, task: Task, budget: int) -> Plan:
        raise NotImplementedError

    def _pass(self) -> Pass:
        raise NotImplementedError

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
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
    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        scales = 1 / self._weights(batch)
        count = self._count(batch)
        used = self.sums[: 1 if self.by_networks else self._shares_of(count)]
        for sums in used:
            for total in sums.values():
                total.zero_()
        with gemm.products_chosen():
            losses = self._each_share(batch, count, scales)
        for sums in used[1:]:
            for name, total in sums.items():
                self.stack.grads[name].add_(total)
        return losses * scales.cpu()

    @torch.no_grad()
    def mean_square(self) -> Tensor:
        """Return the mean squared errors (B,) over all points, unweighted, in fp64."""
        return self._each_share(None, self.data.points, None) / self.data.target[0].numel()

    def state(self) -> None:
        """See :class:`inrfast.training.engines.task.Gradient`: nothing."""

    def load(self, state: Tensor) -> None:
        """See :class:`inrfast.training.engines.task.Gradient`."""

    def _count(self, batch: Tensor | None) -> int:
        return self.data.points if batch is None else batch.shape[1]

    def _shares_of(self, count: int) -> int:
        """Return into how many shares so many rows fall: a few per thread, since cores are rarely equally free."""
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
        """Let each thread pass over its share of networks or rows; return the sums of losses (B,), weighted for a step.

        ``scales`` are the factors of the losses; None: squared errors alone, no gradient.
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


def encoded_bytes(nets: Sequence[nn.Module], mlp: MLP, coords: Tensor, dtype: torch.dtype) -> int:
    """Return the bytes of the encoded points of networks in a dtype; 0 without an encoding."""
    if mlp.encoding is None:
        return 0
    count = 1 if _alike(_encodings(nets, mlp), coords) else len(nets)
    return count * coords.shape[1] * mlp.columns * dtype.itemsize


def is_kept(size: int, budget: int) -> bool:
    """Return whether encoded points of ``size`` bytes are kept rather than made again for every chunk."""
    return 2 * size <= budget


@torch.no_grad()
def encoded(
    nets: Sequence[nn.Module], mlp: MLP, coords: Tensor, budget: int, dtype: torch.dtype
) -> tuple[Tensor, list[nn.Module] | None]:  # fmt: skip
    """Return the encoded points in a dtype, or points and encodings if keeping them would take over half the budget."""
    if mlp.encoding is None:
        return coords, None
    encodings, columns = _encodings(nets, mlp), mlp.columns
    if not is_kept(encoded_bytes(nets, mlp, coords, dtype), budget):
        return coords, encodings
    count = 1 if _alike(encodings, coords) else len(nets)
    inputs = coords.new_empty(count, coords.shape[1], columns, dtype=dtype)
    for own, encode, points in zip(inputs, encodings, coords.expand(len(nets), -1, -1), strict=False):
        for rows in chunks(len(points), cached_rows(columns, coords)):
            own[rows] = encode(points[rows])
    return inputs, None


def _encodings(nets: Sequence[nn.Module], mlp: MLP) -> list[nn.Module]:
    return [net.get_submodule(mlp.encoding_name) for net in nets]


def _alike(encodings: Sequence[nn.Module], coords: Tensor) -> bool:
    """Return whether all networks have the same encoded points."""
    return len(coords) == 1 and all(_equal(encodings[0], other) for other in encodings[1:])


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two encodings of one class have the same numbers."""
    first, second = ([*encoding.buffers(), *encoding.parameters()] for encoding in (one, other))
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def own(shared: Tensor, block: slice) -> slice:
    """Return where a block of networks finds its part on the first axis of a tensor that all may share."""
    return slice(0, 1) if len(shared) == 1 else block


def gathered(source: Tensor, block: slice, index: Tensor | slice) -> Tensor:
    """Return rows of (B or 1, N, c) for some networks, (k or 1, n, c); an index (k or 1, n) may have rows for each."""
    some = source[own(source, block)]
    if isinstance(index, slice):
        return some[:, index]
    if len(some) == 1:
        return some[0][index]
    if len(index) == 1:
        return some[:, index[0]]
    return some[torch.arange(len(some), device=index.device).unsqueeze(1), index]
