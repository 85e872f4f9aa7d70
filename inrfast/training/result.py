"""What a fit returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inrfast.errors import DivergedError
from inrfast.records import Record, in_a_line


@dataclass(frozen=True)
class FitResult(Record):
    """What a fit did; the network itself holds the last weights.

    Attributes
    ----------
    steps
        Updates done: fewer than asked for where it stopped early.
    losses
        The training loss of every update, taken on its batch with the weights before the update.
    eval_steps, psnrs
        PSNR (dB, for ``data_range``, all points of the evaluation, eval mode) after that many updates; the first is of
        the start, the last of the end.
    psnr
        PSNR of the last weights.
    best_psnr, best_step, best_state
        The best of ``psnrs``, its step, and a copy of the ``state_dict`` that had it. With a loss of your own and a
        target that only stands in (zeros), they mean nothing.
    seconds
        Wall-clock time of the whole call; after a resume, of this call alone.
    interrupted
        Whether Ctrl-C stopped it; the network is then in its state after the last complete update.
    config
        The settings and ``"gradient"``: ``"fused"``, ``"layerwise"``, ``"folded"``, ``"normed"``, ``"chunked"`` or
        ``"whole"``, the way gradients were taken, with the ``"reason"`` why it was no faster one (None: no other of
        the backend is faster).
    stopped
        Why it ended: ``"steps"`` (all done), ``"target_psnr"``, ``"patience"``, ``"callback"``, ``"interrupted"``, and
        in ``fit_many`` ``"diverged"``.
    error
        In ``fit_many``, what a diverged network's own fit would have raised.
    data_range
        The range of the signal for which the PSNRs are stated: see ``data_range`` of :func:`inrfast.fit`.
    """

    left_out = ("best_state",)

    steps: int
    losses: tuple[float, ...]
    eval_steps: tuple[int, ...]
    psnrs: tuple[float, ...]
    psnr: float
    best_psnr: float
    best_step: int
    best_state: dict[str, Tensor]
    seconds: float
    interrupted: bool
    config: dict[str, Any]
    stopped: str = "steps"
    error: DivergedError | None = None
    data_range: float = 1.0

    def __repr__(self) -> str:
        parts = [f"psnr={self.psnr:.2f} dB", f"best_psnr={self.best_psnr:.2f} dB at step {self.best_step:,}"]
        parts += [f"steps={self.steps}", f"{self.seconds:.3g} s", f"stopped={self.stopped!r}"]
        return in_a_line("FitResult", [*parts, f"gradient={self.config.get('gradient')!r}"])
