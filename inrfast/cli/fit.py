"""``inrfast fit``: a network fitted to an image, a sound, a volume, a surface or a video."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inrfast.choosing.choice import arguments_of, name_of
from inrfast.cli.choose import spelled
from inrfast.cli.commands import add_command
from inrfast.cli.little import tell_little
from inrfast.cli.options import common_options, made, memory_option, network_options, seed_option
from inrfast.cli.output import (
    bar,
    check_apart,
    check_file,
    check_target,
    finite,
    make_folder,
    print_result,
    progress,
    tell_missing_figures,
)
from inrfast.cli.settings import ALL, NEUTRAL, described, describes, settled
from inrfast.cli.shell import INTERRUPTED, at_work, complain, say
from inrfast.cli.signal_options import (
    add_kind_option,
    add_signal_options,
    files_read,
    given_options,
    kind_given,
    load_given,
)
from inrfast.errors import warn
from inrfast.files import shown
from inrfast.losses import LOSSES, loss_of
from inrfast.nn import INR
from inrfast.signals.kinds import BATCH, SIGNALS, STEPS, Recipe, Signal, listed, write_signal
from inrfast.spelling import choice, number, path, spec, spellings, whole
from inrfast.training.optimizers import OPTIMIZERS
from inrfast.training.schedules import SCHEDULES

if TYPE_CHECKING:
    from inrfast.training.result import FitResult

PROBABILITIES = (0.0, 1.0)
"""Targets of losses of probabilities, which occupancies are."""


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "fit",
        run,
        [common_options(), seed_option(), network_options(automatic=True)],
        "  inrfast fit photo.jpg\n"
        "  inrfast fit photo.jpg --network auto --width 128\n"
        "  inrfast fit photo.jpg --like inlet-rank-collapse --size 256\n"
        "  inrfast fit photo.jpg --activation sine --init siren --lr 5e-4 --steps 1000\n"
        "  inrfast fit photo.jpg --first-activation sine --init siren --hidden-init default\n"
        "  inrfast fit photo.jpg --size 128 --grey --init rank_expanding --batch-size 4096 --out out/photo.png\n"
        "  inrfast fit photo.jpg --weight known.png --target-psnr 35\n"
        "  inrfast fit speech.wav --steps 5000\n"
        "  inrfast fit bunny.ply --as sdf --out bunny-sdf.obj\n"
        "  inrfast fit scan.xyz --steps 4000\n"
        "  inrfast fit clip.gif --out out/clip.gif\n"
        "  inrfast fit bunny.obj --batch-size all --checkpoint bunny.checkpoint --resume\n",
    )
    kinds = "".join(f"  {name:8} {kind.summary}\n" for name, kind in SIGNALS.items())
    parser.epilog = f"signals, by the ending of the file:\n{kinds}\n{parser.epilog}"
    parser.add_argument("signal", type=path, help=f"the file, or a folder of frames: {', '.join(SIGNALS)}")
    add_kind_option(parser)
    parser.add_argument("--out", type=path, help="file to write, reports and model beside it (result.png, .wav, ...)")
    add_signal_options(parser.add_argument_group("signal"), "options")
    _training_options(parser)


def _training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--steps", type=whole(), help=f"updates (default: {STEPS}; those of the default network, by the signal's size)"
    )
    group.add_argument(
        "--lr",
        type=number,
        help=f"learning rate (default: {NEUTRAL['lr']:g}; that of --network auto; that of the default network)",
    )
    group.add_argument(
        "--schedule",
        type=choice("schedule", SCHEDULES),
        help=f"of the learning rate: {', '.join(SCHEDULES)} ({NEUTRAL['schedule']})",
    )
    group.add_argument(
        "--batch-size", type=_points, help=f"points per update, or all (default: {BATCH}, or all if fewer)"
    )
    group.add_argument(
        "--loss",
        type=spec("loss", LOSSES, attrgetter("numbers"), loss_of),
        help=f"{spellings(LOSSES, attrgetter('numbers'))} (mse; l1 for distances)",
    )
    group.add_argument(
        "--optimizer",
        type=choice("optimizer", OPTIMIZERS),
        help=f"{', '.join(OPTIMIZERS)} ({NEUTRAL['optimizer']})",
    )
    group.add_argument("--weight-decay", type=number, help="of the optimizer (default: 0)")
    group.add_argument("--precision", default="high", help="high (fp32), highest (fp64), medium (bf16) (%(default)s)")
    group.add_argument("--target-psnr", type=number, help="stop at this PSNR (dB)")
    group.add_argument("--patience", type=whole(), help="stop after so many evaluations without a better PSNR")
    group.add_argument("--checkpoint", type=path, help="file for the state of the fit, to go on from")
    group.add_argument(
        "--checkpoint-seconds", type=number, help=f"between two of them ({NEUTRAL['checkpoint_seconds']:g})"
    )
    group.add_argument("--resume", action="store_true", help="go on from --checkpoint, if there is one")
    memory_option(group)


def _points(text: str) -> int | str:
    return ALL if text == ALL else whole()(text)


def run(arguments: argparse.Namespace) -> int:
    """Fit, write reconstruction, report and model, and print the quality."""
    from inrfast.cli.fit_page import write_page
    from inrfast.signals.render import render
    from inrfast.training.checkpoint import save_network

    name = kind_given(arguments)
    kind = SIGNALS[name]
    options = given_options(arguments, name, "options", arguments.signal)
    out = Path(f"result{kind.ending}") if arguments.out is None else arguments.out
    report_file, model_file, page_file = (out.with_suffix(suffix) for suffix in (".json", ".safetensors", ".html"))
    _check_files(arguments, name, options, (out, report_file, model_file, page_file))
    signal = load_given(arguments, name, options)
    arguments.loss = signal.loss if arguments.loss is None else arguments.loss
    outputs = signal.target.shape[-1]
    check_file(out, kind.writable(outputs), listed(kind.writable(outputs)))

    _tell_before(arguments, signal)
    fitting = settled(arguments, signal, kind.recipe(signal))
    net, lr, choice = _network(fitting, signal, kind.recipe(signal), arguments.lr)
    result = _fitted(fitting, signal, net, lr)
    if result.interrupted and result.steps == 0:
        return complain("interrupted before the first step; nothing was learned, and nothing is written", INTERRUPTED)
    about = {"kind": name, **signal.about}
    make_folder(out)
    save_network(net, model_file, about)
    found: dict[str, Any] = {
        "schema": "inrfast.fit/2",
        "signal": str(arguments.signal),
        "kind": name,
        "size": [*about["shape"], outputs],
        "out": str(out),
        "model": str(model_file),
        "page": str(page_file),
        **_numbers(result),
        **({} if choice is None else {"choice": choice}),
    }
    outcome = _outcome(result, fitting.steps)
    if signal.held_out is not None:
        found |= {"samples": len(signal.coords), "iou": _held_out_iou(net, *signal.held_out)}
        outcome += f", IoU {found['iou']:.4f} at points it did not see"
    with bar(arguments, "evaluating the network"):
        predictions = render(net, about["shape"], progress=progress(arguments), memory_budget=arguments.memory_budget)
    measured = {} if signal.measure is None else signal.measure(net, predictions)
    found |= {name: finite(value) for name, value in measured.items()}
    outcome += "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in measured.items())
    try:
        with at_work(f"writing {out}", arguments.quiet):
            write_signal(name, predictions, about, out)
    except ValueError as error:  # no surface was found; the network is worth keeping
        found["out"] = None
        _write_report(report_file, found)
        write_page(arguments, found, signal, predictions, result, net, measured, [f"{error}: no {name} was written."])
        return complain(f"{error}; after {outcome}; kept the network in {model_file} and {report_file}", 1)
    _write_report(report_file, found)
    write_page(arguments, found, signal, predictions, result, net, measured)
    written = f"{out}, {report_file} and {model_file}"
    text = f"{arguments.signal}: {outcome} in {result.seconds:.1f} s; wrote {written}; to read: {page_file}"
    print_result(arguments, found, text if describes(arguments) and choice is None else text + _network_line(net, lr))
    if result.interrupted:
        return complain(f"interrupted; kept the result so far, {outcome}, in {written}", INTERRUPTED)
    return 0


def _network(
    arguments: argparse.Namespace, signal: Signal, recipe: Recipe, given: float | None
) -> tuple[INR, float, dict[str, Any] | None]:
    """Return the network, its learning rate (``given``, or its own), and what is told of a choice."""
    inputs, outputs = signal.coords.shape[1], signal.target.shape[-1]
    dtype = torch.float64 if arguments.precision == "highest" else torch.float32
    if arguments.network is None:
        net = made(described(arguments, recipe), arguments, inputs, outputs, dtype)
        return net, arguments.lr, None
    from inrfast.cli.automatic import chosen

    _rehearse(
        arguments, signal, INR(inputs, outputs, width=1, hidden_layers=1, seed=0, device=arguments.device, dtype=dtype)
    )
    net, lr, found = chosen(arguments, signal, dtype)
    return net, lr if given is None else given, found


def _tell_before(arguments: argparse.Namespace, signal: Signal) -> None:
    """Say where a signal is fitted at another size than its file's, and where the page will lack its figures."""
    tell_missing_figures(arguments)
    if signal.stored is None or tuple(signal.about["shape"]) == tuple(signal.stored):
        return
    own, size = spelled(signal.stored), spelled(signal.about["shape"])
    if arguments.network is None and signal.enlarged:
        warn(f"{arguments.signal} has {own} pixels and is enlarged to {size}; --size {own} fits those that it has")
    elif arguments.size is None and not arguments.quiet:
        say(f"inrfast: {arguments.signal} has {own} pixels and is averaged down to {size}; --size {own} fits all")


class _Rehearsed(Exception):
    """A fit has taken its first step."""


class _FirstStep:
    """A callback that ends a fit at its first step."""

    def on_step(self, state: Any) -> None:
        raise _Rehearsed


def _rehearse(arguments: argparse.Namespace, signal: Signal, net: INR) -> None:
    """Take one step with a tiny network, so that a bad option ends a command before a network is chosen."""
    given = {"checkpoint": None, "resume": False, "progress": False, "callbacks": [_FirstStep()]}
    with warnings.catch_warnings(action="ignore"):
        try:
            _fitted(arguments, signal, net, arguments.lr, **given)
        except _Rehearsed:
            return
    raise KeyboardInterrupt  # what a fit returns from before its first step


def _fitted(arguments: argparse.Namespace, signal: Signal, net: INR, lr: float, **others: Any) -> FitResult:
    """Fit the network to the signal, and return the fit's result; ``others`` are arguments that go before options."""
    from inrfast.training.fit import fit

    outputs, dtype = net.out_features, next(net.parameters()).dtype
    coords = signal.coords.to(arguments.device, dtype)
    target = signal.target.to(arguments.device, dtype).reshape(len(coords), outputs)
    if signal.held_out is not None and loss_of(arguments.loss).kind.targets == PROBABILITIES:
        # The network then gives logits, whose sign tells inside from outside as its values do for other losses.
        target = signal.about["offset"] + signal.about["scale"] * target
    weight = None if signal.weight is None else signal.weight.to(arguments.device, dtype)
    given: dict[str, Any] = {
        "steps": arguments.steps,
        "lr": lr,
        "schedule": arguments.schedule,
        "batch_size": arguments.batch_size,
        "loss": arguments.loss,
        "weight": weight,
        "optimizer": arguments.optimizer,
        "weight_decay": arguments.weight_decay,
        "precision": arguments.precision,
        "target_psnr": arguments.target_psnr,
        "patience": arguments.patience,
        "checkpoint": arguments.checkpoint,
        "checkpoint_seconds": arguments.checkpoint_seconds,
        "resume": arguments.resume,
        "eval_target": None if weight is None else target,
        "seed": arguments.seed,
        "progress": progress(arguments),
        "memory_budget": arguments.memory_budget,
        "data_range": signal.data_range,
    }
    if signal.judged is not None:
        some = torch.randperm(len(coords), generator=torch.Generator().manual_seed(arguments.seed))[: signal.judged]
        given |= {"eval_coords": coords[some.to(coords.device)], "eval_target": target[some.to(coords.device)]}
    if signal.regularizers:
        given["regularizers"] = [(term.to(arguments.device, dtype), factor) for term, factor in signal.regularizers]
    given |= others
    make_folder(given["checkpoint"])
    with bar(arguments, "the fit"):
        result = fit(net, coords, target, **given)
    tell_little(result, signal)
    return result


def _outcome(result: FitResult, steps: int) -> str:
    """Return what a line says of a fit of so many steps."""
    stated = "" if result.data_range == 1 else f" (range {result.data_range:.4g})"
    return f"{result.psnr:.2f} dB{stated} after {result.steps} of {steps} steps"


def _network_line(net: INR, lr: float) -> str:
    return f"\nnetwork: {name_of(arguments_of(net))}, learning rate {lr:g}"


def _numbers(result: FitResult) -> dict[str, Any]:
    """Return what the report says of a fit."""
    return {
        "interrupted": result.interrupted,
        "stopped": result.stopped,
        "steps": result.steps,
        "seconds": result.seconds,
        "psnr": finite(result.psnr),
        "data_range": result.data_range,
        "best_psnr": finite(result.best_psnr),
        "best_step": result.best_step,
        "eval_steps": result.eval_steps,
        "psnrs": [finite(psnr) for psnr in result.psnrs],
        "settings": result.config,
    }


def _check_files(arguments: argparse.Namespace, name: str, options: dict[str, Any], written: tuple[Path, ...]) -> None:
    """Refuse files that cannot be read or written before anything takes time."""
    if arguments.resume and arguments.checkpoint is None:
        raise ValueError("--resume needs --checkpoint, the file to go on from")
    noted = [*(["--like"] if arguments.network and arguments.like else []), *arguments.noted]
    if arguments.network is not None and noted:
        raise ValueError(
            f"--network auto chooses the network itself, got {', '.join(noted)} too; leave out the one or "
            "the other (inrfast choose takes networks to choose from, --candidate)"
        )
    if arguments.like is not None and noted:
        raise ValueError(
            f"--like {arguments.like} describes the network itself, got {', '.join(noted)} too; leave out the one or "
            "the other"
        )
    read = files_read(arguments.signal, name, options)
    kind, out = SIGNALS[name], written[0]
    check_file(out, kind.writable(1), listed(kind.writable(1)))
    for file in written[1:]:
        check_target("--out", file)
    if arguments.checkpoint is not None:
        check_target("--checkpoint", arguments.checkpoint)
    _check_apart(written, read, arguments.checkpoint, arguments.resume)


def _check_apart(written: Iterable[Path], read: dict[str, Path], checkpoint: Path | None, resume: bool) -> None:
    """Refuse to write over what is read, or one file over another."""
    files = dict(read)
    if checkpoint is not None:
        for what, other in read.items():
            if os.path.realpath(checkpoint) == os.path.realpath(other):
                raise ValueError(f"--checkpoint must be another file than {what}, got {checkpoint} for both")
        if checkpoint.exists() and not resume:
            raise FileExistsError(
                f"--checkpoint: {shown(checkpoint)} exists; go on from it with --resume, or name another"
            )
        files["--checkpoint"] = checkpoint
    check_apart(written, files)


def _held_out_iou(net: torch.nn.Module, coords: torch.Tensor, inside: torch.Tensor) -> float:
    from inrfast.memory import chunks
    from inrfast.metrics import iou

    like = next(net.parameters())
    with torch.no_grad():
        values = torch.cat([net(coords[rows].to(like)) for rows in chunks(len(coords), 8192)])
    return iou(values.cpu() > 0, inside > 0.5)


def _write_report(path: Path, found: dict[str, Any]) -> None:
    from inrfast.files import write_whole

    write_whole(path, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
