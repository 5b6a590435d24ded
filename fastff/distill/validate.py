"""Judging a set of labelled frames before anything is trained on it.

Here: :func:`validate_frames` and its report. Not here: setting single unusable frames aside, which reading and storing
do (:func:`fastff.distill.content.find_label_fault`), or what forces and stress say of energies
(:mod:`fastff.distill.work`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.neighborlist import neighbor_list
from ase.units import Hartree

from fastff.distill.content import find_label_fault, hash_structure
from fastff.distill.work import judge_forces
from fastff.errors import DataError
from fastff.labels import Frame

STRESS_LIMIT = 1.0
"""eV/Å^3 (160 GPa); larger stresses usually mean GPa, kbar or a virial."""
CLOSE_CONTACT = 0.5
"""Å."""
FORCE_RATIO = 20.0
"""A force this many times the root mean square of the set is an outlier, if also above FORCE_FLOOR."""
FORCE_FLOOR = 15.0
"""eV/Å."""
SIGN_CORRELATION = 0.7
"""Size of a correlation from which the sign of stress is called wrong."""
USUAL_FORCE = 10.0
"""eV/Å; where half of the frames have a larger RMS force, kcal/mol or kJ/mol are likelier."""
ENERGY_UNITS = {"hartree": 1.0, "rydberg": 2.0, "kcal/mol": 627.509, "kJ/mol": 2625.5}
"""A hartree in units that energies of all electrons are published in, beside eV."""
ENERGY_MATCH = 0.03
"""Deviation from :func:`estimate_total_energy` up to which an energy is said to be in a unit."""


@dataclass(frozen=True)
class Finding:
    """One kind of trouble found in a set.

    Attributes
    ----------
    check : str
        What was looked for.
    severity : {"error", "warning"}
        Errors make training wrong; warnings deserve a look.
    frames : tuple of int
        Indices of the frames concerned; empty if the finding is about the whole set.
    hint : str
        What it probably means and what to do.
    """

    check: str
    severity: Literal["error", "warning"]
    frames: tuple[int, ...]
    hint: str


@dataclass(frozen=True)
class ValidationReport:
    """Outcome of :func:`validate_frames`; ``str(report)`` is a table.

    ``aside`` says why further frames were set aside before, one reason each.
    """

    n_frames: int
    n_atoms: int
    findings: tuple[Finding, ...]
    aside: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.findings or self.aside)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make training wrong."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def require_sound(self) -> None:
        """Raise if there are errors.

        Raises
        ------
        DataError
            Names the checks that failed.
        """
        if self.errors:
            what = "; ".join(f"{finding.check}: {finding.hint}" for finding in self.errors)
            raise DataError(f"labels failed validation: {what}")

    def __str__(self) -> str:
        lines = [f"{self.n_frames} frames, {self.n_atoms} atoms"]
        if self.sound:
            return lines[0] + ": no findings"
        width = max((len(finding.check) for finding in self.findings), default=0)
        if self.aside:
            lines.append(
                f"  warning  {len(self.aside)} more frames were set aside; the first: {self.aside[0]}"
            )
        for finding in self.findings:
            count = f"{len(finding.frames)} frames" if finding.frames else "whole set"
            first = f" (first: {finding.frames[0]})" if finding.frames else ""
            lines.append(
                f"  {finding.severity:<7}  {finding.check:<{width}}  {count}{first}  {finding.hint}"
            )
        return "\n".join(lines)


def validate_frames(frames: Sequence[Frame]) -> ValidationReport:
    """Look for labels that are broken, in the wrong unit, or of the wrong sign.

    Nothing is changed or dropped.

    Parameters
    ----------
    frames : sequence of Frame
        Frames of one teacher.

    Returns
    -------
    ValidationReport
        Findings: labels that are not finite, close contacts, force and energy outliers, large stress, missing stress of
        periodic frames, repeated structures, forces that disagree in sign or unit with energy differences between
        neighboring frames, energies of all electrons in another unit than eV, forces large throughout, and stress that
        falls when a cell expands.
    """
    findings: list[Finding] = []

    def note(
        check: str, severity: Literal["error", "warning"], indices: Sequence[int], hint: str
    ) -> None:
        if len(indices):
            findings.append(Finding(check, severity, tuple(int(i) for i in indices), hint))

    broken = [i for i, f in enumerate(frames) if find_label_fault(f.atoms, f.labels)]
    note("not finite", "error", broken, "the teacher failed here; leave these frames out")
    sound = [i for i in range(len(frames)) if i not in set(broken)]
    close = [
        i
        for i in sound
        if len(frames[i].atoms) > 1 and len(neighbor_list("i", frames[i].atoms, CLOSE_CONTACT))
    ]
    note("close contact", "warning", close, f"two atoms nearer than {CLOSE_CONTACT} Å")
    note("force outlier", "warning", *_find_force_outliers(frames, sound))
    note("energy outlier", "warning", *_find_energy_outliers(frames, sound))
    periodic = [i for i in sound if frames[i].atoms.pbc.all()]
    stresses = {i: frames[i].labels.stress for i in periodic}
    large = [i for i, s in stresses.items() if s is not None and np.abs(s).max() > STRESS_LIMIT]
    note(
        "large stress",
        "warning",
        large,
        f"above {STRESS_LIMIT} eV/Å^3 (160 GPa): GPa, kbar or virial?",
    )
    missing = [i for i in periodic if stresses[i] is None]
    note(
        "no stress", "warning", missing, "periodic but without stress; it will not be learned here"
    )
    note(
        "repeated structure",
        "warning",
        _find_repeats(frames, sound),
        "same structure as an earlier frame",
    )
    if hint := judge_forces(frames, sound):
        findings.append(Finding("forces against energy", "error", (), hint))
    for finding in (
        _check_force_size(frames, sound),
        _check_energy_unit(frames, sound),
        _check_stress_sign(frames, periodic),
    ):
        if finding:
            findings.append(finding)
    return ValidationReport(len(frames), sum(len(f.atoms) for f in frames), tuple(findings))


def _find_force_outliers(frames: Sequence[Frame], sound: Sequence[int]) -> tuple[list[int], str]:
    largest = {i: float(np.linalg.norm(frames[i].labels.forces, axis=1).max()) for i in sound}
    squares = [np.mean(frames[i].labels.forces ** 2) * 3 for i in sound]
    limit = max(FORCE_FLOOR, FORCE_RATIO * float(np.sqrt(np.median(squares)))) if sound else 0.0
    return (
        [i for i, value in largest.items() if value > limit],
        f"force above {limit:.1f} eV/Å; largest {max(largest.values(), default=0.0):.1f}",
    )


def _group_by_composition(frames: Sequence[Frame], indices: Sequence[int]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in indices:
        groups[tuple(sorted(frames[i].atoms.numbers))].append(i)
    return list(groups.values())


def _find_energy_outliers(frames: Sequence[Frame], sound: Sequence[int]) -> tuple[list[int], str]:
    outliers = []
    for group in _group_by_composition(frames, sound):
        values = np.array([frames[i].labels.energy / len(frames[i].atoms) for i in group])
        deviation = np.abs(values - np.median(values))
        limit = max(1.0, 30 * float(np.median(deviation)))
        outliers += [i for i, value in zip(group, deviation, strict=True) if value > limit]
    return sorted(outliers), "energy per atom far from others of the same composition"


def _find_repeats(frames: Sequence[Frame], sound: Sequence[int]) -> list[int]:
    seen: set[bytes] = set()
    repeats = []
    for i in sound:
        key = hash_structure(frames[i].atoms)
        if key in seen:
            repeats.append(i)
        seen.add(key)
    return repeats


def _check_force_size(frames: Sequence[Frame], sound: Sequence[int]) -> Finding | None:
    """Forces that are large in most frames: energies and forces in one wrong unit agree with each other."""
    sizes = [float(np.sqrt(np.mean(frames[i].labels.forces ** 2))) for i in sound]
    middle = float(np.median(sizes)) if sizes else 0.0
    if middle <= USUAL_FORCE:
        return None
    hint = f"RMS force of half of the frames is above {middle:.0f} eV/Å: kcal/mol/Å or kJ/mol/Å?"
    return Finding("large forces", "warning", (), hint)


def _check_energy_unit(frames: Sequence[Frame], sound: Sequence[int]) -> Finding | None:
    """Total energies of all electrons are known to a few percent, and so is their unit."""
    sizes = [
        frames[i].labels.energy / estimate_total_energy(frames[i].atoms.numbers)
        for i in sound
        if frames[i].atoms.numbers.any()
    ]
    middle = float(np.median(sizes)) if sizes else 0.0
    for unit, factor in ENERGY_UNITS.items():
        if abs(middle / factor - 1.0) < ENERGY_MATCH:
            hint = (
                f"as large as those of all electrons in {unit}: multiply by {Hartree / factor:.6g}, forces too? "
                "Those of valence electrons in eV may be as large by chance"
            )
            return Finding("energy unit", "warning", (), hint)
    return None


def estimate_total_energy(numbers: np.ndarray) -> float:
    """Total energy of all electrons of atoms, hartree: Thomas-Fermi with the corrections of Scott and Schwinger.

    Within 1 % from carbon to krypton, 8 % for hydrogen. B.-G. Englert, J. Schwinger, Phys. Rev. A 32, 26 (1985).
    """
    z = np.asarray(numbers, dtype=float)
    return float(np.sum(-0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3)))


def _check_stress_sign(frames: Sequence[Frame], periodic: Sequence[int]) -> Finding | None:
    """Stress must rise when a cell expands (positive bulk modulus)."""
    rows = []
    for group in _group_by_composition(frames, periodic):
        members = [i for i in group if frames[i].labels.stress is not None]
        volumes = np.log([frames[i].atoms.get_volume() for i in members])
        if len(members) < 8 or np.ptp(volumes) < 0.03:
            continue
        means = [float(np.mean(np.asarray(frames[i].labels.stress)[:3])) for i in members]
        if np.std(means) > 0:
            rows.append(float(np.corrcoef(volumes, means)[0, 1]))
    if rows and np.mean(rows) < -SIGN_CORRELATION:
        hint = f"stress falls when the cell expands (correlation {np.mean(rows):.2f}): wrong sign, or a virial?"
        return Finding("stress sign", "error", (), hint)
    return None
