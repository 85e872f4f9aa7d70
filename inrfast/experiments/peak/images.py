"""The test images of the paper, grey and of one size: the user's own by their names, or stand-ins of scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inrfast.experiments.paper import Request
from inrfast.files import shown
from inrfast.signals.image import LUMA, load_image

STAND_INS = {
    "Baboon": "chelsea",
    "Boat": "rocket",
    "Boston": "retina",
    "Cameraman": "camera",
    "House": "brick",
    "Jetplane": "astronaut",
    "Lake": "coffee",
    "Livingroom": "coins",
}
"""For each image of the paper, the one of scikit-image that is taken where no folder of images is given."""

TABLE1 = ("Baboon", "Boat", "Cameraman", "Jetplane", "Lake", "Livingroom")
"""The six images of the paper's table 1."""


@dataclass(frozen=True)
class Named:
    """A grey image under the paper's name.

    Attributes
    ----------
    name
        The paper's.
    source
        Name of the file, or of scikit-image's image.
    values
        (side, side), fp32, in [0, 1].
    note
        How it came to its size.
    paper
        Whether it is the image that the paper names, by the file's name.
    """

    name: str
    source: str
    values: Tensor
    note: str
    paper: bool

    @property
    def side(self) -> int:
        """Pixels along an axis."""
        return len(self.values)

    @property
    def settings(self) -> dict[str, Any]:
        """What a cell's result depends on."""
        return {"images": [self.source], "image": self.name, "side": self.side, "sampling": self.note}


def image(request: Request, name: str, side: int) -> Named:
    """Return the paper's image of this name, ``side`` x ``side`` pixels: its central square, averaged over areas.

    Of a folder of the user's own it is the file whose name begins with the paper's, ``baboon_gray.png`` for Baboon.

    Raises
    ------
    FileNotFoundError
        A folder was given, and none of its files has that name.
    ValueError
        It is smaller than ``side``, or cannot be read.
    """
    if not request.images:
        return _sized(name, STAND_INS[name], _bundled(STAND_INS[name]), side, paper=False)
    file = _file_of(request.images, name)
    return _sized(name, file.name, load_image(file, grey=True)[..., 0], side, paper=True)


def there(request: Request, names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names for which there is an image; all without a folder.

    Raises
    ------
    FileNotFoundError
        There is none of them in the folder.
    """
    if not request.images:
        return tuple(names)
    found = tuple(name for name in names if _files(request.images, name))
    if not found:
        listed = ", ".join(shown(path.name) for path in request.images[:5])
        raise FileNotFoundError(
            f"images must hold files whose names begin with {', '.join(names).lower()}, got {listed}"
        )
    return found


def any_of(names: Sequence[str]) -> str:
    """Return how a figure finds images that it takes as far as they are there, for the help."""
    return f"those there are of {', '.join(f'{name.lower()}*' for name in names)}"


def called(request: Request, name: str) -> str:
    """Return the name under which a report shows an image of the paper, with the stand-in's where there is one."""
    return name if request.images else f"{name} (here {STAND_INS[name]})"


def comparable(request: Request, names: Sequence[str]) -> str:
    """Return a sentence where the paper's numbers are of other images; empty for a folder of the paper's images."""
    if request.images:
        return ""
    stand_ins = ", ".join(f"{STAND_INS[name]} for {name}" for name in names)
    return (
        f"The images are photographs bundled with scikit-image, not the paper's ({stand_ins}): the paper's column is "
        "of other images, and only the order of methods can be compared."
    )


def _files(files: Sequence[Path], name: str) -> list[Path]:
    return [path for path in files if path.name.lower().startswith(name.lower())]


def _file_of(files: Sequence[Path], name: str) -> Path:
    found = _files(files, name)
    if not found:
        listed = ", ".join(shown(path.name) for path in files[:5])
        raise FileNotFoundError(f"images must hold a file whose name begins with {name.lower()}, got {listed}")
    return found[0]


def _bundled(name: str) -> Tensor:
    from skimage import data  # slow to import

    values = torch.from_numpy(getattr(data, name)()).float() / 255
    return values if values.ndim == 2 else values[..., :3] @ torch.tensor(LUMA)


def _sized(name: str, source: str, values: Tensor, side: int, *, paper: bool) -> Named:
    height, width = values.shape
    edge = min(height, width)
    if edge < side:
        raise ValueError(
            f"images must be at least {side} pixels high and wide, and {shown(source)} is {height}x{width}"
        )
    if height == width == side:
        return Named(name, source, values.contiguous(), f"{height}x{width} as it is", paper)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = values[top : top + edge, left : left + edge][None, None]
    averaged = F.interpolate(square, size=(side, side), mode="area")[0, 0].contiguous()
    return Named(name, source, averaged, f"central square of {height}x{width}, averaged over areas", paper)
