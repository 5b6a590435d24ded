"""The noise floor of a teacher or a student: how far it disagrees with itself.

Here: :func:`measure_noise`. Not here: the error of a student against its teacher (:mod:`fastff.report.metrics`). A
student cannot be expected to come nearer to its teacher than the teacher comes to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ase
import numpy as np

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report.stamps import Stamped
from fastff.teachers.selfcheck import (
    displace_structure,
    draw_rotation,
    find_roughness,
    rotate_structure,
)

Labeller = Callable[[Sequence[ase.Atoms]], list[Labels]]


class NoiseFloor(Stamped):
    """Self-disagreement of one labeller.

    Every force entry is an RMS over components relative to the RMS force of the same frames, so that it compares
    directly with ``1 - A_F``. Energies are RMS in eV/atom.

    Attributes
    ----------
    rotation_force, rotation_energy : float
        Between a frame and a rotated copy (forces turned back).
    jitter_force : float
        :func:`~fastff.teachers.selfcheck.find_roughness` for a random displacement of ``jitter`` Å per coordinate.
    batch_force, batch_energy : float
        Between a frame alone and the same frame in a batch.
    identity : dict or None
        Whose it is: name and version of a teacher, SHA-256 of a student's tensors.
    """

    rotation_force: float
    rotation_energy: float
    jitter_force: float
    batch_force: float
    batch_energy: float
    jitter: float
    n_frames: int
    identity: dict[str, Any] | None = None

    @property
    def force(self) -> float:
        """The largest of the force entries."""
        return max(self.rotation_force, self.jitter_force, self.batch_force)


def measure_noise(
    label: Labeller, structures: Sequence[ase.Atoms], *, jitter: float = 1e-3, seed: int = 0
) -> NoiseFloor:
    """Measure how far a labeller disagrees with itself on ``structures`` (five labels per structure).

    Parameters
    ----------
    label : callable
        ``Teacher.label``, or ``partial(predict, student)``.
    structures : sequence of ase.Atoms
        A few typical frames, off equilibrium, with non-zero forces.
    jitter : float
        Displacement, Å.
    seed : int
        Of rotations and displacements.
    """
    random = np.random.default_rng(seed)
    rotations = [draw_rotation(random) for _ in structures]
    steps = [jitter * random.normal(size=(len(atoms), 3)) for atoms in structures]
    turned = [
        rotate_structure(atoms, matrix) for atoms, matrix in zip(structures, rotations, strict=True)
    ]
    plus = [displace_structure(atoms, step) for atoms, step in zip(structures, steps, strict=True)]
    minus = [
        displace_structure(atoms, -step) for atoms, step in zip(structures, steps, strict=True)
    ]
    bare = [displace_structure(atoms, np.zeros((len(atoms), 3))) for atoms in structures]
    alone = [label([atoms])[0] for atoms in bare]
    batch = label([*bare, *turned, *plus, *minus])
    count = len(structures)
    same, rotated, ahead, behind = (batch[k * count : (k + 1) * count] for k in range(4))
    forces = _join(alone)
    scale = float(np.sqrt(np.mean(forces**2)))
    if scale == 0.0:
        raise DataError(
            "the noise floor needs frames with forces: all are zero on the frames given."
        )
    turned_back = np.concatenate(
        [labels.forces @ matrix for labels, matrix in zip(rotated, rotations, strict=True)]
    )
    sizes = np.array([len(atoms) for atoms in structures])

    def relative(difference: np.ndarray) -> float:
        return float(np.sqrt(np.mean(difference**2))) / scale

    def energy(first: list[Labels], second: list[Labels]) -> float:
        values = np.array([a.energy - b.energy for a, b in zip(first, second, strict=True)])
        return float(np.sqrt(np.mean((values / sizes) ** 2)))

    return NoiseFloor(
        rotation_force=relative(turned_back - _join(same)),
        rotation_energy=energy(rotated, same),
        jitter_force=relative(find_roughness(_join(ahead), _join(behind), _join(same))),
        batch_force=relative(_join(same) - forces),
        batch_energy=energy(same, alone),
        jitter=jitter,
        n_frames=count,
    )


def _join(labels: Sequence[Labels]) -> np.ndarray:
    return np.concatenate([entry.forces for entry in labels])
