"""What is fuzzed: readers of files, states of fits and networks, factorisations, command lines, memory budgets.

A target makes a case from a generator of random numbers, in a folder of its own; the same numbers make the same case.
"""

from __future__ import annotations

from fuzz.budgets import make_budget
from fuzz.commands import COMMANDS, command_maker
from fuzz.factors import make_factor
from fuzz.files import FORMATS
from fuzz.laws import Target
from fuzz.states import CHECKPOINTS, NETWORKS

TARGETS = {
    target.name: target
    for target in (
        *(Target(form.name, form.make) for form in FORMATS),
        Target("network", NETWORKS.make, 2.0),
        Target("checkpoint", CHECKPOINTS.make),
        Target("factor", make_factor),
        *(Target(f"inrfast-{name}", command_maker(name), 0.1 if name == "demo" else 0.5) for name in COMMANDS),
        Target("budget", make_budget, 0.2),
    )
}
