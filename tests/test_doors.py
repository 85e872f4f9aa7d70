"""Every public function takes NumPy and DLPack arrays where it takes tensors, and gives the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_arrays import Exported
from torch import Tensor

import inrfast as inr
from inrfast import metrics

POINTS = inr.grid((6, 7), dtype=torch.float64)
GENERATOR = np.random.default_rng(0)
VECTOR = torch.from_numpy(GENERATOR.standard_normal(42))
PICTURE = torch.sin(4 * POINTS.sum(1, keepdim=True)) / 2


def network(**options: Any) -> inr.INR:
    return inr.INR(2, 1, width=12, hidden_layers=2, activation="sine", init="siren", dtype=torch.float64, **options)


def outputs(*nets: inr.INR) -> list[Tensor]:
    return [parameter.detach() for net in nets for parameter in net.parameters()]


def fitted(give, **options):
    net = network()
    mask = give(POINTS[:, 0] < 0.5)
    found = inr.fit(
        net, give(POINTS), give(PICTURE), steps=3, weight=mask, eval_coords=give(POINTS), eval_target=give(PICTURE)
    )
    return [*outputs(net), found.psnr]


def fitted_many(give):
    nets = [network(seed=seed) for seed in range(2)]
    results = inr.fit_many(nets, give(POINTS), give(torch.stack([PICTURE, 2 * PICTURE])), steps=3)
    several = [network(seed=seed) for seed in range(2)]
    inr.fit_many(several, [give(POINTS)] * 2, [give(PICTURE)] * 2, steps=2, weight=give(VECTOR.abs()))
    return [*outputs(*nets, *several), *[result.psnr for result in results]]


def meta_learned(give):
    net = network()
    signals = torch.stack([PICTURE, -PICTURE, PICTURE / 2])
    found = inr.meta_learn(net, give(POINTS), give(signals), steps=2, batch=2, progress=False)
    some = inr.adapt(net, give(POINTS), [give(own) for own in signals], eval_signals=give(signals))
    return [*outputs(net), *found.losses, some.psnrs]


def inpainted(give):
    mask = VECTOR.view(6, 7) > 0
    return inr.inpaint(give(PICTURE.view(6, 7) + 0.5), give(mask), steps=2, progress=False)


def kernel(**options):
    return inr.ntk(network(), POINTS, precision="highest", **options)


def spectrum():
    return kernel().spectrum(eigenvectors=True)


def applied(give):
    net = inr.INR(2, 1, width=12, hidden_layers=2, dtype=torch.float64)
    inr.init.apply_(net, "rank_expanding", coords=give(POINTS))
    return outputs(net)


def watched(give):
    net = network()
    seen = inr.watch(net, give(POINTS), every=1)
    seen.step()
    return [*seen.history[0].eigenvalues, seen.history[0].trace]


def calibrated(give):
    return list(inr.calibrate_batchnorm_(network(norm="batch"), give(POINTS)).buffers())


SINE = {"activation": "sine", "init": "siren", "omega": 5.0}
TINY: dict[str, Any] = {"points": 64, "width": 16, "hidden_layers": 1, "candidates": [SINE]}
WAVE = torch.sin(20 * inr.grid(256))
MAPPING = inr.RandomFourier(frequencies=[[1.0]])
SINES = inr.INR(1, 1, width=4, hidden_layers=1, activation="sine", omega=1.0, encoding=MAPPING, dtype=torch.float64)
LEVELS = torch.tensor([0.5, 0.1], dtype=torch.float64)


def atoms():
    return inr.dictionary(network(), POINTS)


BLUR = inr.inverse.Blur.gaussian((6, 7), 1.0)
MAGNITUDE = inr.inverse.FourierMagnitude((6, 7), 1.5)


def solved(give):
    """Net-GD and Net-ADM of a few steps, with points, measurements and a truth."""
    truth, quiet = PICTURE.reshape(6, 7), {"progress": False, "data_range": 1.0}
    given = {"measurements": give(BLUR(truth)), "steps": 2, "target": give(truth)}
    gd = inr.inverse.net_gd(network(), give(POINTS), BLUR, **given, **quiet)
    grid = inr.grid(MAGNITUDE.padded, dtype=torch.float64)
    adm = inr.inverse.net_adm(
        network(), MAGNITUDE, give(MAGNITUDE(truth)), 2, 1, coords=give(grid), target=give(truth), **quiet
    )
    return [gd.signal, gd.psnr, adm.signal, adm.psnr]


def posed(give):
    camera = inr.scenes.Camera(give(inr.scenes.look_at(give(torch.tensor([2.0, 1.0, 1.0])))), 6, 7)
    views = inr.scenes.Views(give(PICTURE.view(1, 6, 7, 1).expand(1, 6, 7, 3) + 0.5), [camera])
    return [views.colours(), views.rays()]


def composited(give):
    values, edges = give(POINTS.view(6, 7, 2)), give(torch.arange(8.0, dtype=torch.float64).expand(6, 8))
    found = inr.scenes.composite(give(PICTURE.view(6, 7).abs()), values, edges, give(POINTS[0]))
    return [found.colours, found.opacity, found.depth]


def told(result):
    """Return all numbers of a result as a text."""
    return str(result.to_dict())


def drawn(give):
    """Return the pictures of a fit's figure."""
    result = inr.fit(network(), POINTS, PICTURE.reshape(-1, 1), steps=1, progress=False)
    figure = result.plot(target=give(PICTURE), reconstruction=give(PICTURE / 2), shape=(6, 7))
    return [torch.as_tensor(axes.get_images()[0].get_array().data) for axes in figure.axes if axes.get_images()]


DOORS = {
    "ntk": lambda give: inr.ntk(network(), give(POINTS), give(POINTS[:5])).to_dense(),
    "jacobian": lambda give: inr.jacobian(network(), give(POINTS)).rows(),
    "K @ v": lambda give: kernel() @ give(VECTOR),
    "K @ V": lambda give: kernel() @ give(VECTOR.reshape(42, 1)),
    "K.product": lambda give: kernel().product(give(VECTOR), 0.5),
    "K.quadratic_form": lambda give: kernel().quadratic_form(give(torch.stack([VECTOR, VECTOR.flip(0)], 1))),
    "K.solve": lambda give: kernel().solve(give(VECTOR), ridge=0.1),
    "K.columns": lambda give: kernel().columns(give(torch.tensor([3, -1, 3]))),
    "K.submatrix": lambda give: kernel().submatrix(give(torch.tensor([3, 4]))),
    "factor": lambda give: kernel().factor(-0.1)(give(VECTOR)),
    "factor.solve": lambda give: kernel().factor(-0.1).solve(give(VECTOR)),
    "J @ p": lambda give: inr.jacobian(network(), POINTS) @ give(torch.ones(205, dtype=torch.float64)),
    "J.T @ v": lambda give: inr.jacobian(network(), POINTS).T @ give(VECTOR),
    "J.split": lambda give: list(inr.jacobian(network(), POINTS).split(give(torch.arange(205.0))).values()),
    "spectrum.energy": lambda give: spectrum().energy(give(VECTOR)),
    "spectrum.predict": lambda give: spectrum().predict(give(VECTOR), give(0 * VECTOR), 1e-3, 5),
    "numerical_rank": lambda give: inr.numerical_rank(give(POINTS), 1e-6).lower,
    "diagnose": lambda give: told(inr.diagnose(network(), give(POINTS), ntk_coords=give(POINTS[::2]), progress=False)),
    "representation": lambda give: told(inr.representation(network(), give(POINTS), "layers.0", progress=False)),
    "dictionary": lambda give: inr.dictionary(network(), give(POINTS), 5).atoms,
    "Dictionary.of": lambda give: inr.Dictionary.of(spectrum(), coords=give(POINTS)).images(2),
    "dictionary.coefficients": lambda give: atoms().coefficients(give(VECTOR)),
    "dictionary.energy": lambda give: atoms().energy(give(VECTOR), give(LEVELS)).upper,
    "dictionary.kernel_norm": lambda give: atoms().kernel_norm(give(VECTOR), ridge=1.0).counted,
    "KAR": lambda give: inr.KAR(give(POINTS), r=4, width=8, hidden_layers=1)(network(), POINTS[::2], 0),
    "PEAK": lambda give: outputs(inr.PEAK(network(), give(POINTS)).net),
    "Eikonal": lambda give: inr.Eikonal(give(POINTS))(network(), 0),
    "TotalVariation": lambda give: inr.TotalVariation(give(POINTS))(network(), 0),
    "DirichletEnergy": lambda give: inr.DirichletEnergy(give(POINTS), mode="derivatives")(network(), 0),
    "two_layer_variance": lambda give: inr.two_layer_variance(give(POINTS), 8).variance,
    "variance": lambda give: [(own := inr.variance(network(), give(POINTS))).pairs, own.similarities.gate],
    "alignment": lambda give: inr.alignment(kernel(), give(VECTOR)),
    "alignment of arrays": lambda give: inr.alignment(*[give(kernel().to_dense())] * 2, centered=True),
    "optimal_kernel": lambda give: inr.optimal_kernel(give(POINTS.t())).diagonal(),
    "optimal_kernel @ V": lambda give: inr.optimal_kernel(POINTS.t()) @ give(VECTOR),
    "kernel_regression": lambda give: inr.kernel_regression(
        network(), give(VECTOR), coords=give(POINTS), at=give(POINTS[:5] / 2), rtol=1e-6
    ).prediction,
    "kernel_regression of blocks": lambda give: inr.kernel_regression(
        give(torch.eye(42, dtype=torch.float64)), give(VECTOR), give(POINTS.t())
    ).prediction,
    "infinite_ntk": lambda give: inr.infinite_ntk(2)(give(POINTS), give(POINTS[:5])),
    "infinite_ntk.of_cosine": lambda give: inr.infinite_ntk(2).of_cosine(give(POINTS)),
    "operator": lambda give: [BLUR(give(PICTURE)), BLUR.adjoint(give(PICTURE)), BLUR @ give(PICTURE)],
    "operator.loss": lambda give: BLUR.loss(give(PICTURE), give(VECTOR.square()))(2 * PICTURE),
    "Blur": lambda give: inr.inverse.Blur((6, 7), give(POINTS[:3]))(PICTURE),
    "Radon": lambda give: inr.inverse.Radon(6, give(VECTOR))(PICTURE[:36]),
    "Mask": lambda give: inr.inverse.Mask(give(PICTURE.reshape(6, 7).clamp_min(0)))(PICTURE),
    "Fourier": lambda give: inr.inverse.Fourier((6, 7), give(PICTURE.reshape(6, 7).clamp_min(0)))(PICTURE).real,
    "align_ambiguities": lambda give: inr.inverse.align_ambiguities(give(-PICTURE), give(PICTURE), "sign"),
    "net_gd, net_adm": solved,
    "fit": fitted,
    "fit_many": fitted_many,
    "FitResult.plot": drawn,
    "meta_learn, adapt": meta_learned,
    "choose": lambda give: inr.choose(give(WAVE), give(inr.grid(256)), **TINY, progress=False).best.psnr,
    "choose on its grid": lambda give: inr.choose(give(WAVE), **TINY, progress=False).best.psnr,
    "calibrate_batchnorm_": calibrated,
    "apply_": applied,
    "watch": watched,
    "inpaint": lambda give: inpainted(give).image,
    "upscale": lambda give: inr.upscale(give(PICTURE.view(6, 7) + 0.5), 1.5, steps=2, progress=False).image,
    "rank_expanding": lambda give: inr.rank_expanding(9, 1, coords=give(torch.linspace(-0.5, 1, 9))),
    "scenes: cameras, views": posed,
    "scenes.composite": composited,
    "bessel_series": lambda give: inr.bessel_series(SINES)(give(POINTS[:, :1])),
    "RandomFourier": lambda give: inr.RandomFourier(frequencies=give(POINTS[:3])).config()["frequencies"],
    "psnr": lambda give: metrics.psnr(give(PICTURE), give(PICTURE / 2), None),
    "to_8bit": lambda give: metrics.to_8bit(give(PICTURE)),
    "chamfer": lambda give: metrics.chamfer(give(POINTS), give(POINTS + 0.1)),
    "iou": lambda give: metrics.iou(give(PICTURE > 0), give(PICTURE > 0.1)),
}  # fmt: skip

KINDS = {
    "NumPy": lambda tensor: tensor.numpy().copy(),
    "of the other byte order": lambda tensor: swapped(tensor.numpy()),
    "strided": lambda tensor: np.repeat(tensor.numpy(), 2, axis=0)[::2],
    "reversed and read-only": lambda tensor: read_only(tensor.numpy()[::-1].copy()[::-1]),
    "DLPack": Exported,
}


def swapped(array):
    return array.astype(array.dtype.newbyteorder("S"))


def read_only(array):
    array.flags.writeable = False
    return array


def flat(found: Any) -> list[Any]:
    """Return what a call gives as a list of arrays and plain values."""
    if isinstance(found, list | tuple):
        return [own for part in found for own in flat(part)]
    return [found.detach().numpy() if isinstance(found, Tensor) else found]


@pytest.mark.parametrize("door", DOORS)
def test_arrays_are_taken_as_tensors_are(door):
    expected = flat(DOORS[door](lambda tensor: tensor))
    kinds = KINDS if door in ("ntk", "K @ v", "K.columns") else list(KINDS)[:: len(KINDS) - 1]
    for kind in kinds:
        found = flat(DOORS[door](KINDS[kind]))
        for own, other in zip(found, expected, strict=True):
            same = np.array_equal(own, other)
            # Where numbers lie in memory may change the order of a library's sums.
            assert same or np.abs(own - other).max() <= 64 * np.finfo(own.dtype).eps * np.abs(other).max(), kind


NUMPY_OUT = ("K @ v", "K @ V", "K.product", "K.quadratic_form", "K.solve", "factor", "factor.solve", "J @ p", "J.T @ v",
             "optimal_kernel @ V")  # fmt: skip


@pytest.mark.parametrize("door", NUMPY_OUT)
def test_products_and_solutions_are_what_came_in(door):
    assert isinstance(DOORS[door](KINDS["NumPy"]), np.ndarray)
    assert isinstance(DOORS[door](KINDS["DLPack"]), Tensor)


@pytest.mark.parametrize("door", sorted(set(DOORS) - {"K.columns", "K.submatrix", "RandomFourier", "numerical_rank"}))
@pytest.mark.parametrize(
    "give",
    [lambda x: x.numpy().astype(object), lambda x: np.ma.masked_array(x.numpy(), x.numpy() > -9)],
    ids=["objects", "masked"],
)
def test_what_holds_no_numbers_is_refused_at_every_door(door, give):
    with pytest.raises(TypeError, match=r"must hold numbers, got a NumPy array of dtype object|with masked entries"):
        DOORS[door](give)


@pytest.mark.parametrize("dtype", [np.int64, np.complex128, bool])
@pytest.mark.parametrize("door", ["ntk", "K @ v", "J.T @ v", "diagnose", "fit", "dictionary.coefficients", "choose"])
def test_numbers_of_another_kind_are_refused_with_a_cure(door, dtype):
    with pytest.raises(TypeError, match=r"must have a floating-point dtype, got torch\.(int64|complex128|bool)"):
        DOORS[door](lambda tensor: tensor.numpy().astype(dtype))


@pytest.mark.parametrize("kind", list(KINDS)[:: len(KINDS) - 1])
def test_fp64_numbers_of_a_single_network_are_as_fp64_tensors(kind):
    net, other, give = inr.INR(2, 1, width=8, seed=0), inr.INR(2, 1, width=8, seed=0), KINDS[kind]
    assert torch.equal(inr.ntk(net, give(POINTS)).to_dense(), inr.ntk(net, POINTS).to_dense())
    inr.fit(net, give(POINTS), give(PICTURE), steps=2)
    inr.fit(other, POINTS.float(), PICTURE.float(), steps=2)
    assert all(map(torch.equal, outputs(net), outputs(other)))


def test_a_kernel_and_a_jacobian_are_arrays():
    K, J = kernel(), inr.jacobian(network(), POINTS)
    assert np.array_equal(np.asarray(K), K.to_dense().numpy())
    assert np.asarray(J, dtype=np.float64).dtype == np.float64 and np.array_equal(np.array(J), J.rows().numpy())
    assert np.array_equal(np.from_dlpack(K.to_dense()), np.asarray(K))
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(K, copy=False)


def test_axes_of_coordinates_are_flattened_in_row_major_order():
    image_of = POINTS.reshape(6, 7, 2)
    net = network()
    for call in (lambda net, x: inr.ntk(net, x).to_dense(), lambda net, x: inr.dictionary(net, x, 4).images(),
                 lambda net, x: told(inr.diagnose(net, x, progress=False)),
                 lambda net, x: told(inr.representation(net, x, "input", progress=False)),
                 lambda net, x: inr.fit(net, x, PICTURE.reshape(6, 7, 1), steps=2).losses):  # fmt: skip
        assert np.array_equal(*(flat(call(network(), x))[0] for x in (image_of, POINTS)))
    assert torch.equal(net(image_of).reshape(-1, 1), net(POINTS))
