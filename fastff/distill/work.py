"""Energy differences between neighboring frames against the work of forces and stress.

Here: :func:`judge_forces`. Not here: the other checks of labels (:mod:`fastff.distill.validate`).

Between frames of equal cells the work is that of the forces along the moves of the atoms. Where cells differ too, moves
are those of the fractional coordinates, and the stress does the rest: ``dE = -F . (ds h) + V sigma : epsilon``, both by
the trapezoid rule. The share of the stress is fitted, so that a stress in another unit is not laid to the forces.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ase.geometry import find_mic
from ase.stress import voigt_6_to_full_3x3_stress

from fastff.labels import Frame

SAME_SIGN = 0.8
"""Share of steps in which energy and work must agree in sign, or disagree, to say anything of forces."""
LEAST_RATIO = 0.65
"""Energy differences per work of the forces, or the inverse, below which units are called wrong: 0.53 is eV/bohr."""
LONGEST_MOVE = 0.4
"""Å; over longer steps the trapezoid rule says little of the work."""
LARGEST_STRAIN = 0.03
"""Between two frames, likewise."""
LEAST_RATIO_STRAINED = 0.3
"""Likewise where cells differ: such frames are further apart, and anharmonic. 0.1 is eV/nm, 0.04 kcal/mol/Å."""
FEWEST = 5
"""Steps of much work that are needed to say anything; twice as many where cells differ."""
FEW_PAIRS = 2 * FEWEST - 1
"""Steps of equal cells along trajectories with which others are left out."""
MANY_PAIRS = 50
"""Steps along trajectories with which frames are not also compared with those most like them."""
MOST_COMPARED = 120
"""Frames of one composition among which these are looked for."""
LEAST_SHARE = 0.1
"""Work of the forces per work of the stress below which a step says nothing of the forces."""


def judge_forces(frames: Sequence[Frame], sound: Sequence[int]) -> str | None:
    """Why forces and energies of some frames do not fit each other, or None if they do or too little is known.

    Parameters
    ----------
    frames : sequence of Frame
    sound : sequence of int
        Those that are looked at.
    """
    rows = compare_all(frames, pair_in_time(frames, sound))
    level = [row for row in rows if row[1] == 0.0]
    least, lowest = FEWEST, LEAST_RATIO
    if len(level) >= FEW_PAIRS:
        rows = level
    else:
        least, lowest = 2 * FEWEST, LEAST_RATIO_STRAINED
        if len(rows) < MANY_PAIRS:
            rows += compare_all(frames, pair_alike(frames, sound))
    if not rows:
        return None
    work, pressed, change = np.array(rows).T
    if pressed.any():
        change = change - fit_stress(work, pressed, change) * pressed
    strong = np.abs(work) >= np.maximum(np.median(np.abs(work)), LEAST_SHARE * np.abs(pressed))
    if strong.sum() < least or np.std(change) < 1e-6 or np.min(np.abs(work)[strong]) < 1e-6:
        return None
    ratios = change[strong] / work[strong]
    ratio, agreement = float(np.median(ratios)), float(np.mean(ratios > 0))
    if agreement < 1 - SAME_SIGN:
        return f"energy rises along the forces in {1 - agreement:.0%} of the steps: wrong sign of forces?"
    if agreement > SAME_SIGN and not lowest < ratio < 1 / lowest:
        return f"energy differences are {ratio:.3g} times the work of the forces: units not eV and eV/Å?"
    return None


def compare_all(
    frames: Sequence[Frame], pairs: Iterable[tuple[int, int]]
) -> list[tuple[float, float, float]]:
    """:func:`compare` for all pairs that are neighbors."""
    return [row for i, j in pairs if (row := compare(frames[i], frames[j]))]


def pair_in_time(frames: Sequence[Frame], sound: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Frames that follow each other in a trajectory."""
    in_time = sorted(sound, key=lambda i: (frames[i].trajectory, frames[i].step))
    for i, j in itertools.pairwise(in_time):
        if frames[i].trajectory == frames[j].trajectory:
            yield i, j


def pair_alike(frames: Sequence[Frame], sound: Sequence[int]) -> set[tuple[int, int]]:
    """Every periodic frame, or some of them, with the one most like it in cell and fractional coordinates."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i in sound:
        if frames[i].atoms.pbc.all() and frames[i].atoms.cell.rank == 3:
            groups[frames[i].atoms.numbers.tobytes()].append(i)
    pairs = set()
    for group in groups.values():
        chosen = [
            group[k]
            for k in np.linspace(0, len(group) - 1, min(len(group), MOST_COMPARED), dtype=int)
        ]
        cells = np.array([frames[i].atoms.cell.array for i in chosen])
        fractions = np.array([frames[i].atoms.get_scaled_positions(wrap=False) for i in chosen])
        for k, i in enumerate(chosen):
            moves = fractions - fractions[k]
            moves -= np.rint(moves)
            size = np.abs(moves @ cells[k]).max(axis=(1, 2)) / LONGEST_MOVE
            strain = np.abs(np.linalg.solve(cells[k], cells) - np.eye(3)).max(axis=(1, 2))
            size += strain / LARGEST_STRAIN
            size[k] = np.inf
            j = chosen[int(np.argmin(size))]
            pairs.add((min(i, j), max(i, j)))
    return {pair for pair in pairs if pair[0] != pair[1]}


def compare(a: Frame, b: Frame) -> tuple[float, float, float] | None:
    """Work of the forces, work of the stress and change of the energy (eV) from one frame to another.

    None where they are no neighbors, or the stress is not known.
    """
    if not np.array_equal(a.atoms.numbers, b.atoms.numbers):
        return None
    change, cells = b.labels.energy - a.labels.energy, (a.atoms.cell.array, b.atoms.cell.array)
    if np.allclose(*cells, atol=1e-4):
        moves, lengths = find_mic(b.atoms.positions - a.atoms.positions, a.atoms.cell, a.atoms.pbc)
        if not 1e-4 < float(np.max(lengths)) < LONGEST_MOVE:
            return None
        return -0.5 * float(np.sum((a.labels.forces + b.labels.forces) * moves)), 0.0, change
    if not all(x.atoms.pbc.all() and x.atoms.cell.rank == 3 for x in (a, b)):
        return None
    if a.labels.stress is None or b.labels.stress is None:
        return None
    deformation = np.linalg.solve(*cells)
    strain = 2.0 * np.linalg.solve(deformation + np.eye(3), deformation - np.eye(3))
    if np.abs(strain).max() > LARGEST_STRAIN:
        return None
    moves = b.atoms.get_scaled_positions(wrap=False) - a.atoms.get_scaled_positions(wrap=False)
    moves -= np.rint(moves)
    if not 1e-4 < float(np.linalg.norm(moves @ cells[0], axis=1).max()) < LONGEST_MOVE:
        return None
    work = pressed = 0.0
    for frame, cell in zip((a, b), cells, strict=True):
        stress = voigt_6_to_full_3x3_stress(frame.labels.stress)
        work -= 0.5 * float(np.sum(frame.labels.forces * (moves @ cell)))
        pressed += 0.5 * frame.atoms.get_volume() * float(np.sum(stress * strain))
    return work, pressed, change


def fit_stress(work: np.ndarray, pressed: np.ndarray, change: np.ndarray) -> float:
    """Factor of the stress' work in ``change = a work + b pressed``, by least absolute deviations."""
    rows = np.stack([work, pressed], axis=1)
    weights = np.ones(len(change))
    for _ in range(20):
        factors = np.linalg.lstsq(rows * weights[:, None], change * weights, rcond=None)[0]
        misses = np.abs(change - rows @ factors)
        weights = 1.0 / np.sqrt(np.maximum(misses, 1e-3 * max(float(misses.max()), 1e-12)))
    return float(factors[1])
