"""What an engine is asked for, and what it answers with: the gradient of the loss of networks on their data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

from torch import Tensor, nn

from inrfast.memory import require
from inrfast.mlp import MLP, MODULATED, describe, hooked_backward, hooked_forward
from inrfast.norms import Norm
from inrfast.training.data import Data
from inrfast.training.objective import Objective
from inrfast.training.stack import Stack

COPIES = 6
"""Copies of a network's parameters that a fit makes: gradients, the last good weights, the best ones twice, and the two
moments of Adam."""

MEASURED = 4
"""One part in so many of the budget is for the evaluation, where it has buffers of its own."""

UNCOUNTED = 2**22
"""Bytes of such copies, and of drawn batches, that are not counted: they are small beside the process itself."""

DRAWN_BYTES = 48
"""Bytes per point of a permutation, with what drawing it takes."""


@dataclass(frozen=True)
class Task:
    """Networks, data and objective whose gradient is wanted, and what it may take.

    Attributes
    ----------
    nets
        Networks in train mode: one, or several of one shape whose formula is known (:func:`against_formula`).
    data
        Their points, values and weights.
    objective
        What is minimised; engines take the gradient of its loss, and one that takes the whole batch that of all of it.
    batch
        Most points of a step; None: all.
    budget
        Bytes for all that a fit keeps: copies of the parameters, buffers, and encoded points.
    narrow
        Whether the products between hidden layers may be in 16 bits, where they take most of the time.
    cores
        Most threads; None takes those that torch may use now.
    trials
        Whether functions of the user's own may be called on a few points, to know what a step takes before it is taken.
    measuring
        Whether evaluations alone are wanted, beside another engine's steps.
    link
        Where they are: what makes of predictions the values that are compared with the targets; None: nothing.
    backend
        ``"triton"`` or ``"torch"``: that of the fused steps, if they are wanted.
    named
        Whether the backend was named by the user and must not be replaced.
    """

    nets: Sequence[nn.Module]
    data: Data
    objective: Objective = field(default_factory=Objective)
    batch: int | None = None
    budget: int = 2**62
    narrow: bool = False
    cores: int | None = None
    trials: bool = True
    measuring: bool = False
    link: Callable[[Tensor], Tensor] | None = None
    backend: str = "torch"
    named: bool = False

    @cached_property
    def described(self) -> MLP | str:
        """The description of the first network, or why there is none that tells its predictions."""
        found = describe(self.nets[0], modulated=True)  # engines ask against_formula
        if isinstance(found, str):
            return found
        if self.data.calling.select is not None:
            return "its output is taken by select="
        if any(found.norms) and self.data.calling.axes > 2:
            return "it has norms, and is called with more axes than two"
        return found

    @property
    def mlp(self) -> MLP:
        """The description, of which :func:`against_formula` has nothing to say."""
        assert isinstance(self.described, MLP), self.described
        return self.described

    @property
    def points(self) -> int:
        """Most points of a step."""
        return self.data.points if self.batch is None else self.batch

    @cached_property
    def beside(self) -> int:
        """Bytes that a fit keeps beside the buffers of its steps: copies of the networks, and drawn batches."""
        drawn = DRAWN_BYTES * self.data.points * len(self.nets) if self.points < self.data.points else 0
        return max(0, copied_bytes(self.nets) + drawn - UNCOUNTED)

    @property
    def room(self) -> int:
        """Bytes for the buffers of steps and evaluations.

        Raises
        ------
        MemoryBudgetError
            There are none left.
        """
        instead = "a smaller network or a larger memory_budget"
        require(self.beside, self.budget - 1, "what a fit keeps beside its steps", instead)
        return self.budget - self.beside

    @property
    def buffers(self) -> int:
        """Bytes for the buffers of an engine that steps and measures in buffers of its own."""
        own = self.room // MEASURED
        return max(1, own) if self.measuring else self.room - own

    def budget_for(self, missing: int) -> int:
        """Return the budget under which :attr:`buffers` would be larger by ``missing`` bytes."""
        share = missing * MEASURED if self.measuring else -(-missing * MEASURED // (MEASURED - 1))
        return self.budget + share + MEASURED


def copied_bytes(nets: Sequence[nn.Module]) -> int:
    """Return the bytes of the copies that a fit makes of its networks; buffers are copied of a single one."""
    tensors: list[Tensor] = [parameter for net in nets for parameter in net.parameters()]
    tensors += list(nets[0].buffers()) if len(nets) == 1 else []
    return COPIES * sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Gradient(Protocol):
    """What a fit takes its gradients from: called with the rows of a batch (None: all), it fills those of a stack.

    Made from a flat stack (:class:`inrfast.training.stack.Stack`) if the class says ``flat``.
    """

    name: ClassVar[str]
    backend: ClassVar[str]
    flat: ClassVar[bool]
    whole: ClassVar[bool]
    """Whether a step is one graph of its whole batch, which tells nothing of evaluations."""
    coupled: bool
    """Whether predictions in a step depend on its other points: its loss is not that of an evaluation then."""
    draws: ClassVar[bool]
    """Whether a step calls the network's or the user's own code, which may draw random numbers for its whole batch."""
    several: ClassVar[bool]
    """Whether many steps may be taken at once, so that their losses come too late for an evaluation."""
    measures: bool
    """Whether :meth:`mean_square` is in the networks' own dtype, and the fastest there is."""
    one_core: bool
    """Whether the calling thread's own operations are best kept to one core: they are small, or beside workers."""

    def __init__(self, stack: Stack, task: Task) -> None: ...

    @staticmethod
    def reason_against(task: Task) -> str | None:
        """Return why this engine cannot take the gradient of a task exactly; None if it can."""
        ...

    @property
    def layout(self) -> dict[str, object]:
        """What decides about the last digits of a gradient, beside the matrix library."""
        ...

    def __call__(self, batch: Tensor | None, step: int = 0) -> Tensor:
        """Fill the gradients and return the losses (B,) of these rows, (B or 1, n), in fp64 on the CPU.

        ``step``, the number of updates done before, is for functions of the user's own that ask for it.
        """
        ...

    def mean_square(self) -> Tensor:
        """Return the mean squared errors (B,) of the predictions in eval mode over all points, unweighted.

        Of the predictions as they are: where the loss has a link, :func:`evaluation_of` measures.
        """
        ...

    def state(self) -> Tensor | None:
        """Return what the next gradient depends on beside the weights, (B, ...), if there is anything."""
        ...

    def load(self, state: Tensor) -> None:
        """Take over such a state."""
        ...


def has_hooks(net: nn.Module) -> bool:
    """Return whether hooks watch or change the passes: they expect the whole batch, once per step."""
    return hooked_forward(net) or hooked_backward(net)


def against_formula(
    described: MLP | str,
    norms: tuple[type[Norm], ...] = (),
    trained_encoding: bool = False,
    modulated: bool = False,
) -> str | None:
    """Return why backpropagation is not written out for a network, natively, by Triton or by tensors; None if it is.

    ``norms`` are the kinds of norms that hidden layers may have, ``trained_encoding`` says that an encoding may be
    trained, and ``modulated`` that hidden layers may have filters of the coordinates.
    """
    if isinstance(described, str):
        return described
    if described.modulations and not modulated:
        return MODULATED
    if not all(isinstance(norm, norms) for norm in described.norms):
        return "its hidden layers have norms"
    if described.hooked_backward:
        return "hooks see its backward passes"
    if not described.known_encoding:
        return f"its encoding is a {type(described.encoding).__name__}, not one of this library's"
    encoding = [] if described.encoding is None else list(described.encoding.parameters())
    if any(parameter.requires_grad for parameter in encoding) and not trained_encoding:
        return "its encoding is trained"
    filters = [parameter for own in described.modulations for parameter in own.parameters()]
    if len({(p.dtype, p.device) for p in [*described.parameters.values(), *encoding, *filters]}) > 1:
        return "its parameters have several dtypes or devices"
    return None
