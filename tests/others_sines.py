"""SIREN and its relatives as their authors build them, written anew: see ``others_modules``."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


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
