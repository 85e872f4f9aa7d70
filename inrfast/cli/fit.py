"""``inrfast fit``: a network fitted to an image, a sound, a volume or a surface."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from inrfast.cli.options import add_command, common_options, memory_option, network, network_options, seed_option
from inrfast.cli.output import bar, check_file, check_target, finite, make_folder, print_result, progress, reading
from inrfast.cli.shell import INTERRUPTED, at_work, complain
from inrfast.files import shown
from inrfast.spelling import number, path, shape, whole

ENDINGS = """\
signals, by the ending of the file:
  image    PNG, JPEG, TIFF, WebP, ...; transparency is kept unless --grey; --size, --grey, --page, --weight
  audio    .wav, .flac, .ogg; sines of a high frequency are usual: --activation sine --init siren --omega 300
  volume   .npy, or .npz with one array, of shape (D, H, W) or (D, H, W, C); --size averages it down
  mesh     .obj, .ply, .stl, .off, .glb: inside or outside at sampled points; --samples, --size of the reconstruction

"""


def add(commands: Any) -> None:
    """Describe the subcommand."""
    parser = add_command(
        commands,
        "fit",
        run,
        [common_options(), seed_option(), network_options()],
        "fit a network to an image, a sound, a volume or a mesh; write reconstruction, report and model",
        "  inrfast fit photo.jpg\n"
        "  inrfast fit photo.jpg --activation sine --init siren --lr 5e-4 --steps 1000\n"
        "  inrfast fit photo.jpg --size 128 --grey --init rank_expanding --batch-size 4096 --out out/photo.png\n"
        "  inrfast fit photo.jpg --weight known.png --target-psnr 35\n"
        "  inrfast fit speech.wav --activation sine --init siren --omega 300 --batch-size 16384\n"
        "  inrfast fit bunny.obj --batch-size 20000 --checkpoint bunny.checkpoint --resume\n",
    )
    parser.epilog = ENDINGS + str(parser.epilog)
    parser.add_argument("signal", type=path, help="the image, sound, volume or mesh")
    parser.add_argument("--out", type=path, help="file to write, report and model beside it (result.png, .wav, ...)")
    _signal_options(parser)
    _training_options(parser)


def _signal_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("signal")
    group.add_argument(
        "--size",
        type=shape,
        help="image: pixels to fit, like 256 or 240x320 (256); volume: voxels to fit (all); mesh: grid of the "
        "reconstruction (128)",
    )
    group.add_argument("--grey", action="store_true", help="image: one channel instead of three or four")
    group.add_argument("--page", type=whole(0), help="image: page of a TIFF or frame of an animation, from 0")
    group.add_argument(
        "--weight", type=path, help="image: grey mask of its size, 0 where it is missing; the PSNR is of all pixels"
    )
    group.add_argument("--samples", type=whole(), help="mesh: points to fit, half of them near the surface (200000)")


def _training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=whole(), default=2000, help="updates (default: %(default)s)")
    group.add_argument("--lr", type=number, default=1e-3, help="learning rate (default: %(default)s)")
    group.add_argument("--schedule", default="exponential", help="exponential (to 0.1), cosine, constant (%(default)s)")
    group.add_argument("--batch-size", type=whole(), help="points an update (default: all)")
    group.add_argument("--optimizer", default="adam", help="adam, adamw or sgd (default: %(default)s)")
    group.add_argument("--weight-decay", type=number, default=0.0, help="of the optimizer (default: %(default)s)")
    group.add_argument("--precision", default="high", help="high (fp32), highest (fp64), medium (bf16) (%(default)s)")
    group.add_argument("--target-psnr", type=number, help="stop at this PSNR (dB)")
    group.add_argument("--patience", type=whole(), help="stop after so many evaluations without a better PSNR")
    group.add_argument("--checkpoint", type=path, help="file for the state of the fit, to go on from")
    group.add_argument("--checkpoint-seconds", type=number, default=60.0, help="between two of them (%(default)s)")
    group.add_argument("--resume", action="store_true", help="go on from --checkpoint, if there is one")
    memory_option(group)


def run(arguments: argparse.Namespace) -> int:
    """Fit, write reconstruction, report and model, and print how close it came."""
    from inrfast.cli import kinds
    from inrfast.signals.paths import readable
    from inrfast.signals.render import render
    from inrfast.training.checkpoint import save_network
    from inrfast.training.fit import fit

    name = kinds.kind_of(arguments.signal)
    kind = kinds.KINDS[name]
    _check_options(arguments, name)
    if arguments.resume and arguments.checkpoint is None:
        raise ValueError("--resume needs --checkpoint, the file to go on from")
    readable(arguments.signal, kind.called)
    if arguments.weight is not None:
        readable(arguments.weight, "an image")
    out = Path(f"result{kind.ending}") if arguments.out is None else arguments.out
    report_file, model_file = out.with_suffix(".json"), out.with_suffix(".safetensors")
    check_file(out, kind.suffixes(1), kinds.listed(kind.suffixes(1)))
    for file in (report_file, model_file):
        check_target("--out", file)
    if arguments.checkpoint is not None:
        check_target("--checkpoint", arguments.checkpoint)
    _check_apart((out, report_file, model_file), arguments)
    with reading(arguments, arguments.signal):
        signal = kind.load(arguments)
    outputs = signal.target.shape[-1]
    check_file(out, kind.suffixes(outputs), kinds.listed(kind.suffixes(outputs)))

    dtype = torch.float64 if arguments.precision == "highest" else torch.float32
    net = network(arguments, signal.coords.shape[1], outputs, dtype)
    coords, target, weight = (
        None if values is None else values.to(arguments.device, dtype)
        for values in (signal.coords, signal.target, signal.weight)
    )
    assert coords is not None and target is not None
    target = target.reshape(len(coords), outputs)
    make_folder(arguments.checkpoint)
    with bar(arguments, "the fit"):
        result = fit(
            net,
            coords,
            target,
            steps=arguments.steps,
            lr=arguments.lr,
            schedule=arguments.schedule,
            batch_size=arguments.batch_size,
            weight=weight,
            optimizer=arguments.optimizer,
            weight_decay=arguments.weight_decay,
            precision=arguments.precision,
            target_psnr=arguments.target_psnr,
            patience=arguments.patience,
            checkpoint=arguments.checkpoint,
            checkpoint_seconds=arguments.checkpoint_seconds,
            resume=arguments.resume,
            eval_target=None if weight is None else target,
            seed=arguments.seed,
            progress=progress(arguments),
            memory_budget=arguments.memory_budget,
            data_range=1.0 if name == "image" else None,
        )
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
    stated = "" if result.data_range == 1 else f" (range {result.data_range:.4g})"
    outcome = f"{result.psnr:.2f} dB{stated} after {result.steps} of {arguments.steps} steps"
    if signal.held_out is not None:
        found["samples"] = len(coords)
        found["iou"] = _held_out_iou(net, *signal.held_out)
        outcome += f", IoU {found['iou']:.4f} at points it did not see"
    with bar(arguments, "evaluating the network"):
        predictions = render(net, about["shape"], progress=progress(arguments), memory_budget=arguments.memory_budget)
    try:
        with at_work(f"writing {out}", arguments.quiet):
            kind.write(predictions, about, out)
    except ValueError as error:  # a surface that is not there; the network is worth keeping
        found["out"] = None
        _write_report(report_file, found)
        return complain(f"{error}; after {outcome}; kept the network in {model_file} and {report_file}", 1)
    _write_report(report_file, found)
    written = f"{out}, {report_file} and {model_file}"
    print_result(arguments, found, f"{arguments.signal}: {outcome} in {result.seconds:.1f} s; wrote {written}")
    if result.interrupted:
        return complain(f"interrupted; kept the result so far, {outcome}, in {written}", INTERRUPTED)
    return 0


def _check_options(arguments: argparse.Namespace, name: str) -> None:
    """Refuse options that say nothing about a signal of this kind."""
    from inrfast.cli.kinds import KINDS

    given = {
        "size": arguments.size is not None,
        "grey": arguments.grey,
        "page": arguments.page is not None,
        "weight": arguments.weight is not None,
        "samples": arguments.samples is not None,
    }
    for option, used in given.items():
        if used and option not in KINDS[name].options:
            takers = " or ".join(other for other, kind in KINDS.items() if option in kind.options)
            raise ValueError(f"--{option} goes with a signal of the kind {takers}; {arguments.signal} is of {name}")


def _check_apart(written: Iterable[Path], arguments: argparse.Namespace) -> None:
    """Refuse to write over what is read, or one file over another."""
    checkpoint = arguments.checkpoint
    files = {"the signal": arguments.signal, "--weight": arguments.weight}
    for what, other in files.items():
        if None not in (checkpoint, other) and os.path.realpath(checkpoint) == os.path.realpath(other):
            raise ValueError(f"--checkpoint must be another file than {what}, got {checkpoint} for both")
    if checkpoint is not None and checkpoint.exists() and not arguments.resume:
        raise FileExistsError(f"--checkpoint: {shown(checkpoint)} exists; go on from it with --resume, or name another")
    files["--checkpoint"] = checkpoint
    for file in written:
        for what, other in files.items():
            if other is not None and os.path.realpath(file) == os.path.realpath(other):
                raise ValueError(f"--out must be another file than {what}, got {file} for both")


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
