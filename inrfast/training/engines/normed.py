"""The normed engine: batch norms in train mode, one network or several of one shape, by torch's operations on chunks.

A batch norm couples the points of a step, so a pass goes over all of them up to each norm, takes the statistics, and
goes on; backward it does the same with two sums. Between norms it takes chunks that stay in cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from inrfast.activations import BoundActivation
from inrfast.memory import CACHED_BYTES, cached_rows, chunks, over_budget
from inrfast.norms.batch import BatchNorm
from inrfast.ops import gemm
from inrfast.ops.mlp_step import MEAN_SQUARE
from inrfast.threads import cores as torch_cores
from inrfast.threads import share
from inrfast.training.engines.batch_norms import Normed, Position, against_norms, normalised_, norms_of
from inrfast.training.engines.layerwise import LEAST_ROWS, LayerwiseGradient, Plan, gathered, own, planned
from inrfast.training.engines.task import Task, against_formula
from inrfast.training.engines.tensor import ENCODING_BUFFERS, LEAST_WORK, MOST_BYTES, at_head
from inrfast.training.stack import Stack

SCRATCH = 6
"""Buffers of the widest layer for a chunk, beside the features and slopes of the layers behind the last norm."""

T = TypeVar("T")


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations (k, D), fp64, of a chunk's points."""

    number: int
    mean: Tensor
    squares: Tensor


class Sums(NamedTuple):
    """Sums over a chunk's points, (k, D) in fp64: of the gradient behind a norm, and of it times the deviation."""

    gradient: Tensor
    product: Tensor


class NormedGradient(LayerwiseGradient):
    """Gradient of a named loss of INRs with batch norms in train mode, as ``torch.nn.BatchNorm1d`` takes it.

    With ``xhat = (u - m) / sqrt(v + eps)`` of the batch's mean and biased variance, and the gradient g behind the norm,
    the one before it is ``weight / sqrt(v + eps) (g - mean(g) - xhat mean(g xhat))``. Each step updates the running
    statistics once, with the unbiased variance. Means and sums of chunks are merged in fp64.

    Kept for all points of a batch are the features up to the last norm, slopes where activations need them, and one
    gradient. An evaluation is in eval mode, with the running statistics, and keeps nothing.

    Source: Ioffe, Szegedy, Batch Normalization, ICML 2015; the merge of moments is that of Chan, Golub, LeVeque (1979).

    Raises
    ------
    ValueError
        A batch has one point, which has no variance.
    """

    name: ClassVar[str] = "normed"
    coupled: bool = True
    passes: Sequence[NormedPass]

    def __init__(self, stack: Stack, task: Task) -> None:
        self.points = task.points
        if self.points == 1 and not task.measuring:
            raise ValueError(
                "batch norm in train mode needs at least 2 points in a batch, got 1 (its variance would be 0); take a "
                "larger batch_size, or more points"
            )
        self.kept: list[Kept] = []
        super().__init__(stack, task)

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = against_formula(task.described, (BatchNorm,)) or task.objective.reason_against_parts()
        if reason is not None:
            return reason
        if not task.mlp.norms:
            return "its hidden layers have no norms"
        return "products in 16 bits are those of autograd" if task.narrow else against_norms(task.nets[0])

    # ---- how the work is divided ---------------------------------------------------------------------------------

    def _plan(self, task: Task, budget: int) -> Plan:
        self.positions = norms_of(self.stack.nets[0])
        mlp, like, networks, points = self.mlp, self.data.target, len(self.stack), task.points
        self.last = self.positions[-1].layer
        item, widest = like.element_size(), max(*mlp.widths, mlp.outputs)
        above = len(mlp.hidden) - self.last - 1
        row = item * ((2 * above + SCRATCH) * widest + mlp.outputs)
        if self.encodings is not None:
            row += ENCODING_BUFFERS * item * mlp.columns
        kept = 0 if task.measuring else item * sum(self._kept_columns())
        size = min(max(CACHED_BYTES, LEAST_WORK * item // (2 * widest)), MOST_BYTES)
        fewest = min(points, LEAST_ROWS)  # fewer per chunk cost more in calls than in arithmetic
        least = kept * points + row * fewest
        if least > budget:
            fits = budget // (kept + row)
            if fits > LEAST_ROWS and kept:
                fits = (budget - row * LEAST_ROWS) // kept
            advice = f"batch_size={fits} would fit" if fits > 1 else "a smaller network would fit"
            raise over_budget(
                task.budget_for(least - budget),
                task.budget,
                f"a step over {points} points at once of a batch norm",
                advice,
            )
        rows = min(cached_rows(widest, like, size), points, (budget - kept * points) // row)
        with torch_cores(torch.get_num_threads() if task.cores is None else task.cores):
            cores = gemm.threads(like.dtype, like.device)
        together = max(1, min(size // (points * widest * item), budget // (points * (row + kept))))
        block = min(together, math.ceil(networks / (2 * cores))) if rows == points else 1
        plan = planned(networks, points, rows, block, cores)
        if plan.by_networks and plan.threads * block * (kept * points + row * rows) > budget:
            plan = plan._replace(by_networks=False, threads=max(1, min(cores, points // LEAST_ROWS)))
        if not plan.by_networks:
            room = (budget - block * kept * points) // (block * row * rows)
            plan = plan._replace(threads=max(1, min(plan.threads, room)))
        count = 0 if task.measuring else plan.threads if plan.by_networks else 1
        self.kept = [Kept(self, block * points) for _ in range(count)]
        return plan

    def keeps_slope(self, layer: int) -> bool:
        """Return whether a layer up to the last norm keeps its slope: not behind a norm, where it is made again."""
        before = any(one.layer == layer and not one.after for one in self.positions)
        return not before and self.mlp.activations[layer].kind.keeps != "mask"

    def _kept_columns(self) -> list[int]:
        """Return the widths of what is kept for every point."""
        widths = self.mlp.widths[: self.last + 1]
        slopes = [width for layer, width in enumerate(widths) if self.keeps_slope(layer)]
        return [*widths, *slopes, max(self.mlp.widths[one.layer] for one in self.positions)]

    def _pass(self) -> NormedPass:
        return NormedPass(self)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _each_share(self, batch: Tensor | None, count: int, scales: Tensor | None) -> Tensor:
        """See :class:`LayerwiseGradient`; a step goes over all points of a network once per norm and direction."""
        if scales is None:
            return super()._each_share(batch, count, scales)
        if count == 1:
            raise ValueError("batch norm in train mode needs at least 2 points in a batch, got 1")
        blocks = list(chunks(len(self.stack), self.block))
        found: list[Tensor] = [torch.zeros(0)] * len(blocks)
        if self.by_networks:

            def take(place: int, number: int) -> None:
                own = Shares(self.kept[place], [self.passes[place]], [range(count)])
                found[number] = Step(self, blocks[number], batch, scales, own).taken()

            jobs = [functools.partial(take, place) for place in range(min(len(self.passes), len(blocks)))]
            share(range(len(blocks)), jobs)
        else:
            rows = [range(some.start, some.stop) for some in chunks(count, -(-count // self._shares_of(count)))]
            shares = Shares(self.kept[0], self.passes, rows)
            found = [Step(self, block, batch, scales, shares).taken() for block in blocks]
        return torch.cat(found)


class Shares(NamedTuple):
    """Who takes a step, and where: the memory of all points, the threads' own, and shares of the rows."""

    kept: Kept
    passes: Sequence[NormedPass]
    rows: Sequence[range]


class Step:
    """One step of some networks: phase after phase over all their points, with the statistics between."""

    def __init__(self, of: NormedGradient, block: slice, batch: Tensor | None, scales: Tensor, shares: Shares) -> None:
        self.of, self.block, self.batch = of, block, batch
        self.kept, self.passes, self.rows = shares
        self.scales = scales[block]
        self.k = block.stop - block.start
        self.norms: dict[int, Normed] = {}
        stack, self.names = of.stack, [(layer.weight_name, layer.bias_name) for layer in of.mlp.layers]
        self.weights = [stack.parameters[weight][block] for weight, _ in self.names]
        self.biases = [None if bias is None else stack.parameters[bias][block].unsqueeze(1) for _, bias in self.names]
        trained = [2 * i for i, names in enumerate(self.names) if any(name in stack.grads for name in names if name)]
        trained += [2 * one.layer + 1 for one in of.positions if one.weight in stack.grads or one.bias in stack.grads]
        self.lowest = min(trained)  # of linear layer l 2 l, of the norm in it 2 l + 1

    def taken(self) -> Tensor:
        """Take the step; return the sums of losses (k,)."""
        positions, start = self.of.positions, -1
        for one in positions:
            self._take_statistics(one, self._forward(start, one))
            start = one.layer
        found = self._each(lambda own, rows, sums: own.top(rows, sums, self))
        losses = torch.stack([loss for loss, _ in found]).sum(0)
        behind = [some for _, some in found if some is not None]
        for place in range(len(positions) - 1, -1, -1):
            one, below = positions[place], positions[place - 1] if place else None
            if self.lowest > 2 * one.layer + 1:
                break
            self._take_sums(one, behind)
            if self.lowest > 2 * one.layer:
                break
            behind = self._backward(one, below)
        return losses

    def _forward(self, start: int, end: Position) -> list[Moments]:
        return self._each(lambda own, rows, sums: own.forward(rows, self, start, end))

    def _backward(self, norm: Position, below: Position | None) -> list[Sums]:
        return self._each(lambda own, rows, sums: own.backward(rows, sums, self, norm, below))

    def _each(self, phase: Callable[[NormedPass, range, dict[str, Tensor]], list[T]]) -> list[T]:
        """Let the threads take a phase over their shares of the rows; return what they find, in the rows' order."""
        found: list[list[T]] = [[] for _ in self.rows]

        def take(own: NormedPass, number: int) -> None:
            sums = {name: total[self.block] for name, total in self.of.sums[number].items()}
            found[number] = phase(own, self.rows[number], sums)

        share(range(len(self.rows)), [functools.partial(take, own) for own in self.passes[: len(self.rows)]])
        return [one for some in found for one in some]

    def _take_statistics(self, one: Position, moments: Sequence[Moments]) -> None:
        """Merge the moments of all chunks, update the running statistics, and keep what the norm does."""
        counts = torch.tensor([some.number for some in moments], dtype=torch.float64)
        count = int(counts.sum())
        means = torch.stack([some.mean for some in moments])
        weights = counts.to(means.device)[:, None, None]
        mean = (weights * means).sum(0) / count
        squares = torch.stack([some.squares for some in moments]).sum(0) + (weights * (means - mean).square()).sum(0)
        variance = squares / count
        self._update(one, mean, squares / (count - 1))
        stack, like = self.of.stack, self.of.data.target
        inverse_std = (variance + one.eps).rsqrt()
        scale = inverse_std if one.weight is None else inverse_std * stack.parameters[one.weight][self.block].double()
        shift = None if one.bias is None else stack.parameters[one.bias][self.block].unsqueeze(1)
        mean, scale, inverse_std = (own.to(like.dtype).unsqueeze(1) for own in (mean, scale, inverse_std))
        self.norms[one.layer] = Normed(mean, scale, shift, inverse_std)
        self.count = count

    def _update(self, one: Position, mean: Tensor, unbiased: Tensor) -> None:
        """Move the running statistics of these networks as torch does."""
        statistics, block = self.of.stack.statistics, self.block
        tracked = statistics[f"{one.name}.num_batches_tracked"][block]
        tracked.add_(1)
        factor = 1 / tracked.double().unsqueeze(1) if one.momentum is None else one.momentum
        for name, now in (("running_mean", mean), ("running_var", unbiased)):
            running = statistics[f"{one.name}.{name}"][block]
            running.copy_(running.double() * (1 - factor) + factor * now)

    def _take_sums(self, one: Position, sums: Sequence[Sums]) -> None:
        """Merge the sums of all chunks: the gradients of the norm's weight and bias, and what is behind it."""
        normed, grads = self.norms[one.layer], self.of.stack.grads
        gradient = torch.stack([some.gradient for some in sums]).sum(0)
        inverse_std = normed.inverse_std.squeeze(1).double()
        product = torch.stack([some.product for some in sums]).sum(0) * inverse_std
        if one.weight in grads:
            grads[one.weight][self.block].add_(product)
        if one.bias in grads:
            grads[one.bias][self.block].add_(gradient)
        slope = normed.slope.squeeze(1).double()
        like = normed.slope
        normed.curve = (-slope * inverse_std * product / self.count).to(like.dtype).unsqueeze(1)
        normed.constant = (-slope * gradient / self.count).to(like.dtype).unsqueeze(1)


class Kept:
    """What a step keeps of k networks for all points of its batch."""

    def __init__(self, of: NormedGradient, size: int) -> None:
        like, widths = of.data.target, of.mlp.widths[: of.last + 1]
        self.features = [like.new_empty(size * width) for width in widths]
        self.slopes = [
            like.new_empty(size * width) if of.keeps_slope(layer) else None for layer, width in enumerate(widths)
        ]
        self.gradient = like.new_empty(size * max(widths[one.layer] for one in of.positions))
        self.widest = max(widths[one.layer] for one in of.positions)


def part_of(buffer: Tensor, rows: range, k: int, width: int, step: int | None = None) -> Tensor:
    """Return the part (k, n, width) of a buffer that is for these rows of k networks; ``step`` numbers for each row."""
    step = width if step is None else step
    return buffer[k * rows.start * step : k * rows.stop * step][: k * len(rows) * width].view(k, len(rows), width)


class NormedPass:
    """One thread's part, with its own buffers for a chunk."""

    def __init__(self, of: NormedGradient) -> None:
        self.of, mlp, like = of, of.mlp, of.data.target
        size = of.block * of.rows * max(*mlp.widths, 1)
        above = range(of.last + 1, len(mlp.hidden))
        self.features = {layer: like.new_empty(size) for layer in above}
        sloped = [layer for layer in above if mlp.activations[layer].kind.keeps != "mask"]
        self.slopes = {layer: like.new_empty(size) for layer in sloped}
        self.opened, self.opened_slope, self.scratch = (like.new_empty(size) for _ in range(3))
        self.errors = [like.new_empty(size) for _ in range(2)]
        self.outputs = like.new_empty(of.block * of.rows * mlp.outputs)
        self.after = {one.layer: one.after for one in of.positions}

    # ---- phases of a step ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, rows: range, step: Step, start: int, end: Position) -> list[Moments]:
        """Take rows from one norm to the input of the next, which is kept; return its moments."""
        found = []
        for part in self._parts(rows):
            x = self._start(step, start, part)
            for layer in range(start + 1, end.layer + 1):
                before = layer == end.layer and not end.after
                x = self._layer(step, layer, x, part, activated=not before)
            found.append(self._moments(x))
        return found

    @torch.no_grad()
    def top(self, rows: range, sums: dict[str, Tensor], step: Step) -> list[tuple[Tensor, Sums | None]]:
        """Take rows from the last norm to the loss and back to that norm; return losses and the sums it needs."""
        of, found = self.of, []
        last, weight = of.last, of.data.weight
        for part in self._parts(rows):
            x = opened = self._start(step, last, part)
            for layer in range(last + 1, len(of.mlp.hidden)):
                x = self._layer(step, layer, x, part)
            index = _index(step, part)
            target = gathered(of.data.target, step.block, index)
            own_weight = None if weight is None else gathered(weight, step.block, index)
            values, error = at_head(of.loss, self._head(step, x), target, own_weight)
            error.mul_(step.scales.to(error)[:, None, None])
            losses = values.sum((1, 2)).double().cpu()
            found.append((losses, self._down(step, error, len(step.weights) - 1, last, opened, part, sums)))
        return found

    @torch.no_grad()
    def backward(
        self, rows: range, sums: dict[str, Tensor], step: Step, norm: Position, below: Position | None
    ) -> list[Sums]:
        """Take the gradients behind a norm through it, and down to the norm below, or to the first layer."""
        found = []
        for part in self._parts(rows):
            opened = self._start(step, -1 if below is None else below.layer, part)
            error = self._through(step, norm, part)
            some = self._down(step, error, norm.layer, -1 if below is None else below.layer, opened, part, sums)
            if some is not None:
                found.append(some)
        return found

    # ---- an evaluation -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def over(
        self, block: slice, rows: range, batch: Tensor | None, scales: Tensor | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """Return the squared errors (k,) of these networks on these rows in eval mode."""
        of, k = self.of, block.stop - block.start
        losses = torch.zeros(k, dtype=torch.float64)
        frozen = self._frozen(block)
        for part in self._parts(rows):
            index = slice(part.start, part.stop)
            x = self._inputs(block, index)
            for layer in range(len(of.mlp.hidden)):
                x = self._frozen_layer(layer, x, frozen.get(layer), block)
            head = of.mlp.layers[-1]
            bias = None if head.bias_name is None else of.stack.parameters[head.bias_name][block].unsqueeze(1)
            prediction = self._predicted(x, of.stack.parameters[head.weight_name][block], bias)
            if of.link is not None:
                prediction = of.link(prediction)
            values, _ = at_head(MEAN_SQUARE, prediction, gathered(of.data.target, block, index), None)
            losses += values.sum((1, 2)).double().cpu()
        return losses

    def _frozen(self, block: slice) -> dict[int, Normed]:
        """Return what the norms do with their running statistics."""
        stack, found = self.of.stack, {}
        for one in self.of.positions:
            mean, variance = (stack.statistics[f"{one.name}.{name}"][block] for name in ("running_mean", "running_var"))
            inverse_std = (variance.double() + one.eps).rsqrt()
            weight = None if one.weight is None else stack.parameters[one.weight][block].double()
            scale = inverse_std if weight is None else inverse_std * weight
            shift = None if one.bias is None else stack.parameters[one.bias][block].unsqueeze(1)
            slope = scale.to(mean.dtype).unsqueeze(1)
            found[one.layer] = Normed(mean.unsqueeze(1), slope, shift, slope)
        return found

    def _frozen_layer(self, layer: int, x: Tensor, normed: Normed | None, block: slice) -> Tensor:
        of, (k, n, _) = self.of, x.shape
        linear, width = of.mlp.layers[layer], of.mlp.widths[layer]
        out = _view((self.errors[0], self.errors[1])[layer % 2], k, n, width)
        gemm.bmm(x, of.stack.parameters[linear.weight_name][block].mT, out)
        if linear.bias_name is not None:
            out.add_(of.stack.parameters[linear.bias_name][block].unsqueeze(1))
        after = self.after.get(layer)
        if normed is not None and not after:
            normalised_(out, normed, out)
        of.mlp.activations[layer].value_in_place(out, _view(self.scratch, k, n, width))
        if normed is not None and after:
            normalised_(out, normed, out)
        return out

    # ---- pieces --------------------------------------------------------------------------------------------------

    def _parts(self, rows: range) -> Iterator[range]:
        for part in chunks(len(rows), self.of.rows):
            yield range(rows.start + part.start, rows.start + part.stop)

    def _inputs(self, block: slice, index: Tensor | slice) -> Tensor:
        """Return the encoded points (k, n, columns) of some networks."""
        x, k = gathered(self.of.encoded, block, index), block.stop - block.start
        if self.of.encodings is not None:
            x = torch.stack([encode(x[i % len(x)]) for i, encode in enumerate(self.of.encodings[block])])
        return x.expand(k, -1, -1)

    def _start(self, step: Step, layer: int, part: range) -> Tensor:
        """Return what enters the linear layer behind a norm: its layer's features, or the encoded points."""
        if layer < 0:
            return self._inputs(step.block, _index(step, part))
        width, n = self.of.mlp.widths[layer], len(part)
        out = _view(self.opened, step.k, n, width)
        normalised_(part_of(step.kept.features[layer], part, step.k, width), step.norms[layer], out)
        if self.after[layer]:
            return out
        activation, scratch = self.of.mlp.activations[layer], _view(self.scratch, step.k, n, width)
        if activation.kind.keeps == "mask":
            activation.value_in_place(out, scratch)
            return out
        slope = _view(self.opened_slope, step.k, n, width).copy_(out)
        activation.in_place(slope, out, scratch)
        return out

    def _layer(self, step: Step, layer: int, x: Tensor, part: range, activated: bool = True) -> Tensor:
        """Return a layer's features, or what enters its activation, where they stay for the way back."""
        k, n, width = step.k, len(part), self.of.mlp.widths[layer]
        value, slope = self._features(step, layer, part), self._slope(step, layer, part)
        activation, scratch = self.of.mlp.activations[layer], _view(self.scratch, k, n, width)
        u = value if slope is None else slope
        gemm.bmm(x, step.weights[layer].mT, u)
        bias = step.biases[layer]
        if bias is not None:
            u.add_(bias)
        if not activated:
            return u
        if slope is None:
            activation.value_in_place(value, scratch)
        else:
            activation.in_place(slope, value, scratch)
        return value

    def _features(self, step: Step, layer: int, part: range) -> Tensor:
        width = self.of.mlp.widths[layer]
        if layer in self.features:
            return _view(self.features[layer], step.k, len(part), width)
        return part_of(step.kept.features[layer], part, step.k, width)

    def _slope(self, step: Step, layer: int, part: range) -> Tensor | None:
        """Return where the slope of a layer is kept; None where it needs no memory of its own."""
        width = self.of.mlp.widths[layer]
        if layer > self.of.last:
            return _view(self.slopes[layer], step.k, len(part), width) if layer in self.slopes else None
        own_slope = step.kept.slopes[layer]
        return None if own_slope is None else part_of(own_slope, part, step.k, width)

    def _head(self, step: Step, x: Tensor) -> Tensor:
        return self._predicted(x, step.weights[-1], step.biases[-1])

    def _predicted(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k, n = x.shape[:2]
        # Column-major, since BLAS is several times faster on a few long columns than on many short rows.
        outputs = self.outputs[: k * n * self.of.mlp.outputs]
        outputs = outputs.view(1, -1, n).mT if k == 1 else outputs.view(k, n, -1)
        gemm.bmm(x, weight.mT, outputs)
        return outputs if bias is None else outputs.add_(bias)

    def _moments(self, x: Tensor) -> Moments:
        k, n, width = x.shape
        mean = x.mean(1)
        away = torch.sub(x, mean.unsqueeze(1), out=_view(self.scratch, k, n, width))
        rest = away.sum(1).double() / n  # what rounding has left out of the mean
        squares = away.square_().sum(1).double() - n * rest.square()
        return Moments(n, mean.double() + rest, squares)

    def _through(self, step: Step, norm: Position, part: range) -> Tensor:
        """Return the gradient in what the linear layer of a norm gives, from that behind the norm."""
        k, n, width, normed = step.k, len(part), self.of.mlp.widths[norm.layer], step.norms[norm.layer]
        assert normed.curve is not None
        assert normed.constant is not None
        behind = part_of(step.kept.gradient, part, k, width, step.kept.widest)
        features = part_of(step.kept.features[norm.layer], part, k, width)
        away = torch.sub(features, normed.mean, out=_view(self.scratch, k, n, width))
        error = torch.mul(behind, normed.slope, out=_view(self.errors[norm.layer % 2], k, n, width))
        error.addcmul_(away, normed.curve).add_(normed.constant)
        return self._times_slope(step, error, norm.layer, part) if norm.after else error

    def _times_slope(self, step: Step, error: Tensor, layer: int, part: range) -> Tensor:
        """Return the gradient before an activation from that behind it, in its place."""
        slope = self._slope(step, layer, part)
        if slope is not None:
            return error.mul_(slope)
        return _masked(self.of.mlp.activations[layer], error, self._features(step, layer, part))

    def _down(
        self,
        step: Step,
        error: Tensor,
        first: int,
        norm: int,
        opened: Tensor,
        part: range,
        sums: dict[str, Tensor],
    ) -> Sums | None:
        """Add the gradients of the linear layers from ``first`` down to that behind a norm; return the norm's sums.

        ``opened`` is what entered the last of them. The gradient behind the norm is kept. None where nothing below is
        trained, or there is no norm (-1).
        """
        k, n = step.k, len(part)
        for layer in range(first, norm, -1):
            if step.lowest > 2 * layer:
                return None
            features = opened if layer == norm + 1 else self._features(step, layer - 1, part)
            _add(step, layer, error, features, sums)
            if step.lowest == 2 * layer or layer == 0:
                return None
            width = self.of.mlp.widths[layer - 1]
            error = gemm.bmm(error, step.weights[layer], _view(self.errors[(layer + 1) % 2], k, n, width))
            if layer > norm + 1:
                error = self._times_slope(step, error, layer - 1, part)
        if not self.after[norm]:
            activation = self.of.mlp.activations[norm]
            if activation.kind.keeps == "mask":
                error = _masked(activation, error, opened)
            else:
                error.mul_(_view(self.opened_slope, k, n, error.shape[2]))
        part_of(step.kept.gradient, part, k, error.shape[2], step.kept.widest).copy_(error)
        features = part_of(step.kept.features[norm], part, k, error.shape[2])
        away = torch.sub(features, step.norms[norm].mean, out=_view(self.scratch, *error.shape))
        return Sums(error.sum(1).double(), away.mul_(error).sum(1).double())


def _add(step: Step, layer: int, error: Tensor, features: Tensor, sums: dict[str, Tensor]) -> None:
    """Add the gradients of one linear layer's weight and bias."""
    weight, bias = (None if name is None else sums.get(name) for name in step.names[layer])
    if bias is not None:
        bias.add_(error.sum(1))
    if weight is not None:
        gemm.baddbmm_(weight, error.mT, features)


def _masked(activation: BoundActivation, error: Tensor, value: Tensor) -> Tensor:
    times_slope = activation.kind.times_slope
    assert times_slope is not None
    return times_slope(error, value, error)


def _index(step: Step, part: range) -> Tensor | slice:
    index = slice(part.start, part.stop)
    return index if step.batch is None else step.batch[own(step.batch, step.block), index]


def _view(buffer: Tensor, k: int, n: int, width: int) -> Tensor:
    """Return the start of a buffer as (k, n, width)."""
    return buffer[: k * n * width].view(k, n, width)
