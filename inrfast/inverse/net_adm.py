"""Net-ADM: phase retrieval by alternating directions, between a network on the padded grid and a padded signal."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.arrays import ArrayLike
from inrfast.errors import check_float, check_int
from inrfast.inverse.fourier import FourierMagnitude
from inrfast.inverse.history import History
from inrfast.inverse.restarts import Attempt, Problem, Start, best_of, points_of, predicted, problem_of
from inrfast.inverse.result import Reconstruction
from inrfast.training.callbacks import FitState, OwnCallback
from inrfast.training.fit import fit
from inrfast.training.objective import Regularizers


class Multipliers:
    """The ADMM of (B.2) around the updates of a network: the signal z, the multiplier u, and their updates.

    With f the network's values on the padded grid::

        z <- argmin |P z - f + u|^2 = P^T (f - u), a crop, then put into its bounds
        theta: some updates of 1/(2 m) |sqrt(|F f|^2 + eps) - sqrt(y^2 + eps)|^2 + rho/2 |P z - f + u|^2, over m
        u <- u + P z - f

    Parameters
    ----------
    operator
        The magnitudes of the padded Fourier transform.
    measurements
        (*padded, M).
    rho
        Weight of the second term.
    bounds
        Smallest and largest value of z, such as (0, 1); None: any.
    """

    def __init__(
        self, operator: FourierMagnitude, measurements: Tensor, rho: float, bounds: tuple[float, float] | None
    ) -> None:
        self.operator, self.rho, self.bounds = operator, rho, bounds
        self.smoothed = (measurements.square() + operator.epsilon).sqrt()
        self.z = torch.zeros(0)
        self.u = torch.zeros(0)

    def begin(self, f: Tensor) -> None:
        """Start from the network's values (*padded, M): no multiplier, and the first z."""
        self.smoothed = self.smoothed.to(f)
        self.u = torch.zeros_like(f)
        self.z = self.signal(f)

    def signal(self, f: Tensor) -> Tensor:
        """Return the z-update: the signal (*shape, M) whose padding is nearest to ``f - u``, in its bounds."""
        found = self.operator.pad.apply_adjoint(f - self.u)
        return found.clamp(*self.bounds) if self.bounds is not None else found.clone()

    def update(self, f: Tensor) -> None:
        """Update u by the last z, then z."""
        self.u = self.u + self.operator.pad.apply(self.z) - f
        self.z = self.signal(f)

    def objective(self, f: Tensor) -> Tensor:
        """Return what the network minimises between two updates, divided by the number m of padded points."""
        transformed = self.operator.smoothed(self.operator.transform(f))
        data = (transformed - self.smoothed).square().mean() / math.prod(self.operator.padded)
        apart = (self.operator.pad.apply(self.z) - f + self.u).square().mean()
        return 0.5 * data + 0.5 * self.rho * apart


class _Rounds(OwnCallback):
    """Loss and callback of the fit: the objective of a round, and what follows after its updates."""

    def __init__(
        self, state: Multipliers, history: History, net: nn.Module, points: Tensor, plan: dict[str, Any]
    ) -> None:
        self.state, self.history, self.net, self.points, self.plan = state, history, net, points, plan

    def values(self) -> Tensor:
        """Return the network's values (*padded, M)."""
        found = predicted(self.net, self.points, self.plan["select"])
        return found.reshape(*self.state.operator.padded, -1)

    def record(self, step: int, f: Tensor) -> None:
        """Take down residual, PSNR and gap."""
        gap = torch.linalg.vector_norm(self.state.operator.pad.apply(self.state.z) - f)
        self.history.add(step, self.state.z, float(gap / torch.linalg.vector_norm(f).clamp_min(1e-30)))

    def on_step(self, state: FitState) -> None:
        """Update signal and multiplier, if the round is over."""
        if state.step % self.plan["inner"]:
            return
        f = self.values()
        self.state.update(f)
        if state.step // self.plan["inner"] % self.plan["every"] == 0:
            self.record(state.step, f)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = {name: list(own) for name, own in self.history.kept.items()}
        return {"z": self.state.z, "u": self.state.u, "history": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.state.z, self.state.u = state["z"].to(self.state.z), state["u"].to(self.state.u)
        self.history.kept = {name: list(own) for name, own in state["history"].items()}


def net_adm(
    net: Start,
    operator: FourierMagnitude,
    measurements: ArrayLike,
    iterations: int = 400,
    inner_steps: int = 5,
    lr: float = 1e-3,
    *,
    coords: ArrayLike | None = None,
    rho: float = 1.0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    regularizers: Regularizers = (),
    restarts: int = 1,
    seed: int = 0,
    target: ArrayLike | None = None,
    data_range: float | None = None,
    eval_every: int | None = None,
    **options: Any,
) -> Reconstruction:
    """Find a signal from the magnitudes of its oversampled Fourier transform, with a network as its prior.

    The network's values f live on the padded grid, where nothing says that they vanish outside the signal; the padded
    signal P z does. ADMM brings both together, :class:`Multipliers` says how. ``z`` is returned. The network, its
    optimiser and the schedule of its rate go on from round to round.

    Parameters
    ----------
    net
        As in :func:`inrfast.inverse.net_gd`; its points are those of the padded grid.
    operator, measurements
        :class:`inrfast.inverse.FourierMagnitude`, whose ``epsilon`` (1e-3) is that of the smoothed amplitudes, and y,
        (*padded, M) or (*padded), zero or more.
    iterations, inner_steps
        Rounds, and updates of the network in each: ``iterations * inner_steps`` in all.
    lr, regularizers, seed, restarts, target, data_range
        As in :func:`inrfast.inverse.net_gd`. Regularisers are added to the objective divided by the number of padded
        points, and ask for points of the padded grid. Phase retrieval depends on its start: take several restarts; the
        smallest residual ``||F P z| - y| / |y|`` is chosen, never the best PSNR.
    coords
        Points of the padded grid (N, d), row-major; None: ``inr.grid(operator.padded)``, on which the signal takes the
        first ``shape_in`` points along each axis.
    rho
        The penalty; 1 in the paper.
    bounds
        Smallest and largest value of the signal, put on z in every round: (0, 1) for images. None: none, as the paper
        prints it.
    eval_every
        Rounds between two entries of the history; None takes a twentieth.
    **options
        As in :func:`inrfast.inverse.net_gd`.

    Returns
    -------
    Reconstruction
        The signal z of the last round, or what was reached at Ctrl-C.

    Raises
    ------
    ValueError, TypeError, DivergedError
        As :func:`inrfast.inverse.net_gd`; another operator; bounds in the wrong order.

    References
    ----------
    Ma, Wang, Leng and Yuan, ADMM based Fourier phase retrieval with untrained generative prior, 2024; Li et al., PEAK,
    appendix B.2.

    Examples
    --------
    >>> import torch
    >>> import inrfast as inr
    >>> truth = 0.5 + 0.4 * torch.sin(3 * inr.grid((8, 8)).sum(1)).reshape(8, 8)
    >>> A = inr.inverse.FourierMagnitude((8, 8), 1.9)
    >>> net = inr.INR(2, 1, width=32, activation="sine", init="siren", omega=5.0)
    >>> found = inr.inverse.net_adm(net, A, A(truth), iterations=60, target=truth, progress=False)
    >>> found.residual < found.residuals[0]
    True
    """
    if not isinstance(operator, FourierMagnitude):
        raise TypeError(
            f"operator must be a FourierMagnitude, got {type(operator).__name__}; net_gd takes any operator"
        )
    iterations = check_int("iterations", iterations, minimum=1)
    inner = check_int("inner_steps", inner_steps, minimum=1)
    rho = check_float("rho", rho, minimum=0.0, exclusive=True)
    limits = _check_bounds(bounds)
    every = max(1, iterations // 20) if eval_every is None else check_int("eval_every", eval_every, minimum=1)
    problem = problem_of(operator, measurements, target, data_range, regularizers, restarts, seed, options)
    asked = {"iterations": iterations, "inner_steps": inner, "lr": lr, "rho": rho, "bounds": limits}
    problem.config.update({"solver": "net_adm", **asked, "eval_every": every})

    def attempt(own: Problem, start: Attempt, number: int) -> None:
        points = points_of(own, start.net, coords, operator.padded, f"the padded grid of {operator!r}")
        state = Multipliers(operator, own.loss.measurements, rho, limits)
        plan = {"inner": inner, "every": every, "select": own.options.get("select")}
        rounds = _Rounds(state, start.history, start.net, points, plan)
        values = rounds.values()
        state.begin(values)
        rounds.record(0, values)

        def loss(prediction: Tensor, target: Tensor) -> Tensor:
            return state.objective(prediction.reshape(*operator.padded, -1))

        given = {"schedule": "exponential", **own.options}
        given["callbacks"] = [rounds, *own.options["callbacks"]]
        with warnings.catch_warnings():  # the objective is another one in every round, and may grow
            warnings.filterwarnings("ignore", "the fit (ended with|had) a loss")
            result = fit(
                start.net,
                points,
                torch.zeros(math.prod(operator.padded), own.channels).to(values),
                steps=iterations * inner,
                lr=lr,
                loss=loss,
                regularizers=start.regularizers,
                seed=own.seed + number,
                eval_every=iterations * inner,
                **given,
            )
        rounds.record(result.steps, rounds.values())
        start.signal, start.losses, start.steps = state.z, result.losses, result.steps
        start.interrupted = result.interrupted

    return best_of(problem, net, attempt)


def _check_bounds(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"bounds must be a smallest and a largest value or None, got {given!r}")
    low, high = check_float("bounds[0]", given[0]), check_float("bounds[1]", given[1])
    if low >= high:
        raise ValueError(f"bounds must rise, got {low:g} to {high:g}")
    return low, high
