"""Fourier features, NeRF, filter networks, grids, latent codes as their authors build them: see ``others_modules``."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

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
