"""Networks of others become INRs of equal outputs, from every file and wrapper, and what cannot is refused by name."""

import math
import warnings
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from others_fields import FourierFeatures
from others_sines import Chain, FinerLayer, GaussLayer, SingleBVPNet, Siren, SirenNet, SirenWrapper, Wire
from torch import nn

import inrfast as inr
from inrfast.errors import MemoryBudgetError
from inrfast.importing import LAYOUTS, Layout, linear_layers

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
"""Coordinates, width, hidden layers, outputs."""


def points(d, seed=0, n=20):
    return 2 * torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def assert_equal(found, expected):
    """To 1e-12 of the largest output."""
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= 1e-12 * max(1.0, float(expected.detach().abs().max()))


def quiet(source, *arguments, **options):
    """Import without a warning: everything that the file does not tell is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return inr.import_network(source, *arguments, **options)


def siren(sizes, seed=0, first=11.0, hidden=7.0):
    torch.manual_seed(seed)
    d, width, layers, outputs = sizes
    return Siren(d, width, layers - 1, outputs, first, hidden).double()


def layered(make, sizes, seed):
    """The chains of FINER and WIRE's Gaussians: layers with a ``linear``, and a head."""
    torch.manual_seed(seed)
    d, width, layers, outputs = sizes
    own = [make(d if k == 0 else width, width) for k in range(layers)]
    return Chain(*own, nn.Linear(width, outputs)).double()


@given(SIZES, st.floats(0.5, 40), st.floats(0.5, 40), st.integers(0, 99))
def test_sine_finer_and_gaussian_networks_of_their_authors(sizes, first, hidden, seed):
    x = points(sizes[0], seed)
    omega = {"first": first, "hidden": hidden} if sizes[2] > 1 else first
    net = siren(sizes, seed, first, hidden)
    assert_equal(quiet(net.state_dict(), "siren", omega=omega)(x), net(x)[0])
    net = layered(lambda a, b: FinerLayer(a, b, omega_0=first), sizes, seed)
    assert_equal(quiet(net.state_dict(), "finer", omega=first)(x), net(x))
    net = layered(lambda a, b: GaussLayer(a, b, hidden / 9), sizes, seed)
    assert_equal(quiet(net.state_dict(), "gauss", omega=hidden / 9)(x), net(x))
    torch.manual_seed(seed)
    net = SirenNet(sizes[0], sizes[1], sizes[3], sizes[2], w0=hidden, w0_initial=first).double()
    assert_equal(quiet(net.state_dict(), omega=omega)(x), net(x))


@given(SIZES, st.integers(0, 99))
def test_blocks_of_siren_and_plain_sequences(sizes, seed):
    d, width, layers, outputs = sizes
    x = points(d, seed)
    torch.manual_seed(seed)
    net = SingleBVPNet(outputs, d, width, layers - 1).double()
    found = quiet(net.state_dict(), activation="sine", omega=30.0)
    assert_equal(found(x), net({"coords": x[None]})["model_out"][0])
    name, module = [("relu", nn.ReLU), ("tanh", nn.Tanh), ("gelu", nn.GELU)][seed % 3]
    widths = [d, *[width] * layers]
    parts = [p for a, b in pairwise(widths) for p in (nn.Linear(a, b, seed % 2 > 0), module())]
    net = nn.Sequential(*parts, nn.Linear(width, outputs, seed % 2 > 0)).double()
    assert_equal(quiet(net.state_dict(), activation=name)(x), net(x))


@settings(max_examples=60)
@given(SIZES, st.integers(1, 5), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_fourier_features_of_both_orders_units_and_shapes(sizes, n, cosines, two_pi, transposed, seed):
    """Against the formula, written out."""
    d, width, layers, outputs = sizes
    rng = torch.Generator().manual_seed(seed)
    columns = [2 * n, *[width] * layers, outputs]
    weights = [torch.randn(b, a, generator=rng, dtype=torch.float64) for a, b in pairwise(columns)]
    biases = [torch.randn(len(w), generator=rng, dtype=torch.float64) for w in weights]
    b = torch.randn(n, d, generator=rng, dtype=torch.float64)
    x = points(d, seed)
    phase = (2 * math.pi if two_pi else 1.0) * x @ b.T
    z = torch.cat([phase.cos(), phase.sin()] if cosines else [phase.sin(), phase.cos()], dim=1)
    for w, c in zip(weights[:-1], biases, strict=False):
        z = torch.relu(z @ w.T + c)
    state = {f"mlp.{2 * k}.weight": w for k, w in enumerate(weights)} | {"B": b.T if transposed else b}
    state |= {f"mlp.{2 * k}.bias": c for k, c in enumerate(biases)}
    options = {"activation": "relu", "order": "cos_sin" if cosines else "sin_cos", "two_pi": two_pi}
    if n == d:
        with pytest.raises(ValueError, match="transposed="):
            quiet(state, **options)
        options["transposed"] = transposed
    assert_equal(quiet(state, **options)(x), z @ weights[-1].T + biases[-1])


def test_fourier_features_of_a_module_and_what_is_assumed_of_them():
    torch.manual_seed(0)
    net = FourierFeatures(2, 6, 8, 2, 3).double()
    with pytest.warns(UserWarning, match=r"activation='relu', order='sin_cos', two_pi=True.*'fourier'") as caught:
        found = inr.import_network(net.state_dict())
    assert [warning.filename for warning in caught] == [__file__]
    assert_equal(found(points(2)).sigmoid(), net(points(2)))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 99), st.sampled_from([None, 0.0, -2.0]))
def test_arrays_of_a_meta_learned_siren(width, layers, seed, shift):
    draw = np.random.default_rng(seed)
    sizes = [2, *[width] * layers, 1]
    arrays, z = {}, points(2, seed).numpy()
    for k in range(layers + 1):
        name = f"siren.siren_layer{f'_{k}' if k else ''}.linear."
        w, b = draw.normal(size=(sizes[k], sizes[k + 1])) / 30, draw.normal(size=sizes[k + 1])
        arrays |= {f"{name}w": w.astype(np.float32), f"{name}b": b.astype(np.float32)}
        z = z @ arrays[f"{name}w"].astype(float) + arrays[f"{name}b"]
        z = np.sin(30 * z) if k < layers else z + (0.5 if shift is None else shift)
    found = quiet(arrays, dtype=torch.float64, **({} if shift is None else {"shift": shift}))
    assert_equal(found(points(2, seed)), torch.from_numpy(z))


def normed(net, old):
    norm = torch.nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in (net.net[0].linear, net.net[1].linear, net.net[2]):
            norm(layer)
            with torch.no_grad():
                next(p for name, p in layer.named_parameters() if name.endswith(("_g", "original0"))).mul_(1.3)
    return net


WRAPPED = {
    "plain": lambda net: net.state_dict(),
    "parallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: {f"module._orig_mod.{k}": v for k, v in net.state_dict().items()},
    "averaged": lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
    "lightning": lambda net: {"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}, "epoch": 3},
    "checkpoint": lambda net: {"model": net.state_dict(), "optimizer": {"state": {0: {"step": 1}}, "param_groups": []}},
    "beside tensors": lambda net: {
        "model_state_dict": net.state_dict(),
        "metrics": {"loss": torch.tensor(0.5)},
        "step": torch.tensor(3),
        "rng": torch.get_rng_state(),
    },
    "weight norm": lambda net: normed(net, old=False).state_dict(),
    "old weight norm": lambda net: normed(net, old=True).state_dict(),
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", ["dict", "pt", "legacy.pth", "safetensors", "npz"])
def test_every_file_and_wrapper_gives_the_same_network(wrap, kind, tmp_path):
    net = siren((2, 5, 2, 3))
    state, x, path = WRAPPED[wrap](net), points(2), tmp_path / f"a.{kind}"
    flat = not any(isinstance(value, dict) for value in state.values())
    if kind in ("pt", "legacy.pth"):
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    elif kind == "dict" or not flat:
        path = state
    elif kind == "npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        safetensors.torch.save_file({key: value.clone() for key, value in state.items()}, path)
    found = quiet(path, "siren", omega={"first": 11.0, "hidden": 7.0})
    assert_equal(found(x), net(x)[0])
    before = found(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(found(x), before)  # its numbers are its own


def of_layout(name, sizes):
    """A network of a layout, as a state, and what its files do not tell."""
    d, width, layers, outputs = sizes
    if name == "siren":
        return siren(sizes).state_dict(), {"omega": 3.0}
    if name == "siren_bvp":
        return SingleBVPNet(outputs, d, width, layers - 1).state_dict(), {"activation": "sine", "omega": 3.0}
    if name == "siren_pytorch":
        return SirenNet(d, width, outputs, layers).state_dict(), {"omega": 3.0}
    fourier = FourierFeatures(d, d + 1, width, layers, outputs).state_dict()
    if name == "sequential":
        return {key: values for key, values in fourier.items() if key != "B"}, {"activation": "tanh"}
    return fourier, {"activation": "relu", "order": "sin_cos", "two_pi": True}


@given(
    st.sampled_from(["siren", "siren_bvp", "siren_pytorch", "sequential", "fourier"]),
    SIZES,
    st.integers(0, 99),
    st.sampled_from(["lost", "longer", "turned", "nan", "renamed"]),
)
def test_a_state_with_any_one_tensor_wrong_is_refused(name, sizes, which, harm):
    state, given_options = of_layout(name, (sizes[0] + 4 * (sizes[0] == sizes[1]), *sizes[1:]))
    quiet(state, name, **given_options)
    key = list(state)[which % len(state)]
    wrong = dict(state)
    values = wrong.pop(key)
    if harm == "longer":
        wrong[key] = torch.cat([values, values[:1]])
    elif harm == "turned":
        wrong[key] = values.T.contiguous() if values.ndim == 2 else values[None]
    elif harm == "nan":
        wrong[key] = values / 0
    elif harm == "renamed":
        wrong[f"{key}_"] = values
    if harm == "turned" and (values.shape == wrong[key].shape or key == "B"):
        return
    with pytest.raises(ValueError, match="source"):
        inr.import_network(wrong, name, **given_options)


def test_a_layout_of_ones_own_is_found_by_its_keys(monkeypatch):
    monkeypatch.setattr(LAYOUTS, "_items", dict(LAYOUTS))

    def read(state, options):
        return linear_layers(state, r"fc(\d+)\.(weight|bias)")

    LAYOUTS.add("mine", Layout("mine", "keys fc0.weight", lambda keys: "fc0.weight" in keys, read, activation="tanh"))
    found = quiet({f"fc{k // 2}.{leaf.rpartition('.')[2]}": v for k, (leaf, v) in enumerate(NUMBERED.items())})
    x = points(2).float()
    z = torch.tanh(x @ NUMBERED["0.weight"].T + NUMBERED["0.bias"])
    z = torch.tanh(z @ NUMBERED["2.weight"].T + NUMBERED["2.bias"])
    torch.testing.assert_close(found(x), z @ NUMBERED["4.weight"].T + NUMBERED["4.bias"])


class Code:
    """What a pickle of somebody else may hold."""


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


STATE = siren((2, 5, 3, 3)).state_dict()
NORMED = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).state_dict()
NUMBERED = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).state_dict()


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        (STATE, {}, "several layouts.*'siren', 'finer', 'gauss'"),
        (STATE, {"layout": "siren-pytorch"}, "Did you mean 'siren_pytorch'"),
        (STATE, {"layout": "siren", "omega_0": 3}, "no option 'omega_0'"),
        (STATE, {"layout": "siren", "activation": "sin"}, "activation must be one of"),
        (STATE, {"layout": "siren_bvp"}, "no '0.0.weight'"),
        (STATE | {"extra.weight": torch.zeros(2, 2)}, {"layout": "siren"}, "holds 'extra.weight'"),
        (without(STATE, "net.1.linear.weight", "net.1.linear.bias"), {"layout": "siren"}, "lacks the layer 1"),
        (without(STATE, "net.1.linear.weight"), {"layout": "siren"}, "'net.1.linear.bias' without the weight"),
        (without(STATE, "net.1.linear.bias"), {"layout": "siren"}, "no bias beside 'net.1.linear.weight'"),
        (without(STATE, "net.0.linear.weight"), {"layout": "siren"}, "first layer"),
        (without(STATE, "net.3.weight", "net.3.bias"), {"layout": "siren"}, "last_linear=True"),
        (STATE | {"net.1.linear.weight": torch.zeros(5, 4).double()}, {"layout": "siren"}, "takes 4 features of the 5"),
        (STATE | {"net.1.linear.bias": torch.zeros(4).double()}, {"layout": "siren"}, r"must have shape \(5,\)"),
        (STATE | {"net.1.linear.bias": torch.zeros(5)}, {"layout": "siren"}, "one dtype"),
        (STATE | {"net.1.linear.bias": torch.full((5,), math.nan)}, {"layout": "siren"}, "NaN or Inf"),
        (STATE | {"net.1.linear.bias": torch.zeros(5, dtype=int)}, {"layout": "siren"}, "floating-point"),
        (STATE | {"epoch": 3}, {"layout": "siren"}, "tensors alone, got int as 'epoch'"),
        (Wire(2, 5, 2, 3).state_dict(), {}, "complex network of WIRE"),
        (SirenWrapper(SirenNet(2, 5, 1, 2), 3).state_dict(), {}, "modulated by a latent code"),
        (NUMBERED | {"2.weight": torch.zeros(4)}, {}, "two axes.*norm"),
        (nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 1)).state_dict(), {}, "one width"),
        ({f"{key[0].replace('4', '3')}{key[1:]}": own for key, own in NUMBERED.items()}, {}, "0, 2, 3, not even"),
        ({"a": STATE, "b": STATE}, {}, "several states, 'a', 'b'"),
        (STATE | {"ema": STATE}, {}, "tensors alone, got .* as 'ema'"),
        (STATE | {"net.0.linear.bias": np.ma.masked_equal(np.arange(5.0), 3)}, {}, "net.0.linear.bias in source.*mask"),
        (STATE | {"net.0.linear.bias": np.zeros(5, object)}, {}, "net.0.linear.bias in source.*object"),
        (STATE | {"net.0.linear.bias": np.zeros(5, np.clongdouble)}, {}, "net.0.linear.bias in source.*complex"),
        (STATE | {"net.0.linear.weight": torch.zeros(1).expand(2**25, 2**25)}, {}, "importing source needs"),
        (NORMED, {}, "1.num_batches_tracked in source is the count of a batch norm"),
        (nn.Sequential(nn.Linear(2, 4), nn.PReLU(), nn.Linear(4, 1)).state_dict(), {}, "1.weight .*PReLU"),
        ({"epoch": 3}, {}, "no tensors"),
        ({}, {}, "no layout has these keys: none"),
        (inr.INR(2, 1, 4, encoding=inr.PositionalEncoding(2)).state_dict(), {}, "no layout.*sequential"),
        ({"B": torch.zeros(3, 2), **NUMBERED}, {}, "does not make the 2 columns"),
        ({"B": torch.zeros(1, 2), **NUMBERED}, {"order": "sincos"}, "Did you mean 'sin_cos'"),
        (siren((2, 5, 2, 3)), {}, "state_dict()"),
        (3, {}, "path or a state dict, got int"),
    ],
)  # fmt: skip
def test_what_is_no_such_network_is_refused_by_name(source, options, told):
    with pytest.raises((ValueError, TypeError, MemoryBudgetError), match=told):
        inr.import_network(source, **options)


@pytest.mark.parametrize(
    "content", ["code", b"", b"text", b"PK\x03\x04 no archive", b"\x80\x04K\x01.", b"\0" * 8 + b"{"]
)
def test_files_of_other_things_are_refused_and_nothing_is_unpickled(content, tmp_path):
    path = tmp_path / "w.pt"
    if content == "code":
        torch.save({"net": Code(), **STATE}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pt is no file of tensors.*never unpickled"):
        inr.import_network(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        inr.import_network(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        inr.import_network(tmp_path)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["pt", "npz"]), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_changed_bit_of_the_numbers_is_never_read_as_numbers(kind, place, bit, tmp_path):
    """Both kinds of archives have checksums, which torch.load does not compare."""
    path = tmp_path / f"b.{kind}"
    arrays = {key: value.numpy() for key, value in NUMBERED.items()}
    if kind == "pt":
        torch.save(dict(NUMBERED), path)
    else:
        np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    values = arrays["2.weight"].tobytes()
    start = bytes(content).index(values)
    content[start + int(place * (len(values) - 1))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        inr.import_network(path, "sequential", activation="relu")


def test_an_archive_that_holds_a_name_twice_is_refused_and_one_without_checksums_is_read(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, **{key: value.numpy() for key, value in NUMBERED.items()})
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("0.weight.npy", archive.read("0.weight.npy"))
    with pytest.raises(ValueError, match=r"'0\.weight\.npy' twice"):
        inr.import_network(path, "sequential", activation="relu")
    checked = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(dict(NUMBERED), tmp_path / "d.pt")
    finally:
        torch.serialization.set_crc32_options(checked)
    net = quiet(tmp_path / "d.pt", "sequential", activation="relu")
    assert torch.equal(net.layers[0].weight, NUMBERED["0.weight"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["pt", "npz", "safetensors"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
)
def test_a_damaged_file_is_refused_in_words_or_is_a_network_of_finite_numbers(kind, changes, tmp_path):
    state, path = NUMBERED, tmp_path / f"a.{kind}"
    if kind == "pt":
        torch.save(dict(state), path)
    elif kind == "npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        safetensors.torch.save_file(dict(state), path)
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    path.write_bytes(content)
    try:
        net = quiet(path, "sequential", activation="relu")
    except (ValueError, TypeError):
        return
    assert all(bool(torch.isfinite(values).all()) for values in net.state_dict().values())


def test_every_layout_says_whose_it_is_and_defaults_are_warned_of():
    assert all("keys" in own.about and own.read is not None for own in LAYOUTS.values())
    with pytest.warns(UserWarning, match=r"do not tell omega={'first': 30.0, 'hidden': 1.0}"):
        net = inr.import_network(SirenNet(2, 5, 1, 3).state_dict())
    assert net.omegas == (30.0, 1.0, 1.0)
    assert quiet(siren((2, 5, 2, 3)).half().state_dict(), "siren", omega=3.0).layers[0].weight.dtype == torch.float16
