"""Coordinate networks as their authors build them: the same attributes, state-dict keys and ways of calling.

Written anew from the structure of public code, which every class names; nothing of that code is copied. ``OTHERS`` has
those that every operation must take, ``REFUSED`` those that are refused by name.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Size:
    """How large a network is: units of a layer, hidden layers, and rows of every table."""

    width: int = 8
    layers: int = 2
    entries: int = 2**5


@dataclass(frozen=True)
class Other:
    """A network of somebody else.

    Attributes
    ----------
    make
        Returns a new one of some size.
    dimensions
        Number of coordinates d; points lie in [-1, 1]^d.
    select
        What takes the output from what it returns.
    inner
        Returns a network of the same outputs and parameters that ``torch.func`` can run, where it cannot run this one.
    """

    make: Callable[[Size], nn.Module]
    dimensions: int = 2
    select: Any = None
    inner: Callable[[nn.Module], nn.Module] | None = None

    def output(self, returned: Any) -> Tensor:
        """Return the output (n, M) in what the network returns for n points."""
        found: Tensor = returned if self.select is None else returned[self.select]
        return found.reshape(len(found), -1)


# ---- SIREN and its relatives -------------------------------------------------------------------------------------


class SineLayer(nn.Module):
    """vsitzmann/siren, ``explore_siren.ipynb``: a layer of a SIREN."""

    def __init__(self, in_features, out_features, bias=True, is_first=False, omega_0=30.0):
        super().__init__()
        self.omega_0, self.is_first, self.in_features = omega_0, is_first, in_features
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        bound = 1 / in_features if is_first else math.sqrt(6 / in_features) / omega_0
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, input):
        return torch.sin(self.omega_0 * self.linear(input))


class Siren(nn.Module):
    """vsitzmann/siren, ``explore_siren.ipynb``: output and coordinates are returned; keys ``net.0.linear.weight``."""

    def __init__(
        self, in_features, hidden_features, hidden_layers, out_features, first_omega_0=30, hidden_omega_0=30.0
    ):
        super().__init__()
        net = [SineLayer(in_features, hidden_features, is_first=True, omega_0=first_omega_0)]
        net += [SineLayer(hidden_features, hidden_features, omega_0=hidden_omega_0) for _ in range(hidden_layers)]
        last = nn.Linear(hidden_features, out_features)
        bound = math.sqrt(6 / hidden_features) / hidden_omega_0
        nn.init.uniform_(last.weight, -bound, bound)
        self.net = nn.Sequential(*net, last)

    def forward(self, coords):
        coords = coords.clone().detach().requires_grad_(True)
        return self.net(coords), coords


class Sine(nn.Module):
    """vsitzmann/siren, ``modules.py``."""

    def forward(self, input):
        return torch.sin(30 * input)


class BatchLinear(nn.Linear):
    """vsitzmann/siren, ``modules.py``: a linear layer with its parameters in a dictionary, which adds in place."""

    def forward(self, input, params=None):
        params = dict(self.named_parameters()) if params is None else params
        weight = params["weight"]
        output = input.matmul(weight.permute(*range(weight.ndim - 2), -1, -2))
        output += params["bias"].unsqueeze(-2)
        return output


class FCBlock(nn.Module):
    """vsitzmann/siren, ``modules.py``: keys ``net.0.0.weight``."""

    def __init__(self, in_features, out_features, num_hidden_layers, hidden_features):
        super().__init__()
        sine, sizes = Sine(), [in_features, *[hidden_features] * (num_hidden_layers + 1)]
        pairs = pairwise(sizes)
        blocks = [nn.Sequential(BatchLinear(a, b), sine) for a, b in pairs]
        self.net = nn.Sequential(*blocks, nn.Sequential(BatchLinear(hidden_features, out_features)))
        for number, block in enumerate(self.net):
            fan_in = block[0].in_features
            bound = 1 / fan_in if number == 0 else math.sqrt(6 / fan_in) / 30
            nn.init.uniform_(block[0].weight, -bound, bound)

    def forward(self, coords):
        return self.net(coords)


class SingleBVPNet(nn.Module):
    """vsitzmann/siren, ``modules.py``: takes and returns dictionaries, coordinates (batch, N, d)."""

    def __init__(self, out_features=1, in_features=2, hidden_features=256, num_hidden_layers=3):
        super().__init__()
        self.net = FCBlock(in_features, out_features, num_hidden_layers, hidden_features)

    def forward(self, model_input):
        coords = model_input["coords"].clone().detach().requires_grad_(True)
        return {"model_in": coords, "model_out": self.net(coords)}


class OfDictionary(nn.Module):
    """A user's wrapper: points (N, d) in, the dictionary out."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, coords):
        return self.net({"coords": coords})


class Batched(nn.Module):
    """A user's wrapper of a network of coordinates (batch, N, d), here a batch of one."""

    def __init__(self, net, select):
        super().__init__()
        self.net, self.select = net, select

    def forward(self, coords):
        return self.net(coords.unsqueeze(0))[self.select].squeeze(0)


class SineW0(nn.Module):
    """lucidrains/siren-pytorch: ``Sine``."""

    def __init__(self, w0=1.0):
        super().__init__()
        self.w0 = w0

    def forward(self, x):
        return torch.sin(self.w0 * x)


class SirenLayer(nn.Module):
    """lucidrains/siren-pytorch: ``Siren``, a layer of bare parameters."""

    def __init__(self, dim_in, dim_out, w0=1.0, c=6.0, is_first=False, use_bias=True, activation=None, dropout=0.0):
        super().__init__()
        self.dim_in, self.is_first = dim_in, is_first
        bound = 1 / dim_in if is_first else math.sqrt(c / dim_in) / w0
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim_out).uniform_(-bound, bound)) if use_bias else None
        self.activation = SineW0(w0) if activation is None else activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.activation(F.linear(x, self.weight, self.bias)))


class SirenNet(nn.Module):
    """lucidrains/siren-pytorch: keys ``layers.0.weight`` and ``last_layer.weight``; every layer may be modulated."""

    def __init__(self, dim_in, dim_hidden, dim_out, num_layers, w0=1.0, w0_initial=30.0, final_activation=None):
        super().__init__()
        self.num_layers, self.dim_hidden = num_layers, dim_hidden
        self.layers = nn.ModuleList(
            SirenLayer(dim_in if k == 0 else dim_hidden, dim_hidden, w0=w0_initial if k == 0 else w0, is_first=k == 0)
            for k in range(num_layers)
        )
        final = nn.Identity() if final_activation is None else final_activation
        self.last_layer = SirenLayer(dim_hidden, dim_out, w0=w0, activation=final)

    def forward(self, x, mods=None):
        for layer, mod in zip(self.layers, mods or [None] * self.num_layers, strict=True):
            x = layer(x)
            if mod is not None:
                x *= mod.unsqueeze(0)
        return self.last_layer(x)


class Modulator(nn.Module):
    """lucidrains/siren-pytorch: what a latent code makes of the layers."""

    def __init__(self, dim_in, dim_hidden, num_layers):
        super().__init__()
        sizes = [dim_in] + [dim_hidden + dim_in] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, dim_hidden), nn.ReLU()) for a in sizes)

    def forward(self, z):
        x, hiddens = z, []
        for layer in self.layers:
            x = layer(x)
            hiddens.append(x)
            x = torch.cat((x, z))
        return tuple(hiddens)


class SirenWrapper(nn.Module):
    """lucidrains/siren-pytorch: a modulated SIREN, its latent code a parameter, over points in place of an image."""

    def __init__(self, net, latent_dim):
        super().__init__()
        self.net, self.modulator = net, Modulator(latent_dim, net.dim_hidden, net.num_layers)
        self.latent = nn.Parameter(torch.randn(latent_dim))

    def forward(self, coords):
        return self.net(coords, self.modulator(self.latent))


class FinerLayer(nn.Module):
    """liuzhen0212/FINER: ``sin(omega_0 (|u| + 1) u)``, whose factor ``|u| + 1`` is constant by default."""

    def __init__(
        self, in_features, out_features, is_first=False, omega_0=30, first_bias_scale=None, scale_req_grad=False
    ):
        super().__init__()
        self.omega_0, self.is_first, self.in_features = omega_0, is_first, in_features
        self.scale_req_grad, self.first_bias_scale = scale_req_grad, first_bias_scale
        self.linear = nn.Linear(in_features, out_features)
        bound = 1 / in_features if is_first else math.sqrt(6 / in_features) / omega_0
        nn.init.uniform_(self.linear.weight, -bound, bound)
        if first_bias_scale is not None and is_first:
            nn.init.uniform_(self.linear.bias, -first_bias_scale, first_bias_scale)

    def generate_scale(self, x):
        with torch.set_grad_enabled(self.scale_req_grad and torch.is_grad_enabled()):
            return torch.abs(x) + 1

    def forward(self, input):
        x = self.linear(input)
        return torch.sin(self.omega_0 * self.generate_scale(x) * x)


class Chain(nn.Module):
    """The networks of vishwa91/wire and liuzhen0212/FINER: layers one after the other, keys ``net.0.linear.weight``."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, coords):
        return self.net(coords)


def finer(size, **options):
    """liuzhen0212/FINER: ``Finer``."""
    layers = [FinerLayer(2, size.width, is_first=True, **options)]
    options.pop("first_bias_scale", None)
    layers += [FinerLayer(size.width, size.width, **options) for _ in range(size.layers)]
    last = nn.Linear(size.width, 3)
    bound = math.sqrt(6 / size.width) / layers[-1].omega_0
    nn.init.uniform_(last.weight, -bound, bound)
    return Chain(*layers, last)


class GaussLayer(nn.Module):
    """vishwa91/wire, ``modules/gauss.py``."""

    def __init__(self, in_features, out_features, scale=10.0):
        super().__init__()
        self.in_features, self.scale = in_features, scale
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, input):
        return torch.exp(-((self.scale * self.linear(input)) ** 2))


class RealGaborLayer(nn.Module):
    """vishwa91/wire, ``modules/wire.py``: two linear layers of one input."""

    def __init__(self, in_features, out_features, omega0=10.0, sigma0=10.0):
        super().__init__()
        self.omega_0, self.scale_0, self.in_features = omega0, sigma0, in_features
        self.freqs, self.scale = nn.Linear(in_features, out_features), nn.Linear(in_features, out_features)

    def forward(self, input):
        return torch.cos(self.omega_0 * self.freqs(input)) * torch.exp(-((self.scale(input) * self.scale_0) ** 2))


class ComplexGaborLayer(nn.Module):
    """vishwa91/wire, ``modules/wire.py``: complex from the second layer on, frequency and scale trainable or not."""

    def __init__(self, in_features, out_features, is_first=False, omega0=10.0, sigma0=40.0, trainable=False):
        super().__init__()
        self.is_first, self.in_features = is_first, in_features
        self.omega_0 = nn.Parameter(omega0 * torch.ones(1), trainable)
        self.scale_0 = nn.Parameter(sigma0 * torch.ones(1), trainable)
        self.linear = nn.Linear(in_features, out_features, dtype=torch.float if is_first else torch.cfloat)

    def forward(self, input):
        lin = self.linear(input)
        return torch.exp(1j * self.omega_0 * lin - (self.scale_0 * lin).abs().square())


class Wire(nn.Module):
    """vishwa91/wire, ``modules/wire.py``: ``INR``, which returns the real part."""

    def __init__(self, in_features, hidden_features, hidden_layers, out_features, omega=10.0, scale=10.0):
        super().__init__()
        layers = [ComplexGaborLayer(in_features, hidden_features, True, omega, scale)]
        layers += [
            ComplexGaborLayer(hidden_features, hidden_features, False, omega, scale) for _ in range(hidden_layers)
        ]
        self.net = nn.Sequential(*layers, nn.Linear(hidden_features, out_features, dtype=torch.cfloat))

    def forward(self, coords):
        return self.net(coords).real


class LearnedSine(nn.Module):
    """A sine layer whose frequencies are learned, one for every unit."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.omega = nn.Parameter(5 + torch.rand(out_features))

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


# ---- Fourier features, NeRF, multiplicative filters --------------------------------------------------------------


class FourierFeatures(nn.Module):
    """tancik/fourier-feature-networks in PyTorch: random frequencies in a buffer, and a ReLU MLP with a sigmoid."""

    def __init__(self, in_features, mapping_size, width, layers, out_features, scale=3.0):
        super().__init__()
        self.register_buffer("B", scale * torch.randn(mapping_size, in_features))
        sizes = [2 * mapping_size, *[width] * layers]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, out_features), nn.Sigmoid())

    def forward(self, x):
        x = (2 * math.pi * x) @ self.B.T
        return self.net(torch.cat([torch.sin(x), torch.cos(x)], dim=-1))


class Embedder:
    """yenchenlin/nerf-pytorch: the encoding, which is no module."""

    def __init__(self, multires):
        self.functions = [lambda x: x]
        for frequency in [2.0**k for k in range(multires)]:
            for function in (torch.sin, torch.cos):
                self.functions.append(lambda x, p=function, f=frequency: p(x * f))
        self.out_dim = 3 * len(self.functions)

    def embed(self, inputs):
        return torch.cat([function(inputs) for function in self.functions], -1)


class NeRF(nn.Module):
    """yenchenlin/nerf-pytorch: a skip concatenation and two heads, of density and of colour by direction."""

    def __init__(self, D=8, W=256, multires=4, multires_views=2, skips=(4,), heads=False):
        super().__init__()
        self.embedder, self.view_embedder = Embedder(multires), Embedder(multires_views)
        input_ch, views = self.embedder.out_dim, self.view_embedder.out_dim
        self.input_ch, self.input_ch_views, self.skips, self.heads = input_ch, views, skips, heads
        self.pts_linears = nn.ModuleList(
            [nn.Linear(input_ch, W)] + [nn.Linear(W + input_ch * (k in skips), W) for k in range(D - 1)]
        )
        self.views_linears = nn.ModuleList([nn.Linear(views + W, W // 2)])
        self.feature_linear, self.alpha_linear = nn.Linear(W, W), nn.Linear(W, 1)
        self.rgb_linear = nn.Linear(W // 2, 3)

    def forward(self, x):
        points, directions = torch.split(x, [3, 3], dim=-1)
        input_pts, input_views = self.embedder.embed(points), self.view_embedder.embed(directions)
        h = input_pts
        for k, linear in enumerate(self.pts_linears):
            h = F.relu(linear(h))
            if k in self.skips:
                h = torch.cat([input_pts, h], -1)
        alpha = self.alpha_linear(h)
        h = torch.cat([self.feature_linear(h), input_views], -1)
        for linear in self.views_linears:
            h = F.relu(linear(h))
        rgb = self.rgb_linear(h)
        if self.heads:
            return {"rgb": torch.sigmoid(rgb), "sigma": F.softplus(alpha).squeeze(-1)}
        return torch.cat([rgb, alpha], -1)


class FourierLayer(nn.Module):
    """boschresearch/multiplicative-filter-networks: a sine filter."""

    def __init__(self, in_features, out_features, weight_scale):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.linear.weight.data *= weight_scale
        self.linear.bias.data.uniform_(-math.pi, math.pi)

    def forward(self, x):
        return torch.sin(self.linear(x))


class GaborLayer(FourierLayer):
    """boschresearch/multiplicative-filter-networks: a sine filter under a Gaussian of learned centre and width."""

    def __init__(self, in_features, out_features, weight_scale, alpha=2.0):
        super().__init__(in_features, out_features, weight_scale)
        self.mu = nn.Parameter(2 * torch.rand(out_features, in_features) - 1)
        self.gamma = nn.Parameter(torch.distributions.Gamma(alpha, 1.0).sample((out_features,)))

    def forward(self, x):
        squares = (x**2).sum(-1)[..., None] + (self.mu**2).sum(-1)[None, :] - 2 * x @ self.mu.T
        return torch.sin(self.linear(x)) * torch.exp(-0.5 * squares * self.gamma[None, :])


class FilterNet(nn.Module):
    """boschresearch/multiplicative-filter-networks: ``FourierNet`` and ``GaborNet``."""

    def __init__(self, kind, in_size, hidden_size, out_size, n_layers, input_scale=8.0):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(n_layers))
        self.output_linear = nn.Linear(hidden_size, out_size)
        scale = input_scale / math.sqrt(n_layers + 1)
        self.filters = nn.ModuleList(kind(in_size, hidden_size, scale) for _ in range(n_layers + 1))

    def forward(self, x):
        out = self.filters[0](x)
        for linear, own in zip(self.linear, self.filters[1:], strict=True):
            out = own(x) * linear(out)
        return self.output_linear(out)


class Bacon(nn.Module):
    """computational-imaging/bacon: filters of fixed frequencies, and an output after every layer, in a list."""

    def __init__(self, in_size, hidden_size, out_size, hidden_layers):
        super().__init__()
        self.filters = nn.ModuleList(FourierLayer(in_size, hidden_size, 3.0) for _ in range(hidden_layers + 1))
        for own in self.filters:
            own.linear.weight.requires_grad_(False)
        self.linear = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(hidden_layers))
        self.output_linear = nn.ModuleList(nn.Linear(hidden_size, out_size) for _ in range(hidden_layers + 1))

    def forward(self, coords):
        out = self.filters[0](coords)
        outputs = [self.output_linear[0](out)]
        for k, linear in enumerate(self.linear, start=1):
            out = linear(out) * self.filters[k](coords)
            outputs.append(self.output_linear[k](out))
        return outputs


# ---- tables and grids --------------------------------------------------------------------------------------------


PRIMES = (1, 2654435761, 805459861)


def corners_of(x, resolution, entries):
    """Return the hashed corners (n, 2^d) of the cells of points (n, d) in [-1, 1]^d, and their places (n, d) there."""
    place = (x + 1) / 2 * resolution
    low = place.detach().floor().clamp(max=resolution - 1)
    offsets = torch.cartesian_prod(*[torch.arange(2, device=x.device)] * x.shape[1])
    corners = low.long().unsqueeze(1) + offsets
    hashed = corners[..., 0] * PRIMES[0]
    for axis in range(1, x.shape[1]):
        hashed = hashed ^ (corners[..., axis] * PRIMES[axis])
    return hashed % entries, place - low


class HashEmbedder(nn.Module):
    """yashbhalgat/HashNeRF-pytorch: an ``nn.Embedding`` for every level, eight corners, interpolated axis by axis."""

    def __init__(self, entries, n_levels=4, n_features_per_level=2, base_resolution=4, finest_resolution=32):
        super().__init__()
        self.entries, self.n_levels, self.base_resolution = entries, n_levels, base_resolution
        self.b = math.exp((math.log(finest_resolution) - math.log(base_resolution)) / (n_levels - 1))
        self.embeddings = nn.ModuleList(nn.Embedding(entries, n_features_per_level) for _ in range(n_levels))
        self.out_dim = n_levels * n_features_per_level

    @staticmethod
    def trilinear_interp(weights, voxel_embedds):
        c = voxel_embedds
        for axis in range(3):
            half, w = c.shape[1] // 2, weights[:, axis, None, None]
            c = c[:, :half] * (1 - w) + c[:, half:] * w
        return c[:, 0]

    def forward(self, x):
        embedded = []
        for level, table in enumerate(self.embeddings):
            index, weights = corners_of(x, math.floor(self.base_resolution * self.b**level), self.entries)
            embedded.append(self.trilinear_interp(weights, table(index)))
        return torch.cat(embedded, dim=-1)


class HashNeRF(nn.Module):
    """yashbhalgat/HashNeRF-pytorch: ``NeRFSmall`` behind its hash encoding: layers without bias in a ModuleList."""

    def __init__(self, entries, hidden_dim=64, num_layers=2):
        super().__init__()
        self.embed_fn = HashEmbedder(entries)
        sizes = [self.embed_fn.out_dim, *[hidden_dim] * (num_layers - 1), 4]
        self.sigma_net = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))

    def forward(self, x):
        h = self.embed_fn(x)
        for number, linear in enumerate(self.sigma_net):
            h = linear(h)
            if number < len(self.sigma_net) - 1:
                h = F.relu(h, inplace=True)
        return h


class HashTables(nn.Module):
    """A hash grid of one parameter ``tables[level][index]`` (Mueller et al., 2022), as short scripts have it."""

    def __init__(self, entries, width, levels=4, features=2):
        super().__init__()
        self.tables = nn.Parameter(torch.randn(levels, entries, features))
        self.mlp = nn.Sequential(nn.Linear(levels * features, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x):
        found = []
        for level in range(self.tables.shape[0]):
            index, place = corners_of(x, 4 * 2**level, self.tables.shape[1])
            near, far = 1 - place, place
            shares = torch.stack([(a[:, 0] * b[:, 1]) for a in (near, far) for b in (near, far)], dim=1)
            found.append((shares.unsqueeze(-1) * self.tables[level][index]).sum(1))
        return self.mlp(torch.cat(found, dim=-1))


class FeatureGrid(nn.Module):
    """A dense grid of features that ``grid_sample`` interpolates, as in sunset1995/DirectVoxGO, and an MLP."""

    def __init__(self, channels, side, width):
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, channels, side, side))
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x):
        features = F.grid_sample(self.grid, x.view(1, 1, -1, 2), mode="bilinear", align_corners=True)
        return self.mlp(features.flatten(0, 2).t())


class KPlanes(nn.Module):
    """sarafridov/K-Planes: three planes of features, multiplied, in a ParameterList ``grids``."""

    def __init__(self, channels, side, width):
        super().__init__()
        self.grids = nn.ParameterList(0.1 + 0.4 * torch.rand(1, channels, side, side) for _ in range(3))
        self.sigma_net = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x):
        product = 1.0
        for plane, axes in zip(self.grids, ([0, 1], [0, 2], [1, 2]), strict=True):
            found = F.grid_sample(plane, x[:, axes].view(1, 1, -1, 2), align_corners=True, padding_mode="border")
            product = product * found.view(plane.shape[1], -1).t()
        return self.sigma_net(product)


# ---- latent codes ------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """facebookresearch/DeepSDF: layers ``lin0``, ``lin1``, ..., the input once more midway, a tanh at the end."""

    def __init__(self, latent_size, dims, latent_in=(), norm_layers=(), weight_norm=False):
        super().__init__()
        dims = [latent_size + 3, *dims, 1]
        self.num_layers, self.latent_in, self.norm_layers = len(dims), latent_in, norm_layers
        self.weight_norm = weight_norm
        for layer in range(self.num_layers - 1):
            out_dim = dims[layer + 1] - (dims[0] if layer + 1 in latent_in else 0)
            linear = nn.Linear(dims[layer], out_dim)
            if weight_norm and layer in norm_layers:
                linear = nn.utils.weight_norm(linear)
            elif layer in norm_layers:
                setattr(self, f"bn{layer}", nn.LayerNorm(out_dim))
            setattr(self, f"lin{layer}", linear)
        self.relu, self.th = nn.ReLU(), nn.Tanh()

    def forward(self, input):
        x = input
        for layer in range(self.num_layers - 1):
            if layer in self.latent_in:
                x = torch.cat([x, input], 1)
            x = getattr(self, f"lin{layer}")(x)
            if layer < self.num_layers - 2:
                if layer in self.norm_layers and not self.weight_norm:
                    x = getattr(self, f"bn{layer}")(x)
                x = self.relu(x)
        return self.th(x)


class SdfScene(nn.Module):
    """facebookresearch/DeepSDF: one scene, its code a row of ``lat_vecs``, the same for all points."""

    def __init__(self, decoder, latent_size, scenes=3, scene=1):
        super().__init__()
        self.decoder, self.lat_vecs, self.scene = decoder, nn.Embedding(scenes, latent_size), scene

    def forward(self, xyz):
        index = torch.full((len(xyz),), self.scene, device=xyz.device)
        return self.decoder(torch.cat([self.lat_vecs(index), xyz], dim=1))


class CodedScene(nn.Module):
    """The same with a bare code, expanded to the points."""

    def __init__(self, decoder, latent_size):
        super().__init__()
        self.decoder, self.latent = decoder, nn.Parameter(0.1 * torch.randn(latent_size))

    def forward(self, xyz):
        return self.decoder(torch.cat([self.latent.expand(len(xyz), -1), xyz], dim=1))


def decoder(size, **options):
    """A DeepSDF decoder with a code of four numbers that enters again before the last hidden layer."""
    return Decoder(4, [size.width + 7] * max(size.layers, 2), latent_in=(1,), **options)


# ---- ways of calling ---------------------------------------------------------------------------------------------


class ResidualMLP(nn.Module):
    """A residual MLP, with norms before its blocks or without."""

    def __init__(self, width, blocks, norm):
        super().__init__()
        self.inlet, self.head = nn.Linear(2, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, width), nn.GELU(),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )  # fmt: skip

    def forward(self, x):
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Called(nn.Module):
    """An MLP that calls its layers by keyword, in a checkpoint, or keeps what they give, and may squeeze its output."""

    def __init__(self, size, way, squeezed=False):
        super().__init__()
        self.way, self.squeezed = way, squeezed
        self.inlet = nn.Linear(2, size.width)
        self.hidden = nn.ModuleList(nn.Linear(size.width, size.width) for _ in range(size.layers))
        self.head = nn.Linear(size.width, 1)
        self.activations = {}

    def forward(self, coords):
        x = torch.tanh(self.inlet(input=coords))
        for k, linear in enumerate(self.hidden):
            if self.way == "checkpoint":
                x = checkpoint(lambda z, layer=linear: torch.tanh(layer(z)), x, use_reentrant=False)
            elif self.way == "keyword":
                x = torch.tanh(linear(input=x))
            else:
                x = torch.tanh(linear(x))
            if self.way == "cache":
                self.activations[f"hidden.{k}"] = x
        out = self.head(x)
        return out.squeeze(-1) if self.squeezed else out


def without_checkpoints(net):
    """Return a network with the same parameters that keeps its activations in place of computing them twice."""
    twin = copy.copy(net)
    twin.way = "plain"
    return twin


class PointwiseConv(nn.Module):
    """Convolutions of width 1 over points as an axis, as charlesq34/pointnet does it."""

    def __init__(self, width, layers):
        super().__init__()
        sizes = [2, *[width] * (layers + 1)]
        pairs = pairwise(sizes)
        self.mlp = nn.Sequential(*[part for a, b in pairs for part in (nn.Conv1d(a, b, 1), nn.ReLU())])
        self.head = nn.Conv1d(width, 3, 1)

    def forward(self, x):
        return self.head(self.mlp(x.t().unsqueeze(0))).squeeze(0).t()


def siren(size):
    return Siren(2, size.width, size.layers, 3)


def bvp(size):
    return SingleBVPNet(1, 2, size.width, size.layers)


OTHERS: dict[str, Other] = {
    "siren": Other(siren, select=0, inner=lambda net: net.net),
    "siren bvp": Other(lambda size: OfDictionary(bvp(size)), select="model_out", inner=lambda net: net.net.net),
    "siren batched": Other(
        lambda size: Batched(OfDictionary(bvp(size)), "model_out"), inner=lambda net: net.net.net.net
    ),
    "siren-pytorch": Other(lambda size: SirenNet(2, size.width, 3, size.layers + 1)),
    "siren-pytorch modulated": Other(lambda size: SirenWrapper(SirenNet(2, size.width, 1, size.layers + 1), 6)),
    "finer": Other(lambda size: finer(size, first_bias_scale=1.0)),
    "finer with its slope": Other(lambda size: finer(size, omega_0=5, first_bias_scale=1.0, scale_req_grad=True)),
    "gauss": Other(
        lambda size: Chain(
            GaussLayer(2, size.width, 2.0),
            *[GaussLayer(size.width, size.width, 2.0) for _ in range(size.layers)],
            nn.Linear(size.width, 3),
        )
    ),
    "wire real": Other(
        lambda size: Chain(
            RealGaborLayer(2, size.width, 5.0, 2.0),
            *[RealGaborLayer(size.width, size.width, 5.0, 2.0) for _ in range(size.layers)],
            nn.Linear(size.width, 3),
        )
    ),
    "learned frequencies": Other(
        lambda size: Chain(
            LearnedSine(2, size.width),
            *[LearnedSine(size.width, size.width) for _ in range(size.layers)],
            nn.Linear(size.width, 1),
        )
    ),
    "fourier features": Other(lambda size: FourierFeatures(2, size.width // 2, size.width, size.layers, 3)),
    "nerf": Other(lambda size: NeRF(size.layers + 2, size.width, skips=(size.layers // 2,)), dimensions=6),
    "nerf colour": Other(
        lambda size: NeRF(size.layers + 2, size.width, skips=(size.layers // 2,), heads=True),
        dimensions=6,
        select="rgb",
    ),
    "nerf density": Other(
        lambda size: NeRF(size.layers + 2, size.width, skips=(size.layers // 2,), heads=True),
        dimensions=6,
        select="sigma",
    ),
    "mfn fourier": Other(lambda size: FilterNet(FourierLayer, 2, size.width, 1, size.layers)),
    "mfn gabor": Other(lambda size: FilterNet(GaborLayer, 2, size.width, 1, size.layers)),
    "bacon": Other(lambda size: Bacon(2, size.width, 1, size.layers), select=1),
    "residual": Other(lambda size: ResidualMLP(size.width, size.layers, norm=False)),
    "layer norm": Other(lambda size: ResidualMLP(size.width, size.layers, norm=True)),
    "hash embeddings": Other(lambda size: HashNeRF(size.entries, size.width), dimensions=3),
    "hash tables": Other(lambda size: HashTables(size.entries, size.width)),
    "feature grid": Other(lambda size: FeatureGrid(4, math.isqrt(size.entries), size.width)),
    "k-planes": Other(lambda size: KPlanes(4, math.isqrt(size.entries // 3), size.width), dimensions=3),
    "deepsdf": Other(lambda size: SdfScene(decoder(size, norm_layers=(0,)), 4), dimensions=3),
    "deepsdf bare code": Other(lambda size: CodedScene(decoder(size), 4), dimensions=3),
    "keyword": Other(lambda size: Called(size, "keyword")),
    "squeezed": Other(lambda size: Called(size, "plain", squeezed=True)),
    "checkpointed": Other(lambda size: Called(size, "checkpoint"), inner=without_checkpoints),
    "caching": Other(lambda size: Called(size, "cache")),
    "pointwise conv": Other(lambda size: PointwiseConv(size.width, size.layers)),
}

REFUSED: dict[str, tuple[Other, str]] = {
    "wire complex": (Other(lambda size: Wire(2, size.width, size.layers, 3)), "complex"),
    "deepsdf weight norm": (
        Other(
            lambda size: SdfScene(decoder(size, norm_layers=(0, 1), weight_norm=True), 4),
            dimensions=3,
        ),
        "weight.*normed.*remove_weight_norm",
    ),
}
"""Networks that are refused, and what the message says."""
