"""Whether what follows from several parts of a record does follow.

Here: :func:`verify_conclusions`: ratios, the quoted size, the volume at rest, the verdict, the calibration of
uncertainties, the learning curve. Not here: the parts themselves (:mod:`fastff.report.consistency`,
:mod:`fastff.report.attribution`).
"""

from __future__ import annotations

import math
import re

import numpy as np

from fastff.errors import DataError
from fastff.report.calibration import CalibrationData
from fastff.report.consistency import is_between, is_same
from fastff.report.metrics import Accuracy
from fastff.report.physics.derive import fit_eos
from fastff.report.physics.record import EosItem
from fastff.report.plausibility import MOST_FORCE
from fastff.report.race import find_headline_size
from fastff.report.schema import SCHEMA, BenchRecord, compute_ratios
from fastff.report.verdict import WORDING, judge_required, write_verdict

CLOSE = 0.1
"""Relative difference of errors between frames predicted alone and in a batch, in single precision."""

ALONE = 1e-4
"""The same for energies, eV/atom."""

MOST_EXPANSION = 2.0
"""Between the volumes of a crystal as it was given and relaxed by the teacher; Bohr^3 are a factor of 6.7."""


def verify_conclusions(record: BenchRecord) -> None:
    """Refuse a record whose derived figures do not follow from its parts.

    Raises
    ------
    DataError
    """
    if record.calibration is not None:
        _verify_calibration(record.calibration, record)
    _verify_learning(record)
    expected = compute_ratios(record.speed)
    if len(expected) != len(record.ratios) or any(
        (a.mode, a.n_atoms) != (b.mode, b.n_atoms)
        or not is_same(a.ratio, b.ratio)
        or not is_same(a.teacher_seconds, b.teacher_seconds)
        or not is_same(a.student_seconds, b.student_seconds)
        for a, b in zip(expected, record.ratios, strict=True)
    ):
        raise DataError("the speed ratios do not follow from the timings beside them.")
    size = find_headline_size(record.speed)
    if record.headline_size != size:
        raise DataError(
            f"the quoted size is {record.headline_size} atoms, the timings give {size}."
        )
    _verify_volume(record)
    _verify_verdict(record)


def _verify_volume(record: BenchRecord) -> None:
    """The volume of a crystal at rest is near that of the dynamics which began from it."""
    spread, frames = record.main.coverage.volume_per_atom, record.main.frames
    if record.physics is None or spread is None or frames.source != "teacher-md":
        return
    for item in record.physics.items:
        if not isinstance(item, EosItem):
            continue
        volume = fit_eos(item.volumes, item.teacher)[0]
        if not spread[0] / MOST_EXPANSION <= volume <= spread[1] * MOST_EXPANSION:
            raise DataError(
                f"the physical properties give {volume:.4g} Å^3/atom at rest, the held-out frames have {spread[0]:.4g} "
                f"to {spread[1]:.4g}: another unit, or another material."
            )


def _verify_verdict(record: BenchRecord) -> None:
    """Passed or not, and the lines: all of the present wording, the main figures of any other."""
    verdict = record.verdict
    overall = record.main.read_accuracy().overall
    passed = judge_required(overall, verdict.required, record.ended)
    if verdict.passed is not passed:
        raise DataError(
            f"the verdict says passed={verdict.passed}, but accuracy {overall:.4f} against {verdict.required} "
            f"gives {passed}."
        )
    if verdict.wording == WORDING:
        fresh = write_verdict(
            record.model, record.comparisons, record.teacher_noise, record.headline,
            record.provenance, verdict.required, record.model.name, record.physics,
            record.ended, record.calibration, record.speed,
        )  # fmt: skip
        for stored, written in zip(verdict.lines, fresh.lines, strict=False):
            if stored != written:
                raise DataError(f"the verdict says '{stored}', the record gives '{written}'.")
        if verdict != fresh:
            raise DataError("the verdict does not follow from the record.")
        return
    if verdict.wording is None and record.schema_version == SCHEMA:
        raise DataError("the verdict does not say which wording it has.")
    text = "\n".join(verdict.lines)
    noise, headline = record.teacher_noise, record.headline
    stated = None if noise is None else noise.force
    if noise is not None and noise.difference == "second":  # was stated as noise then
        stated = max(noise.force, noise.jitter_force)
    speed = None if headline is None else headline.ratio
    if speed is not None and "× slower than" in text:
        speed = 1.0 / speed
    for pattern, value, share in (
        # percentages of accuracy are rounded down, the others to the nearest
        (r"^Accuracy: (-?[\d.]+) %", 100.0 * overall, 1.0),
        (
            r"disagrees with itself by ([\d.e-]+) %",
            None if stated is None else 100.0 * stated,
            0.51,
        ),
        (r"^Speed: ([\d.e+]+)×", speed, 0.51),
    ):
        found = re.search(pattern, text, re.MULTILINE)
        if found is None and value is not None and pattern.startswith("^Accuracy"):
            raise DataError("the verdict does not state the accuracy.")
        if found is not None and (
            value is None or abs(float(found[1]) - value) > share * _find_unit(found[1])
        ):
            raise DataError(f"the verdict says '{found[0]}', the record gives {value}.")


def _find_unit(figure: str) -> float:
    """One unit in the last place of a decimal number."""
    mantissa, _, exponent = figure.partition("e")
    return float(10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))


def _verify_calibration(data: CalibrationData, record: BenchRecord) -> None:
    """Shares from rows, rows and bins from the errors of the comparisons, and the bins from the shares beyond one."""
    if not np.allclose(data.within, data.count_within(), atol=1e-9):
        raise DataError(
            "the calibration does not follow from the uncertainties and errors beside it."
        )
    comparisons = record.comparisons
    if data.names != tuple(c.name for c in comparisons) or len(data.beyond) != len(comparisons):
        raise DataError("the calibration is not about the comparisons of this record.")
    accuracies = [c.read_accuracy() for c in comparisons]
    rows = np.array(data.energy, dtype=float).reshape(-1, 3)
    squares = 0.0
    for number, (comparison, accuracy) in enumerate(zip(comparisons, accuracies, strict=True)):
        errors = rows[rows[:, 0] == number, 2]
        where = f"the calibration on {comparison.name}"
        if errors.size != accuracy.n_frames:
            raise DataError(f"{where} has {errors.size} frames instead of {accuracy.n_frames}.")
        squares += accuracy.n_atoms * accuracy.force_rmse**2
        limits = _limit_energy_error(accuracy, centered=data.centered is not None)
        if limits is None:
            continue
        found, slack = float(np.sqrt(np.mean(errors**2))), CLOSE * limits[1] + ALONE
        if not limits[0] - slack <= found <= limits[1] + slack:
            raise DataError(
                f"{where}: energy errors of {found:.4g} eV/atom, the table gives {limits[1]:.4g}: another unit."
            )
    _verify_grades(data, [accuracy.n_atoms for accuracy in accuracies], squares)


def _limit_energy_error(accuracy: Accuracy, *, centered: bool) -> tuple[float, float] | None:
    """Least and largest RMS error of the energy that a calibration may have, eV/atom; None where that is not known.

    Its rows do not say their composition. Those of ``centered`` errors with a single frame, which the table leaves out,
    have their offset as error.
    """
    if accuracy.energy_rmse is None:
        return None
    offsets = [abs(offset) for offset in accuracy.energy_offsets.values()]
    if not centered:
        if len(offsets) > 1:
            return None
        expected = math.hypot(accuracy.energy_rmse, offsets[0])
        return expected, expected
    count, single = accuracy.n_energies, accuracy.n_frames - accuracy.n_energies
    squares = count * accuracy.energy_rmse**2
    most = squares + single * max(offsets) ** 2
    return math.sqrt(squares / accuracy.n_frames), math.sqrt(most / accuracy.n_frames)


def _verify_grades(data: CalibrationData, atoms: list[int], squares: float) -> None:
    """``squares`` is the sum over atoms of their squared force error per component, (eV/Å)^2."""
    counts = np.array([b.count for b in data.grades])
    grades = np.array([b.grade for b in data.grades])
    if counts.sum() != sum(atoms) or (np.diff(grades) < -1e-9).any():
        raise DataError("the grades of the calibration are not those of all atoms in their order.")
    found = float(np.sqrt(counts @ np.array([b.force_rmse for b in data.grades]) ** 2 / sum(atoms)))
    expected = math.sqrt(squares / sum(atoms))
    if abs(found - expected) > CLOSE * expected + 1e-6:
        raise DataError(
            f"the force errors by grade have RMS {found:.4g} eV/Å, the tables give {expected:.4g}: another unit."
        )
    # atoms are in the order of their grade: a bin with a mean above one is followed by such atoms only
    above = grades > 1.0
    least = int(counts[above][1:].sum()) + int(above.any())
    most = int(counts[above].sum())
    if (~above).any():
        most += int(counts[~above][-1]) - 1
    beyond = sum(share * n for share, n in zip(data.beyond, atoms, strict=True))
    if not is_between(least, beyond, most):
        raise DataError(
            f"{beyond:.0f} atoms are said to be beyond the training data, by their grades it is {least} to {most}."
        )


def _verify_learning(record: BenchRecord) -> None:
    """Steps ascend, the overall accuracy is the smallest, and all points can be of the same frames."""
    curve = record.model.training.get("learning_curve") or []
    steps = [point["step"] for point in curve]
    if steps != sorted(steps):
        raise DataError("the learning curve is not in the order of its steps.")
    reference = 0.0
    for point in curve:
        force, error = point.get("force_accuracy"), point.get("force_mae")
        if force is None:
            continue
        if "accuracy" in point and point["accuracy"] > max(force, 0.0) + 1e-9:
            raise DataError("the learning curve has an overall accuracy above that of forces.")
        if error is not None and force < 1.0:
            # MAE <= RMSE = (1 - accuracy) RMS
            reference = max(reference, error / (1.0 - force))
    # those of the held-out frames say nothing: small displacements have tiny forces
    if reference > MOST_FORCE:
        raise DataError(
            f"the learning curve needs forces of at least {reference:.4g} eV/Å: another unit, or edited."
        )
