"""What a fit minimises: the weighted loss of its predictions plus regularisers, and the modules that train with them.

    objective = loss(f(x), y; w) + sum_r factor_r R_r

A named loss is a mean over points and outputs, whose gradient every engine takes; of a loss of your own, and of
regularisers, autograd takes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from inrfast.errors import check_float, check_takes, nearest, warn
from inrfast.losses import BoundLoss, LossSpec, loss_of
from inrfast.memory import is_refusal
from inrfast.snapshot import twin
from inrfast.training.data import Data, check_net
from inrfast.training.trained import ChangedError

Loss = LossSpec | Callable[..., Tensor]
"""What ``fit`` takes as a loss."""

Regularizers = Sequence[Callable[..., Tensor] | tuple[Callable[..., Tensor], float]]
"""What ``fit`` takes as regularisers."""

OF_LOSSES = ("coords", "weight", "index", "net", "step", "modules")
"""What a loss may ask for by name, beside predictions and targets."""

OF_REGULARIZERS = ("net", "prediction", "target", "coords", "weight", "index", "step", "modules")
"""What a regulariser may ask for by name."""


@dataclass(frozen=True)
class Batch:
    """What a loss or a regulariser may ask for in one step of one network.

    Attributes
    ----------
    net
        The network, in train mode.
    coords, target
        Points (n, d) and values (n, M) of the step; coordinates require gradients where anybody asks for them.
    weight
        (n, M) or None.
    index
        Row numbers (n,) of these points among those given to the fit, int64; None where nobody asks.
    step
        Updates done before.
    modules
        Those that are trained with the network.
    prediction
        (n, M), where it was computed.
    watched
        Trained parameters of the network, which no function may change, or give gradients.
    """

    net: nn.Module
    coords: Tensor
    target: Tensor
    weight: Tensor | None
    index: Tensor | None
    step: int
    modules: tuple[nn.Module, ...] = ()
    prediction: Tensor | None = None
    watched: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Term:
    """A function of the user's own in an objective, with what it is given.

    Attributes
    ----------
    place
        What messages call it: ``"loss"``, ``"regularizers[0]"``.
    call
        The function; it returns a tensor of one element.
    positional, named
        Names of its arguments by position and by keyword.
    factor
        Multiplies its value.
    """

    place: str
    call: Callable[..., Tensor]
    positional: tuple[str, ...]
    named: tuple[str, ...]
    factor: float = 1.0

    @property
    def asks(self) -> frozenset[str]:
        """Names of all that it is given."""
        return frozenset((*self.positional, *self.named))

    def __call__(self, batch: Batch) -> Tensor:
        """Return its value times its factor; errors name it."""
        given = [getattr(batch, name) for name in self.positional]
        before = [(own._version, own.grad, None if own.grad is None else own.grad._version) for own in batch.watched]
        try:
            value = self.call(*given, **{name: getattr(batch, name) for name in self.named})
        except RuntimeError as error:
            if type(error) is not RuntimeError or is_refusal(error):
                raise
            raise RuntimeError(f"{self.place}: {error}") from error
        for own, (version, grad, filled) in zip(batch.watched, before, strict=True):
            if own._version != version:
                raise ChangedError(
                    f"{self.place} changes the network's weights in place; it may only compute with them"
                )
            if own.grad is not grad or (grad is not None and grad._version != filled):
                raise ChangedError(
                    f"{self.place} changes the gradients of the network, as backward() does; return the value alone, "
                    "which the fit differentiates, and take derivatives by torch.autograd.grad"
                )
        if isinstance(value, Tensor) and value.is_complex():
            raise TypeError(f"{self.place} must return a real number, got {value.dtype}; take its real part or abs()")
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{self.place} must return a tensor of one element, got {got}")
        return value.reshape(()) if self.factor == 1 else self.factor * value.reshape(())


@dataclass(frozen=True)
class Objective:
    """The sum that a fit minimises.

    Attributes
    ----------
    loss
        A named loss with its numbers, or a function of the user's own.
    regularizers
        What is added to it.
    modules
        Modules beside the network that are trained with it: those given, then regularisers that train themselves.
    """

    loss: BoundLoss | Term = field(default_factory=lambda: loss_of("mse"))
    regularizers: tuple[Term, ...] = ()
    modules: tuple[nn.Module, ...] = ()

    @property
    def named(self) -> BoundLoss | None:
        """The loss, if it is a named one: a mean over points and outputs."""
        return self.loss if isinstance(self.loss, BoundLoss) else None

    @property
    def link(self) -> Callable[[Tensor], Tensor] | None:
        """What makes of predictions the values that a PSNR compares with the targets; None: nothing."""
        return self.loss.kind.link if isinstance(self.loss, BoundLoss) else None

    @property
    def is_mean_square(self) -> bool:
        """Whether its value is the mean squared error, weighted or not, and nothing else."""
        return isinstance(self.loss, BoundLoss) and self.loss.is_mean_square and not self.regularizers

    @property
    def terms(self) -> tuple[Term, ...]:
        """Functions of the user's own."""
        return (*((self.loss,) if isinstance(self.loss, Term) else ()), *self.regularizers)

    @property
    def own_code(self) -> list[str]:
        """What calls code of the user's own, as messages call it."""
        places = [term.place for term in self.terms]
        named = self.named
        if named is not None and not str(getattr(named.kind.value, "__module__", "")).startswith("inrfast."):
            places.append(f"loss={named.name!r}")
        return places

    def asks(self, name: str) -> bool:
        """Return whether a function of the user's own is given this."""
        return any(name in term.asks for term in self.terms)

    def reason_against_parts(self) -> str | None:
        """Return why the loss is no sum over points whose gradient an engine can take alone; None if it is."""
        if isinstance(self.loss, Term):
            return "the loss is one of your own, not a named one"
        for term in self.regularizers:
            if "prediction" in term.asks:
                return f"{term.place} asks for the predictions, which autograd must take"
        return None

    def value(self, batch: Batch) -> Tensor:
        """Return loss plus regularisers of a batch with predictions, for autograd.

        Raises
        ------
        TypeError
            A term is no scalar, or the loss does not depend on the predictions.
        """
        if isinstance(self.loss, BoundLoss):
            assert batch.prediction is not None
            value = self.loss.mean(batch.prediction, batch.target, batch.weight)
        else:
            value = self.loss(batch)
            if not value.requires_grad:
                raise TypeError("loss must return a tensor of one element that depends on the predictions, got another")
        return value + self.penalty(batch) if self.regularizers else value

    def penalty(self, batch: Batch) -> Tensor:
        """Return the sum of the regularisers, a tensor of one element."""
        values = [term(batch) for term in self.regularizers]
        for term, value in zip(self.regularizers, values, strict=True):
            if not value.requires_grad and batch.step == 0:
                warn(f"{term.place} has no gradient: it depends on nothing that is trained", UserWarning)
        return sum(values[1:], values[0])

    def twin(self) -> Objective:
        """Return the same objective with copies of the modules that are its terms, which have the same parameters."""

        def copied(term: Term) -> Term:
            return replace(term, call=twin(term.call)) if isinstance(term.call, nn.Module) else term

        loss = copied(self.loss) if isinstance(self.loss, Term) else self.loss
        return replace(self, loss=loss, regularizers=tuple(copied(term) for term in self.regularizers))

    def config(self) -> dict[str, Any]:
        """Return the objective in plain values, for results and checkpoints."""
        own = self.loss.config() if isinstance(self.loss, BoundLoss) else _name_of(self.loss.call)
        found: dict[str, Any] = {"loss": own}
        if self.regularizers:
            found["regularizers"] = [[_name_of(term.call), term.factor] for term in self.regularizers]
        if self.modules:
            found["modules"] = [type(module).__name__ for module in self.modules]
        return found


def blamed(
    error: RuntimeError, terms: Sequence[Term], batch: Callable[[], Batch], parameters: Sequence[Tensor]
) -> RuntimeError:
    """Return the error of a backward pass with the name of the function that it comes from.

    ``batch`` gives what functions ask for anew, since a pass frees its graph.
    """
    if type(error) is not RuntimeError or is_refusal(error) or not terms:
        return error
    what = " ".join(str(error).split())
    try:
        own = batch()
        for term in terms if "inplace" in what else ():  # in their order: one may change what all of them get
            versions = [None if given is None else given._version for given in (own.prediction, own.target, own.coords)]
            term(own)
            now = [None if given is None else given._version for given in (own.prediction, own.target, own.coords)]
            if now != versions:
                return RuntimeError(f"{term.place} changes what it is given in place: {what}")
    except RuntimeError:
        pass
    for term in terms:
        try:
            value = term(batch())
            if value.requires_grad:
                torch.autograd.grad(value, parameters, allow_unused=True)
        except RuntimeError as alone:
            return RuntimeError(f"{term.place} cannot be differentiated: {' '.join(str(alone).split())}")
    return error


def nonfinite_part(objective: Objective, batch: Callable[[], Batch], parameters: Sequence[Tensor]) -> str | None:
    """Say which part of an objective, or whose gradient, is NaN or Inf; None if none is by itself.

    ``batch`` gives what functions ask for, with predictions, anew.
    """
    parts: list[tuple[str, Callable[[Batch], Tensor]]] = [(term.place, term) for term in objective.terms]
    if isinstance(objective.loss, BoundLoss):
        parts.insert(0, (f"the loss {objective.loss.name!r}", replace(objective, regularizers=()).value))
    for place, part in parts:
        try:
            with torch.enable_grad():
                value = part(batch())
                if not bool(value.isfinite()):
                    return f"{place}, which is {float(value.detach())}"
                found = torch.autograd.grad(value, parameters, allow_unused=True) if value.requires_grad else ()
        except (RuntimeError, ValueError, TypeError):  # it was called before: what it says of this was said then
            continue
        if not all(own is None or bool(own.isfinite().all()) for own in found):
            return f"the gradient of {place}, which is finite ({float(value.detach()):.3g})"
    return None


def batch_of(
    data: Data,
    net: nn.Module,
    objective: Objective,
    index: Tensor | slice,
    step: int,
    watched: Sequence[Tensor] = (),
) -> Batch:
    """Return what an objective may ask for of some rows of a network's data, the predictions aside."""
    coords, target, weight = data.rows(index)
    if objective.asks("coords"):  # since a term may differentiate with respect to them
        coords = coords.detach().requires_grad_()
    return Batch(
        net,
        coords,
        target,
        None if weight is None else weight.expand_as(target),
        data.numbers(index) if objective.asks("index") else None,
        step,
        objective.modules,
        watched=watched,
    )


def check_objective(
    loss: Any, weighted: bool, regularizers: Any = (), modules: Any = (), net: nn.Module | None = None
) -> Objective:
    """Return what a fit minimises, from what its caller gave.

    Regularisers that are modules are trained with a single network ``net``; of several (None) each has its own modules.

    Raises
    ------
    ValueError, TypeError
        An unknown loss or number; a function that asks for what there is not, or that ignores the weights of the points
        (``weighted``); a factor that is no finite number; a module that is none.
    """
    bound = _loss_term(loss, weighted) if callable(loss) else loss_of(loss)
    terms, given = _regularizer_terms(regularizers), check_modules(modules)
    return Objective(bound, terms, given if net is None else (*given, *_training_themselves(terms, (net, *given))))


def _loss_term(loss: Callable[..., Tensor], weighted: bool) -> Term:
    """Return the term of a loss of (prediction, target), of (prediction, target, coords), and of what it names."""
    if isinstance(loss, type):
        check_takes("loss", loss, ())
    positional, named = ["prediction", "target"], []
    for place, parameter in enumerate(_parameters(loss)):
        required = parameter.default is inspect.Parameter.empty
        if place < 2 and parameter.kind != inspect.Parameter.KEYWORD_ONLY:
            continue
        if _takes(parameter, OF_LOSSES):
            named.append(parameter.name)
        elif required and place == 2 and parameter.kind != inspect.Parameter.KEYWORD_ONLY:
            positional.append("coords")
        elif required:
            raise TypeError(_unknown("loss", parameter.name, OF_LOSSES))
    check_takes("loss", loss, positional, named)
    if weighted and "weight" not in named:
        raise ValueError(
            "weight is given, but loss, one of your own, does not take it: give the function a parameter named weight "
            "(it gets the weights (n, M) of the step's points), or name a loss, such as 'mse', 'l1' or 'huber'"
        )
    return Term("loss", loss, tuple(positional), tuple(named))


def _regularizer_terms(given: Any) -> tuple[Term, ...]:
    """Return the terms of functions, or of pairs (function, factor)."""
    if callable(given) or isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(
            "regularizers must be a sequence of callables or (callable, factor) pairs, got "
            f"{type(given).__name__}; one alone goes into a list"
        )
    return tuple(_regularizer_term(f"regularizers[{index}]", own) for index, own in enumerate(given))


def _regularizer_term(place: str, given: Any) -> Term:
    pair = given if isinstance(given, (tuple, list)) else (given, 1.0)
    if len(pair) != 2 or not callable(pair[0]):
        raise TypeError(f"{place} must be a callable or a pair (callable, factor), got {given!r}")
    call, factor = pair[0], check_float(f"{place}[1], the factor,", pair[1])
    named = []
    if isinstance(call, type):
        check_takes(place, call, ())
    for parameter in _parameters(call):
        if parameter.kind == inspect.Parameter.POSITIONAL_ONLY and parameter.default is inspect.Parameter.empty:
            raise TypeError(f"{place} must take its arguments by name, but {parameter.name!r} is positional only")
        if _takes(parameter, OF_REGULARIZERS):
            named.append(parameter.name)
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(_unknown(place, parameter.name, OF_REGULARIZERS))
    return Term(place, call, (), tuple(named), factor)


def _training_themselves(terms: Sequence[Term], others: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the terms that are modules with trainable parameters which are in none of these others, each once."""
    known = {parameter for module in others for parameter in module.parameters()}
    found: dict[nn.Module, None] = {}
    for term in terms:
        call = term.call
        if isinstance(call, nn.Module) and any(p.requires_grad and p not in known for p in call.parameters()):
            check_net(call, term.place)
            found[call] = None
    return list(found)


def _parameters(call: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function, ``*args`` and ``**kwargs`` aside; of a module those of its ``forward``."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        found = inspect.signature(call.forward if isinstance(call, nn.Module) else call).parameters.values()
    except (TypeError, ValueError):  # some callables of C have no signature
        return []
    return [parameter for parameter in found if parameter.kind not in variable]


def _takes(parameter: inspect.Parameter, names: Sequence[str]) -> bool:
    """Return whether a parameter asks for one of these by name: a default other than None is the caller's own value."""
    return (
        parameter.name in names
        and parameter.kind != inspect.Parameter.POSITIONAL_ONLY
        and (parameter.default is inspect.Parameter.empty or parameter.default is None)
    )


def _unknown(place: str, name: str, names: Sequence[str]) -> str:
    return f"{place} asks for {name!r}; what it may ask for by name is {', '.join(names)}.{nearest(name, names)}"


def check_modules(given: Any, argument: str = "modules") -> tuple[nn.Module, ...]:
    """Return modules that are to be trained, each once."""
    own = [given] if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList) else given
    if isinstance(own, (str, Mapping)) or not isinstance(own, (Sequence, nn.ModuleList)):
        raise TypeError(f"{argument} must be a sequence of torch.nn.Module, got {type(given).__name__}")
    for index, module in enumerate(own):
        check_net(module, argument if own is not given and len(own) == 1 else f"{argument}[{index}]")
    return tuple(dict.fromkeys(own))


def _name_of(call: Any) -> str:
    return str(getattr(call, "__name__", type(call).__name__))
