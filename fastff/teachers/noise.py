"""How far a labeller disagrees with itself: the noise of its labels, on rotated, displaced and batched copies.

Here: :func:`measure_disagreement`, the one measurement of noise, and the copies of a structure that it needs. Not here:
symmetries and consistency (:mod:`fastff.teachers.selfcheck`), noise in units of accuracy
(:mod:`fastff.report.noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from fastff.labels import Labels

JITTER = 1e-3
"""Å, standard deviation of each coordinate's displacement."""

WEIGHTS = (1.0, -4.0, 6.0, -4.0, 1.0)
"""Of the fourth difference, for two steps behind to two steps ahead."""


@dataclass(frozen=True)
class Disagreement:
    """RMS over components or structures; forces in eV/Å, energies in eV/atom.

    Attributes
    ----------
    rotation_force, rotation_energy : float
        Between a structure and a rotated copy (forces turned back).
    jitter_force : float
        :func:`find_roughness` for displacements of :data:`JITTER`: independent errors of the forces count with their
        RMS, a smooth surface with nothing.
    batch_force, batch_energy : float
        Between a structure alone and the same structure in a batch.
    force_rms : float
        Of the forces themselves.
    n_structures : int
    rows : tuple of dict
        The entries above for each structure alone, and ``n_atoms``.
    """

    rotation_force: float
    rotation_energy: float
    jitter_force: float
    batch_force: float
    batch_energy: float
    force_rms: float
    n_structures: int
    rows: tuple[dict[str, float], ...] = ()

    @property
    def force(self) -> float:
        """The largest of the force entries."""
        return max(self.rotation_force, self.jitter_force, self.batch_force)


def measure_disagreement(
    label: Callable[[Sequence[Atoms]], list[Labels]], structures: Sequence[Atoms], *, seed: int = 0
) -> Disagreement:
    """Measure how far ``label`` disagrees with itself (seven labels of each structure).

    Parameters
    ----------
    label : callable
        ``Teacher.label``, or ``partial(predict, student)``.
    structures : sequence of ase.Atoms
        A few typical ones, off equilibrium, with non-zero forces.
    seed : int
        Of rotations and displacements.
    """
    random = np.random.default_rng(seed)
    rotations = [draw_rotation(random) for _ in structures]
    steps = [JITTER * random.normal(size=(len(atoms), 3)) for atoms in structures]
    turned = [
        rotate_structure(atoms, matrix) for atoms, matrix in zip(structures, rotations, strict=True)
    ]
    moved = [
        displace_structure(atoms, multiple * step)
        for multiple in (-2.0, -1.0, 0.0, 1.0, 2.0)
        for atoms, step in zip(structures, steps, strict=True)
    ]
    count = len(structures)
    alone = [label([atoms])[0] for atoms in moved[2 * count : 3 * count]]
    batch = label([*turned, *moved])
    rotated, *beside = (batch[k * count : (k + 1) * count] for k in range(6))
    rows = tuple(
        _compare(matrix, turned_one, [side[k] for side in beside], alone[k])
        for k, (matrix, turned_one) in enumerate(zip(rotations, rotated, strict=True))
    )
    return Disagreement(**combine_rows(rows), n_structures=count, rows=rows)


def _compare(
    matrix: np.ndarray, rotated: Labels, beside: Sequence[Labels], alone: Labels
) -> dict[str, float]:
    """One structure's row: forces as RMS over components in eV/Å, energies in eV/atom."""
    same, count = beside[2], len(alone.forces)
    return {
        "n_atoms": count,
        "rotation_force": _rms(rotated.forces @ matrix - same.forces),
        "rotation_energy": abs(rotated.energy - same.energy) / count,
        "jitter_force": _rms(find_roughness([labels.forces for labels in beside])),
        "batch_force": _rms(same.forces - alone.forces),
        "batch_energy": abs(same.energy - alone.energy) / count,
        "force_rms": _rms(alone.forces),
    }


def combine_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Entries of all structures from their rows: forces over components, energies over structures."""
    atoms = np.array([row["n_atoms"] for row in rows])
    combined = {}
    for name in rows[0]:
        if name != "n_atoms":
            weights = np.ones(len(rows)) if name.endswith("energy") else atoms
            squares = np.square([row[name] for row in rows])
            combined[name] = float(np.sqrt(weights @ squares / weights.sum()))
    return combined


def find_roughness(forces: Sequence[np.ndarray]) -> np.ndarray:
    """The fourth difference of forces at five equidistant places, in units of independent errors of each.

    ``(F(-2d) - 4 F(-d) + 6 F(0) - 4 F(d) + F(2d)) / sqrt(70)``: everything up to third order in ``d`` cancels, what is
    left of a smooth surface goes with ``d^4``. A second difference would leave the curvature, which is no noise.
    """
    total = sum(weight * entry for weight, entry in zip(WEIGHTS, forces, strict=True))
    return np.asarray(total) / np.sqrt(np.sum(np.square(WEIGHTS)))


def draw_rotation(random: np.random.Generator) -> np.ndarray:
    """Uniformly distributed proper rotation matrix, from the QR decomposition of a Gaussian one."""
    q, r = np.linalg.qr(random.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.linalg.det(q))


def rotate_structure(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Copy with positions and cell rotated, ``r' = R r``; its forces times ``R`` from the right are turned back."""
    image = atoms.copy()
    image.set_cell(atoms.cell.array @ matrix.T, scale_atoms=False)
    image.set_positions(atoms.positions @ matrix.T, apply_constraint=False)
    return image


def displace_structure(atoms: Atoms, step: np.ndarray) -> Atoms:
    """Copy with ``step`` added to the positions, Å."""
    image = atoms.copy()
    image.set_positions(atoms.positions + step, apply_constraint=False)
    return image


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
