"""Figures 5 and 16: the first eigenfunctions of several networks as pictures, and how far they look like faces."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from inrfast.experiments.inr_dictionaries.atoms import ATOMS, atoms_cell
from inrfast.experiments.inr_dictionaries.faces import Faces
from inrfast.experiments.inr_dictionaries.starts import (
    FFNS,
    META,
    RELU,
    REPTILE,
    SIREN,
    SIRENS,
    Start,
    images,
    shape,
    singles,
    weights_cells,
)
from inrfast.experiments.paper import Cell, Figure, Found, Outcome, Request, Row, Table

COMPONENTS = 16
"""Principal components of the faces that span what is called their space."""


class AtomsFigure(Figure):
    """A row of pictures for each start: its own output, and its first eigenfunctions."""

    takes = ("images", "weights")

    def starts(self, request: Request) -> Sequence[Start]:
        """Return the starts, from top to bottom."""
        raise NotImplementedError

    def cells(self, request: Request, found: Mapping[str, Found]) -> Sequence[Cell]:
        """See :class:`inrfast.experiments.paper.Figure`."""
        starts = self.starts(request)
        ready = [start for start in starts if start.source(request) in ("", *found)]
        return [*weights_cells(starts, request), *(atoms_cell(start, request, found) for start in ready)]

    def outcome(self, request: Request, found: Mapping[str, Found]) -> Outcome:
        """See :class:`inrfast.experiments.paper.Figure`."""
        starts = self.starts(request)
        return Outcome(
            self.rows(request, found),
            {self.name: pictures(starts, found)},
            [*self._about(request), *self.text(request, found)],
            [likeness_table(starts, request, found)],
            {start.name: asdict(likeness(start, request, found)) for start in starts},
        )  # fmt: skip

    def rows(self, request: Request, found: Mapping[str, Found]) -> list[Row]:
        """Return what is compared with the paper's words."""
        raise NotImplementedError

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """Return what is seen, beyond the table."""
        return []

    def _about(self, request: Request) -> list[str]:
        there, (width, layers) = images(request), shape(request)
        text = [
            f"First {ATOMS} eigenvectors of the tangent kernel on {there.side}x{there.side} points of [0, 1), {layers} "
            f"layers of width {width}, in fp64; the first column is the network's own output. An eigenvector has no "
            "sign: here its largest entry is positive. Colours run from minus to plus the largest entry.",
            f"Likeness to faces is measured on {len(there.learned)} faces ({there.source}), means taken out: the share "
            f"of an eigenvector's energy in the space of their first {COMPONENTS} principal components, and its "
            "correlation with the mean face. These components are smooth, so smooth eigenvectors of a random network "
            "have a share in their space too, and fine ones have none whatever they show. So the third measure is of "
            "edges: from 1, where those of an eigenvector run along those of the face that the meta-learned network "
            "shows at its start, to -1; unrelated pictures have some 0.",
        ]
        if any(start.given(request) for start in self.starts(request)):
            text.append(
                "The weights of SIREN (MAML) are those of the file given. The faces that it was learned from are not "
                "at hand, and may be cropped in another way than those compared with, which lowers its numbers."
            )
        return text


class Fig5(AtomsFigure):
    """Random networks of every family, and meta-learned weights."""

    name = "fig5"
    title = "Fig. 5: first eigenfunctions of several networks"

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`AtomsFigure`."""
        ffn = [start for start in FFNS if start.number in (1.0, 10.0)]
        sirens = [start for start in SIRENS if start.number in (5.0, 30.0, 100.0)]
        return (RELU, *ffn, *sirens, META)

    def rows(self, request: Request, found: Mapping[str, Found]) -> list[Row]:
        """See :class:`AtomsFigure`."""
        rows = [
            likeness_row(start, said, request, found)
            for start, said in ((META, "looks like faces"), (SIREN, "no faces"))
        ]
        sirens = [start for start in self.starts(request) if start.name.startswith("siren")]
        fine = [frequency(found[f"atoms.{start.name}"]) for start in sirens]
        listed = ", ".join(f"{value:.1f} for {start.label}" for start, value in zip(sirens, fine, strict=True))
        rises = all(a < b for a, b in itertools.pairwise(fine))
        said = "higher with omega"
        return [*rows, Row(f"frequency of the first {ATOMS} eigenfunctions (periods per side, mean)", said,
                           f"{'rises' if rises else 'does not rise throughout'}: {listed}")]  # fmt: skip

    def text(self, request: Request, found: Mapping[str, Found]) -> list[str]:
        """See :class:`AtomsFigure`."""
        return [
            "In the authors' public code the row called FFN-10 has sigma = 1, the same seeds as FFN-1 and so the same "
            "pictures; here it has sigma = 10.",
        ]


class Fig16(AtomsFigure):
    """Random weights three times, weights trained on single images, meta-learned ones."""

    name = "fig16"
    title = "Fig. 16: first eigenfunctions after training on one face, and after meta-learning"

    def starts(self, request: Request) -> Sequence[Start]:
        """See :class:`AtomsFigure`."""
        again = [replace(SIREN, name=f"siren-30-{i}", label=f"SIREN-30, again ({i})", run=i) for i in (1, 2)]
        return (SIREN, *again, *singles(request), META, REPTILE)

    def rows(self, request: Request, found: Mapping[str, Found]) -> list[Row]:
        """See :class:`AtomsFigure`."""
        longest = max(start.steps for start in singles(request))
        said = {SIREN: "no faces", META: "looks like faces", REPTILE: "looks like faces"}
        rows = [likeness_row(start, words, request, found) for start, words in said.items()]
        for start in singles(request):
            if start.steps == longest:
                own, others = self._along_image(start, request, found)
                rows.append(
                    Row(f"edges of the first {ATOMS} eigenfunctions along those of the image trained on, {start.label}",
                        "look like the image", f"{own:+.2f}, along those of other images at most {others:+.2f}")
                )  # fmt: skip
        return rows

    def _along_image(self, start: Start, request: Request, found: Mapping[str, Found]) -> tuple[float, float]:
        """Return how far atoms run along the edges of the image trained on, and at most along those of another one."""
        atoms, means = torch.from_numpy(found[f"atoms.{start.name}"].arrays["atoms"]), {}
        for other in singles(request):
            image = torch.from_numpy(found[other.source(request)].arrays["image"])
            means[other.image] = float(np.mean(along_edges(atoms, image)))
        return means.pop(start.image), max(means.values())


# ---- what they share ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Likeness:
    """How far the eigenfunctions of a start look like faces, each of them.

    Attributes
    ----------
    space
        See :func:`in_space`.
    mean
        See :func:`with_mean_face`.
    edges
        See :func:`along_edges`, of the meta-learned network's own output.
    """

    space: list[float]
    mean: list[float]
    edges: list[float]


def likeness(start: Start, request: Request, found: Mapping[str, Found]) -> Likeness:
    """Return all measures for a start."""
    there, atoms = images(request), torch.from_numpy(found[f"atoms.{start.name}"].arrays["atoms"])
    face = torch.from_numpy(found[f"atoms.{META.name}"].arrays["picture"])
    return Likeness(in_space(atoms, there), with_mean_face(atoms, there), along_edges(atoms, face))


def likeness_row(start: Start, said: str, request: Request, found: Mapping[str, Found]) -> Row:
    """Return how far the eigenfunctions of a start look like faces."""
    own, side = likeness(start, request, found), images(request).side
    return Row(
        f"likeness of the first {ATOMS} eigenfunctions to faces, {start.label}", said,
        f"{np.mean(own.space):.3f} of their energy in the space of faces; edges along those of the learned face "
        f"{np.mean(own.edges):+.2f} ({sum(value > 0 for value in own.edges)} of {ATOMS} above 0)",
        f"{side}x{side}",
    )  # fmt: skip


def likeness_table(starts: Sequence[Start], request: Request, found: Mapping[str, Found]) -> Table:
    """Return likeness and frequency for every start, and for the faces themselves."""
    rows = []
    for start in starts:
        own = likeness(start, request, found)
        rows.append([start.label, f"{np.mean(own.space):.3f}", f"{max(own.mean):.2f}", f"{np.mean(own.edges):+.2f}",
                     f"{min(own.edges):+.2f} to {max(own.edges):+.2f}",
                     f"{frequency(found[f'atoms.{start.name}']):.1f}"])  # fmt: skip
    there, face = images(request), torch.from_numpy(found[f"atoms.{META.name}"].arrays["picture"])
    edges = along_edges(there.held_out, face)
    rows.append(["held-out faces themselves", f"{np.mean(in_space(there.held_out, there)):.3f}",
                 f"{max(with_mean_face(there.held_out, there)):.2f}", f"{np.mean(edges):+.2f}",
                 f"{min(edges):+.2f} to {max(edges):+.2f}", ""])  # fmt: skip
    head = ["", "energy in the space of faces", "largest correlation with the mean face",
            "edges along those of the learned face", "its range", "periods per side"]  # fmt: skip
    return Table(f"Likeness of the first {ATOMS} eigenfunctions to faces", head, rows)


def along_edges(pictures: Tensor, face: Tensor) -> list[float]:
    """Return how far the edges of each image (B, side, side) run along those of one image, from -1 to 1.

    The mean of the cosine of twice the angle between both gradients, weighted by their squared lengths: 1 where all
    edges run alike, -1 where they cross at right angles, near 0 for unrelated images. Neither sign nor contrast counts.
    """
    first, second = _doubled(pictures), _doubled(face.unsqueeze(0))
    return [float(value) for value in (first * second.conj()).real.sum((1, 2)) / (first * second).abs().sum((1, 2))]


def _doubled(pictures: Tensor) -> Tensor:
    """Return the gradients of images as complex numbers, squared: of twice the angle.

    The outermost pixels are left out: their differences across the border are one-sided, and so larger than others.
    """
    down, right = torch.gradient(pictures.double(), dim=(1, 2))
    return torch.complex(right, down)[:, 1:-1, 1:-1].square()


def _centred(pictures: Tensor) -> Tensor:
    """Return images (B, side, side) as rows of mean 0 and length 1, the constant part taken out."""
    flat = pictures.flatten(1).double()
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)


def in_space(pictures: Tensor, there: Faces, components: int = COMPONENTS) -> list[float]:
    """Return how much of each image's energy lies in the space of faces, in [0, 1], means taken out.

    The space is that of the leading right singular vectors of the faces to learn from, each minus its own mean but not
    minus the mean face, which is so nearly the first of them.
    """
    rows = there.learned.flatten(1)
    vectors = torch.linalg.svd(rows - rows.mean(1, keepdim=True), full_matrices=False).Vh[:components]
    return [float(share) for share in (_centred(pictures) @ vectors.T).square().sum(1)]


def with_mean_face(pictures: Tensor, there: Faces) -> list[float]:
    """Return the correlation of each image with the mean of the faces to learn from, in size."""
    (mean,) = _centred(there.learned.mean(0, keepdim=True))
    return [float(value) for value in (_centred(pictures) @ mean).abs()]


def frequency(cell: Found) -> float:
    """Return the mean frequency of the first eigenfunctions in periods per side, weighted by energy, means left out."""
    atoms = cell.arrays["atoms"].astype(np.float64)
    power = np.abs(np.fft.fft2(atoms - atoms.mean((1, 2), keepdims=True))) ** 2
    along = np.fft.fftfreq(atoms.shape[1], 1 / atoms.shape[1])
    radius = np.hypot(along[:, None], along[None])
    return float(np.mean((power * radius).sum((1, 2)) / power.sum((1, 2))))


def pictures(starts: Sequence[Start], found: Mapping[str, Found]) -> Drawing:
    """Return a row of pictures for each start: its output, and its atoms, each scaled to its own largest entry."""
    cells = [found[f"atoms.{start.name}"] for start in starts]
    atoms = mosaic([[atom / np.abs(atom).max() for atom in cell.arrays["atoms"]] for cell in cells])
    outputs = mosaic([[_spread(cell.arrays["picture"])] for cell in cells])
    drawing = Drawing(figsize=(ATOMS + 3.4, len(starts) + 0.4), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=[outputs.shape[1], atoms.shape[1]])
    left.imshow(outputs, cmap="gray", vmin=0, vmax=1)
    right.imshow(atoms, cmap="RdBu_r", vmin=-1, vmax=1)
    left.set_anchor("E")
    right.set_anchor("W")
    pitch = atoms.shape[0] / len(starts)
    left.set_yticks([(row + 0.5) * pitch for row in range(len(starts))], [start.label for start in starts])
    left.set_xticks([outputs.shape[1] / 2], ["output"])
    right.set_xticks([(column + 0.5) * pitch for column in range(ATOMS)], [str(i + 1) for i in range(ATOMS)])
    right.set_yticks([])
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
    return drawing


def _spread(picture: np.ndarray) -> np.ndarray:
    """Return an image whose values span 0 to 1."""
    low, high = float(picture.min()), float(picture.max())
    scaled: np.ndarray = (picture - low) / max(high - low, 1e-30)
    return scaled


def mosaic(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return pictures of one size beside and below each other, with a gap of NaN behind each."""
    gap = max(1, rows[0][0].shape[0] // 16)
    return np.concatenate([
        np.concatenate([np.pad(one, (0, gap), constant_values=np.nan) for one in row], axis=1) for row in rows
    ])  # fmt: skip
