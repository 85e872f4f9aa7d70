"""The page that ``inrfast fit`` writes beside its result."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from inrfast.cli.shell import at_work
from inrfast.files import shown

if TYPE_CHECKING:
    from inrfast.signals.kinds import Signal
    from inrfast.training.result import FitResult


def write_page(
    arguments: argparse.Namespace,
    found: dict[str, Any],
    signal: Signal,
    predictions: Tensor,
    result: FitResult,
    net: nn.Module,
    measured: Mapping[str, float],
    problems: Sequence[str] = (),
) -> None:
    """Write the page of a fit, whose report ``found`` is, with the numbers that its kind of signal measured."""
    from inrfast.signals.fit_page import Fitted, page

    files = {"result": found["out"], "model": found["model"], "report": str(Path(found["page"]).with_suffix(".json"))}
    made = Fitted(
        source=shown(Path(found["signal"]).name),
        kind=found["kind"],
        signal=signal,
        predictions=predictions,
        result=result,
        net=net,
        iou=None if signal.held_out is None else found["iou"],
        measured=measured,
        written={what: shown(Path(name).name) for what, name in files.items() if name is not None},
        problems=problems,
        chosen="The network was chosen by --network auto." if "choice" in found else "",
        footer=footer(str(arguments.device)),
    )
    with at_work(f"writing {found['page']}", arguments.quiet):
        page(made).write(found["page"])


def footer(device: str) -> str:
    """Return versions, processor and device in a line."""
    from inrfast.info import info

    known = info()
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items() if version)
    return f"{versions}; {known['cpu']['model']}, {known['cpu']['threads']} threads; on {device}."
