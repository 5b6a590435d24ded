"""GPUMD's own speed: write its input, run its executable, read what it prints.

Here: :func:`time_gpumd`. Not here: GPUMD, whose executable is given by the user. The speed is the one that the program
reports for a run of NVE dynamics as a whole: neighbor list, forces and integration.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np

from fastff.errors import DataError, MissingDependencyError, UsageError
from fastff.md.state import find_fixed
from fastff.memory import is_out_of_memory
from fastff.report.ending import NEVER, Watch
from fastff.report.schema import BaselinePart
from fastff.report.speed import SpeedCurve, SpeedPoint, summarize
from fastff.report.stamps import stamp_part
from fastff.teachers.weights import hash_file

NAME = "GPUMD"
INCLUDES = "a whole NVE step of GPUMD as the program itself reports it"
N_RUNS = 4
"""Runs in one process; the first warms up and is left out."""

LONGEST = (20.0, 120.0)
"""Times the budget, and seconds on top, after which a size is given up."""

_SPEED = re.compile(r"Speed of this run = (\S+) atom\*step/second")
_VERSION = re.compile(r"^\W*version\s+(\d\S*)", re.IGNORECASE | re.MULTILINE)
NEP_NAME = "nep.txt"
"""What the potential is called beside the input: a path of the user's may hold spaces, which GPUMD would split at."""


def read_nep_elements(path: Path) -> tuple[str, ...]:
    """Symbols of the elements in the first line of a NEP model file, for example ``nep4 2 Te Pb``.

    Raises
    ------
    DataError
        It is no NEP model file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            words = file.readline().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--nep {path} cannot be read: {error}") from error
    good = len(words) > 2 and re.fullmatch(r"nep[0-9]*(_\w+)?", words[0]) and words[1].isdigit()
    if not good or len(words) != 2 + int(words[1]):
        raise DataError(
            f"--nep {path} is no NEP model file: it should begin with a line such as 'nep4 2 Te Pb'"
        )
    return tuple(words[2:])


def check_gpumd(executable: Path, nep: Path, structure: ase.Atoms) -> None:
    """Refuse, before any work is done, what cannot be run.

    Raises
    ------
    MissingDependencyError
        There is no such executable.
    DataError
        The potential does not know an element of the structure, or the structure is not periodic.
    """
    if not executable.is_file():
        raise MissingDependencyError(
            f"--gpumd {executable}: there is no such file; give the path of the gpumd executable"
        )
    if not os.access(executable, os.X_OK):
        raise MissingDependencyError(
            f"--gpumd {executable} may not be executed; give the path of the gpumd executable, or chmod +x it"
        )
    missing = sorted(set(structure.get_chemical_symbols()) - set(read_nep_elements(nep)))
    if missing:
        raise DataError(
            f"--nep {nep} does not know {', '.join(missing)}; give one for the material"
        )
    if not structure.pbc.all():
        raise UsageError("--gpumd times fully periodic structures; leave it out for this one")


def write_input(
    folder: Path, atoms: ase.Atoms, nep: Path, *, temperature: float, time_step: float, n_steps: int
) -> None:
    """Write ``model.xyz``, ``run.in`` for :data:`N_RUNS` runs of ``n_steps`` NVE steps, and the potential.

    GPUMD reads extended XYZ with Lattice, pbc and Properties; positions in Å, time steps in fs, temperatures in K.
    FixAtoms make a group of their own, which each run fixes: GPUMD forgets that between runs.
    """
    fixed = find_fixed(atoms)
    group = ":group:I:1" if fixed.any() else ""
    lattice = " ".join(f"{value:.10f}" for value in atoms.cell.array.ravel())
    lines = [
        str(len(atoms)),
        f'pbc="T T T" Lattice="{lattice}" Properties=species:S:1:pos:R:3{group}',
        *(
            f"{symbol} {x:.10f} {y:.10f} {z:.10f}" + (f" {int(held)}" if group else "")
            for symbol, (x, y, z), held in zip(
                atoms.get_chemical_symbols(), atoms.positions.tolist(), fixed, strict=True
            )
        ),
    ]
    (folder / "model.xyz").write_text("\n".join(lines) + "\n")
    hold = ["fix 1"] if group else []
    runs = ["ensemble nve", *hold, f"time_step {time_step:g}", f"run {n_steps}"]
    shutil.copyfile(nep, folder / NEP_NAME)
    head = [f"potential {NEP_NAME}", f"velocity {temperature:g}"]
    (folder / "run.in").write_text("\n".join([*head, *(N_RUNS * runs)]) + "\n")


def read_speeds(output: str) -> list[float]:
    """Atom-steps per second of every run in GPUMD's output; those that are none are left out."""
    found = []
    for word in _SPEED.findall(output):
        with contextlib.suppress(ValueError):
            found.append(float(word))
    return [value for value in found if 0.0 < value < math.inf]


def read_version(output: str) -> str | None:
    """What GPUMD calls itself at the head of its output."""
    found = _VERSION.search(output)
    return found[1] if found else None


def time_gpumd(
    executable: Path,
    nep: Path,
    structures: Sequence[ase.Atoms],
    *,
    temperature: float,
    time_step: float,
    budget: float,
    device: str,
    progress: Callable[[str], None] = lambda message: None,
    watch: Watch = NEVER,
    keep: Callable[[BaselinePart, SpeedCurve], None] = lambda part, curve: None,
) -> tuple[BaselinePart, SpeedCurve]:
    """Time GPUMD on ``structures``.

    The number of steps is chosen from the speed at the size before, so that a run takes about a fourth of ``budget``
    seconds; it begins at 100. ``watch`` is asked before every size; ``keep`` receives what is returned, of a run that
    ends early as far as it came.

    Raises
    ------
    DataError
        The program fails for another reason than memory, or prints no speed.
    """
    identity: dict[str, Any] = {
        "name": NAME, "nep_sha256": hash_file(nep), "nep": nep.name, "program_sha256": hash_file(executable),
    }  # fmt: skip
    points: list[SpeedPoint] = []
    rate = 0.0
    try:
        for atoms in structures:
            watch.check()
            count, formula = len(atoms), atoms.get_chemical_formula(empirical=True)
            wanted = 0.25 * budget * rate / count if rate else 100.0
            n_steps = int(np.clip(wanted, 100, 20_000))
            with tempfile.TemporaryDirectory(prefix="fastff-gpumd-") as name:
                folder = Path(name)
                write_input(
                    folder,
                    atoms,
                    nep,
                    temperature=temperature,
                    time_step=time_step,
                    n_steps=n_steps,
                )
                limit = LONGEST[0] * budget + LONGEST[1]
                point, version = _run(executable, folder, count, formula, n_steps, limit)
            points.append(
                point.model_copy(update={"n_fixed": int(find_fixed(atoms).sum()) or None})
            )
            identity |= {"version": version} if version else {}
            progress(f"{NAME}, {count} atoms")
            if point.status != "measured":
                break
            rate = point.atom_steps_per_second or 0.0
    finally:
        with watch.hold():
            name = " ".join((NAME, *filter(None, [identity.get("version")])))
            curve = SpeedCurve(
                role=NAME, label=f"{name} ({nep.name})", mode="program", includes=INCLUDES, device=device,
                threads=1, identity=identity, time_step=time_step, start_temperature=temperature, points=tuple(points),
            )  # fmt: skip
            part = BaselinePart(name=NAME, kind="program", identity=identity, comparisons=())
            found = stamp_part(part), stamp_part(curve)
            keep(*found)
    return found


def _run(
    executable: Path, folder: Path, count: int, formula: str, n_steps: int, limit: float
) -> tuple[SpeedPoint, str | None]:
    """The point of one size, and the version that the program says it has."""
    try:
        done = subprocess.run(
            [str(executable.resolve())],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        point = SpeedPoint(
            n_atoms=count, formula=formula, status="too-slow",
            reason=f"{N_RUNS} runs of {n_steps} steps take more than {limit:g} s",
        )  # fmt: skip
        return point, None
    except OSError as error:
        raise DataError(f"{executable} cannot be run: {error}") from error
    said = done.stdout + done.stderr
    speeds = read_speeds(done.stdout)
    if len(speeds) == N_RUNS and done.returncode == 0:
        seconds = [count / value for value in speeds[1:]]
        point = summarize(count, formula, seconds, None, f"runs of {n_steps} steps")
        return point, read_version(done.stdout)
    if is_out_of_memory(RuntimeError(said)):
        point = SpeedPoint(
            n_atoms=count, formula=formula, status="out-of-memory", reason="said so itself"
        )
        return point, read_version(done.stdout)
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing")
    raise DataError(
        f"{executable.name} printed {len(speeds)} speeds instead of {N_RUNS} for {count} atoms and ended with code "
        f"{done.returncode}: {last}"
    )
