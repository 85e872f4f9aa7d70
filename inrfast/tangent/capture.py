"""Capture: the per-layer factors of any supported network, exactly, or a refusal that names the reason.

A network is captured if all its differentiated parameters sit in ``nn.Linear`` layers, batch norms with frozen
statistics, or elementwise affine norms (``LayerNorm``, ``RMSNorm``), each used once, and if no sample influences
another. A network that :func:`inrfast.mlp.describe` knows takes a closed form, every other module forward hooks. The
parameters are copied at construction: training the network afterwards does not change a kernel already made.
"""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrfast.errors import UnsupportedModuleError, check_choice, check_coords
from inrfast.mlp import MLP, describe
from inrfast.modes import own_modes
from inrfast.nn import FusedLinear, declared_sizes
from inrfast.ops.factors import Room, layer_shapes, mlp_factors, reason_against
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.operands import LayerShape, Output
from inrfast.ops.rows import vjp
from inrfast.pointwise import MOVED, RANDOM, dependence, spread_points, stirred_
from inrfast.rounding import PassErrors, hinge_errors, pass_errors
from inrfast.snapshot import own_dtype, snapshot, widen_
from inrfast.supported import LayerSpec, check_tensors, chosen_parameters, layer_specs, refuse

PRECISIONS = ("highest", "high", "medium")
PASS_DTYPE = torch.float64
"""The factor pass runs in fp64 in every precision: in fp32 a ReLU gate flips and sine layers amplify rounding, so a
factor rounded once is the only one whose error is known. It is a small part of any Gram product's cost."""

JACOBIAN_TOLERANCE = 1e-7
"""Of the factors' check against automatic differentiation, relative to the size of the terms."""

AMPLIFIED = 16.0
"""How many times the effect of rounding inputs and parameters may stand for rounding in every operation."""

CHAOTIC = 1e-7
"""Share of a result that rounding may change in fp64; beyond it the precision that is promised cannot be held."""

MOST_DRAWS = 32
"""Roundings tried before a network counts as another function in fp64."""

SHUFFLED_ROWS = 32
"""Points, not in order, at which hooked factors are compared with automatic differentiation."""

COMPARED_ROWS = 64
"""Points at which the fp64 copy is compared with the network in its own dtype."""

SAFE_EXPONENT = 40
"""Exponent of a row's largest feature up to which fp32 holds its square beside others with all digits."""

Select = Callable[[Any], Tensor] | str | int | None


class Factors(NamedTuple):
    """Factors of one layer on n points; the Jacobian's rows are ``sensitivities (x) features``.

    ``features`` (n, a) is Z or [Z, 1], None for a column of ones; ``sensitivities`` (n, M, b), None for the identity.
    """

    features: Tensor | None
    sensitivities: Tensor | None

    @property
    def widths(self) -> tuple[int, int]:
        """Widths (a, b) of the stored factors, 0 for one that is not stored."""
        a = 0 if self.features is None else self.features.shape[1]
        return a, 0 if self.sensitivities is None else self.sensitivities.shape[2]

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors rounded once to ``dtype``."""
        return Factors(*(None if f is None else f.to(dtype) for f in self))

    def first(self, count: int = 1) -> Factors:
        """Return the factors of the first points."""
        return Factors(*(None if f is None else f[:count] for f in self))

    def balanced(self) -> Factors:
        """Return factors with the same product, rows of features whose square fp32 could not hold brought near 1.

        A feature of 1e-30 beside a sensitivity of 1e34, as a norm makes them, would give 0 times Inf. Powers of two are
        exact.
        """
        z, s = self
        if z is None or s is None or z.numel() == 0:
            return self
        exponent = torch.frexp(z.abs().amax(1)).exponent
        exponent = torch.where(exponent.abs() > SAFE_EXPONENT, exponent, 0)
        if not bool(exponent.any()):
            return self
        power = 2.0 ** exponent.to(z.dtype).unsqueeze(1)
        return Factors(z / power, s * power.unsqueeze(2))


class Capture:
    """Factors of a network's layers, chunk by chunk.

    Parameters
    ----------
    net
        The network; its parameters are copied.
    coords
        Coordinates (N, d) it will be used on; a few of them serve the probes.
    params
        Names of parameters (``"layers.0.weight"``) or modules (``"layers.0"``) to differentiate; None: all trainable.
    select
        Takes the output tensor from what the network returns: a key, an index or a function; None: it is the output.
    precision
        ``"highest"`` returns fp64 factors; ``"high"`` and ``"medium"`` the same rounded once to fp32.

    Attributes
    ----------
    layers
        One :class:`LayerSpec` a parameter layer, in parameters_to_vector order.
    widths
        Widths (a, b) of each layer's stored factors.
    outputs, columns
        Number of outputs M and of differentiated parameters P.
    dtype, device
        Of the factors.
    magnitudes
        Largest entry of every layer's kernel at the points of the probes, in fp64.

    Raises
    ------
    UnsupportedModuleError
        The network cannot be captured exactly; the message names the module or parameter and the way out.
    ValueError, TypeError
        Bad arguments.
    """

    def __init__(
        self,
        net: nn.Module,
        coords: Tensor,
        params: Iterable[str] | None = None,
        select: Select = None,
        precision: str = "high",
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        self.precision = check_choice("precision", precision, PRECISIONS)
        self.dtype = torch.float64 if precision == "highest" else torch.float32
        tensors = dict(net.named_parameters())
        if not tensors:
            raise UnsupportedModuleError("net has no parameters, so it has no tangent kernel")
        self.device = next(iter(tensors.values())).device
        check_tensors(net, self.device)
        check_coords("coords", coords, declared_sizes(net)[0], self.device)
        self.in_features = coords.shape[1]
        chosen = chosen_parameters(net, params)
        refuse(net, chosen)
        self.select = _Selector(select)
        self.layers = layer_specs(net, chosen)
        self.columns = sum(tensors[name].numel() for name in chosen)
        described = None if select is not None else describe(net)
        known = isinstance(described, MLP) and {spec.name for spec in self.layers} <= _places(described).keys()
        self.closed_form = known
        self.concurrent = isinstance(described, MLP) and known and described.pointwise
        self._lock = threading.RLock()
        with own_modes():
            self._module = widen_(snapshot(net))
            for name, parameter in self._module.named_parameters():
                parameter.requires_grad_(name in chosen)
            self._mlp = self._described()
            coords = coords.detach()
            sample = spread_points(coords.to(PASS_DTYPE), 4)
            if not self.concurrent:
                self._probe_module(net, coords)
            found = self.exact(sample)
            self.widths = tuple(factors.widths for factors in found)
            self.outputs = int(self._outputs(sample).shape[1])
            largest = torch.stack([gram_diagonal([layer], "trace", self.outputs).amax() for layer in found])
            if self.closed_form:  # beside other points they round otherwise, which shows where rounding counts
                sample, found = sample[:2], [factors.first(2) for factors in found]
            else:  # a module may reorder points inside, and undo it behind its layers
                shuffled = (5 * torch.arange(SHUFFLED_ROWS, device=coords.device) + 3) % SHUFFLED_ROWS
                sample = spread_points(coords.to(PASS_DTYPE), SHUFFLED_ROWS)[shuffled]
                found = self.exact(sample)
            self.magnitudes = self._probe_jacobian(sample, found, largest)

    @property
    def plain(self) -> bool:
        """Whether factors come in closed form of layers without norms, which takes the fewest buffers."""
        return self._mlp is not None and not self._mlp.norms

    @property
    def mlp(self) -> MLP | None:
        """The network as layers that follow each other, in fp64; None where factors come by hooks."""
        return self._mlp

    def with_precision(self, precision: str) -> Capture:
        """Return the same snapshot, probes not repeated, at another precision."""
        other = object.__new__(Capture)
        other.__dict__.update(self.__dict__)  # the lock too: both use one module
        other.precision = check_choice("precision", precision, PRECISIONS)
        other.dtype = torch.float64 if precision == "highest" else torch.float32
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Capture:
        """Return this capture itself: nothing in it ever changes."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_mlp")}
        for name, what in (("_module", "the network"), ("select", "its select= function")):
            try:
                state[name] = pickle.dumps(state[name])
            except Exception as error:
                raise TypeError(
                    f"cannot pickle a kernel or Jacobian: {what} cannot be pickled ({type(error).__name__}: {error}). "
                    "Define classes and functions at the top of a module (no lambda), give select= as a key or an "
                    "index, or build the kernel inside the process that needs it (start method 'spawn')"
                ) from error
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._module, self.select = (pickle.loads(state[name]) for name in ("_module", "select"))
        self._lock = threading.RLock()
        self._mlp = self._described()

    def _described(self) -> MLP | None:
        """Return the description of the snapshot, if its factors have a closed form."""
        found = describe(self._module) if self.closed_form else None
        return found.detached() if isinstance(found, MLP) else None

    def __call__(self, coords: Tensor) -> tuple[Factors, ...]:
        """Return the factors of every layer at ``coords`` (n, d), one chunk of points."""
        return tuple(factors.to(self.dtype) for factors in self.roundable(coords))

    def roundable(self, coords: Tensor, room: Room | None = None, keep_ones: bool = False) -> list[Factors]:
        """Return the factors of :meth:`exact` as they may be rounded to this precision: balanced, where that is fp32.

        With ``keep_ones`` layers whose features end with ones stay as they are, for kernels that take the ones as read.
        """
        exact = self.exact(coords, room)
        if self.dtype == PASS_DTYPE:
            return exact
        return [f if keep_ones and self._holds_ones(index) else f.balanced() for index, f in enumerate(exact)]

    def exact(self, coords: Tensor, room: Room | None = None) -> list[Factors]:
        """Return the factors before they are rounded, in fp64; they may lie in ``room`` and last until its next use."""
        coords = coords.to(PASS_DTYPE)
        with own_modes():
            if self._mlp is not None:
                return self._closed_factors(coords, room)
            if len(coords) == 1:  # modules that squeeze() would drop the axis of a single point
                return [layer.first() for layer in self._hooked_factors(coords.expand(2, -1))]
            return self._hooked_factors(coords)

    def representations(self, coords: Tensor) -> dict[str, Tensor]:
        """Return the fp64 input of every linear layer (n, D): ``input``, then each named by the layer it comes from.

        ``layers.0`` is the activated (and normalised) output of ``layers.0``, which enters the next linear layer.
        """
        names, values = [], []
        for spec, factors in zip(self.layers, self.exact(coords), strict=True):
            if spec.kind == "linear" and factors.features is not None and spec.with_weight:
                names.append(spec.name)
                values.append(factors.features[:, : spec.in_features])
        return dict(zip(["input", *names[:-1]], values, strict=True))

    def evaluate(self, coords: Tensor) -> Tensor:
        """Return the network's outputs (n, M) in fp64."""
        with own_modes():
            return self._outputs(coords.to(PASS_DTYPE))

    def _outputs(self, coords: Tensor) -> Tensor:
        if len(coords) == 1:
            return self._outputs(coords.expand(2, -1))[:1]
        with self._lock:
            return self._output_of(self._module(coords.clone()), coords)

    def _output_of(self, returned: Any, coords: Tensor) -> Tensor:
        """Return the output (n, M) in what the network returns for ``coords``."""
        output = self.select(returned)
        if not isinstance(output, Tensor):
            keys = list(returned) if isinstance(returned, Mapping) else ""
            raise TypeError(
                f"net returns {type(returned).__name__} {keys}; pass select= (a key, an index or a function) that "
                f"takes the output tensor from it (it gave {type(output).__name__})"
            )
        if output.ndim == 0 or len(output) != len(coords):
            raise ValueError(
                f"the output must have one row a point: {len(coords)} points gave shape {tuple(output.shape)}"
            )
        if output.is_complex():
            raise UnsupportedModuleError(f"net returns complex values ({output.dtype}); only real ones are supported")
        return output.reshape(len(coords), -1)

    def pass_errors(self, coords: Tensor, weights: Tensor | None = None) -> PassErrors:
        """Return what rounding does to the factors of ``coords`` and to the Jacobian: see :mod:`inrfast.rounding`.

        ``weights`` is the kernel's diagonal (N,), if it is known.
        """
        found = pass_errors(self.exact, coords, self.outputs, weights)
        if self._mlp is None:
            return found
        first = [index for index, spec in enumerate(self.layers) if spec.name == self._mlp.layers[0].name]
        return found.plus(first[0], *hinge_errors(self._mlp, self.inputs, coords)) if first else found

    # ---- operands of a fused kernel ----------------------------------------------------------------------------

    def shape(self, layer: int) -> LayerShape:
        """Return the shape of one layer's factors."""
        a, b = self.widths[layer]
        bias = self._holds_ones(layer)
        return LayerShape(a - bias, b, bias)

    def _holds_ones(self, layer: int) -> bool:
        """Return whether a layer's features end with a column of ones beside others."""
        spec = self.layers[layer]
        return spec.kind == "linear" and spec.with_weight and spec.with_bias

    def without_ones(self, layer: int, factors: Factors) -> Factors:
        """Return a layer's factors as :meth:`shape` counts them."""
        if not self._holds_ones(layer):
            return factors
        assert factors.features is not None
        return Factors(factors.features[:, :-1], factors.sensitivities)

    def fused_mlp(self, layers: Iterable[int], output: Output) -> MLP | None:
        """Return the network as a fused factor pass takes it, or None where that does not cover these layers."""
        shapes = tuple(self.shape(layer) for layer in layers)
        mlp = self._mlp
        if mlp is None or shapes != layer_shapes(mlp) or reason_against(mlp, output) is not None:
            return None
        return mlp

    def inputs(self, coords: Tensor) -> Tensor:
        """Return the input of the first layer at ``coords`` (n, d), in fp64."""
        coords = coords.to(PASS_DTYPE)
        encoding = None if self._mlp is None else self._mlp.encoding
        if encoding is None:
            return coords
        with own_modes(), nullcontext() if self.concurrent else self._lock:
            if len(coords) == 1 and not self.concurrent:
                return encoding(coords.expand(2, -1))[:1]
            encoded: Tensor = encoding(coords)
            return encoded

    # ---- closed form -------------------------------------------------------------------------------------------

    def _closed_factors(self, coords: Tensor, room: Room | None) -> list[Factors]:
        assert self._mlp is not None
        found, places = mlp_factors(self._mlp, self.inputs(coords), room), _places(self._mlp)
        result = []
        for spec in self.layers:
            k = places[spec.name]
            norm = found.norms[k] if spec.kind == "affine" else None
            if norm is not None:
                result.append(_affine_factors(spec, norm.normalised, norm.sensitivities))
            else:
                s = found.sensitivities[k] if k < len(found.sensitivities) else None
                result.append(_linear_factors(spec, found.features[k], s))
        return result

    # ---- hooks -------------------------------------------------------------------------------------------------

    def _hooked_factors(self, coords: Tensor) -> list[Factors]:
        with self._lock:  # hooks sit on one module, which may also keep tensors between calls
            inputs, sensitivities = self._by_hooks(coords)
        modules = dict(self._module.named_modules())
        result = []
        for index, spec in enumerate(self.layers):
            s, z = sensitivities[index], inputs[spec.name]
            if spec.kind == "linear":
                result.append(_linear_factors(spec, torch.cat([z, z.new_ones(len(z), 1)], dim=1), s))
            else:
                result.append(_affine_factors(spec, _normalised(modules[spec.name], z), s))
        return result

    def _by_hooks(self, coords: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the input (n, a) of every layer by name, and the sensitivities (n, M, b) of every layer."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        recording = True

        def hook_for(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
                (given,) = (*args, *kwargs.values())
                kept = F.linear(given, module.weight, module.bias) if isinstance(module, FusedLinear) else output
                if recording:  # activation checkpointing calls the layer again in the backward pass
                    if name in outputs:
                        raise UnsupportedModuleError(
                            f"module {name!r} is used more than once in a forward pass; its kernel is not a product of "
                            "two factors. Give every use a layer of its own"
                        )
                    if given.ndim != 2 or len(given) != len(coords):
                        raise UnsupportedModuleError(
                            f"module {name!r} got an input of shape {tuple(given.shape)}; only (points, features) with "
                            f"one row a point is supported"
                        )
                    inputs[name], outputs[name] = given.detach().clone(), kept
                if isinstance(module, FusedLinear):  # its factors are those of the layer before the activation
                    return module.activate(kept)
                return output.clone()  # an in-place activation that follows must not overwrite what is kept

            return hook

        modules = dict(self._module.named_modules())
        handles = [
            # Before the user's own hooks, which may change the output.
            modules[spec.name].register_forward_hook(hook_for(spec.name), prepend=True, with_kwargs=True)
            for spec in self.layers
        ]
        try:
            with torch.enable_grad():
                values = self._outputs(coords)
                recording = False
                missing = [spec.name for spec in self.layers if spec.name not in outputs]
                if missing:
                    raise UnsupportedModuleError(
                        f"module {missing[0]!r} has trainable parameters but the forward pass does not call it; "
                        "freeze it or name the others in params="
                    )
                wanted = [outputs[spec.name] for spec in self.layers]
                last = values.shape[1] - 1
                columns = [_gradients(values[:, m].sum(), wanted, again=m < last) for m in range(last + 1)]
        finally:
            for handle in handles:
                handle.remove()
        if not all(output.requires_grad for output in wanted):
            self._refuse_reentrant(coords[:2])
        return inputs, [torch.stack([gradients[i] for gradients in columns], dim=1) for i in range(len(wanted))]

    def _refuse_reentrant(self, coords: Tensor) -> None:
        """Raise if a layer ran without a graph because it is checkpointed, not because the user wants it constant."""
        with torch.enable_grad():
            output = self._output_of(self._module(coords.clone().requires_grad_()), coords)
        seen, waiting = set(), [output.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if "CheckpointFunction" in node.name():
                raise UnsupportedModuleError(REENTRANT)
            waiting.extend(following for following, _ in node.next_functions)

    # ---- probes ------------------------------------------------------------------------------------------------

    def _probe_module(self, net: nn.Module, coords: Tensor) -> None:
        """Refuse networks that cannot run in fp64, look at their batch, or are another function in fp64."""
        own = own_dtype(net)
        points = spread_points(coords, COMPARED_ROWS).to(own)
        wide = points.to(PASS_DTYPE)
        in_own = None
        with suppress(RuntimeError):  # parts of several dtypes run in fp64 only
            in_own = self._output_of(snapshot(net)(points.clone()), points)
        try:
            expected = self._outputs(wide)
        except RuntimeError as error:
            if in_own is None:
                raise ValueError(f"net does not take coords of shape {tuple(points.shape)}: {error}") from error
            raise UnsupportedModuleError(
                f"net runs in {own} but not in fp64, in which factors are computed ({error}). Make fixed tensors "
                "buffers, and cast to the dtype of a parameter or of the input, not to a fixed one (.float())"
            ) from error
        self._refuse_coupling(coords.to(PASS_DTYPE), wide, expected)
        if in_own is not None and own != PASS_DTYPE and bool(torch.isfinite(in_own).all()):
            self._compare(own, in_own, wide, expected)
        few = slice(None, None, 8)
        self._refuse_chaos(wide[few], expected[few])
        self._refuse_narrow(wide[few], expected[few])

    def _refuse_coupling(self, coords: Tensor, points: Tensor, expected: Tensor) -> None:
        """Refuse networks whose output at a point depends on anything beside that point, now or behind zero weights."""
        found = dependence(self._outputs, coords, number=len(coords))
        if found == RANDOM:
            raise UnsupportedModuleError(f"net is random: {found}. Put it in eval mode")
        if found not in (None, MOVED):  # then rounding alone may differ
            self._refuse_chaos(points, expected)
        if found is None:
            found = self._hidden_coupling(coords, points)
        if found is not None:
            raise UnsupportedModuleError(
                f"net couples samples: {found}, so the kernel is not one of points (batch statistics, attention over "
                "the batch and row numbers do this)"
            )

    def _hidden_coupling(self, coords: Tensor, points: Tensor) -> str | None:
        """Return what a copy whose parameters are moved a little depends on beside a point."""
        other = self.with_precision(self.precision)
        other._module = stirred_(snapshot(self._module))
        found = dependence(other._outputs, coords)
        if found not in (None, MOVED):
            try:
                other._refuse_chaos(points, other._outputs(points))
            except UnsupportedModuleError:  # moved so, it says nothing
                return None
        return None if found is None else f"{found} once its parameters are not exactly these"

    def _compare(self, own: torch.dtype, in_own: Tensor, points: Tensor, expected: Tensor) -> None:
        """Refuse networks whose outputs in their own dtype differ from those in fp64 by more than rounding."""
        difference = float((in_own.double() - expected).abs().max())
        eps = torch.finfo(own).eps
        allowed = AMPLIFIED * eps * float(expected.abs().max()) + torch.finfo(own).smallest_normal
        for seed in range(MOST_DRAWS):  # many only where it would be refused: a step is seldom met
            if difference <= allowed:
                break
            effect = self._rounded_copy(eps, seed)._outputs(_rounded(points, eps, seed)) - expected
            allowed = max(allowed, 4 * AMPLIFIED * float(effect.abs().max()))
        if difference > allowed:
            raise UnsupportedModuleError(
                f"net is another function in fp64, in which factors are computed, than in {own}: outputs differ by "
                f"{difference:.2e}, where rounding explains {allowed:.2e}. Some module takes a number from the dtype "
                "(torch.finfo, an epsilon of None), casts in its forward pass, or works below the dtype's range: give "
                "the number, cast to the dtype of the input, or convert net to fp64 if that is the function meant"
            )

    def _refuse_chaos(self, points: Tensor, expected: Tensor) -> None:
        """Refuse networks whose outputs at most points are made by fp64 rounding.

        The parameters alone are rounded: a table that is read by the cell of a coordinate may jump at its border.
        """
        outputs = self._rounded_copy(torch.finfo(PASS_DTYPE).eps, 0)._outputs(points)
        effect = float((outputs - expected).abs().amax(1).median())
        size = float(expected.abs().max())
        if effect > CHAOTIC * size:
            raise UnsupportedModuleError(_chaotic("outputs", effect / max(size, 1e-300)))

    def _rounded_copy(self, eps: float, seed: int) -> Capture:
        """Return this capture with parameters changed at random, by a relative ``eps`` at most."""
        other = self.with_precision(self.precision)
        other._module = snapshot(self._module)
        for number, parameter in enumerate(other._module.parameters()):
            parameter.copy_(_rounded(parameter, eps, seed + 1000 * number))
        return other

    def _refuse_narrow(self, coords: Tensor, before: Tensor) -> None:
        """Refuse networks that round to fp32 inside.

        Steps of the input below that rounding then change nothing, although slopes say so; larger ones do. Where they
        do not either, the network is a step function with slopes of its own (quantisation), which is exact in fp64.
        """
        tiny, larger = 2.0**-36, 2.0**-18
        slope = torch.zeros_like(coords)
        with suppress(RuntimeError), torch.enable_grad(), self._lock:  # some operations have no slope there
            moving = coords.clone().requires_grad_()
            (slope,) = _gradients(self._output_of(self._module(moving * 1), coords).sum(), [moving])

        def moved(step: float) -> Tensor:
            return (self._outputs(coords * (1 + step)) - before).sum(1).abs()

        expected = (slope * coords).sum(1).abs() * tiny
        size = before.abs().sum(1)
        # Beyond rounding, and small enough for the slope to tell it.
        visible = (expected > 1e4 * torch.finfo(PASS_DTYPE).eps * size) & (expected < 1e-3 * size)
        if not bool(visible.any()) or float((moved(tiny) < 0.1 * expected)[visible].double().mean()) < 0.5:
            return
        if float((moved(larger) > 0)[visible].double().mean()) > 0.5:
            raise UnsupportedModuleError(
                "net rounds to fp32 inside its forward pass (.float(), a fixed dtype=), so its fp64 factors would hold "
                "that rounding; cast to the dtype of the input or of a parameter"
            )

    def _probe_jacobian(self, sample: Tensor, captured: list[Factors], known: Tensor) -> list[float]:
        """Compare ``J^T v`` by the factors with automatic differentiation, on a few points, for one v.

        In reverse mode: forward mode of torch is not safe in threads. A GPU is waited for once, for all answers and the
        ``known`` numbers, which are returned.
        """
        count = len(sample) * self.outputs
        weights = torch.linspace(0.5, 1.5, count, dtype=PASS_DTYPE, device=self.device).view(-1, self.outputs)
        truth = self._products_by_autograd(sample, weights)
        ours = [vjp(*factors, weights.unsqueeze(-1)) for factors in captured]
        largest = torch.stack([own.abs().amax() for own in ours]).amax()
        sums = torch.stack([f.sum() for factors in captured for f in factors if f is not None])
        answers = torch.stack([self._agree(ours, truth, largest, 0.0).to(PASS_DTYPE), sums.sum(), largest])
        agree, total, size, *numbers = torch.cat([answers, known]).tolist()
        if not math.isfinite(total):
            self._need_finite(captured)
        if not agree:
            self._refuse_other_jacobian(sample, weights, ours, truth, size)
        return numbers

    def _need_finite(self, captured: list[Factors]) -> None:
        for spec, factors in zip(self.layers, captured, strict=True):
            if not all(bool(torch.isfinite(f).all()) for f in factors if f is not None):
                raise ValueError(
                    f"layer {spec.name!r} has NaN or Inf features or sensitivities at the first points of coords"
                )

    def _refuse_other_jacobian(
        self, sample: Tensor, weights: Tensor, ours: list[Tensor], truth: list[Tensor], largest: float
    ) -> None:
        """Refuse networks whose ``J^T v`` differ by more than rounding, which deep ones of high frequency amplify."""
        eps, effect = torch.finfo(PASS_DTYPE).eps, 0.0
        for seed in range(3):
            near = self._rounded_copy(eps, seed)._products_by_autograd(_rounded(sample, eps, seed), weights)
            effect = max(effect, *(float((a - b).abs().max()) for a, b in zip(near, truth, strict=True)))
        if effect > CHAOTIC * largest:
            raise UnsupportedModuleError(_chaotic("Jacobian", effect / max(largest, 1e-300)))
        if not bool(self._agree(ours, truth, largest, AMPLIFIED * effect)):
            error = max(float((a - b).abs().max()) for a, b in zip(ours, truth, strict=True))
            raise UnsupportedModuleError(
                "the captured factors do not reproduce the network's Jacobian (checked against automatic "
                f"differentiation on {len(sample)} points, error {error:.2e}): a parameter acts outside its layer's "
                "forward, a layer gets the points in another order, or a part computes in 16 bits"
            )

    @staticmethod
    def _agree(ours: list[Tensor], truth: list[Tensor], largest: Tensor | float, rounding: float) -> Tensor:
        """Return whether two lists of blocks agree, a tensor that nobody waits for."""
        floor = largest * (1e-3 * JACOBIAN_TOLERANCE) + (rounding + 1e-290)
        found = []
        for own, other in zip(ours, truth, strict=True):
            allowed = own.abs().add_(other.abs()).mul_(JACOBIAN_TOLERANCE).add_(floor)
            found.append(((own - other).abs_() <= allowed).all())
        return torch.stack(found).all()

    def _products_by_autograd(self, sample: Tensor, weights: Tensor) -> list[Tensor]:
        """Return ``J^T v`` by autograd as the layers' blocks (1, b, a)."""
        tensors = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            total = (self._outputs(sample) * weights).sum()
            gradients = _gradients(total, list(tensors.values()))
        by_name = dict(zip(tensors, gradients, strict=True))
        return [spec.join([by_name[name].reshape(1, -1) for name in spec.parameters]) for spec in self.layers]


def _chaotic(what: str, effect: float) -> str:
    return (
        f"net is so ill-conditioned at these coordinates that fp64 does not determine its {what} (rounding weights in "
        f"their last bit makes a change of {effect:.1e} of the size); scale coords to [-1, 1] or lower the frequencies"
    )


REENTRANT = (
    "net uses activation checkpointing with use_reentrant=True, whose layers cannot be observed; pass "
    "use_reentrant=False to torch.utils.checkpoint.checkpoint"
)


def _rounded(tensor: Tensor, eps: float, seed: int) -> Tensor:
    """Return a tensor whose entries are changed at random, by a relative ``eps`` at most."""
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.rand(tensor.shape, generator=generator, dtype=PASS_DTYPE) - 1
    return tensor.detach() * (1 + eps * noise.to(tensor.device))


def _gradients(total: Tensor, wanted: list[Tensor], again: bool = False) -> list[Tensor]:
    """Return the gradients of ``total``; zeros for what it does not depend on, or was computed under ``no_grad``.

    ``again`` keeps the graph for more of them.
    """
    found = [torch.zeros_like(tensor) for tensor in wanted]
    places = [place for place, tensor in enumerate(wanted) if tensor.requires_grad]
    if not total.requires_grad or not places:
        return found
    try:
        gradients = torch.autograd.grad(
            total, [wanted[place] for place in places], retain_graph=again, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        if "checkpoint" in str(error):
            raise UnsupportedModuleError(REENTRANT) from error
        raise
    for place, gradient in zip(places, gradients, strict=True):
        found[place] = gradient
    return found


# ---- what may be captured ----------------------------------------------------------------------------------------


class _Selector:
    """Takes the output from what a network returns: by a key, an index or a function; None: it is the output."""

    def __init__(self, select: Select) -> None:
        self.select = select

    def __call__(self, returned: Any) -> Any:
        if self.select is None:
            return returned
        if callable(self.select):
            return self.select(returned)
        try:
            return returned[self.select]
        except (KeyError, IndexError, TypeError) as error:
            keys = list(returned) if isinstance(returned, Mapping) else type(returned).__name__
            raise ValueError(f"select={self.select!r} is not in what net returns: {keys}") from error


# ---- factors of one layer ----------------------------------------------------------------------------------------


def _linear_factors(spec: LayerSpec, z1: Tensor, s: Tensor | None) -> Factors:
    """Return a linear layer's factors from its input with a column of ones, ``[Z, 1]``."""
    if spec.with_weight:
        return Factors(z1 if spec.with_bias else z1[:, :-1], s)
    return Factors(z1[:, -1:], None) if s is None else Factors(None, s)


def _affine_factors(spec: LayerSpec, normalised: Tensor, s: Tensor) -> Factors:
    """A diagonal layer has rows ``[S * x_hat, S]``: one factor holds them, the other is a column of ones."""
    parts = [s * normalised.unsqueeze(1)] * spec.with_weight + [s] * spec.with_bias
    return Factors(None, torch.cat(parts, dim=2))


def _normalised(module: nn.Module, z: Tensor) -> Tensor:
    """Return what an affine norm multiplies by its weight."""
    if isinstance(module, nn.BatchNorm1d):
        return F.batch_norm(z, module.running_mean, module.running_var, eps=module.eps)
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(z, list(module.normalized_shape), eps=module.eps)
    assert isinstance(module, nn.RMSNorm)
    return F.rms_norm(z, list(module.normalized_shape), eps=module.eps)


def _places(mlp: MLP) -> dict[str, int]:
    """Return the place of every layer and norm by its module's name."""
    norms = {layer.norm_name: index for index, layer in enumerate(mlp.hidden) if layer.norm is not None}
    return {**{layer.name: index for index, layer in enumerate(mlp.layers)}, **norms}
