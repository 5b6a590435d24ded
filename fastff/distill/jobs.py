"""What is to be labelled: the frames of the user's files, label files too, and the part that one process takes.

Here: :class:`LabelJob`, reading, sharding and batching. Not here: labelling (:mod:`fastff.distill.labelling`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase

from fastff.distill.content import CHARGE_KEYS, hash_structure
from fastff.distill.formats import TRAJECTORY_KEYS
from fastff.errors import UsageError
from fastff.structures import read_structures

BATCH_ATOMS = 1024
"""Limit of a batch, at least."""
SHARD = "shard"
"""Key of a label file's record that says what it is part of, and how many frames it holds once it is finished."""
MAX_SOURCE = 32
"""Longest name of a source, bytes in UTF-8."""


def count_batch_atoms(teacher: object) -> int:
    """Most atoms to hand to a teacher, and to store, at once: as many as it evaluates at once, and not too few."""
    return max(BATCH_ATOMS, getattr(teacher, "batch_atoms", 0))


@dataclass(frozen=True)
class LabelJob:
    """One structure to be labelled, and what its file says of where it came from.

    Attributes
    ----------
    atoms : ase.Atoms
        Bare: no calculator, no constraints; ``info`` holds charge and spin only.
    source : str
        ``"file"`` unless the file says otherwise.
    trajectory, step : int
        As in :class:`fastff.labels.Frame`.
    temperature : float
        K, nan if the file does not say.
    held_out : bool
        Whether the trajectory is for testing only.
    """

    atoms: ase.Atoms
    source: str
    trajectory: int
    step: int
    temperature: float
    held_out: bool = False


def read_jobs(paths: Sequence[Path]) -> list[LabelJob]:
    """Read every frame of every file.

    Frames of a label file keep source, trajectory, step, temperature and the mark of those held out; frames that it has
    set aside are left out. Trajectory numbers of other files are unique to a file's content, and the same for every
    shard of it. Frames of a file that names no trajectories get one number each, ascending; readers of labels then form
    blocks of consecutive frames.

    Raises
    ------
    DataError
        A file that is missing or unreadable, or holds a structure for which no energy can be computed; or a trajectory
        is held out in one label file and not in another.
    """
    jobs: list[LabelJob] = []
    stored = [path for path in paths if path.suffix.lower() in (".h5", ".hdf5")]
    relabelled = dict(zip(stored, read_stored_jobs(stored), strict=True))
    for path in paths:
        if path in relabelled:
            jobs += relabelled[path]
            continue
        structures = read_structures(path, close_contacts="warn")
        content = hashlib.sha256(b"".join(hash_structure(atoms) for atoms in structures)).digest()
        base = (int.from_bytes(content[:4], "big") >> 1) << 20
        numbers, named = number_trajectories(structures)
        held_out = {
            number
            for atoms, number in zip(structures, numbers, strict=True)
            if atoms.info.get("held_out")
        }
        counts: dict[int, int] = defaultdict(int)
        for atoms, number in zip(structures, numbers, strict=True):
            step = counts[number] if named else -1
            counts[number] += 1
            jobs.append(
                LabelJob(
                    atoms=strip_structure(atoms),
                    source=str(atoms.info.get("source", "file"))
                    .encode()[:MAX_SOURCE]
                    .decode(errors="ignore"),
                    trajectory=base + number,
                    step=int(atoms.info.get("step", step)),
                    temperature=float(atoms.info.get("temperature", math.nan)),
                    held_out=number in held_out,
                )
            )
    return jobs


def read_stored_jobs(paths: Sequence[Path]) -> list[list[LabelJob]]:
    """The frames of each label file, to be labelled anew by whichever teacher."""
    from fastff.distill.merging import find_held_out
    from fastff.distill.store import LabelStore

    with ExitStack() as stack:
        stores = [stack.enter_context(LabelStore(path)) for path in paths]
        held_out = find_held_out(stores)
        return [
            [
                LabelJob(
                    strip_structure(frame.atoms),
                    frame.source,
                    frame.trajectory,
                    frame.step,
                    frame.temperature,
                    frame.trajectory in held_out,
                )
                for frame in store.read()
            ]
            for store in stores
        ]


def number_trajectories(structures: Sequence[ase.Atoms]) -> tuple[list[int], bool]:
    """Number trajectories from 0 in order of appearance, and say whether the file names them."""
    for key in TRAJECTORY_KEYS:
        if all(key in atoms.info for atoms in structures):
            names = [str(atoms.info[key]) for atoms in structures]
            order = {name: number for number, name in enumerate(dict.fromkeys(names))}
            return [order[name] for name in names], True
    return list(range(len(structures))), False


def strip_structure(atoms: ase.Atoms) -> ase.Atoms:
    """What a teacher reads, and momenta; charges on atoms become a total charge."""
    bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("momenta"):
        bare.set_momenta(atoms.get_momenta(), apply_constraint=False)
    bare.info = {key: atoms.info[key] for key in CHARGE_KEYS if key in atoms.info}
    total = float(atoms.get_initial_charges().sum())
    if "charge" not in bare.info and abs(total) > 1e-6:
        bare.info["charge"] = total
    return bare


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``I/N``, the I-th of N shards, counted from 1.

    Raises
    ------
    UsageError
        If the text is something else.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None or not 1 <= int(match.group(1)) <= int(match.group(2)):
        raise UsageError(f"--shard {text!r} is not I/N with I from 1 to N, such as 3/16")
    return int(match.group(1)), int(match.group(2))


def describe_shard(jobs: Sequence[LabelJob], index: int, count: int) -> dict[str, Any]:
    """What shard ``index`` (counted from 1) of these jobs is part of, as its file records it."""
    content = hashlib.sha256(b"".join(hash_structure(job.atoms) for job in jobs))
    return {"job": content.hexdigest()[:16], "index": index, "count": count}


def drop_repeats(jobs: Sequence[LabelJob]) -> list[LabelJob]:
    """The jobs without those whose structure is that of an earlier one."""
    distinct: dict[bytes, LabelJob] = {}
    for job in jobs:
        distinct.setdefault(hash_structure(job.atoms), job)
    return list(distinct.values())


def take_shard(jobs: Sequence[LabelJob], index: int, count: int) -> list[LabelJob]:
    """Every ``count``-th job, from number ``index`` (counted from 0)."""
    return list(jobs[index::count])


def name_shard(out: Path, index: int, count: int) -> Path:
    """File of shard ``index`` (counted from 1): ``labels.h5`` becomes ``labels.3-of-16.h5``."""
    return out.with_name(f"{out.stem}.{index}-of-{count}{out.suffix}")


def batch_jobs(jobs: Iterable[LabelJob], batch_atoms: int) -> list[list[LabelJob]]:
    """Consecutive jobs of at most ``batch_atoms`` atoms together, or one larger structure."""
    batches: list[list[LabelJob]] = []
    n_atoms = 0
    for job in jobs:
        if not batches or n_atoms + len(job.atoms) > batch_atoms:
            batches.append([])
            n_atoms = 0
        batches[-1].append(job)
        n_atoms += len(job.atoms)
    return batches


def choose_examples(jobs: Sequence[LabelJob], count: int = 4) -> list[ase.Atoms]:
    """The first structure of each composition, smallest compositions first, at most ``count``."""
    examples: dict[str, ase.Atoms] = {}
    for job in jobs:
        examples.setdefault(job.atoms.get_chemical_formula(), job.atoms)
    return sorted(examples.values(), key=len)[:count]
