"""What a round of student dynamics brings home: where walkers start, and which of their structures are labelled.

Here: :func:`plan_walkers`, :func:`harvest`, the file that keeps a harvest, and what frames its structures became. Not
here: the dynamics (:mod:`fastff.distill.explore`), the choice by descriptors (:mod:`fastff.distill.select`), labels.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np

from fastff.checkpoint import write_atomically
from fastff.distill.cells import SampleCell, draw_strain, find_material_axes, strain_cell
from fastff.distill.content import CHARGE_KEYS, hash_structure
from fastff.distill.explore import Exploration, ExploreSettings, Snapshot, Use, Walker, explore
from fastff.distill.select import choose_spread, describe_structures, weigh_uncertainty
from fastff.distill.split import Split
from fastff.distill.store import LabelStore
from fastff.errors import DataError
from fastff.labels import Frame
from fastff.models import Student

SOURCE = "student-md"
OVERHEAT = 1.5
"""Walkers go up to this many times the highest temperature."""
STRAIN = {"train": 0.03, "validation": 0.015, "test": 0.015}
"""Largest isotropic strain of a walker's cell; it is sheared by up to half of it."""
MOST_KNOWN = 300
"""Training frames that a selection is compared with."""
NEAREST = 20
"""A walker starts at one of this many training frames of its kind, nearest in temperature."""
PLENTY, MOST_WAVES = 2.0, 7
"""Where walkers for training end early, others follow until there are this many times as many structures as are wanted,
or that many waves."""
WARM_UP = 0.3
"""Part of a gate walker's way from which no frames are taken."""
HOT_SHARE = 1 / 3
"""Most of the structures to train on that may be from above the range of temperatures, as long as there are others:
a student is least sure of these, and would choose little else. Not where students have no uncertainty."""
WAVE_NUMBERS = 512
GOLDEN = 0.618
"""Part of the kinds by which these move along the temperatures from one round to the next."""
_USES: tuple[Use, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Pick:
    """A structure to be labelled, what for, and the kind of its walker."""

    atoms: ase.Atoms
    use: Use
    trajectory: int
    temperature: float
    step: int
    hot: bool
    kind: str = ""


@dataclass(frozen=True)
class Harvest:
    """Structures to be labelled, and what the dynamics came to.

    Attributes
    ----------
    picks : tuple of Pick
    record : dict
        ``walkers``, ``gate_walkers``, ``blown_up``, ``gate_blown_up`` and ``extrapolated`` (numbers of walkers),
        ``candidates``, ``urgent`` (numbers of structures), ``picoseconds``, ``explore_seconds``.
    """

    picks: tuple[Pick, ...]
    record: dict[str, Any]


@dataclass(frozen=True)
class WalkerPlan:
    """How many walkers there are, and how far apart the temperatures.

    ``n_gate`` walkers each for validation and for testing, the last quarter of them, at least one, above the range of
    interest; ``n_train`` spread over all temperatures.
    """

    n_train: int
    n_gate: int
    temperatures: tuple[float, float]
    seed: int
    first_trajectory: int


def choose_starts(known: Sequence[Frame]) -> list[Frame]:
    """Frames from which walkers may start: those whose forces are no larger than any of the first sampling.

    What a student was led to before it blew up is for training, not to start from again.
    """
    sizes = [float(np.linalg.norm(frame.labels.forces, axis=1).max()) for frame in known]
    first = [size for size, f in zip(sizes, known, strict=True) if f.source != SOURCE]
    limit = max(first, default=np.inf)
    return [frame for size, frame in zip(sizes, known, strict=True) if size <= limit]


def name_composition(frame: Frame) -> str:
    """Chemical formula, the kind of a frame of which nothing else is known."""
    return str(frame.atoms.get_chemical_formula())


def plan_walkers(
    known: Sequence[Frame],
    plan: WalkerPlan,
    number: int,
    wave: int = 0,
    find_kind: Callable[[Frame], str] = name_composition,
) -> list[Walker]:
    """Starts, temperatures and uses of the walkers of round ``number``; in waves after the first, all are for training.

    Parameters
    ----------
    known : sequence of Frame
        Training frames from dynamics and thermal draws. Atoms that FixAtoms holds in a frame are held in its walkers.
    find_kind : callable
        What a frame is of. Kinds take turns, from one round to the next at temperatures far from those before.
    """
    rng = np.random.default_rng([plan.seed, 101, number, wave])
    groups: dict[str, list[Frame]] = defaultdict(list)
    for frame in known:
        groups[find_kind(frame)].append(frame)
    kinds = sorted(groups)
    shift = round(GOLDEN * len(kinds) * (number + wave))
    low, high = plan.temperatures
    ladder: list[tuple[Use, float]] = [
        ("train", float(t)) for t in np.linspace(low, OVERHEAT * high, plan.n_train)
    ]
    n_hot = max(1, plan.n_gate // 4)
    cool = np.linspace(low, high, plan.n_gate - n_hot + 2)[1:-1]
    gate = [*cool, *np.linspace(OVERHEAT, 1.25, n_hot) * high]
    for use in _USES[1:] if wave == 0 else ():
        ladder += [(use, float(t)) for t in gate]
    walkers = []
    for k, (use, temperature) in enumerate(ladder):
        kind = kinds[(k + shift) % len(kinds)]
        group = groups[kind]
        middle = 0.5 * (low + high)
        distance = [
            abs((f.temperature if np.isfinite(f.temperature) else middle) - temperature)
            for f in group
        ]
        near = np.argsort(distance, kind="stable")[:NEAREST]
        start = group[int(rng.choice(near))].atoms.copy()
        start.arrays.pop("momenta", None)
        cell = SampleCell(start, 0, (), find_material_axes(start), 0.0)
        strained = strain_cell(cell, draw_strain(rng, STRAIN[use], 0.5 * STRAIN[use]))
        trajectory = plan.first_trajectory + WAVE_NUMBERS * wave + k
        walkers.append(Walker(strained, temperature, trajectory, use, temperature > high, kind))
    return walkers


def harvest(
    student: Student,
    walkers: Sequence[Walker],
    settings: ExploreSettings,
    known: Sequence[Frame],
    *,
    n_gate: int,
    n_train: int,
    more: Callable[[int], list[Walker]] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Harvest:
    """Let walkers go, and choose what is to be labelled.

    Parameters
    ----------
    student : Student
        On the device to be used, with its uncertainty if it has one.
    walkers : sequence of Walker
    settings : ExploreSettings
    known : sequence of Frame
        Training frames.
    n_gate : int
        Structures of gate walkers to label, in all.
    n_train : int
        Structures to train on; 0 leaves these out, and gate walkers that blow up are then gate walkers still. Otherwise
        those are trained on: their last structures are what the student must learn.
    more : callable, optional
        Gives the walkers of a further wave, from 1 on.
    """
    walkers, found = list(walkers), explore(student, walkers, settings, on_step)
    for wave in range(1, MOST_WAVES if n_train and more else 1):
        if _is_plenty(walkers, found, n_train):
            break
        assert more is not None
        fresh = more(wave)
        walkers += fresh
        changed = replace(settings, seed=settings.seed + wave)
        found = found.join(explore(student, fresh, changed, on_step))
    uses = [
        "train" if n_train and ending.reason == "blow-up" else walker.use
        for walker, ending in zip(walkers, found.endings, strict=True)
    ]
    picks: list[Pick] = []
    for use in _USES[1:]:
        mine = [k for k, other in enumerate(uses) if other == use]
        for snapshot in _spread_evenly(found.snapshots, mine, n_gate // 2, settings.n_steps):
            picks.append(_make_pick(snapshot, walkers[snapshot.walker], use))
    candidates = [s for s in found.snapshots if uses[s.walker] == "train"]
    if n_train:
        hot = [walkers[snapshot.walker].hot for snapshot in candidates]
        for index in _choose_training(student, candidates, hot, known, n_train):
            snapshot = candidates[index]
            picks.append(_make_pick(snapshot, walkers[snapshot.walker], "train"))
    unique = {hash_structure(pick.atoms): pick for pick in picks}
    return Harvest(tuple(unique.values()), _summarise(walkers, found, settings, len(candidates)))


def _is_plenty(walkers: Sequence[Walker], found: Exploration, n_train: int) -> bool:
    """Whether there is enough to choose from, or no walker for training ended early."""
    count = sum(walkers[snapshot.walker].use == "train" for snapshot in found.snapshots)
    early = any(
        ending.reason
        for walker, ending in zip(walkers, found.endings, strict=True)
        if walker.use == "train"
    )
    return count >= PLENTY * n_train or not early


def _make_pick(snapshot: Snapshot, walker: Walker, use: Any) -> Pick:
    return Pick(
        snapshot.atoms,
        use,
        walker.trajectory,
        walker.temperature,
        snapshot.step,
        walker.hot,
        walker.kind,
    )


def _spread_evenly(
    snapshots: Sequence[Snapshot], walkers: Sequence[int], count: int, n_steps: int
) -> list[Snapshot]:
    """Equally many snapshots of each walker, evenly over its way after warming up; of too many walkers, of some."""
    if 0 < count < len(walkers):
        walkers = [walkers[k] for k in np.linspace(0, len(walkers) - 1, count).round().astype(int)]
    chosen: list[Snapshot] = []
    for place, walker in enumerate(walkers):
        own = [s for s in snapshots if s.walker == walker]
        settled = [s for s in own if s.step >= WARM_UP * n_steps] or own
        share = len(range(place, count, len(walkers)))
        where = np.linspace(0, len(settled) - 1, min(share, len(settled))).round().astype(int)
        chosen += [settled[index] for index in where]
    return chosen


def _choose_training(
    student: Student,
    candidates: Sequence[Snapshot],
    hot: Sequence[bool],
    known: Sequence[Frame],
    count: int,
) -> list[int]:
    """Indices of candidates to train on, urgent ones first; at most :data:`HOT_SHARE` are hot if there are others."""
    if student.uncertainty is None:
        where = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
        forced = {k for k, s in enumerate(candidates) if s.urgent}
        return sorted(forced | {int(k) for k in where.round()})
    places = np.linspace(0, len(known) - 1, min(MOST_KNOWN, len(known))).round().astype(int)
    compared = [known[k].atoms for k in places]
    descriptors = describe_structures(student, [*compared, *(s.atoms for s in candidates)])
    weights = weigh_uncertainty([s.grade for s in candidates])
    weights = weights * weigh_uncertainty([s.spread for s in candidates])
    there, own = descriptors[: len(compared)], descriptors[len(compared) :]
    groups = [np.flatnonzero(np.asarray(hot, bool) == above) for above in (False, True)]
    urgent = [[k for k, i in enumerate(group.tolist()) if candidates[i].urgent] for group in groups]
    n_hot = min(len(groups[1]), max(int(HOT_SHARE * count), count - len(groups[0])))
    n_hot = max(n_hot, len(urgent[1]))
    chosen: list[int] = []
    for group, first, most in zip(groups, urgent, (count - n_hot, n_hot), strict=True):
        near = np.concatenate([there, own[chosen]])
        picked = choose_spread(own[group], near, weights[group], most, first)
        chosen += group[picked].tolist()
    return chosen


def _summarise(
    walkers: Sequence[Walker], found: Exploration, settings: ExploreSettings, n_candidates: int
) -> dict[str, Any]:
    pairs = list(zip(walkers, found.endings, strict=True))
    gate = [ending for walker, ending in pairs if walker.use != "train"]
    return {
        "walkers": len(walkers),
        "gate_walkers": len(gate),
        "blown_up": sum(ending.reason == "blow-up" for _, ending in pairs),
        "gate_blown_up": sum(ending.reason == "blow-up" for ending in gate),
        "extrapolated": sum(ending.reason == "extrapolation" for _, ending in pairs),
        "candidates": n_candidates,
        "urgent": sum(snapshot.urgent for snapshot in found.snapshots),
        "picoseconds": round(sum(e.step for _, e in pairs) * settings.timestep / 1000.0, 6),
    }


def write_harvest(path: Path, harvested: Harvest) -> None:
    """Write a harvest in one piece: an uncompressed NumPy archive without pickle."""
    picks = harvested.picks
    arrays: dict[str, Any] = {
        "n_atoms": np.array([len(p.atoms) for p in picks], dtype=np.int64),
        "numbers": np.concatenate([p.atoms.numbers for p in picks] or [np.zeros(0, int)]),
        "positions": np.concatenate([p.atoms.positions for p in picks] or [np.zeros((0, 3))]),
        "cells": np.array([p.atoms.cell.array for p in picks]).reshape(-1, 3, 3),
        "pbc": np.array([p.atoms.pbc for p in picks], dtype=bool).reshape(-1, 3),
        "use": np.array([_USES.index(p.use) for p in picks], dtype=np.int64),
        "trajectory": np.array([p.trajectory for p in picks], dtype=np.int64),
        "temperature": np.array([p.temperature for p in picks]),
        "step": np.array([p.step for p in picks], dtype=np.int64),
        "hot": np.array([p.hot for p in picks], dtype=bool),
        "kind": np.array([p.kind for p in picks], dtype=str),
        "info": np.array(json.dumps([_keep_info(p.atoms) for p in picks])),
        "record": np.array(json.dumps(harvested.record)),
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, stream.getvalue())


def _keep_info(atoms: ase.Atoms) -> dict[str, Any]:
    values = {key: atoms.info[key] for key in CHARGE_KEYS if key in atoms.info}
    return {key: v.item() if isinstance(v, np.generic) else v for key, v in values.items()}


def read_harvest(path: Path) -> Harvest:
    """Read what :func:`write_harvest` wrote.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            a = {name: stored[name] for name in stored.files}
        a.setdefault("kind", np.full(len(a["n_atoms"]), ""))  # files from before kinds were kept
        ends = np.cumsum(a["n_atoms"])
        infos = json.loads(str(a["info"]))
        picks = []
        for k, end in enumerate(ends):
            rows = slice(int(end - a["n_atoms"][k]), int(end))
            atoms = ase.Atoms(
                a["numbers"][rows], a["positions"][rows], cell=a["cells"][k], pbc=a["pbc"][k]
            )
            atoms.info.update(infos[k])
            picks.append(
                Pick(
                    atoms,
                    _USES[int(a["use"][k])],
                    int(a["trajectory"][k]),
                    float(a["temperature"][k]),
                    int(a["step"][k]),
                    bool(a["hot"][k]),
                    str(a["kind"][k]),
                )
            )
        return Harvest(tuple(picks), dict(json.loads(str(a["record"]))))
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it and use --resume") from error


def add_seconds(harvested: Harvest, seconds: float) -> Harvest:
    """The same harvest with the time it took on record."""
    return replace(harvested, record={**harvested.record, "explore_seconds": round(seconds, 1)})


def find_frames(store: LabelStore, picks: Sequence[Pick]) -> list[Frame]:
    """The stored sound frames of some structures, in their order."""
    keys = zip(
        store.read_column("trajectory").tolist(), store.read_column("step").tolist(), strict=True
    )
    places = {key: index for index, key in enumerate(keys)}
    wanted = [places.get((pick.trajectory, pick.step)) for pick in picks]
    return store.read([index for index in wanted if index is not None])


def extend_split(split: Split, frames: Sequence[Frame], picks: Sequence[Pick]) -> Split:
    """Add frames of student dynamics to the parts that their trajectories are for."""
    uses = {pick.trajectory: pick.use for pick in picks}
    parts: dict[str, list[Frame]] = {"train": [], "validation": [], "test": []}
    for frame in frames:
        parts[uses[frame.trajectory]].append(frame)
    return replace(
        split,
        train=[*split.train, *parts["train"]],
        validation=[*split.validation, *parts["validation"]],
        test=[*split.test, *parts["test"]],
    )
