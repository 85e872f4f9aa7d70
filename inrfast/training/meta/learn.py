"""Meta-learning: weights from which any signal of a set is fitted in a few steps (MAML, its first order, Reptile)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from inrfast.arrays import ArrayLike
from inrfast.boxes import warn_of_other_box
from inrfast.calling import Called, Calling, Select
from inrfast.errors import check_choice, check_float, check_int
from inrfast.files import sole_writer
from inrfast.memory import budget_bytes
from inrfast.modes import in_training_modes, modes_kept
from inrfast.ops import gemm
from inrfast.records import Record
from inrfast.seeds import seed_of
from inrfast.training.data import Data, check_net
from inrfast.training.meta.checkpoint import MetaCheckpoint
from inrfast.training.meta.first_order import FirstOrder
from inrfast.training.meta.inner import Inner, Learner
from inrfast.training.meta.outer import Outer
from inrfast.training.meta.second_order import AutogradSecondOrder
from inrfast.training.meta.signals import check_plain, check_signals
from inrfast.training.meta.written_out import WrittenOutSecondOrder
from inrfast.training.options import check_checkpoint, check_progress
from inrfast.training.trained import sole_trainer

METHODS = ("maml", "fomaml", "reptile")


@dataclass(frozen=True)
class MetaResult(Record):
    """What :func:`inrfast.meta_learn` did; the network itself holds the start.

    Attributes
    ----------
    steps
        Outer steps done: fewer than asked for after an interrupt.
    start_losses, losses
        One per outer step, the mean over its signals: the mean squared error at the start before the step, and after
        the inner steps from there; with ``"reptile"`` before the last of these.
    seconds
        Wall-clock time of the whole call; after a resume, of this call alone.
    interrupted
        Whether Ctrl-C stopped it; the network is then in its state after the last complete outer step.
    config
        The settings, and how gradients were taken.
    """

    steps: int
    start_losses: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float
    interrupted: bool
    config: dict[str, Any]


@in_training_modes
def meta_learn(
    net: nn.Module,
    coords: ArrayLike,
    signals: ArrayLike | Sequence[ArrayLike],
    method: str = "maml",
    inner_steps: int = 2,
    inner_lr: float = 1e-2,
    steps: int = 5000,
    lr: float = 1e-5,
    batch: int = 3,
    *,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int | None = None,
    progress: bool | None = None,
    memory_budget: int | None = None,
    select: Select = None,
) -> MetaResult:
    """Change the weights of ``net`` in place to a start from which a signal of the set is fitted in a few steps.

    The defaults are those of Tancik et al. (Learned initializations for optimizing coordinate-based neural
    representations, CVPR 2021) for images, and of the authors of "A structured dictionary perspective on implicit
    neural representations" (Yuce et al., CVPR 2022). Both take, as is done here, the **mean** over points and outputs
    of the squared error as the loss of a signal: a rate for the sum would be N M times smaller.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (N, d) to (N, M), fp32 or fp64, without batch norm or dropout.
        Frozen parameters stay as they are.
    coords
        Points (N, d) of all signals, or (B, N, d) of each.
    signals
        Values (B, N, M) or (B, *grid, M), where M = 1 also without the last axis; or a sequence of B tensors of one
        shape. Pixels of whole numbers and pictures are taken as by :func:`inrfast.fit`.
    method
        ``"maml"``: the gradient of the loss after the inner steps, exactly, through these steps (Finn, Abbeel, Levine,
        ICML 2017). ``"fomaml"``: the gradient at the adapted weights instead. ``"reptile"``: the way there, over the
        inner rate (Nichol, Achiam, Schulman, arXiv 1803.02999).
    inner_steps, inner_lr
        Steps of plain gradient descent on all points of a signal, and their rate.
    steps, lr
        Outer steps, of Adam with torch's defaults, and their constant rate.
    batch
        Signals of an outer step, drawn without replacement from a seeded permutation per pass (what is left of a pass
        when no full batch remains is skipped). The outer direction is the mean over them.
    checkpoint, checkpoint_seconds
        File for the state (safetensors), written whole or not at all: every so many seconds, at an interrupt (Ctrl-C,
        or a ``SystemExit`` that a handler of SIGTERM raises) and at the end; not after a divergence. An existing one is
        not overwritten without ``resume``.
    resume
        Go on from the checkpoint if there is one, else start: on the same machine the result is that of an
        uninterrupted call, bit by bit. Network, signals and settings must be those of the checkpoint; ``steps`` may be
        another number.
    seed
        Of the batches, below 2^63. None draws one from torch's global generator, or takes that of the checkpoint.
    progress
        Whether to show a progress bar, with the time left; None shows it on a terminal and in a notebook.
    memory_budget
        Bytes for the buffers and graphs of a step; None takes half of what is free. What does not fit at once is taken
        over chunks of points, exactly, where the network treats its points one by one.
    select
        A key, an index, an attribute's name or a function that takes the output tensor from what the network returns,
        as in :func:`inrfast.fit`; None: it is the output.

    Returns
    -------
    MetaResult
        The losses of every step. The start itself is in ``net``, for ``inrfast.training.networks.save_network`` or
        :func:`inrfast.adapt`.

    Warns
    -----
    RuntimeWarning
        Inner steps that raise the loss at the end, or a loss that grew: what to try is said. A checkpoint that could
        not be written, or is gone on from, but not bit by bit.

    Raises
    ------
    ValueError, TypeError
        Bad shapes, dtypes, devices, ranges or names; NaN or Inf; a network with batch norm, dropout or nothing to
        train; a checkpoint that is damaged or of another network, other signals or other settings.
    FileExistsError, OSError
        There is a checkpoint, and ``resume`` is not given; it cannot be written.
    MemoryBudgetError
        A step does not fit, before the first one is taken.
    DivergedError
        A loss or its gradient became NaN or Inf; the network holds the last weights that gave finite ones.

    Examples
    --------
    >>> import torch
    >>> from inrfast import INR, grid, meta_learn
    >>> x = grid(64)
    >>> waves = torch.stack([(3 * x + p).sin() for p in (0.0, 0.3, 0.6, 0.9)])
    >>> net = INR(1, 1, width=16, hidden_layers=1, activation="tanh")
    >>> result = meta_learn(net, x, waves, steps=50, lr=1e-2, batch=2, progress=False)
    >>> result.losses[-1] < result.losses[0]
    True
    """
    start = time.perf_counter()
    check_net(net)
    if select is not None:
        net = Called(net, Calling(select))
    data, _ = check_signals(net, coords, signals)
    check_plain(net, data.coords[0])
    warn_of_other_box(net, data.coords.flatten(0, 1))
    check_choice("method", method, METHODS)
    inner = Inner(
        check_int("inner_steps", inner_steps, minimum=1),
        check_float("inner_lr", inner_lr, minimum=0.0, exclusive=True),
    )
    steps = check_int("steps", steps, minimum=1)
    lr = check_float("lr", lr, minimum=0.0, exclusive=True)
    batch = check_int("batch", batch, minimum=1)
    if batch > len(data.target):
        raise ValueError(f"batch must be at most the number of signals {len(data.target)}, got {batch}")
    drawn = seed is None
    seed = seed_of("seed", seed, bits=63)
    path, progress = check_checkpoint(checkpoint, checkpoint_seconds, resume), check_progress(progress)
    budget = budget_bytes(memory_budget, data.target.device)
    config: dict[str, Any] = {
        "method": method,
        "inner_steps": inner.steps,
        "inner_lr": inner.lr,
        "lr": lr,
        "batch": batch,
        "seed": seed,
    }
    with ExitStack() as stack:
        stack.enter_context(sole_trainer({"net": net}))
        stack.enter_context(modes_kept(net))
        net.train()
        learner = learner_of(net, data, method, inner, batch, budget)
        outer = Outer(net, data, learner, inner, lr, batch, seed)
        file = None
        if path is not None:
            stack.enter_context(sole_writer(path, "meta-learning"))
            file = MetaCheckpoint(path, net, data, config, learner.layout, drawn)
            state = file.read(outer.optimizer, resume, steps)
            if state is not None:
                outer.load(state)
                outer.batches.seeds = [config["seed"]]
                stack.enter_context(gemm.forced(data.target.dtype, state["libraries"]))
        outer.learn(steps, progress, file, checkpoint_seconds)
    return MetaResult(
        steps=outer.done,
        start_losses=tuple(outer.before),
        losses=tuple(outer.after),
        seconds=time.perf_counter() - start,
        interrupted=outer.interrupted,
        config={**config, "steps": steps, **learner.layout},
    )


def learner_of(net: nn.Module, data: Data, method: str, inner: Inner, batch: int, budget: int) -> Learner:
    """Return what takes the direction of an outer step: the fastest way that is exact for a network."""
    if method != "maml":
        return FirstOrder(net, inner, method == "reptile", data, batch, budget)
    if WrittenOutSecondOrder.reason_against(net) is None:
        return WrittenOutSecondOrder(net, inner, data, batch, budget)
    return AutogradSecondOrder(net, inner, data, budget)
