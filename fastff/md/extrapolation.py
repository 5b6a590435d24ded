"""Looking out for atoms in surroundings unlike those of the training data.

Here: :class:`ExtrapolationWatch`, which looks at the frames of a run. Not here: how grades come about
(:mod:`fastff.models.uncertainty`).
"""

from __future__ import annotations

import warnings

import ase
import numpy as np

from fastff.errors import SimulationUnstableError, UsageError
from fastff.evaluator import Evaluator
from fastff.md.engine import Engine
from fastff.md.protocol import DevicePotential
from fastff.md.settings import MDSettings
from fastff.models import Student
from fastff.models.uncertainty import apply_extrapolation_policy


class ExtrapolationWatch:
    """Grades the atoms of a run with the student that drives it, on its device, in buffers of its own.

    Parameters
    ----------
    student : Student
        With the uncertainty that came with its file.
    limit : float
        Extrapolation grade above which an atom counts; see :class:`~fastff.models.uncertainty.Uncertainty`.
    template : ase.Atoms
        Gives elements and periodicity.
    stops : bool
        Raise at the first frame with atoms beyond the limit; otherwise warn of it, and count.

    Attributes
    ----------
    n_frames : int
        How many frames had atoms beyond the limit.
    grades : (n_atoms,) array or None
        Of the last frame that was looked at.

    Raises
    ------
    UsageError
        If the student holds no uncertainty.
    """

    def __init__(self, student: Student, limit: float, template: ase.Atoms, *, stops: bool) -> None:
        # without a skin: by the next frame atoms have moved beyond any
        self._evaluator = Evaluator(student, skin=0.0, with_uncertainty=True)
        self._limit, self._stops = limit, stops
        self._numbers = np.asarray(template.numbers)
        self._pbc = np.asarray(template.pbc, dtype=bool)
        self.n_frames = 0
        self.grades: np.ndarray | None = None

    def look(self, engine: Engine) -> None:
        """Grade the atoms of the present state. Waits for the device.

        Raises
        ------
        SimulationUnstableError
            If an atom is beyond the limit and the run should stop.
        """
        state = engine.state
        outcome = self._evaluator.evaluate(
            state.positions.cpu().numpy(), state.cell.cpu().numpy(), self._pbc, self._numbers
        )
        assert outcome.uncertainty is not None
        self.grades = outcome.uncertainty.grades.numpy()
        remark = apply_extrapolation_policy(outcome.uncertainty, "warn", threshold=self._limit)
        if remark is None:
            return
        self.n_frames += 1
        if self._stops:
            raise SimulationUnstableError(f"at step {engine.step} {remark}")
        if self.n_frames == 1:
            line = f"at step {engine.step} {remark}; later frames are counted"
            warnings.warn(line, UserWarning, stacklevel=2)


def make_watch(
    potential: DevicePotential, settings: MDSettings, template: ase.Atoms
) -> ExtrapolationWatch | None:
    """The watch that the settings ask for.

    Raises
    ------
    UsageError
        If they ask for one and the potential has no student, or the student no uncertainty.
    """
    if settings.on_extrapolation == "ignore":
        return None
    student = getattr(potential, "student", None)
    if not isinstance(student, Student) or student.uncertainty is None:
        raise UsageError(
            f"on_extrapolation {settings.on_extrapolation!r} needs a model file that holds an uncertainty, this one "
            "has none; choose ignore, or train again with more validation frames"
        )
    stops = settings.on_extrapolation == "stop"
    return ExtrapolationWatch(student, settings.extrapolation_limit, template, stops=stops)
