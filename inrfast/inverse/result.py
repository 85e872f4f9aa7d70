"""What the solvers of inverse problems return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from inrfast.records import Record, brief, in_a_line


@dataclass(frozen=True)
class Reconstruction(Record):
    """A signal found from measurements, and how it was approached.

    Attributes
    ----------
    signal
        (*shape_in, M), detached.
    net
        The network that was trained for it; of several restarts the one that was taken.
    residual
        ``|A(signal) - y| / |y|``, of magnitudes the smoothed ones.
    psnr
        Against the truth, after :func:`inrfast.inverse.align_ambiguities`; None where no truth was given.
    steps
        Updates of the network that were done.
    losses
        The objective of every update, regularisers included.
    eval_steps, residuals, psnrs
        The residual and the PSNR after that many updates, from the start to the end; without a truth no PSNRs.
    gaps
        Of Net-ADM ``|P z - f| / |f|``, how far network and padded signal are apart, at the same steps.
    restart
        Number of the restart taken: that with the smallest residual, whatever its PSNR is.
    restart_residuals, restart_psnrs
        Residual and PSNR of every restart; Inf and NaN of one that was left out.
    seconds
        Wall-clock time of the whole call.
    interrupted
        Whether Ctrl-C stopped it: it is then what was reached.
    config
        The settings as plain values.
    """

    left_out = ("signal", "net")

    signal: Tensor
    net: nn.Module
    residual: float
    psnr: float | None
    steps: int
    losses: tuple[float, ...]
    eval_steps: tuple[int, ...]
    residuals: tuple[float, ...]
    psnrs: tuple[float, ...]
    gaps: tuple[float, ...]
    restart: int
    restart_residuals: tuple[float, ...]
    restart_psnrs: tuple[float, ...]
    seconds: float
    interrupted: bool
    config: dict[str, Any]

    def __repr__(self) -> str:
        parts = [f"signal={brief(self.signal)}", f"residual={self.residual:.3g}"]
        parts += [] if self.psnr is None else [f"psnr={self.psnr:.2f} dB"]
        parts += [f"steps={self.steps}", f"restart {self.restart} of {len(self.restart_residuals)}"]
        return in_a_line("Reconstruction", [*parts, f"{self.seconds:.3g} s"])
