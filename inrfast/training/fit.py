"""The fit of one network to one signal, and of many at once: those of one shape take their steps together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.boxes import warn_of_evaluation, warn_of_other_box
from inrfast.calling import Select
from inrfast.errors import check_float
from inrfast.modes import in_training_modes
from inrfast.seeds import seed_of
from inrfast.training.callables import check_trained
from inrfast.training.data import Data, check_apart, check_data, check_measured, check_net, check_spread, range_of
from inrfast.training.given import gathered, is_batches
from inrfast.training.member import Member
from inrfast.training.objective import Loss, Regularizers
from inrfast.training.optimizers import OPTIMIZERS
from inrfast.training.options import Options, check_batch_size
from inrfast.training.result import FitResult
from inrfast.training.schedules import learning_rates
from inrfast.training.spread import Own, check_nets
from inrfast.training.trained import named_of
from inrfast.training.trainer import Trainer, own_code

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = Any

Batches = Iterable[tuple[ArrayLike, ArrayLike] | Sequence[ArrayLike]]
"""Batches of points and values, such as a ``torch.utils.data.DataLoader``."""


@in_training_modes
def fit(
    net: nn.Module,
    coords: ArrayLike | Batches | None = None,
    target: ArrayLike | Picture | None = None,
    steps: int = 2000,
    lr: float = 1e-3,
    schedule: str | Callable[[int], float] = "exponential",
    batch_size: int | None = None,
    loss: Loss = "mse",
    weight: ArrayLike | None = None,
    optimizer: str | torch.optim.Optimizer = "adam",
    precision: str = "high",
    backend: str = "auto",
    callbacks: Sequence[Any] = (),
    eval_every: int | None = None,
    target_psnr: float | None = None,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int | None = None,
    progress: bool | None = None,
    memory_budget: int | None = None,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    patience: int | None = None,
    eval_coords: ArrayLike | None = None,
    eval_target: ArrayLike | None = None,
    data_range: float | None = None,
    regularizers: Regularizers = (),
    modules: Sequence[nn.Module] = (),
    select: Select = None,
) -> FitResult:
    """Train ``net`` in place so that ``net(coords)`` approaches ``target``; it ends on the last weights.

    The network is trained in train mode and measured in eval mode, then gets its own mode back. The caller's autocast,
    inference mode and switched-off gradients change nothing: ``precision`` governs. Gradients are taken
    over chunks of points where that is exact (a mean of per-point losses, no coupling between points), otherwise over
    the whole batch. Frozen parameters stay as they are; ``.grad`` is overwritten and None at the end.

    Parameters
    ----------
    net
        An :class:`inrfast.INR` or any module that maps (N, d) to (N, M), fp32 or fp64, with trainable parameters. Its
        output may have other shapes with a row per point, (N,) or (N, a, b), which are taken as (N, M); ``select``
        takes it from a dict, a tuple or an object.
    coords
        Points (N, d), on the network's device; or (..., d), whose points are taken in row-major order. A
        module that is no INR is called with as many axes as are given here, (1, n, d) for (1, N, d), and may return
        (1, n, M). NumPy arrays, here and below, are taken to the network's device, and floating-point numbers of
        another width to its dtype. None: the target is a signal on a grid, (H, W, M) of an image, and its points are
        ``inrfast.grid((H, W))``, which the result names (:attr:`FitResult.grid`). Or, in the place of both, batches
        of pairs (coords, values): a ``torch.utils.data.DataLoader`` or a list. They are read once into memory, shuffled
        here by ``seed`` (a loader's own order and random augmentation do not count), and a step takes as many points
        as a batch where ``batch_size`` is not given.
    target
        Values (N, M), (1, N, M) or (*grid, M) with N grid points in row-major order, where M = 1 also (N,) or (*grid);
        on the network's device. Axes in another order, as in (M, H, W), are refused where the points tell. An image of
        Pillow's is taken as well. Pixels of 8 or 16 bits become ``value / 255`` or ``value / 65535``, in [0, 1], which
        a warning says and ``config["white"]`` keeps; booleans become 0 and 1.
    steps
        Updates; 2000 is the usual budget for one image.
    lr, schedule
        Learning rate and its factor over the steps t: ``"exponential"`` (``0.1^(t/steps)``), ``"cosine"``,
        ``"constant"``, or a callable of t. An optimiser of your own has rates of its own; the schedule multiplies them.
    batch_size
        Points per step, drawn without replacement from a seeded permutation per pass, on the network's device (what is
        left of a pass when no full batch remains is skipped); None takes all.
    loss
        A named loss l of predictions f and targets y, the mean over points and outputs: ``"mse"``, ``"l1"``,
        ``"huber"``, ``"bce"`` (f a logit, y in [0, 1]), with numbers ``{"name": "huber", "delta": 0.1}``
        (:mod:`inrfast.losses`). Or a function of (predictions, targets) or (predictions, targets, coordinates) of the
        step's whole batch, shapes (n, M), (n, M), (n, d), that returns a scalar tensor. It may ask by name for
        ``coords``, ``weight`` (n, M), ``index`` (numbers of the points among those given), ``net``, ``step`` and
        ``modules``: parameters of these names without a default, or with None, are given. Predictions are what
        ``select`` takes, and ``net`` is the module itself. Coordinates then require gradients: see
        :mod:`inrfast.training.derivatives`.
    weight
        Weights (N,), (N, 1) or (N, M), or with the grid of the target or the coordinates, (*grid), (*grid, 1) or
        (*grid, M), zero or more, or a mask of booleans: a named loss is ``sum w l(f, y) / sum w`` over the step's
        points and outputs, a function must take them as ``weight`` (None where the fit has none). Points of weight 0
        are left out of the fit and its PSNR; their targets may be anything, NaN too.
    optimizer
        ``"adam"``, ``"adamw"`` or ``"sgd"`` with torch's defaults, one of your own by its name
        (:class:`inrfast.training.optimizers.Optimizer`), or any ``torch.optim.Optimizer`` of the network's trainable
        parameters.
    precision
        ``"high"``: the network's own dtype; ``"highest"``: fp64, which asks for an fp64 network; ``"medium"``: products
        in 16 bits, weights, updates and evaluations in fp32. Fused steps take fp16 (a gradient's relative error is near
        1e-3), PyTorch's operations bfloat16 (near 1e-2) where it pays: on a GPU, with AMX by measurement; elsewhere
        ``"medium"`` is the same as ``"high"``.
    backend
        ``"triton"``: fused steps on a GPU, many at once without a word from the host, for :class:`inrfast.INR` without
        norms, of one activation (not identity) and at most 16 outputs, and a named loss; ``"torch"``; ``"auto"``: the
        first on a GPU where it can, and else, with a warning, the second.
    callbacks
        Objects with ``on_step(state)`` or ``on_eval(state)``: :class:`inrfast.training.callbacks.Callback`. They may
        edit weights in place; replacing, freezing or converting them, or adding hooks, is refused.
    eval_every
        Steps between two evaluations; None takes a hundred of them, but at most one in ten steps where a network or
        loss takes its batch as a whole. With full batches and ``"mse"`` they cost nothing, else a pass over all points.
    target_psnr
        Stop at the first evaluation that reaches this PSNR (dB), stated for ``data_range``. With a loss of your own it
        asks for a target that is not one value everywhere.
    checkpoint, checkpoint_seconds
        File for the state of the fit (safetensors), written whole or not at all: every so many seconds, at an interrupt
        (Ctrl-C, or a ``SystemExit`` that a handler of SIGTERM raises), at an error of a callback or a step (of the last
        complete update; not where the fit diverges) and at the end. An existing one is not
        overwritten without ``resume``. One fit at a time writes it. A write that fails (a full disk) is warned of, once
        for every reason, and tried again at the next one; the fit goes on.
    resume
        Go on from the checkpoint if there is one, else start: on the same machine the result is that of an
        uninterrupted fit, bit by bit, if all that a network changes beside its parameters lies in buffers (counters
        and generators in plain attributes are not kept). Network, data and settings must be those of the checkpoint.
        ``eval_every``, ``patience`` and ``target_psnr`` may be others, and ``steps`` where no rate depends on it
        (``"constant"``, a callable). Of modules and callables of your own the code, plain
        attributes, arrays and tensors are compared, and what closures, containers and objects hold. What is left, such
        as objects of libraries, is named in a warning; not looked at are global names that a module's methods use, the
        insides of libraries, and code made by another Python.
    seed
        Below 2^63. Of the batches, and of what the network or the loss draw from PyTorch's generators, which are
        afterwards as they were; in other threads nothing else should draw meanwhile. NumPy's generators do not follow
        it. None draws one number from torch's global CPU generator, so that ``torch.manual_seed`` decides on it;
        ``config["seed"]`` keeps it, and a resumed fit takes that of its checkpoint.
    progress
        Whether to show a progress bar; None shows it on a terminal and in a notebook.
    memory_budget
        Bytes for the buffers of chunked gradients, and for what autograd keeps of a batch that it takes as a whole;
        None takes half of what is free.
    weight_decay
        Of ``"adam"`` and ``"sgd"`` added to the gradient, of ``"adamw"`` decoupled; per unit of the learning rate.
    clip_norm
        Longer gradients are shortened to this norm over all parameters, exactly, with no 1e-6 in the divisor as in
        ``torch.nn.utils.clip_grad_norm_``.
    patience
        Stop after so many evaluations without a better PSNR.
    eval_coords, eval_target
        Points and values for the evaluation, such as another resolution; values alone belong to ``coords``, points of
        weight 0 included. They are pixels of one dtype with the target's, or neither is.
    data_range
        Range of the signal for which PSNRs are stated, whatever the loss is, kept in the result. PSNRs compare the
        predictions with the targets; with ``"bce"``, whose predictions are logits f, the probabilities ``sigmoid(f)``
        (:attr:`inrfast.losses.Loss.link`). None takes the range from the
        values of the evaluation: 1 where they lie in [-1, 1] and span at least 0.5, as images do; else the largest
        minus the smallest (:func:`inrfast.metrics.data_range_of`). Targets that span more than 100 ask for it. Of
        pixels of 8 bits, whose values are divided by 255, it is 1, whatever they span, and 255 is the same.
    regularizers
        What is added to the loss: functions, or pairs (function, factor), each a scalar tensor. They ask by name for
        ``net``, ``prediction``, ``target``, ``coords``, ``weight``, ``index``, ``step`` and ``modules``, points being
        those of the step. The loss keeps its fast gradient and autograd takes theirs, but where one asks for
        ``prediction`` autograd takes everything at once. One that is a ``torch.nn.Module`` with trainable parameters,
        such as :class:`inrfast.KAR`, is trained with the network as if it stood at the end of ``modules``.
    modules
        Modules beside the network, held by a loss or regulariser, that are trained with it: optimiser, ``clip_norm``
        and checkpoints include their parameters. A function that holds trainable parameters which are neither the
        network's nor here is refused.
    select
        A key, an index, an attribute's name or a function that takes the output tensor from what the network returns,
        as in :func:`inrfast.ntk`; None: it is the output. Loss, PSNR and regularisers get what it takes. A function
        with trainable parameters of its own is refused. A resumed fit must have the same one.

    Warns
    -----
    UserWarning
        A regulariser without a gradient; a rank-expanding first layer with dead units at ``coords``.
    RuntimeWarning
        A loss that grew, or ended far from any start: what to try is said. A checkpoint that could not be written; one
        that is gone on from, but not bit by bit, or with things that could not be compared.

    Raises
    ------
    ValueError, TypeError
        Bad shapes, dtypes, devices, ranges or names; NaN or Inf in coordinates, targets or weights; no trainable
        parameter, complex ones, or ones that overlap in memory; an optimiser of other parameters; a checkpoint that is
        damaged or of another fit.
    FileExistsError
        There is a checkpoint, and ``resume`` is not given.
    OSError
        The checkpoint cannot be written, such as into a missing folder (BlockingIOError: another fit writes it).
    MemoryBudgetError
        The batch does not fit; the message says what would.
    RuntimeError
        Another fit, in another thread or around a callback, trains the network.
    DivergedError
        A loss or gradient became NaN or Inf; the network holds the last weights whose loss and gradient were finite.
    NotAvailableError
        A backend asked for by name that cannot run here, or not with this network, loss or memory; the reason is given.

    Examples
    --------
    >>> import torch
    >>> from inrfast import INR, fit, grid
    >>> net = INR(1, 1, width=32, hidden_layers=1, activation="sine", init="siren", omega=10.0)
    >>> x = grid(64)
    >>> result = fit(net, x, torch.sin(3 * x), steps=100, lr=1e-2)
    >>> result.psnr > 30
    True
    """
    given = dict(locals())
    if is_batches(coords, target):
        given |= _of_batches(net, given)
    (result,) = _fitted([net], [Own.of(given)], given)
    if result.error is not None:
        raise result.error
    return result


@in_training_modes
def fit_many(
    nets: Sequence[nn.Module],
    coords: ArrayLike | Sequence[ArrayLike] | None = None,
    targets: ArrayLike | Picture | Sequence[ArrayLike | Picture] | None = None,
    steps: int = 2000,
    lr: float | Sequence[float] = 1e-3,
    schedule: str | Callable[[int], float] = "exponential",
    batch_size: int | None = None,
    loss: Loss = "mse",
    weight: ArrayLike | Sequence[ArrayLike | None] | None = None,
    optimizer: str = "adam",
    precision: str = "high",
    backend: str = "auto",
    callbacks: Sequence[Any] = (),
    eval_every: int | None = None,
    target_psnr: float | Sequence[float | None] | None = None,
    checkpoint: Any = None,
    checkpoint_seconds: float = 60,
    resume: bool = False,
    seed: int | Sequence[int] | None = None,
    progress: bool | None = None,
    memory_budget: int | None = None,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    patience: int | None = None,
    eval_coords: ArrayLike | Sequence[ArrayLike] | None = None,
    eval_target: ArrayLike | Sequence[ArrayLike] | None = None,
    data_range: float | Sequence[float | None] | None = None,
    regularizers: Regularizers = (),
    modules: Sequence[nn.Module | Sequence[nn.Module]] = (),
    select: Select = None,
) -> list[FitResult]:
    """Train many networks in place, each as :func:`inrfast.fit` would; the results come in the networks' order.

    INRs of one shape, on equally many points, are stacked if they have no norms, batch norms, or sphere norms and TopK:
    their parameters lie side by side, and each thread takes its own networks, or on a GPU one sequence of launches all
    of them. All others (other norms and modules, losses of your own) take their steps one after another in the same
    loop. A network that reaches its goal, loses patience or diverges stops; the others go on.

    Parameters
    ----------
    nets
        B networks that share no parameter, on one device, of one dtype.
    coords
        Points (N, d) for all, or B of them: a sequence, or a tensor (B, N, d). They may differ in N. In a sequence each
        may have more axes, (1, N, d), as for :func:`inrfast.fit`. None: those of the targets' grids.
    targets
        Values for all, (N, M) or (*grid, M), or B of them: a sequence, or a tensor (B, N, M) or (B, *grid, M). Pictures
        and pixels of whole numbers as for :func:`inrfast.fit`.
    lr, seed, target_psnr, data_range
        One for all, or one per network. With one seed, also a drawn one, all networks see the same batches.
    weight, eval_coords, eval_target
        One for all, or a sequence of one per network; see :func:`inrfast.fit`.
    optimizer
        ``"adam"``, ``"adamw"``, ``"sgd"``, or one of your own by its name.
    steps, schedule, batch_size, loss, precision, backend, callbacks, eval_every, checkpoint, checkpoint_seconds, resume
        See :func:`inrfast.fit`. One checkpoint holds all networks; callbacks are told each network by ``state.index``.
    progress, memory_budget, weight_decay, clip_norm, patience
        See :func:`inrfast.fit`; norms are clipped, and patience is lost, by each network for itself.
    regularizers
        See :func:`inrfast.fit`; each network has its own, as it has its own loss. With them networks are not stacked.
        One with trainable parameters is refused, since all networks would train the same numbers: hand over one per
        network as ``modules``, and a function that calls it, ``lambda net, coords, step, modules:
        modules[0](net, coords, step)``.
    modules
        One module, or a sequence of them, per network, none in common: those that are trained with it. A loss or a
        regulariser asks for its network's by the name ``modules``.
    select
        See :func:`inrfast.fit`; one for all.

    Raises
    ------
    ValueError, TypeError, FileExistsError, MemoryBudgetError, NotAvailableError
        As :func:`inrfast.fit`; the message names the network. A network that diverges raises nothing: its result says
        so in ``stopped`` and ``error``.

    Examples
    --------
    >>> from inrfast import INR, grid
    >>> x = grid(64)
    >>> nets = [INR(1, 1, width=16, hidden_layers=1, activation="sine", init="siren", seed=s) for s in range(3)]
    >>> results = fit_many(nets, x, [(k * x).sin() for k in (1.0, 2.0, 3.0)], steps=50, lr=[1e-3, 2e-3, 3e-3])
    >>> [result.steps for result in results]
    [50, 50, 50]
    """
    given = dict(locals())
    if not isinstance(optimizer, str):
        raise TypeError(
            f"optimizer must be one of {list(OPTIMIZERS)} for several networks, got {type(optimizer).__name__}; "
            "call fit for each network to use an optimizer of your own"
        )
    given["nets"] = check_nets(nets)
    return _fitted(given["nets"], Own.of_many(given["nets"], given), given)


def _fitted(nets: Sequence[nn.Module], own: Sequence[Own], given: Mapping[str, Any]) -> list[FitResult]:
    """Check the arguments of a fit, each network's ``own`` and those of ``given`` that all share, and take it."""
    start = time.perf_counter()
    several = "nets" in given
    dtype, device = check_net(nets[0], "nets[0]" if several else "net")
    options = Options.checked(given, dtype, device)
    members = [
        _member(net, one, options, i if several else None) for i, (net, one) in enumerate(zip(nets, own, strict=True))
    ]
    fewest = min((member.data for member in members), key=lambda data: data.points)
    check_batch_size(options.batch_size, fewest.points, fewest.given is not None)
    check_trained(options.objective, nets, several, options.select)
    _check_memory(members, several)
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for member in members:
        if own_code(member.net) or options.objective.own_code:
            member.data = member.data.apart(copies)
            member.evaluation = None if member.evaluation is None else member.evaluation.apart(copies)
    for member in members:
        warn_of_other_box(member.net, member.data.coords[0])
        if member.evaluation is not None:
            warn_of_evaluation(member.net, member.evaluation.coords[0])
    trainer = Trainer(members, options, options.described(None if several else given["target_psnr"]))
    trainer.train()
    seconds = time.perf_counter() - start
    return [trainer.result(member, seconds) for member in members]


def _member(net: nn.Module, own: Own, options: Options, index: int | None) -> Member:
    """Return a network of a fit with its own arguments checked; ``index`` is its place in ``fit_many``."""
    at = "" if index is None else f"[{index}]"
    target = "target" if index is None else "targets"
    named = options.objective.named
    lr = check_float(f"lr{at}", own.lr, minimum=0.0, exclusive=True)
    goal = None if own.target_psnr is None else check_float(f"target_psnr{at}", own.target_psnr)
    seed = seed_of(f"seed{at}", own.seed, bits=63)
    try:
        data = check_data(net, own.coords, own.target, own.weight, ("coords", target, "weight"), options.select)
        if named is not None:
            named.check_target(target, data.target)
            if own.data_range is None:
                check_spread(data, target)
        evaluation = _check_evaluation(net, own, options.select)
        if named is not None and evaluation is not None:
            named.check_target("eval_target", evaluation.target)
            if own.data_range is None:
                check_spread(evaluation, "eval_target")
    except (ValueError, TypeError) as error:
        if index is None:
            raise
        raise type(error)(f"nets[{index}]: {error}") from error
    measured = evaluation or data
    data_range = range_of(measured, own.data_range, f"data_range{at}")
    if named is None:
        asked = {"target_psnr": goal, "patience": options.patience}
        check_measured(measured, [name for name, value in asked.items() if value is not None], f"{target}{at}")
    rate = learning_rates(lr, options.schedule, options.steps)
    modules = own.modules or options.objective.modules
    return Member(
        net,
        data,
        evaluation,
        lr,
        rate,
        goal,
        seed,
        data_range,
        own.data_range is not None,
        modules,
        own.made,
        several=index is not None,
        seed_given=own.seed_given,
    )


def _of_batches(net: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what batches of (coords, values) stand for, among the arguments of a fit by name."""
    if given["weight"] is not None:
        raise ValueError(
            "weight can't go with batches of (coords, values), whose points it would not find; gather them"
        )
    coords, target, size, made = gathered(net, given["coords"], given["memory_budget"])
    size = size if given["batch_size"] is None else given["batch_size"]
    return {"coords": coords, "target": target, "batch_size": size, "white": made.white}


def _check_memory(members: Sequence[Member], several: bool) -> None:
    """Refuse modules whose parameters overlap in memory with those of a network; what is one parameter is one."""
    if not any(member.modules for member in members):
        return
    parameters: dict[Tensor, str] = {}
    for i, member in enumerate(members):
        for argument, module in named_of(member.net, member.modules, i if several else None).items():
            for name, parameter in module.named_parameters():
                parameters.setdefault(parameter, f"{argument}.{name}")
    check_apart({name: parameter for parameter, name in parameters.items()})


def _check_evaluation(net: nn.Module, own: Own, select: Select) -> Data | None:
    """Return the data of the evaluation; without points of its own it is on those of the fit, masked or not."""
    if own.eval_target is None:
        if own.eval_coords is not None:
            raise ValueError("eval_coords needs eval_target, the values there")
        return None
    points = own.coords if own.eval_coords is None else own.eval_coords
    return check_data(net, points, own.eval_target, names=("eval_coords", "eval_target", "weight"), select=select)
