"""Fig. 8: PSNR on Baboon with half of the pixels missing, against the number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from matplotlib.figure import Figure as Drawing

from inrfast.experiments.drawing import finish, legend
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table
from inrfast.experiments.peak.fig7 import METHODS, SCENE
from inrfast.experiments.peak.fitting import fit_cell, last, sizes, speed_cell, steps_of
from inrfast.experiments.peak.images import called, comparable, image
from inrfast.experiments.peak.masks import mask
from inrfast.experiments.peak.methods import HASH, PEAK_METHOD, Method

WIDTHS = {"quick": (32, 64, 128), "paper": (32, 64, 128, 256)}
"""Of the hidden layers; hash tables have 2^5 width rows per level at most."""


def sized(method: Method, width: int) -> Method:
    """Return a method with this width."""
    network = {**method.network, "width": width}
    if method.name == HASH.name:
        parts = str(network["encoding"]).split(":")
        parts[3] = str(2 ** (5 + width.bit_length()))
        network |= {"encoding": ":".join(parts), "width": max(width // 2, 16)}
    if "fourier" in str(network.get("encoding", "")):
        network["encoding"] = f"fourier:{width}:{str(network['encoding']).split(':')[2]}"
    return replace(method, name=f"{method.name}-{width}", network=network)


def parameters(method: Method) -> int:
    """Return how many numbers of the network are trained, KAR's own left out: the picture does not need them."""
    net, _ = method.made(torch.zeros(512, 2), 512, 0, torch.device("cpu"))
    return sum(own.numel() for own in net.parameters() if own.requires_grad)


class Fig8(Figure):
    """Five methods at several widths, at equal processor time."""

    name = "fig8"
    title = "Fig. 8: PSNR against the number of parameters, Baboon with half of the pixels missing"
    takes = ("images",)
    named = MappingProxyType({"images": f"{SCENE[0].lower()}*"})

    def check(self, request: Request) -> None:
        """See :class:`inrfast.experiments.paper.Figure`."""
        image(request, SCENE[0], sizes(request).side)

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        own, made = sizes(request), _made(request)
        speed = speed_cell("speed.widths", made, own.side)
        if speed.name not in found:
            return [speed]
        scene, hidden = image(request, SCENE[0], own.side), mask(request, SCENE[1], own.side)
        return [speed, *(
            fit_cell(f"fit.{method.name}", method, scene, hidden,
                     steps_of(method, found[speed.name], own.seconds), request.seed)
            for method in made
        )]  # fmt: skip

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        own = sizes(request)
        scores = {method.name: last(found[f"fit.{method.name}"]) for method in _made(request)}
        counts = {method.name: parameters(method) for method in _made(request)}
        rows, ahead = [], []
        for width in WIDTHS[request.preset]:
            names = [f"{method.name}-{width}" for method in METHODS]
            best = max(names, key=lambda name: scores[name])
            ahead.append(best == f"{PEAK_METHOD.name}-{width}")
            ours = " / ".join(f"{scores[name]:.2f}" for name in names)
            rows.append(Row(f"PSNR (dB) {' / '.join(method.label for method in METHODS)}, width {width}",
                            "curve only", ours, f"{own.seconds:g} s of one core each"))  # fmt: skip
        rows.append(Row("PEAK highest at every width", "yes", "yes" if all(ahead) else f"at {sum(ahead)} of "
                        f"{len(ahead)}", ""))  # fmt: skip
        table = Table("By width", ["method", "parameters", "PSNR (dB)", "steps"], [
            [name, f"{counts[name]:,}", f"{value:.2f}", str(found[f"fit.{name}"].numbers["steps"])]
            for name, value in scores.items()
        ])  # fmt: skip
        text = [
            f"PEAK is highest at {sum(ahead)} of {len(ahead)} widths. Parameters of KAR's attention are not counted, "
            "since the picture does not need them; wider networks take fewer steps in the same time.",
            comparable(request, SCENE[:1]),
        ]
        numbers = {name: {"parameters": counts[name], "psnr": value} for name, value in scores.items()}
        drawing = _drawing(request, counts, scores)
        return Outcome(rows, {self.name: drawing}, [one for one in text if one], [table], numbers)


def _made(request: Request) -> list[Method]:
    return [sized(method, width) for method in METHODS for width in WIDTHS[request.preset]]


def _drawing(request: Request, counts: Mapping[str, int], scores: Mapping[str, float]) -> Drawing:
    drawing = Drawing(figsize=(6.5, 4.4), layout="constrained")
    axes = drawing.subplots()
    for method in METHODS:
        names = [f"{method.name}-{width}" for width in WIDTHS[request.preset]]
        axes.plot([counts[name] for name in names], [scores[name] for name in names], color=method.colour, marker="o",
                  label=method.label)  # fmt: skip
    axes.set_xscale("log")
    finish(axes, f"{called(request, SCENE[0])}, half of the pixels missing", "parameters", "PSNR (dB)")
    legend(drawing, axes)
    return drawing
