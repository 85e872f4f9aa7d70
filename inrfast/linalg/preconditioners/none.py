"""No preconditioner: plain conjugate gradients, for systems whose ridge is near the largest eigenvalue."""

from __future__ import annotations

from inrfast.linalg.preconditioners import PRECONDITIONERS, Apply, System, require_iteration


def none(system: System) -> Apply:
    """Return the identity."""
    require_iteration(system)
    return lambda V: V


PRECONDITIONERS.add("none", none)
