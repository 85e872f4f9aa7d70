"""Encodings with parameters go through fits, kernels, diagnoses, files and the command line as any layer does."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inrfast as inr
from inrfast.cli import main
from inrfast.encodings import ENCODINGS, Compose, Concatenate, Encoding, HashGrid, Identity, register
from inrfast.training.checkpoint import load_network, save_network

pytestmark = [
    pytest.mark.filterwarnings("ignore:parameters .* have no form of two factors:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:the fit goes on from .* with callbacks other than:RuntimeWarning"),
]

COORDS = inr.grid((12, 12), dtype=torch.float64)
TARGET = 0.3 * torch.cat([(3 * COORDS).sin().prod(1, keepdim=True), (2 * COORDS[:, :1]).cos()], dim=1)


class Bent(Encoding):
    """An encoding of a user's own, with a layer and a bare parameter."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.linear, self.shift = nn.Linear(1, 1), nn.Parameter(torch.zeros(1))

    def build(self, in_features: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Encoding:
        built = Bent(self.width)
        built.in_features, built.out_features = in_features, self.width
        built.linear = nn.Linear(in_features, self.width, device=device, dtype=dtype)
        for parameter in built.linear.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(draw)
        built.shift = nn.Parameter(torch.zeros(self.width, device=device, dtype=dtype))
        return built

    def config(self) -> dict[str, Any]:
        return {"name": "Bent", "width": self.width}

    def forward(self, coords: Tensor) -> Tensor:
        return (self.linear(coords) + self.shift.exp()).tanh()


TRAINED: dict[str, Encoding] = {
    "fourier": inr.RandomFourier(5, 1.0, trainable=True),
    "polynomial": inr.Polynomial(3, [1.0, 0.5, 0.0, 0.1], trainable=True),
    "hash grid": HashGrid(3, 2, 2**5, 2, 9),
    "side by side": Concatenate(Identity(), inr.RandomFourier(4, 1.0, trainable=True), inr.PositionalEncoding(2)),
    "one after the other": Compose(inr.RandomFourier(3, 1.0, trainable=True), inr.Polynomial(2, trainable=True)),
    "own": Bent(),
}


@pytest.fixture(autouse=True)
def _own() -> Iterator[None]:
    register(Bent)
    yield
    ENCODINGS._items.pop("Bent")


def network(encoding: Encoding, seed: int = 0, **options: Any) -> inr.INR:
    settings = {"width": 10, "hidden_layers": 2, "activation": "tanh", "dtype": torch.float64, **options}
    return inr.INR(2, 2, encoding=encoding, seed=seed, **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", TRAINED)
def test_a_fit_takes_the_steps_of_torch(kind: str) -> None:
    """All of them are parameters that torch's Adam, dense, moves to the same place; a stack of them likewise."""
    nets = [network(TRAINED[kind], seed) for seed in range(2)]
    rivals = copy.deepcopy(nets)
    for rival in rivals:
        optimizer = torch.optim.Adam(rival.parameters(), lr=1e-2)
        for _ in range(8):
            optimizer.zero_grad()
            (rival(COORDS) - TARGET).square().mean().backward()
            optimizer.step()
    alone = copy.deepcopy(nets)
    options: dict[str, Any] = {"steps": 8, "lr": 1e-2, "schedule": "constant"}
    inr.fit_many(nets, COORDS, TARGET, **options)
    for net, single, rival, start in zip(
        nets, alone, rivals, [network(TRAINED[kind], s) for s in range(2)], strict=True
    ):
        inr.fit(single, COORDS, TARGET, **options)
        assert same(net, single)
        for (name, got), expected in zip(net.named_parameters(), rival.parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
            assert not name.startswith("encoding.") or not torch.equal(got, start.get_parameter(name))


@pytest.mark.parametrize("kind", TRAINED)
def test_kernels_are_of_all_parameters(kind: str) -> None:
    net, points = network(TRAINED[kind]), COORDS[::7]
    parameters = dict(net.named_parameters())

    def predicted(*values: Tensor) -> Any:
        return torch.func.functional_call(net, dict(zip(parameters, values, strict=True)), (points,))

    blocks = torch.autograd.functional.jacobian(predicted, tuple(parameters.values()))
    jacobian = torch.cat([block.flatten(2) for block in blocks], dim=2)
    dense = torch.einsum("nmp,kmp->nk", jacobian, jacobian)
    kernel = inr.ntk(net, points, precision="highest")
    torch.testing.assert_close(kernel.to_dense(), dense)
    vector = torch.randn(jacobian.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(inr.jacobian(net, points, precision="highest") @ vector, jacobian.flatten(0, 1) @ vector)
    report = inr.diagnose(net, points, rtols=(1e-2, 1e-4)).to_dict()
    levels = torch.linalg.eigvalsh(dense).flip(0)
    assert json.dumps(report)
    for rtol in (1e-2, 1e-4):
        found = kernel.spectrum(rtol=rtol).rank(rtol)
        assert found.lower <= int((levels > rtol * levels[0]).sum()) <= found.upper


class Stop:
    """Ends a fit in the middle of its steps."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, state: Any) -> None:
        if state.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", TRAINED)
def test_files_and_interrupted_fits_lose_nothing(kind: str, tmp_path: Path) -> None:
    whole, halved, resumed = (network(TRAINED[kind]) for _ in range(3))
    options: dict[str, Any] = {"steps": 8, "lr": 1e-2, "batch_size": 50, "checkpoint": tmp_path / "run"}
    inr.fit(whole, COORDS, TARGET, **{**options, "checkpoint": None}, callbacks=[Stop(99)])
    assert inr.fit(halved, COORDS, TARGET, **options, callbacks=[Stop(4)]).stopped == "interrupted"
    assert not same(whole, halved)
    inr.fit(resumed, COORDS, TARGET, **options, resume=True, callbacks=[Stop(99)])
    assert same(whole, resumed)
    save_network(whole, tmp_path / "net.safetensors")
    for name in ("run", "net.safetensors"):
        loaded = load_network(tmp_path / name)[0]
        assert torch.equal(loaded(COORDS), whole(COORDS))
        assert loaded.config()["encoding"] == whole.config()["encoding"]


def test_a_file_of_an_encoding_that_is_not_registered_says_so(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_network(network(Bent()), path)
    del ENCODINGS._items["Bent"]
    try:
        with pytest.raises(ValueError, match=r"got 'Bent'.*inrfast\.encodings\.register"):
            load_network(path)
    finally:
        register(Bent)


def test_frozen_parameters_are_as_fast_and_the_same_as_fixed_ones() -> None:
    """In fp32, where the fast engines take the fit: their steps are the same bits."""
    frozen, fixed = (
        network(inr.RandomFourier(5, 1.0, trainable=trainable), dtype=torch.float32) for trainable in (True, False)
    )
    assert frozen.encoding is not None
    frozen.encoding.requires_grad_(False)
    for net in (frozen, fixed):
        inr.fit(net, COORDS.float(), TARGET.float(), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(frozen.layers.parameters(), fixed.layers.parameters(), strict=True))


@pytest.mark.parametrize(
    "spelling", ["hashgrid:3:2:64:2:9", "identity+fourier:4:1:trainable", "polynomial:3:trainable"]
)
def test_the_command_line_takes_them(
    spelling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import skimage.io

    monkeypatch.chdir(tmp_path)
    skimage.io.imsave("in.png", (255 * torch.rand(8, 8, 3)).byte().numpy(), check_contrast=False)
    shape = ["--width", "8", "--hidden-layers", "1", "--encoding", spelling, "--quiet"]
    assert main(["fit", "in.png", "--size", "8", "--steps", "3", "--out", "out.png", *shape]) == 0
    assert main(["ntk", "--grid", "6", *shape, "--json"]) == 0
    assert main(["diagnose", "--grid", "6", *shape]) == 0
    assert capsys.readouterr().out
