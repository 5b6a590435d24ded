"""Saying which atoms have come too close.

Here: :func:`describe_contact`. Not here: looking for contacts (:mod:`fastff.md.engine` at rows,
:mod:`fastff.md.recorder` in frames).
"""

from __future__ import annotations

from fastff.evaluator import find_contact
from fastff.md.engine import Engine, Progress


def describe_contact(engine: Engine, progress: Progress) -> str:
    """One line about the closest pair of a chunk; its atoms are named if they are still close."""
    state, limit = engine.state, engine.settings.min_distance
    contact = find_contact(
        state.positions.cpu().numpy(), state.cell.cpu().numpy(), state.pbc.cpu().numpy(), limit
    )
    who = "two atoms" if contact is None else f"atoms {contact.first} and {contact.second}"
    return (
        f"{who} are {progress.closest:.3g} Å apart, closer than {limit:g} Å, "
        f"in the rows up to step {progress.step}"
    )
