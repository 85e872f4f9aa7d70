"""Capture: the per-layer factors of a network, exactly, or a refusal that names the reason.

Every trainable parameter is captured: by the first kind of layer in :mod:`inrfast.layers` that knows it, by its module
or by the torch functions that take it, else by automatic differentiation point by point. A kind whose factors are not
all of a parameter's derivatives, as where a weight is used once more outside its layer, is left out, and the next one
is asked. No sample may influence another. A network that :func:`inrfast.mlp.describe` knows takes a closed form, every
other module is observed while it runs. The parameters are copied at construction: training the network afterwards does
not change a kernel already made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from inrfast import backends, doubts, rounding, switches
from inrfast.arrays import ArrayLike
from inrfast.boxes import warn_of_other_box
from inrfast.calling import Select
from inrfast.encodings import is_own
from inrfast.errors import UnsupportedModuleError, check_choice, check_coords, check_module, check_tensor
from inrfast.layers import Factors, Layer, layers_of
from inrfast.layers.bare_rows import BareRows
from inrfast.memory import budget_bytes, require
from inrfast.mlp import MLP, describe
from inrfast.modes import own_modes
from inrfast.nn import declared_sizes
from inrfast.ops import gemm
from inrfast.ops.factors import Room, layer_shapes, mlp_factors, mlp_features, reason_against
from inrfast.ops.gram import gram_diagonal
from inrfast.ops.operands import LayerShape, Output
from inrfast.pointwise import spread_points
from inrfast.snapshot import snapshot, widen_
from inrfast.tangent import closed_form
from inrfast.tangent.chunk_check import FIRST, ChunkCheck, need_finite
from inrfast.tangent.hooks import observed_factors, reasons_against
from inrfast.tangent.jacobian_check import check_jacobian
from inrfast.tangent.network import PASS_DTYPE, Network
from inrfast.tangent.originals import check_unused
from inrfast.tangent.plain import ATTRIBUTES, Described, form_of, remember, take
from inrfast.tangent.point_rows import PointRows
from inrfast.tangent.probes import check_axes, check_network, check_points, treats_points_alike
from inrfast.tangent.refusals import check_tensors, chosen_parameters, kinds_refused, refuse
from inrfast.tangent.watching import uses_of
from inrfast.wrapped import unwrapped

PRECISIONS = ("highest", "high", "medium")

SHUFFLED_ROWS = 32
"""Points, not in order, at which hooked factors are compared with automatic differentiation."""

ROW_COPIES = 6
"""Numbers in fp64 that a pass holds for each number of a row by automatic differentiation."""

OUTSIDE = (
    "its module's factors are not all of its derivatives, as where it acts outside the module's forward pass too, or "
    "where the module gets the points in another order"
)
"""Why the parameters of a module that hooks do not see whole go to automatic differentiation."""

UNCOUNTED = 2**22
"""Bytes of scratch, of the smallest stream among it, that are taken as nothing beside those of the process itself."""


class Capture(Described):
    """Factors of a network's layers, chunk by chunk.

    Parameters
    ----------
    net
        The network; its parameters are copied.
    coords
        Coordinates (..., d) it will be used on; a few of them serve the probes. The network is called with as many axes
        as they have, leading ones of size 1: (1, n, d) for coordinates (B, N, d).
    params
        Names of parameters (``"layers.0.weight"``) or modules (``"layers.0"``) to differentiate; None: all trainable.
    select
        Takes the output tensor from what the network returns: a key, an index or a function; None: it is the output.
    precision
        ``"highest"`` returns fp64 factors; ``"high"`` and ``"medium"`` the same rounded once to fp32.
    memory_budget
        Bytes that the probes may take; None: half of what is free.

    Attributes
    ----------
    layers
        The :class:`inrfast.layers.Layer` of every module with differentiated parameters, in parameters_to_vector order.
    widths
        Widths (a, b) of each layer's factors, whose outer product has the shape of its block; 0 for a constant one.
    stored
        Columns (a, b) of each layer's factors as they are stored: fewer where rows are sparse.
    outputs, columns
        Number of outputs M and of differentiated parameters P.
    dtype, device
        Of the factors.
    magnitudes
        Largest entry of every layer's kernel at the points of the probes, in fp64.
    against_closed_form
        Why factors come by hooks and not in closed form; None: they do come in closed form.

    Raises
    ------
    UnsupportedModuleError
        The network cannot be captured exactly; the message names the module or parameter and the way out.
    MemoryBudgetError
        Rows of parameters without a form of two factors exceed the budget.
    ValueError, TypeError
        Bad arguments.
    """

    def __init__(
        self,
        net: nn.Module,
        coords: ArrayLike,
        params: Iterable[str] | None = None,
        select: Select = None,
        precision: str = "high",
        memory_budget: int | None = None,
    ) -> None:
        check_module("net", net)
        net = unwrapped(net)
        self.precision = check_choice("precision", precision, PRECISIONS)
        self.dtype = torch.float64 if precision == "highest" else torch.float32
        self._refused, self._unknown = dict[str, dict[str, str]](), dict[str, list[str]]()
        self._check: ChunkCheck | None = None
        form = form_of(net) if params is None and select is None else None
        if not take(self, net, coords, form):
            self._take(net, coords, params, select, memory_budget)
            if form is not None and self.native is not None:
                assert self._mlp is not None
                own = {name: getattr(self, name) for name in ATTRIBUTES}
                remember(form, own, self._mlp, self.native)

    def _take(
        self,
        net: nn.Module,
        coords: ArrayLike,
        params: Iterable[str] | None,
        select: Select,
        memory_budget: int | None,
    ) -> None:
        """Take a network by its layers and by all probes."""
        tensors = dict(net.named_parameters())
        if not tensors:
            raise UnsupportedModuleError("net has no parameters, so it has no tangent kernel")
        self.device = next(iter(tensors.values())).device
        check_tensors(net, self.device)
        own = declared_sizes(net)[0]
        given = check_tensor("coords", coords, finite=False, device=self.device).detach()
        coords = check_coords("coords", given, own, self.device)
        self.in_features = coords.shape[1]
        chosen = chosen_parameters(net, params)
        refuse(net)
        warn_of_other_box(net, coords)
        self._refused = kinds_refused(net, chosen)
        self.layers = layers_of(net, chosen, self._refused)
        self.columns = sum(tensors[name].numel() for name in chosen)
        described = describe(net, modulated=True)
        self.against_closed_form = closed_form.reason_against(described, self.layers, select, self._refused)
        known = self.closed_form and isinstance(described, MLP) and described.pointwise
        with own_modes():
            self.network = Network(widen_(snapshot(net)), select, 2 if own is not None else given.ndim)
            for name, parameter in self.network.module.named_parameters():
                parameter.requires_grad_(name in chosen)
            self._mlp = self._described()
            if not known:
                check_network(net, self.network, coords)
                check_points(net, self.network, coords)
            check_axes(self.network, given.to(PASS_DTYPE))
            sample = spread_points(coords.to(PASS_DTYPE), 4)
            many = self._shuffled(coords)[:-1]  # a prime number, which no axis of a module makes up with others
            self._others = None if known else many
            while True:
                self._find(net, chosen, sample)
                against, self.outputs = self._tried(sample, many)
                if not against:
                    # The library's own encodings are known; any other may look at its batch, or keep tensors.
                    self.concurrent = known and not self._run_layers
                    self._rows = self._point_rows()
                    if self._run_layers:
                        self._need_room_for_rows(budget_bytes(memory_budget, self.device))
                    against = self._probe(sample, coords)
                if not against:
                    break
                for layer in self.layers:
                    for name in layer.parameters if layer.name in against else ():
                        self._refused.setdefault(name, {})[layer.kind] = against[layer.name]
            if self._rows is not None:
                names = [name for layer in self._rows.layers for name in layer.parameters]
                self._tell_of_rows([] if known else check_unused(net, self.network, names, sample))

    @staticmethod
    def _shuffled(coords: Tensor) -> Tensor:
        """Return a few of the points, not in order, the first ones among them."""
        shuffled = (5 * torch.arange(SHUFFLED_ROWS, device=coords.device) + 3) % SHUFFLED_ROWS
        points = spread_points(coords.to(PASS_DTYPE), SHUFFLED_ROWS)
        if len(coords) > SHUFFLED_ROWS:
            points[:FIRST] = coords[:FIRST]
        return points[shuffled]

    def _find(self, net: nn.Module, chosen: Sequence[str], sample: Tensor) -> None:
        """Find the layers: modules that are known, then calls of torch functions, then automatic differentiation."""
        self.layers = layers_of(net, chosen, self._refused)
        bare = [name for layer in self.layers if not layer.observed for name in layer.parameters]
        if bare and self._run_layers:
            with self.network.alone() as module:
                uses = uses_of(module, bare, self._run, sample)
            self.layers = layers_of(net, chosen, self._refused, uses)
            # What rows of calls are not taken of, nothing else is.
            self._unknown = {name: BareRows.reasons_against(name, calls) for name, calls in uses.items()}

    def _probe(self, sample: Tensor, coords: Tensor) -> dict[str, str]:
        """Measure the factors, and compare them with automatic differentiation, at a few points.

        Returns the layers that hooks do not see whole, each with the reason.
        """
        self._check = None
        found = self.exact(sample)
        self.stored = tuple(factors.widths for factors in found)
        self.widths = tuple(
            (0, layer.columns) if layer.sparse else held for layer, held in zip(self.layers, self.stored, strict=True)
        )
        largest = torch.stack([gram_diagonal([layer], "trace", self.outputs).amax() for layer in found])
        if not self._run_layers:  # beside other points they round otherwise, which shows where rounding counts
            sample, found = sample[:2], [factors.at(slice(2)) for factors in found]
        else:  # a module may reorder points inside, and undo it behind its layers
            sample = self._shuffled(coords)
            found = self.exact(sample)
        movable = [index for index in self._run_layers if self.layers[index].observed]
        self.magnitudes, apart = check_jacobian(
            self.network, self.layers, sample, self.outputs, found, largest, movable
        )
        names = [self.layers[index].name for index in apart]
        self._check = self._chunk_check()
        if not names and self._check is not None and self._mlp is None:
            with self.network.alone():  # rows of every size alike; it knows the form of their graph from then on
                names = self._check.apart(sample[:-1])
        return dict.fromkeys(names, OUTSIDE)

    # ---- how its factors are made ------------------------------------------------------------------------------

    def points(self, argument: str, coords: Any) -> Tensor:
        """Return coordinates (..., d) for this network as points (N, d), row-major, a copy that nobody else holds."""
        return check_coords(argument, coords, self.in_features, self.device).detach().clone()

    @property
    def closed_form(self) -> bool:
        """Whether factors come in closed form."""
        return self.against_closed_form is None

    def _described(self) -> MLP | None:
        """Return the description of the snapshot, if its factors have a closed form."""
        found = describe(self.network.module, modulated=True) if self.closed_form else None
        return found.detached() if isinstance(found, MLP) else None

    @property
    def _run_layers(self) -> list[int]:
        """Indices of the layers whose factors are made by running the network, or its encoding alone."""
        places = range(len(self.layers))
        return [k for k in places if self._mlp is None or closed_form.in_encoding(self.layers[k], self._mlp)]

    def _run(self, coords: Tensor) -> Tensor:
        """Return the values (n, D) that the run layers act on: the outputs, or in closed form those of the encoding."""
        if self._mlp is None:
            return self.network.call(coords)
        assert self._mlp.encoding is not None
        encoded: Tensor = self._mlp.encoding(coords.clone())
        return encoded

    def _tried(self, *samples: Tensor) -> tuple[dict[str, str], int]:
        """Return why some layers are none of their kind, by name, and the number of outputs.

        Different numbers of points tell the axis along which they lie from others.
        """
        observed = [self.layers[index] for index in self._run_layers if self.layers[index].observed]
        found: dict[str, str] = {}
        with self.network.alone() as module:
            for sample in samples if observed else ():
                found |= reasons_against(module, observed, self._run, sample)
            outputs = self.network.outputs(samples[0]).shape[1] if self._mlp is None else self._mlp.outputs
        return found, outputs

    def _point_rows(self) -> PointRows | None:
        """Return what differentiates point by point, where a layer needs it."""
        layers = [layer for layer in self.layers if not layer.observed]
        return PointRows(self.network.module, layers, self._run) if layers else None

    def _chunk_check(self) -> ChunkCheck | None:
        """Return what makes the factors of observed layers and checks them; None for networks that are known."""
        layers = [self.layers[index] for index in self._run_layers if self.layers[index].observed]
        return (
            ChunkCheck(self.network, layers, self._run, self._others) if self._others is not None and layers else None
        )

    def _need_room_for_rows(self, budget: int) -> None:
        """Check that the budget holds the rows of the probes."""
        rows = [layer for layer in self.layers if layer.block[1] == 1 and not layer.sparse]
        require(
            max(0, PASS_DTYPE.itemsize * self._numbers(rows) * SHUFFLED_ROWS * ROW_COPIES - UNCOUNTED),
            budget,
            f"the Jacobian's rows of {_in_words(rows)} at {SHUFFLED_ROWS} points",
            "freeze these parameters or leave them out with params=",
        )

    def _numbers(self, layers: Sequence[Layer]) -> int:
        """Return how many numbers the rows of some layers are for one point."""
        return sum(layer.columns for layer in layers) * self.outputs

    def _reasons_for(self, layers: Iterable[Layer]) -> str:
        """Return why the parameters of some layers are of none of the kinds that were asked before."""
        names = [name for layer in layers for name in layer.parameters]
        found = [
            reason for name in names for reason in (*self._refused.get(name, {}).values(), *self._unknown.get(name, ()))
        ]
        return "; ".join(dict.fromkeys(found))

    def way(self, index: int) -> str:
        """Return in words how the factors of a layer are made, with its kind or the reason why it has none."""
        layer = self.layers[index]
        if not layer.observed:
            return f"automatic differentiation: {self._reasons_for([layer]) or 'no kind of layer knows it'}"
        form = "sparse rows" if layer.sparse else "two factors" if self.stored[index][0] > 0 else "rows"
        return f"{form} ({layer.kind})"

    def _tell_of_rows(self, unused: Sequence[str]) -> None:
        """Say once which parameters take the general path, and why; those that are ``unused`` have been told of."""
        assert self._rows is not None
        layers = [layer for layer in self._rows.layers if not set(layer.parameters) <= set(unused)]
        if not layers:
            return
        why = self._reasons_for(layers)
        because = f" ({why})" if why else ""
        backends.warn_once(
            f"parameters {_in_words(layers)} have no form of two factors{because}: their rows of the Jacobian are "
            f"computed by automatic differentiation, {self._numbers(layers)} numbers per point"
        )

    @cached_property
    def numbers_per_point(self) -> int:
        """Numbers that one point's factors hold; a column of sparse rows is as large as two of fp32."""
        pairs = zip(self.layers, self.stored, strict=True)
        return sum((2 if layer.sparse else 1) * a + self.outputs * b for layer, (a, b) in pairs)

    @cached_property
    def plain(self) -> bool:
        """Whether factors come in closed form of layers without norms, which takes the fewest buffers."""
        return self.mlp is not None and not self._run_layers and not self.mlp.norms

    @property
    def mlp(self) -> MLP | None:
        """The network as layers that follow each other, in fp64; None where factors come by hooks, or with filters."""
        return None if self._mlp is None or self._mlp.modulations else self._mlp

    @property
    def modulated_mlp(self) -> MLP | None:
        """The same for those who know :attr:`inrfast.mlp.HiddenLayer.modulation`."""
        return self._mlp

    def with_precision(self, precision: str) -> Capture:
        """Return the same snapshot, probes not repeated, at another precision."""
        other = object.__new__(Capture)
        other.__dict__.update(self.__dict__)  # the network too, which one thread at a time runs
        other.precision = check_choice("precision", precision, PRECISIONS)
        other.dtype = torch.float64 if precision == "highest" else torch.float32
        return other

    def refreshed(self, net: nn.Module, coords: Tensor) -> Capture | None:
        """Return the capture of the same network with the numbers it has now, without most of the probes.

        The caller answers for everything but numbers: the code of ``net``, its attributes and names, shapes, dtypes
        and flags of its tensors are those of the network captured here, and so are ``coords``. Which layers come which
        way is not asked again. What is: the comparison with automatic differentiation, whether points in another order
        and number have the same outputs, and whether a pass changes parameters or draws numbers. None if one of them
        fails, as where the forward pass takes another branch with these numbers: then a capture from the start tells
        why, or goes another way.

        Raises
        ------
        ValueError
            Parameters are NaN or Inf.
        """
        net = unwrapped(net)
        check_tensors(net, self.device)
        refuse(net)
        other = self.with_precision(self.precision)
        chosen = {name for layer in self.layers for name in layer.parameters}
        try:
            with own_modes():
                other.network = Network(widen_(snapshot(net)), self.network.select, self.network.axes)
                for name, parameter in other.network.module.named_parameters():
                    parameter.requires_grad_(name in chosen)
                other._mlp, other._rows = other._described(), other._point_rows()
                wide = coords.to(PASS_DTYPE)
                alike = self.concurrent or treats_points_alike(other.network, wide)
                same = alike and not other._probe(spread_points(wide, 4), coords)
        except UnsupportedModuleError:
            return None
        return other if same else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Capture:
        """Return this capture itself: nothing in it ever changes."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_found", "_rows", "_check", "_native")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._mlp = self._described()
        self._rows, self._check = self._point_rows(), self._chunk_check()

    # ---- factors -----------------------------------------------------------------------------------------------

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
        return [
            factors if keep_ones and layer.ends_with_ones else factors.balanced()
            for layer, factors in zip(self.layers, exact, strict=True)
        ]

    def exact(self, coords: Tensor, room: Room | None = None) -> list[Factors]:
        """Return the factors before they are rounded, in fp64; they may lie in ``room`` and last until its next use."""
        coords = coords.to(PASS_DTYPE)
        with own_modes():
            if self._mlp is None:
                return list(self._by_running(coords, None).values())
            return self._closed_factors(self._mlp, coords, room)

    def _closed_factors(self, mlp: MLP, coords: Tensor, room: Room | None = None) -> list[Factors]:
        found = mlp_factors(mlp, self.inputs(coords), room, coords)
        run: dict[int, Factors] = {}
        if self._run_layers:
            run = self._by_running(coords, found.sensitivities[0] @ mlp.layers[0].weight)
        layers = enumerate(self.layers)
        return [
            run[index] if index in run else closed_form.factors_of(layer, mlp, found, coords) for index, layer in layers
        ]

    def _by_running(self, coords: Tensor, cotangents: Tensor | None) -> dict[int, Factors]:
        """Return the factors of the layers that are run, by their index.

        ``cotangents`` (n, M, D) are the derivatives of the outputs by what :meth:`_run` returns; None: these are them.
        """
        if len(coords) == 1:  # modules that squeeze() would drop the axis of a single point
            both = None if cotangents is None else cotangents.expand(2, -1, -1)
            found = self._by_running(coords.expand(2, -1), both)
            return {index: factors.at(slice(1)) for index, factors in found.items()}
        observed = [self.layers[index] for index in self._run_layers if self.layers[index].observed]
        with self.network.alone() as module:
            if self._check is not None:
                by_hooks = self._check(coords, cotangents)
            else:
                by_hooks = observed_factors(module, observed, self._run, coords, cotangents) if observed else []
            by_rows = self._rows(coords, cotangents) if self._rows is not None else []
        if self._others is not None:
            need_finite(coords, by_rows)
        sources = {True: iter(by_hooks), False: iter(by_rows)}
        return {index: next(sources[self.layers[index].observed]) for index in self._run_layers}

    def inputs(self, coords: Tensor) -> Tensor:
        """Return the input of the first layer at ``coords`` (n, d), in fp64."""
        coords = coords.to(PASS_DTYPE)
        encoding = self._encoding
        if encoding is None:
            return coords
        if not is_own(encoding):
            coords = coords.clone()  # it might write into them
        with own_modes(), nullcontext() if self.concurrent else self.network.alone():
            if len(coords) == 1 and not self.concurrent:
                return encoding(coords.expand(2, -1))[:1]
            encoded: Tensor = encoding(coords)
            return encoded

    def representations(self, coords: Tensor) -> dict[str, Tensor]:
        """Return the fp64 input of every linear layer (n, D): ``input``, then each named by the layer it comes from.

        ``layers.0`` is the activated (and normalised) output of ``layers.0``, which enters the next linear layer.
        """
        found, filters = {}, {} if self._mlp is None else self._mlp.filter_places
        for layer, factors in zip(self.layers, self.exact(coords), strict=True):
            own = layer.representation(factors)
            if own is not None and layer.module not in filters:  # filters take coordinates
                found[layer.name] = own
        names = self.input_names(list(found))
        return {names[layer]: own for layer, own in found.items()}

    def representation(self, coords: Tensor, name: str, room: Room | None = None) -> Tensor:
        """Return one of :meth:`representations` with a column of ones, (n, D + 1).

        In closed form by a forward pass that stops there, whose result may lie in ``room`` until its next use.
        """
        if self.mlp is not None:
            depth = ["input", *(layer.linear.name for layer in self.mlp.hidden)].index(name)
            inputs = self.inputs(coords)
            with own_modes():
                return mlp_features(self.mlp, inputs, depth, room)
        own = self.representations(coords)[name]
        return torch.cat([own, own.new_ones(len(own), 1)], dim=1)

    def input_names(self, layers: Sequence[str]) -> dict[str, str]:
        """Return what reports call the inputs of linear layers: ``input``, then the layer that each comes from.

        In closed form those of all its linear layers, behind layers that its encoding has. Else ``layers`` are those
        that have been observed, and are taken as a chain.
        """
        if self._mlp is not None:
            own, filters = [layer.name for layer in self._mlp.layers], self._mlp.filter_places
            layers = [*(name for name in layers if name not in own and name not in filters), *own]
        return dict(zip(layers, ["input", *layers], strict=False))

    def pass_errors(self, coords: Tensor, weights: Tensor | None = None) -> rounding.PassErrors:
        """Return what rounding does to the factors of ``coords`` and to the Jacobian: see :mod:`inrfast.rounding`.

        ``weights`` is the kernel's diagonal (N,), if it is known.
        """
        mlp = self._mlp
        tables = mlp is None or mlp.encoding is not None
        if mlp is None:
            return rounding.pass_errors(self.exact, coords, self.outputs, weights, tables)
        threads = gemm.threads(PASS_DTYPE, self.device) if self.concurrent else 1
        with own_modes():
            places = doubts.in_doubt(mlp, self.inputs, coords, threads)
        found = rounding.pass_errors(self.exact, coords, self.outputs, weights, tables, places[:, 0])
        if len(places) == 0:
            return found
        simple = switches.of_first_layer(mlp, places)
        with own_modes():
            for hinges in switches.hinges(mlp, places[simple], self.inputs, coords):
                found = self._with_hinges(mlp, found, hinges)
            if not bool(simple.all()):
                others = places[~simple]
                jumps = switches.switching_errors(mlp, others, self._closed_factors, self.inputs, coords)
                found = found.and_those_of(jumps)
        return found

    def _with_hinges(self, mlp: MLP, found: rounding.PassErrors, hinges: switches.Hinges) -> rounding.PassErrors:
        """Return errors with those of some first-layer gates: in the first layer, and in what makes its input."""
        squares, first = hinges.gradient.square(), mlp.layers[0]
        for index, layer in enumerate(self.layers):
            if layer.name == first.name:
                inputs = hinges.inputs.square().sum(1) + (first.bias is not None)
                found = found.plus(index, inputs @ squares, float(squares.sum()))
        if self._run_layers:
            derivatives = hinges.gradient.unsqueeze(2) * first.weight[hinges.units].unsqueeze(1)
            moved = self._by_running(hinges.points, derivatives)
            for index, (z, s) in moved.items():
                rows = hinges.beside @ rounding.squared_rows((z, s), self.outputs)
                slopes = 0.0 if s is None else float(hinges.beside @ s.square().flatten(1).sum(1))
                found = found.plus(index, rows, slopes)
        return found

    # ---- operands of a fused kernel ----------------------------------------------------------------------------

    def shape(self, layer: int) -> LayerShape:
        """Return the shape of one layer's factors."""
        a, b = self.widths[layer]
        ones = self.layers[layer].ends_with_ones
        return LayerShape(a - ones, b, ones)

    def without_ones(self, layer: int, factors: Factors) -> Factors:
        """Return a layer's factors as :meth:`shape` counts them."""
        if not self.layers[layer].ends_with_ones:
            return factors
        assert factors.features is not None
        return Factors(factors.features[:, :-1], factors.sensitivities)

    def fused_mlp(self, layers: Iterable[int], output: Output) -> MLP | None:
        """Return the network as a fused factor pass takes it, or None where that does not cover these layers."""
        shapes = tuple(self.shape(layer) for layer in layers)
        mlp = self.mlp
        if mlp is None or shapes != layer_shapes(mlp) or reason_against(mlp, output) is not None:
            return None
        return mlp


def _in_words(layers: Iterable[Layer]) -> str:
    """Return the names of the parameters of some layers, a few of them."""
    names = [name for layer in layers for name in layer.parameters]
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
