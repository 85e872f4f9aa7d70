"""Networks at the weights from which they are fitted to faces: random ones, and ones that were trained before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.encodings import RandomFourier
from inrfast.experiments.inr_dictionaries.faces import Faces, faces, targets
from inrfast.experiments.inr_dictionaries.networks import HIDDEN_OMEGA
from inrfast.experiments.inr_dictionaries.weights import read_weights
from inrfast.experiments.paper import Cell, Found, Request, Work, uninterrupted
from inrfast.grids import grid
from inrfast.nn import INR
from inrfast.training.fit import fit_many
from inrfast.training.meta.learn import meta_learn


@dataclass(frozen=True)
class Sizes:
    """Sizes of a preset.

    Attributes
    ----------
    side
        Pixels along an axis of the images, whose whole spectrum is computed.
    fine_side, fine_atoms
        Of the finer grid, and how many eigenpairs are computed there.
    width, hidden_layers
        Of every network, where no weights are given.
    learned, held_out
        Most images to learn from and held out.
    meta_steps, meta_lr, batch
        Outer steps of meta-learning, their rate, and the images of a step.
    single_steps
        Steps of training on a single image.
    singles
        How many such images.
    long_steps
        Of the fits that start from there.
    target_steps
        Of the fits of eigenfunctions.
    """

    side: int
    fine_side: int
    fine_atoms: int
    width: int
    hidden_layers: int
    learned: int
    held_out: int
    meta_steps: int
    meta_lr: float
    batch: int
    single_steps: tuple[int, ...]
    singles: int
    long_steps: int
    target_steps: int


QUICK = Sizes(32, 48, 300, 64, 4, 150, 20, 600, 1e-4, 3, (10, 100, 400), 2, 60, 300)
PAPER = Sizes(64, 256, 1000, 256, 4, 5000, 100, 5000, 1e-5, 3, (10, 100, 1000), 3, 100, 2000)
"""The paper learns from 5,000 images and tests on 100; it does not say how long a single image is trained on."""

INNER_STEPS, INNER_LR = 2, 1e-2
"""Of meta-learning, as in the authors' code; the rate is also that of the fits from meta-learned weights."""

ADAM_LR = 1e-4
"""Of the fits from all other weights."""

FREQUENCIES = 256
"""Of the Fourier mapping at width 256: as many as units."""


def sizes(request: Request) -> Sizes:
    """Return the sizes of a request."""
    return QUICK if request.quick else PAPER


def images(request: Request) -> Faces:
    """Return the faces of a request."""
    return _images(request, repr(request.settings), sizes(request))


@lru_cache(2)
def _images(request: Request, contents: str, own: Sizes) -> Faces:
    return faces(request, own.side, own.learned, own.held_out)


def points(side: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the authors' grid, [0, 1) on both axes, (side * side, 2)."""
    return grid((side, side), "exclusive", (0, 1), dtype=dtype, device=device)


@dataclass(frozen=True)
class Start:
    """A network and its weights at the start.

    Attributes
    ----------
    name, label
        As files and as figures spell it.
    kind
        ``"siren"``, ``"relu"`` or ``"ffn"``, the ReLU network behind random Fourier features.
    number
        Omega of the first layer, or sigma of the frequencies.
    learned
        How its weights were learned: ``"maml"``, ``"reptile"``, ``"single"`` or, for random ones, empty.
    image, steps
        With ``"single"``: the number of the image, and the steps of training on it.
    run
        Added to the seed of the random weights.
    """

    name: str
    label: str
    kind: str = "siren"
    number: float = HIDDEN_OMEGA
    learned: str = ""
    image: int = 0
    steps: int = 0
    run: int = 0

    @property
    def meta(self) -> bool:
        """Whether its weights are meta-learned."""
        return self.learned in ("maml", "reptile")

    def source(self, request: Request) -> str:
        """Return the name of the cell that learns its weights; empty for random weights and for those of a file."""
        if not self.learned or self.given(request):
            return ""
        return f"weights.{self.kind}.{self.learned}" + (f".{self.image}" if self.learned == "single" else "")

    def given(self, request: Request) -> bool:
        """Whether its weights are those of the file that the request names."""
        return request.weights is not None and self.learned == "maml" and self.kind == "siren"

    def settings(self, request: Request) -> dict[str, Any]:
        """Return what the weights depend on, as JSON holds it."""
        width, layers = shape(request)
        own = asdict(self)
        del own["label"]
        told = {"start": own, "width": width, "hidden_layers": layers, "seed": request.seed}
        if self.given(request):
            told["weights"] = request.settings["weights"]
        elif self.meta:
            told |= meta_settings(request)
        return told

    def network(self, request: Request, found: Mapping[str, Found], device: torch.device, dtype: torch.dtype) -> INR:
        """Return the network, given what the cell of its weights found."""
        if self.given(request):
            assert request.weights is not None
            return read_weights(request.weights).to(device=device, dtype=dtype)
        net = random_network(self, request, device, dtype)
        source = self.source(request)
        if source:
            arrays = found[source].arrays
            key = f"{self.steps}." if self.learned == "single" else ""
            net.load_state_dict({name: torch.from_numpy(arrays[key + name]) for name in net.state_dict()})
        return net


def rule(start: Start) -> tuple[float, str]:
    """Return rate and optimiser of the fits from a start: the paper's gradient descent from meta-learned weights."""
    return (INNER_LR, "sgd") if start.meta else (ADAM_LR, "adam")


def shape(request: Request) -> tuple[int, int]:
    """Return width and hidden layers of all networks: those of the weights given, so that they can be compared."""
    return _shape(request, repr(request.settings), sizes(request))


@lru_cache(2)
def _shape(request: Request, contents: str, own: Sizes) -> tuple[int, int]:
    if request.weights is None:
        return own.width, own.hidden_layers
    net = read_weights(request.weights)
    return net.width, net.hidden_layers


def random_network(start: Start, request: Request, device: torch.device, dtype: torch.dtype) -> INR:
    """Return a network as the authors' code draws it: all biases zero; ReLU weights normal, of variance 1 / inputs.

    Behind Fourier features a hidden layer is left out, so that all networks have equally many layers.
    """
    (width, layers), seed = shape(request), request.seed + start.run
    if start.kind == "siren":
        rule: Any = {"name": "siren", "bias": "zero"}
        omega = [start.number] + [HIDDEN_OMEGA] * (layers - 1)
        return INR(2, 1, width, layers, "sine", omega, init=rule, seed=seed, device=device, dtype=dtype)
    encoding = RandomFourier(FREQUENCIES * width // 256, start.number) if start.kind == "ffn" else None
    layers -= encoding is not None
    net = INR(2, 1, width, layers, "relu", encoding=encoding, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in net.layers:
            assert isinstance(linear, nn.Linear)
            deviation = linear.in_features**-0.5
            nn.init.trunc_normal_(linear.weight, 0.0, deviation, -2 * deviation, 2 * deviation, generator)
            linear.bias.zero_()
    return net.to(device=device, dtype=dtype)


# ---- learned weights ---------------------------------------------------------------------------------------------


def weights_cells(starts: Sequence[Start], request: Request) -> list[Cell]:
    """Return the cells that learn the weights of some starts, each once."""
    by_source = {start.source(request): start for start in starts}
    by_source.pop("", None)
    return [
        _single_cell(source, start, request) if start.learned == "single" else _meta_cell(source, start, request)
        for source, start in by_source.items()
    ]


def meta_settings(request: Request) -> dict[str, Any]:
    """Return how weights are meta-learned, as JSON holds it."""
    own = sizes(request)
    return {
        "faces": images(request).settings, "inner_steps": INNER_STEPS, "inner_lr": INNER_LR,
        "meta_steps": own.meta_steps, "meta_lr": own.meta_lr, "batch": own.batch,
    }  # fmt: skip


def _meta_cell(name: str, start: Start, request: Request) -> Cell:
    own = sizes(request)

    def run(work: Work) -> Found:
        there = images(request)
        net = random_network(start, request, work.device, torch.float32)
        batch = min(own.batch, len(there.learned))
        result = meta_learn(
            net, points(there.side, work.device), targets(there.learned).to(work.device), start.learned, INNER_STEPS,
            INNER_LR, own.meta_steps, own.meta_lr, batch, checkpoint=work.checkpoint, resume=True, seed=request.seed,
            progress=work.progress,
        )  # fmt: skip
        if result.interrupted:
            raise KeyboardInterrupt
        return Found({"losses": list(result.losses), "start_losses": list(result.start_losses)}, _state(net))

    return Cell(name, start.settings(request), run, 1e-3 * own.meta_steps * own.batch, shared=True)


def _single_cell(name: str, start: Start, request: Request) -> Cell:
    own = sizes(request)
    settings = start.settings(request) | {"lr": ADAM_LR, "single_steps": list(own.single_steps)}
    settings["start"] |= {"name": name, "steps": 0}
    settings["faces"] = images(request).settings

    def run(work: Work) -> Found:
        there = images(request)
        number = start.image % len(there.learned)
        coords, target = points(there.side, work.device), targets(there.learned[[number]])[0].to(work.device)
        nets = [random_network(start, request, work.device, torch.float32) for _ in own.single_steps]
        arrays: dict[str, Any] = {}
        psnrs = {}
        for steps, net in zip(own.single_steps, nets, strict=True):
            (result,) = uninterrupted(
                fit_many(
                    [net], coords, target, steps, ADAM_LR, "constant", data_range=1.0, progress=work.progress, seed=0
                )
            )
            psnrs[str(steps)] = result.psnr
            arrays |= {f"{steps}.{key}": values for key, values in _state(net).items()}
        return Found({"psnrs": psnrs, "image": there.names[number]}, arrays | {"image": there.learned[number].numpy()})

    return Cell(name, settings, run, 1e-3 * sum(own.single_steps), shared=True)


def _state(net: nn.Module) -> dict[str, Any]:
    return {name: values.detach().cpu().numpy() for name, values in net.state_dict().items()}


# ---- the paper's networks ----------------------------------------------------------------------------------------

OMEGAS = (5, 10, 20, 30, 40, 60, 80, 100)
"""The paper's text and its code name them together; the code leaves out 30, and with it the network of the meta row."""

SIRENS = tuple(Start(f"siren-{omega}", f"SIREN-{omega}", number=float(omega)) for omega in OMEGAS)
RELU = Start("relu", "ReLU", "relu", 0.0)
META = Start("maml", "SIREN (MAML)", learned="maml")
REPTILE = Start("reptile", "SIREN (Reptile)", learned="reptile")
SIREN = SIRENS[OMEGAS.index(30)]
SIGMAS = (1, 3, 10, 30)
"""The text does not say which the paper takes beside 1."""

FFNS = tuple(Start(f"ffn-{sigma}", f"FFN-{sigma}", "ffn", float(sigma)) for sigma in SIGMAS)
FFN_META = Start("ffn-maml", "FFN-1 (MAML)", "ffn", 1.0, "maml")


def singles(request: Request) -> list[Start]:
    """Return the starts that were trained on a single image, by image and steps."""
    own = sizes(request)
    return [
        Start(f"single-{image}-{steps}", f"image {image + 1}, {steps} steps", learned="single", image=2 * image,
              steps=steps)
        for image in range(own.singles)
        for steps in own.single_steps
    ]  # fmt: skip
