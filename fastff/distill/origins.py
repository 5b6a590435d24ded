"""Which of the user's structures the test frames of a run began as.

Here: what a label file records of that. Not here: the plan and the rounds that know it
(:mod:`fastff.distill.plan`, :mod:`fastff.distill.rounds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastff.distill.plan import SamplingPlan
from fastff.distill.store import LabelStore

ORIGINS = "origins"
"""Entry of a label file's record: number of the structure, from 0, by trajectory."""
_CELL = "cell "


def name_cell(index: int) -> str:
    """Kind of the frames that began as a cell of the sampling plan."""
    return f"{_CELL}{index}"


def note_origins(store: LabelStore, plan: SamplingPlan, kinds: Mapping[int, str]) -> None:
    """Record what the held-out trajectories began as, in a file open for appending.

    Parameters
    ----------
    store : LabelStore
    plan : SamplingPlan
        Of the first sampling.
    kinds : mapping of int to str
        Kinds of the walkers of rounds, by trajectory.
    """
    origins = {}
    for trajectory in sorted(store.held_out):
        cell, kind = plan.find_cell(trajectory), kinds.get(trajectory, "")
        if cell is None and kind.startswith(_CELL):
            cell = int(kind.removeprefix(_CELL))
        if cell is not None:
            origins[str(trajectory)] = plan.cells[cell].seed_index
    store.note(**{ORIGINS: origins})


def read_origins(record: Mapping[str, Any]) -> dict[int, int]:
    """Number of the structure by trajectory, from the record of a label file; empty for files of earlier versions."""
    return {int(trajectory): int(seed) for trajectory, seed in record.get(ORIGINS, {}).items()}
