"""A choice in words: what was sampled, the table of candidates, and the line that makes the best."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrfast.choosing.choice import Candidate, Choice

COLUMNS = 100
"""Width of the sentences."""


HIGH = 40.0
"""Predicted PSNR (dB) above which short fits reach less: what Adam's steps leave counts there."""

APART = 3.0
"""Difference of predicted and fitted PSNR (dB) that is said."""


def told(choice: Choice) -> str:
    """Return what :meth:`Choice.__str__` describes."""
    about = sampled(choice.sample) + " Errors are those of the sampling; a fit may reach more or less."
    if choice.data_range != 1:
        about += f" PSNRs are those of a range of {choice.data_range:.4g}."
    remarks = [
        textwrap.fill(remark, COLUMNS) for remark in (*_left_out(choice), *_confidence(choice), *_limits(choice))
    ]
    ready = ["import inrfast as inr", f"net = {choice.line}  # lr={choice.lr:g}"]
    parts = [
        [textwrap.fill(about, COLUMNS)],
        table(choice),
        [textwrap.fill(remark, COLUMNS) for remark in remarks],
        ready,
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def sampled(sample: Mapping[str, Any]) -> str:
    """Return which points of the signal were looked at."""
    values = "" if sample["channels"] == 1 else f" of {sample['channels']} values"
    predict = f"{sample['train']:,} of them predict {sample['held_out']:,} others"
    if sample["patches"]:
        cells = " and ".join(f"{count:,}" for count in sample["cells"])
        patches = f"{sample['patches']} patch{'es' if sample['patches'] > 1 else ''}"
        means = f", and means over {cells} cells" if cells else ""
        predict = f"In {patches} of {'x'.join(map(str, sample['patch']))} samples {predict}{means}"
        if sample["train"] + sample["held_out"] < sample["patches"] * math.prod(sample["patch"]):
            predict += ". The rest of a patch, next to its border, judges nothing: it misses neighbours"
    return f"The signal has {sample['signal']:,} samples{values}. {predict}."


def table(choice: Choice) -> list[str]:
    """Return the candidates as lines, the best first: PSNRs between the samples in dB, with their standard errors."""
    rows = rows_of(choice)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_aligned(row, widths) for row in rows]


def rows_of(choice: Choice) -> list[tuple[str, ...]]:
    """Return the candidates as rows of a table, its head first."""
    fitted = any(candidate.fitted is not None for candidate in choice.candidates)
    head = ("", "network", "predicted PSNR", *(["fitted"] if fitted else []), "learning rate")
    rows: list[tuple[str, ...]] = [head]
    for place, candidate in enumerate(choice.candidates, 1):
        short = [_fitted(candidate)] if fitted else []
        rows.append((f"{place}", candidate.name, predicted(candidate), *short, f"{candidate.lr:.2g}"))
    return rows


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return a row as a line: the name to the left, numbers to the right."""
    cells = [
        cell.ljust(width) if column == 1 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def predicted(candidate: Candidate) -> str:
    """Return a candidate's prediction with its standard error, if one is known."""
    error = f" ± {candidate.error:.2f}" if math.isfinite(candidate.error) else ""
    return f"{candidate.psnr:.2f}{error} dB"


def _fitted(candidate: Candidate) -> str:
    """Return what a short fit reached."""
    if candidate.fitted is None:
        return "-"
    return f"{candidate.fitted:.2f} dB" if math.isfinite(candidate.fitted) else "diverged"


def _confidence(choice: Choice) -> list[str]:
    """Return how much the prediction says between the best and the others."""
    best = choice.best
    if not math.isfinite(best.error):
        return []
    near = [own for own in choice.candidates[1:] if own.psnr >= best.psnr - best.error]
    are = "is" if len(near) == 1 else "are"
    return [f"{len(near)} of the others {are} predicted within one standard error of the first."] if near else []


def offset_told(offset: float) -> str:
    """Return what a mean larger than the data range asks for."""
    return (
        f"predicted for the signal without its mean ({offset:.4g}), which a fit hardly finds; take it off before a fit"
    )


def _limits(choice: Choice) -> list[str]:
    """Return what the predictions do not say."""
    best = max(choice.candidates, key=lambda own: own.psnr)
    found = [f"{offset_told(choice.offset).capitalize()}."] if choice.offset else []
    if math.isfinite(choice.mean_psnr):
        found.append(f"The mean alone: {choice.mean_psnr:.2f} dB.")
        if best.psnr - (best.error if math.isfinite(best.error) else 0.0) <= choice.mean_psnr:
            found[-1] += " No network is predicted to do better than the mean."
    if best.psnr > HIGH:
        found.append(f"Above {HIGH:g} dB a fit usually reaches less than predicted.")
    far = [own for own in choice.candidates if own.fitted is not None and abs(own.fitted - own.psnr) > APART]
    if far:
        are = "is" if len(far) == 1 else "are"
        found.append(f"{len(far)} of the fitted PSNRs {are} more than {APART:g} dB away from what was predicted.")
    return found


def _left_out(choice: Choice) -> list[str]:
    """Return which candidates are missing, and why."""
    reasons = {"interrupted": "It was interrupted", "time": "Its time was over"}
    found = [f"{reasons[choice.stopped]}: candidates are missing."] if choice.stopped in reasons else []
    return found + [f"Not predicted: {name}: {reason}" for name, reason in choice.refused]
