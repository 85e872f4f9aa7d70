"""The native engine behind a trained encoding: autograd takes the encoding alone, from the gradient of its columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inrfast.memory import chunks, format_bytes
from inrfast.norms.topk import ROWWISE
from inrfast.ops import gemm, mlp_step
from inrfast.training.data import Data
from inrfast.training.engines.autograd import kept_bytes
from inrfast.training.engines.layerwise import gathered
from inrfast.training.engines.native import NativeGradient, against_native, native_bytes
from inrfast.training.engines.task import Task, against_formula
from inrfast.training.stack import Stack

PIECE = 2**16
"""Points that are encoded together, at most: of a large table every piece has a gradient of the table's size."""

FEW = 16
"""Points on which it is measured what autograd keeps of one in an encoding."""


class EncodedGradient(NativeGradient):
    """The layerwise gradient of one network whose encoding is trained, by native steps on a CPU.

    Of pieces of the points: the encoding with autograd, a native step that also gives the gradient of what it encoded,
    and from there the encoding's backward pass.
    """

    def __init__(self, stack: Stack, task: Task) -> None:
        net, self.task = stack.nets[0], task
        self.encoding = net.get_submodule(task.mlp.encoding_name)
        self.piece = _piece(task)
        own = {id(parameter) for parameter in self.encoding.parameters()}
        names = [name for name in stack.trainable if id(stack.owner(name)) in own]
        self.trained = [stack.owner(name) for name in names]
        self.trained_grads = [stack.grads[name][0] for name in names]
        super().__init__(stack, task)
        self.whole_data = self.data

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        reason = against_formula(task.described, ROWWISE, trained_encoding=True)
        if reason is not None:
            return reason
        if against_formula(task.described, ROWWISE) is None:
            return NativeGradient.reason_against(task) or "its encoding is not trained"
        if len(task.nets) > 1:
            return "several networks have an encoding of their own each"
        reason = against_native(task)
        if reason is None and not mlp_step.reaches_inputs():
            return "this build of the extension takes no gradients of inputs"
        return reason or (None if _piece(task) else f"its buffers exceed the budget {format_bytes(task.buffers)}")

    def _encode(self, budget: int) -> tuple[Tensor, list[nn.Module] | None]:
        return self.data.coords, None

    @property
    def layout(self) -> dict[str, object]:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        return {**super().layout, "encoded": self.piece}

    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """See :class:`inrfast.training.engines.task.Gradient`."""
        scales, count = 1 / self._weights(batch), self._count(batch)
        for sums in (self.stack.grads, *self.sums[1:]):
            for total in sums.values():
                total.zero_()
        losses = torch.zeros(1, dtype=torch.float64)
        with gemm.products_chosen():
            for part in chunks(count, self.piece):
                losses += self._over(part, batch, scales)
        for sums in self.sums[1:]:
            for name, total in sums.items():
                self.stack.grads[name].add_(total)
        return losses * scales.cpu()

    @torch.no_grad()
    def mean_square(self) -> Tensor:
        """See :class:`inrfast.training.engines.layerwise.LayerwiseGradient`."""
        parts = chunks(self.data.points, self.piece)
        total = sum((self._over(part, None, None) for part in parts), torch.zeros(1, dtype=torch.float64))
        return total / self.data.target[0].numel()

    def _over(self, part: slice, batch: Tensor | None, scales: Tensor | None) -> Tensor:
        """Return the losses of some rows, those of a step with their gradients."""
        whole, every = self.whole_data, slice(None)
        rows: Tensor | slice = part if batch is None else batch[:, part]
        some = [
            None if own is None else gathered(own, every, rows) for own in (whole.coords, whole.target, whole.weight)
        ]
        coords, target, weight = some
        assert coords is not None and target is not None
        with torch.set_grad_enabled(scales is not None):
            columns = self.encoding(coords[0])
        given = columns.detach().contiguous().unsqueeze(0)
        inputs_grad = None if scales is None else torch.empty_like(given)
        try:
            self.data, self.encoded, self.inputs_grad = Data(coords, target, weight), given, inputs_grad
            losses = self._each_share(None, given.shape[1], scales)
        finally:
            self.data, self.encoded, self.inputs_grad = whole, whole.coords, None
        if inputs_grad is not None:
            found = torch.autograd.grad(columns, self.trained, inputs_grad[0], allow_unused=True)
            for total, own in zip(self.trained_grads, found, strict=True):
                if own is not None:
                    total.add_(own)
        return losses


def _piece(task: Task) -> int:
    """Return how many points are encoded together; 0 where not even a few fit the budget."""
    encoding, coords = task.mlp.encoding, task.data.coords[0]
    assert encoding is not None
    known = {own.untyped_storage().data_ptr() for own in (*encoding.parameters(), *encoding.buffers())}
    few = coords[:FEW]
    kept = [size for place, size in kept_bytes(encoding, few).items() if place not in known]
    row = (sum(kept) + 2 * max(kept, default=0)) // len(few) + 4 * task.mlp.columns * coords.element_size()
    tables = 2 * sum(own.numel() * own.element_size() for own in encoding.parameters() if own.requires_grad)
    room = task.buffers - tables - native_bytes(task)
    return max(0, min(PIECE, task.points, room // max(row, 1)))
