"""Net-GD: gradient descent on the measurements of a network's signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from inrfast.arrays import ArrayLike
from inrfast.errors import check_int
from inrfast.inverse.history import History
from inrfast.inverse.operators import Operator
from inrfast.inverse.restarts import Attempt, Problem, Start, best_of, points_of, predicted, problem_of
from inrfast.inverse.result import Reconstruction
from inrfast.training.callbacks import FitState, OwnCallback
from inrfast.training.fit import fit
from inrfast.training.objective import Regularizers


def net_gd(
    net: Start,
    coords: ArrayLike | None,
    operator: Operator,
    measurements: ArrayLike,
    steps: int = 2000,
    lr: float = 1e-3,
    *,
    regularizers: Regularizers = (),
    restarts: int = 1,
    seed: int = 0,
    target: ArrayLike | None = None,
    data_range: float | None = None,
    eval_every: int | None = None,
    **options: Any,
) -> Reconstruction:
    """Fit a network to measurements of its signal: ``min |A f(X) - y|^2`` over its weights, by ``inr.fit``.

    Parameters
    ----------
    net
        A network, trained in place, from (N, d) to (N, M); what ``inr.PEAK`` makes; or a function of the seed that
        makes one of them, which ``restarts`` need.
    coords
        The points of the operator's grid (N, d) or (*shape, d), in row-major order; None: ``inr.grid(shape_in)``.
    operator, measurements
        A and y, (*shape_out, M) or (m, M); without channels (*shape_out) or (m,) for M = 1. Of magnitudes the smoothed
        ones are compared. Of a linear operator the adjoint is tested first.
    steps, lr, regularizers, seed
        As in :func:`inrfast.fit`, the seed 0 unless given. The paper's update is plain gradient descent
        (``optimizer="sgd"``); Adam, the default here, needs far fewer steps.
    restarts
        Starts from other seeds, of which the one with the smallest residual ``|A f - y| / |y|`` is returned. The seeds
        are ``seed``, ``seed + 1`` and so on. One that diverges, or whose network cannot be made, is warned of and
        left out; where the very first cannot be made that is an error, as are all others, such as a callback's.
    target, data_range
        The truth, of the forms of ``operator.forward``, for PSNRs alone, and the range that they are stated for.
        Ambiguities are resolved first, see :func:`inrfast.inverse.align_ambiguities`.
    eval_every
        Steps between two entries of the history; None takes a twentieth.
    **options
        ``schedule``, ``optimizer``, ``precision``, ``modules``, ``callbacks``, ``checkpoint``, ``resume``, ``progress``
        and others of :func:`inrfast.fit`. Each of several restarts writes a checkpoint of its own.

    Returns
    -------
    Reconstruction
        The signal of the last weights, and residuals on the way. After Ctrl-C what was reached.

    Raises
    ------
    AdjointError
        The operator is linear and its adjoint fails the test.
    ValueError, TypeError
        Measurements of another shape, negative magnitudes, NaN; points of another grid; a network with another number
        of outputs; with restarts a network, or a trained regulariser, that two of them would share; and what
        :func:`inrfast.fit` refuses.
    DivergedError
        Of every restart a loss or gradient became NaN or Inf.

    References
    ----------
    Jagatap and Hegde, Phase retrieval using untrained neural network priors, 2019; Li et al., PEAK, appendix B.2, which
    prints the update without the modulus that Gaussian phase retrieval has.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> truth = torch.sin(3 * inr.grid((8, 8)).sum(1)).reshape(8, 8)
    >>> A = inr.inverse.Mask.random((8, 8), 0.5)
    >>> net = inr.INR(2, 1, width=32, activation="sine", init="siren", omega=5.0)
    >>> found = inr.inverse.net_gd(net, None, A, A(truth), steps=300, target=truth, progress=False)
    >>> found.psnr > found.psnrs[0] + 10
    True
    """
    steps = check_int("steps", steps, minimum=1)
    every = max(1, steps // 20) if eval_every is None else check_int("eval_every", eval_every, minimum=1)
    problem = problem_of(operator, measurements, target, data_range, regularizers, restarts, seed, options)
    problem.config.update({"solver": "net_gd", "steps": steps, "lr": lr, "eval_every": every})

    def attempt(own: Problem, start: Attempt, number: int) -> None:
        points = points_of(own, start.net, coords, own.operator.shape_in, f"the grid of {own.operator!r}")
        select = own.options.get("select")

        def signal() -> torch.Tensor:
            return predicted(start.net, points, select).reshape(*own.operator.shape_in, -1)

        record = _Record(start.history, signal, every)
        start.history.add(0, signal())
        given = {"schedule": "exponential", **own.options}
        given["callbacks"] = [record, *own.options["callbacks"]]
        stand_in = points.new_zeros(points.shape[0] if points.ndim == 2 else points[..., 0].numel(), own.channels)
        result = fit(
            start.net,
            points,
            stand_in,
            steps=steps,
            lr=lr,
            loss=own.loss,
            regularizers=start.regularizers,
            seed=own.seed + number,
            eval_every=steps,
            **given,
        )
        start.signal, start.losses, start.steps = signal(), result.losses, result.steps
        start.history.add(result.steps, start.signal)
        start.interrupted = result.interrupted

    return best_of(problem, net, attempt)


class _Record(OwnCallback):
    """A callback that takes down residual and PSNR every so many steps."""

    def __init__(self, history: History, signal: Callable[[], torch.Tensor], every: int) -> None:
        self.history, self.signal, self.every = history, signal, every

    def on_step(self, state: FitState) -> None:
        """Take them down, if it is time."""
        if state.step % self.every == 0:
            self.history.add(state.step, self.signal())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: list(own) for name, own in self.history.kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history.kept = {name: list(own) for name, own in state.items()}
