"""The noise floor of a teacher or a student: how far it disagrees with itself, in units of accuracy.

Here: :func:`measure_noise`. Not here: the measurement itself (:mod:`fastff.teachers.noise`), the error of a student
against its teacher (:mod:`fastff.report.metrics`). A student cannot be expected to come nearer to its teacher than the
teacher comes to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import ase
from pydantic import SerializerFunctionWrapHandler, model_serializer

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report.stamps import Stamped
from fastff.teachers.noise import JITTER, measure_disagreement

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
        From a random displacement of ``jitter`` Å per coordinate, by the difference named in ``difference``.
    batch_force, batch_energy : float
        Between a frame alone and the same frame in a batch.
    difference : {"second", "fourth"}
        Order of the difference of forces along the displacement. Records that do not name it hold the second, which
        counts the curvature of a smooth surface as noise.
    rows : tuple of dict
        Of each frame, forces in eV/Å, see :class:`~fastff.teachers.noise.Disagreement`; empty in older records.
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
    difference: Literal["second", "fourth"] = "second"
    rows: tuple[dict[str, float], ...] = ()
    identity: dict[str, Any] | None = None

    @model_serializer(mode="wrap")
    def _omit_old(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As written: what an old record does not name is not added, so that its digest holds."""
        content: dict[str, Any] = handler(self)
        if self.difference == "second":
            content.pop("difference", None)
        if not self.rows:
            content.pop("rows", None)
        return content

    @property
    def force(self) -> float:
        """The largest of the force entries that are noise: a second difference is left out."""
        entries = [self.rotation_force, self.batch_force]
        if self.difference == "fourth":
            entries.append(self.jitter_force)
        return max(entries)


def measure_noise(label: Labeller, structures: Sequence[ase.Atoms], *, seed: int = 0) -> NoiseFloor:
    """Measure how far a labeller disagrees with itself, see :func:`~fastff.teachers.noise.measure_disagreement`.

    Raises
    ------
    DataError
        All forces are zero.
    """
    bare = [
        ase.Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc, info=a.info) for a in structures
    ]
    found = measure_disagreement(label, bare, seed=seed)
    if found.force_rms == 0.0:
        raise DataError(
            "the noise floor needs frames with forces: all are zero on the frames given."
        )
    return NoiseFloor(
        rotation_force=found.rotation_force / found.force_rms,
        rotation_energy=found.rotation_energy,
        jitter_force=found.jitter_force / found.force_rms,
        batch_force=found.batch_force / found.force_rms,
        batch_energy=found.batch_energy,
        jitter=JITTER,
        n_frames=found.n_structures,
        difference="fourth",
        rows=found.rows,
    )
