"""How far teachers lie from a reference on frames of label files, and how rough their forces are there.

    python bench/teachers/roughness.py --reference 'fennol:MODELS/ani1x_model*.fnx' --members \\
        --labels organics=organics.h5 water=water.h5 --frames 60 16 --out bench/results/teachers/ani1x-roughness.json
    python bench/teachers/roughness.py --reference sevennet --teachers chgnet --labels si=si.h5 --out out.json

``--members`` compares each model of a FeNNol ensemble with their mean. Deviation: root mean square (RMS) over
components of the difference of two teachers' forces, on frames drawn at random from those of ``--source``. Roughness:
some of these frames are moved along random directions, up to ``--reach`` both ways (RMS over atoms of the length of
displacements); each component of the forces is fitted by polynomials in the displacement; the RMS of what is left over.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from fastff.distill.store import LabelStore
from fastff.report.provenance import collect_provenance, strip_folder
from fastff.teachers import Teacher, load_teacher

N_POINTS = 61
DEGREES = (3, 5, 7, 9)


def measure_rms(values: np.ndarray) -> float:
    """Root mean square of all entries."""
    return float(np.sqrt(np.mean(values**2)))


def draw_frames(path: Path, source: str, count: int, rng: np.random.Generator) -> list[Atoms]:
    """Structures of some frames of a label file, those of one source, or of any if ``source`` is empty."""
    with LabelStore(path) as store:
        sources = np.array([name.decode() for name in store.read_column("source")])
        fitting = np.flatnonzero([not source or name == source for name in sources])
        chosen = rng.choice(fitting, min(count, len(fitting)), replace=False)
        return [frame.atoms for frame in store.read(sorted(chosen.tolist()))]


def label_forces(teacher: Teacher, structures: Sequence[Atoms]) -> list[np.ndarray]:
    """Forces of each structure, eV/Å."""
    return [labels.forces for labels in teacher.label(structures)]


def move_along(atoms: Atoms, reach: float, rng: np.random.Generator) -> list[Atoms]:
    """Copies displaced along one random direction, from ``-reach`` to ``reach``, Å."""
    direction = rng.normal(size=(len(atoms), 3))
    direction /= np.sqrt((direction**2).sum(axis=1).mean())
    copies = []
    for step in np.linspace(-reach, reach, N_POINTS):
        copy = atoms.copy()
        copy.positions += step * direction
        copies.append(copy)
    return copies


def fit_residual(forces: np.ndarray, degree: int) -> float:
    """RMS of what a polynomial of this degree leaves of each column, of forces at equal steps of a displacement."""
    basis = np.polynomial.chebyshev.chebvander(np.linspace(-1.0, 1.0, len(forces)), degree)
    orthogonal = np.linalg.qr(basis)[0]
    left = forces - orthogonal @ (orthogonal.T @ forces)
    return measure_rms(left)


def measure_system(
    teachers: Sequence[Teacher],
    names: Sequence[str],
    structures: Sequence[Atoms],
    lines: int,
    reach: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Deviations from the first teacher, and roughness of every one."""
    moved = [move_along(atoms, reach, rng) for atoms in structures[:lines]]
    rows: list[dict[str, Any]] = []
    reference: np.ndarray | None = None
    for teacher, name in zip(teachers, names, strict=True):
        # in one call: JAX compiles a program for each size of a batch
        found = label_forces(teacher, [*structures, *(copy for copies in moved for copy in copies)])
        forces = np.concatenate(found[: len(structures)])
        reference = forces if reference is None else reference
        left = [
            np.stack(found[start : start + N_POINTS]).reshape(N_POINTS, -1)
            for start in range(len(structures), len(found), N_POINTS)
        ]
        residuals = {
            str(degree): round(1e3 * float(np.mean([fit_residual(f, degree) for f in left])), 2)
            for degree in DEGREES
        }
        deviation = measure_rms(forces - reference)
        rows.append(
            {
                "teacher": name,
                "rms_force": round(1e3 * measure_rms(forces), 1),
                "deviation": round(1e3 * deviation, 1),
                "relative_deviation": round(deviation / measure_rms(reference), 4),
                "residuals": residuals,
            }
        )
        print(f"  {name}: {rows[-1]}", flush=True)
    return {
        "n_frames": len(structures),
        "n_atoms": sum(map(len, structures)),
        "n_lines": len(moved),
        "teachers": rows,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over all teachers but the first, beside the first."""
    others = rows[1:]
    return {
        "relative_deviation": round(float(np.mean([r["relative_deviation"] for r in others])), 4),
        "residuals": {
            key: round(float(np.mean([r["residuals"][key] for r in others])), 2)
            for key in rows[0]["residuals"]
        },
        "residuals_of_reference": rows[0]["residuals"],
    }


def load_all(options: argparse.Namespace) -> tuple[list[Teacher], list[str]]:
    """The reference and what is compared with it; names without folders."""
    named = list(options.teachers)
    if options.members:
        family, _, pattern = options.reference.partition(":")
        if family != "fennol":
            raise SystemExit("--members needs a FeNNol ensemble as --reference, fennol:PATTERN")
        paths = [p for part in pattern.split(",") for p in sorted(glob.glob(part.strip()))]
        named += [f"fennol:{path}" for path in paths]
    teachers = [load_teacher(name, device=options.device) for name in (options.reference, *named)]
    names = [strip_folder(teacher.info.weights or teacher.name) for teacher in teachers]
    names[0] = f"mean of {names[0]}" if options.members else names[0]
    return teachers, names


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--reference", required=True, help="teacher that others are compared with")
    parser.add_argument("--teachers", nargs="*", default=[], help="other teachers")
    parser.add_argument("--members", action="store_true", help="each model of the reference, too")
    parser.add_argument("--labels", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--frames", nargs="+", type=int, default=[20], help="for each file")
    parser.add_argument("--lines", type=int, default=4, help="frames that are moved")
    parser.add_argument("--reach", type=float, default=0.15, help="Å")
    parser.add_argument("--source", default="teacher-md", help="of frames; empty for any")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    if len(options.frames) == 1:
        options.frames *= len(options.labels)
    if len(options.frames) != len(options.labels) or not (options.teachers or options.members):
        parser.error(
            "give one number of --frames or one for each file, and --teachers or --members"
        )
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the record."""
    options = parse(words)
    teachers, names = load_all(options)
    systems: dict[str, Any] = {}
    for entry, count in zip(options.labels, options.frames, strict=True):
        name, _, file = entry.partition("=")
        rng = np.random.default_rng(options.seed)
        structures = draw_frames(Path(file), options.source, count, rng)
        print(f"{name}: {len(structures)} frames", flush=True)
        found = measure_system(teachers, names, structures, options.lines, options.reach, rng)
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        labels = {"file": Path(file).name, "sha256": digest, "source": options.source}
        systems[name] = {"labels": labels, **found, "mean_of_others": summarise(found["teachers"])}
        print(f"  {systems[name]['mean_of_others']}", flush=True)
    command = None if words is None else ["roughness.py", *words]
    record = {
        "what": "Forces of teachers beside those of the first one, and residuals of polynomial fits to forces along "
        "random displacements, by degree; meV/Å. Relative deviations in units of the first one's RMS force.",
        "settings": {"points": N_POINTS, "reach": options.reach, "seed": options.seed},
        "provenance": collect_provenance(command).model_dump(mode="json"),
        "teachers": [
            {
                key: value
                for key, value in teacher.info.to_dict().items()
                if key in ("family", "version", "weights", "weights_sha256", "licence", "citation")
            }
            for teacher in teachers
        ],
        "systems": systems,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
