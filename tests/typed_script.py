"""A user's script, as a type checker sees it: tests/test_typing.py runs mypy --strict on it, and the script itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import inrfast as inr
from inrfast.nn import FusedLinear
from inrfast.training.callbacks import TrackNTK


class Field(nn.Module):
    """A network of one's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(FusedLinear(2, width, activation="sine", omega=10.0), nn.Linear(width, 1))

    def forward(self, coords: Tensor) -> Tensor:
        out: Tensor = self.body(coords)
        return out


def kernels(net: nn.Module, coords: Tensor, target: Tensor) -> dict[str, float]:
    K = inr.ntk(net, coords)
    product: Tensor = K @ target
    s = K.spectrum(rtol=1e-4)
    values: Tensor = s.eigenvalues
    rank: inr.RankInterval = s.rank(1e-3)
    dense: Tensor = K.to_dense()
    shares: Mapping[str, inr.NTK] = K.layers
    weights: Tensor = K.solve(target, ridge=1e-3, progress=False)
    factor: inr.Factorization = K.factor(-1e-3 * K.trace(), progress=False)
    held_out: Tensor = inr.ntk(net, 0.9 * coords, coords) @ weights
    whole = K.spectrum(eigenvectors=True)
    predicted: Tensor = whole.predict(target, 0 * target, lr=1.0 / float(values[0]), steps=100) - product
    total = float(torch.linalg.eigvalsh(dense.double()).sum())
    return {
        "rank": float(rank.lower),
        "trace": K.trace(),
        "sum": total,
        "largest": float(values[0]),
        "layers": sum(kernel.trace() for kernel in shares.values()),
        "solved": float(factor.solve(target).norm() + held_out.norm() + predicted.norm()),
    }


def arrays(net: nn.Module, points: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """NumPy in, NumPy out."""
    K = inr.ntk(net, points)
    product: npt.NDArray[np.float32] = K @ values
    assert product.shape == values.shape
    return K.to_dense(out=np.empty(K.shape, np.float32))


def rows(net: nn.Module, coords: Tensor) -> Tensor:
    J: inr.LayerwiseJacobian = inr.jacobian(net, coords)
    back: Tensor = J.T @ torch.ones(J.shape[0])
    return J @ back


def fits(coords: Tensor, target: Tensor) -> list[float]:
    def curvature(net: nn.Module, points: Tensor) -> Tensor:
        inside = points.detach().requires_grad_()
        return inr.derivatives.laplacian(net(inside), inside).square().mean()

    nets = [inr.INR(2, 1, width=16, hidden_layers=2, activation="sine", omega=w, init="siren") for w in (5.0, 10.0)]
    many: list[inr.FitResult] = inr.fit_many(nets, coords, target, steps=3, lr=[1e-3, 2e-3], progress=False)
    tracker = TrackNTK(points=16, every=2)
    one: inr.FitResult = inr.fit(nets[0], coords, target, steps=3, callbacks=[tracker], progress=False)
    return [result.psnr for result in (*many, one)] + [curvature(nets[0], coords).item()]


def looks(net: inr.INR, coords: Tensor) -> str:
    report: inr.DiagnosisReport = inr.diagnose(net, coords, rtols=(1e-2, 1e-4), progress=False)
    layer: inr.Representation = inr.representation(net, coords, "layers.0")
    atoms: inr.Dictionary = inr.dictionary(net, coords, k=4, progress=False)
    images: Tensor = atoms.images(2)
    ranks: list[int] = [found.lower for found in layer.spectrum.ranks]
    inr.init.siren_(nn.Linear(2, 8), omega=10.0, first=True)
    applied = inr.init.apply_(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), "xavier", coords=coords)
    assert applied.inlets
    weight, bias = inr.rank_expanding(16, 2)
    return f"{report}{ranks}{images.shape}{weight.shape}{bias.shape}"


def trained(net: nn.Module, coords: Tensor, target: Tensor) -> list[inr.WatchRecord]:
    optimizer = torch.optim.Adam(net.parameters())
    watch: inr.Watch = inr.watch(net, coords, every=2, points=32)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(coords), target)
        torch.autograd.backward(loss)
        optimizer.step()
        watch.step(loss)
    return watch.history


def chosen(coords: Tensor, target: Tensor) -> str:
    def siren(seed: int) -> nn.Module:
        return inr.INR(2, 1, width=16, activation="sine", init="siren", seed=seed)

    choice: inr.Choice = inr.choose(target, coords, candidates=[siren], points=64, check=0, progress=False)
    best: inr.Candidate = choice.best
    return str(best)


def main() -> None:
    coords = inr.grid((12, 12))
    target = (3 * coords).sin().prod(1, keepdim=True)
    net = inr.INR(2, 1, width=16, hidden_layers=2, encoding=inr.RandomFourier(8, 2.0), seed=1)
    print(kernels(Field(8), coords, target), rows(net, coords).shape)
    print(arrays(net, coords.numpy(), target.numpy()).shape)
    print([record.trace for record in trained(Field(8), coords, target)])
    print(fits(coords, target), len(looks(net, coords)), chosen(coords, target))


if __name__ == "__main__":
    main()
