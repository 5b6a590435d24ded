"""Long dynamics of trained students on the GPU: drift of the energy, and distributions beside exact ones and ASE's.

Run from the root of the repository: ``python bench/md_statistics.py --models nacl=nacl-7net-0 cuau=m1.safetensors``; a
model is a file, or the name of a shipped one, and follows its material. Writes ``md_statistics.json`` after every
stage, to the folder ``OUT`` if that variable is set, else to ``bench/results``. The commit is read from git, or from
``FASTFF_COMMIT``. ``--tiny`` runs everything short and on the CPU, to see that it runs.

Drift: 100 ps of NVE at 1 fs from an equilibrated crystal or liquid. Distributions: kinetic energies of both
thermostats against chi-square (Kolmogorov-Smirnov, values 0.5 ps apart); energy, pressure and volume at constant
temperature and at constant pressure beside ASE's integrators with the same student through
:class:`~fastff.FastFFCalculator`, as differences of means in units of their standard error (blocks), and as ratios of
standard deviations.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms, units  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.md.langevin import Langevin  # noqa: E402
from ase.md.nose_hoover_chain import IsotropicMTKNPT  # noqa: E402
from ase.md.velocitydistribution import Stationary  # noqa: E402
from md_gpu import run_to  # noqa: E402
from scipy import stats  # noqa: E402
from study_systems import build_water  # noqa: E402

from fastff import FastFFCalculator  # noqa: E402
from fastff.checkpoint import load_model  # noqa: E402
from fastff.kernels import tuning  # noqa: E402
from fastff.md.engine import Engine  # noqa: E402
from fastff.md.observe import COLUMNS  # noqa: E402
from fastff.md.potentials import make_potential  # noqa: E402
from fastff.md.settings import MDSettings  # noqa: E402
from fastff.md.skin import settle_skin  # noqa: E402
from fastff.md.state import build_state, make_atoms  # noqa: E402
from fastff.md.summary import average_blocks  # noqa: E402
from fastff.models import Student  # noqa: E402
from fastff.units import BOLTZMANN_EV_PER_K  # noqa: E402
from fastff.zoo import resolve_model  # noqa: E402

Row = dict[str, Any]
QUANTITIES = ("potential_eV", "pressure_GPa", "volume_A3")


@dataclass(frozen=True)
class Material:
    """A start structure, the temperature of its runs, and one at which it is melted before, K."""

    phase: str
    build: Callable[[int], Atoms]
    temperature: float
    melt: float = 0.0


def build_alloy(repeats: int) -> Atoms:
    """Random Cu50Au50 on a lattice."""
    atoms = bulk("Cu", cubic=True, a=3.92).repeat(repeats)
    order = np.random.default_rng(0).permutation(len(atoms))
    atoms.numbers[order[: len(atoms) // 2]] = 79
    return atoms


def build_salt(repeats: int) -> Atoms:
    """Rock salt at about the volume of its melt."""
    return bulk("NaCl", "rocksalt", cubic=True, a=6.15).repeat(repeats)


def build_box(repeats: int) -> Atoms:
    """Water of the training runs, repeated."""
    return build_water(np.random.default_rng(0)).repeat(max(1, repeats // 3))


MATERIALS = {
    "cuau": Material("crystal", build_alloy, 600.0),
    "nacl": Material("liquid", build_salt, 1500.0, melt=3000.0),
    "water": Material("liquid", build_box, 330.0),
}


def make_engine(student: Student, atoms: Atoms, settings: MDSettings) -> Engine:
    settings = settle_skin(student, atoms, settings)
    potential = make_potential(student, settings.skin)
    return Engine(potential, build_state(atoms, settings, student.device), settings)


def equilibrate(student: Student, material: Material, repeats: int, picoseconds: float) -> Atoms:
    """Positions and velocities after some time at the material's temperature, melted before where it should be."""
    atoms = material.build(repeats)
    for kelvin in filter(None, (material.melt, material.temperature)):
        drawn = "file" if atoms.has("momenta") else "draw"
        settings = MDSettings(
            max(1, int(1000 * picoseconds)), 1.0, temperature=kelvin, velocities=drawn, interval=1000,
        )  # fmt: skip
        engine = make_engine(student, atoms, settings)
        run_to(engine, settings.n_steps)
        state = engine.state
        arrays = (state.positions, state.velocities, state.cell)
        atoms = make_atoms(atoms, *(one.cpu().numpy() for one in arrays))
        atoms.calc = None
    return atoms


def measure_drift(student: Student, atoms: Atoms, picoseconds: float) -> Row:
    """Slope of the total energy in NVE at 1 fs."""
    settings = MDSettings(
        int(1000 * picoseconds), 1.0, ensemble="nve", velocities="file", interval=100
    )
    begun = time.perf_counter()
    engine = make_engine(student, atoms, settings)
    rows = np.concatenate([engine.observe().rows, run_to(engine, settings.n_steps)])
    column = {name: rows[:, k] for k, name in enumerate(COLUMNS)}
    conserved = (column["conserved_eV"] - column["conserved_eV"][0]) * 1e3 / len(atoms)
    return {
        "picoseconds": picoseconds,
        "drift_meV_per_atom_ps": float(np.polyfit(column["step"] / 1000.0, conserved, 1)[0]),
        "change_meV_per_atom": float(conserved[-1]),
        "deviation_meV_per_atom": float(conserved.std()),
        "temperature_K": float(column["temperature_K"].mean()),
        "rms_displacement_A": float(
            np.sqrt(np.square(engine.state.positions.cpu().numpy() - atoms.positions).sum(1).mean())
        ),
        "skin_A": engine.potential.skin, "rebuilds": engine.n_rebuilds,
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def sample(
    student: Student, atoms: Atoms, temperature: float, picoseconds: float, timestep: float, **changes: Any
) -> tuple[dict[str, np.ndarray], int]:  # fmt: skip
    """Columns after the first fifth, a row every 0.05 ps, and the number of degrees of freedom."""
    every = max(1, round(50 / timestep))
    settings = MDSettings(
        max(10 * every, int(1000 * picoseconds / timestep)), timestep, temperature=temperature,
        velocities="file", interval=every, pressure_relaxation=500.0, **changes,
    )  # fmt: skip
    engine = make_engine(student, atoms, settings)
    rows = run_to(engine, settings.n_steps)
    rows = rows[len(rows) // 5 :]
    return {name: rows[:, k] for k, name in enumerate(COLUMNS)}, engine.state.n_free


def test_kinetic(columns: dict[str, np.ndarray], n_free: int, temperature: float) -> Row:
    """Kolmogorov-Smirnov test of kinetic energies 0.5 ps apart, and their mean."""
    values = 2.0 * columns["kinetic_eV"][::10] / (BOLTZMANN_EV_PER_K * temperature)
    mean = average_blocks(columns["temperature_K"])
    return {
        "samples": len(values), "p_value": float(stats.kstest(values, stats.chi2(n_free).cdf).pvalue),
        "temperature_K": mean.mean, "temperature_error_K": mean.error,
        "deviation_ratio": float(values.std(ddof=1) / math.sqrt(2.0 * n_free)),
    }  # fmt: skip


def sample_ase(
    model: Path | str, atoms: Atoms, temperature: float, picoseconds: float, timestep: float, ensemble: str
) -> dict[str, np.ndarray]:  # fmt: skip
    """The same columns from ASE's own integrator."""
    atoms = atoms.copy()
    atoms.calc = FastFFCalculator(model)
    if ensemble == "npt":
        Stationary(atoms)
    if ensemble == "nvt":
        dynamics: Any = Langevin(
            atoms, timestep * units.fs, temperature_K=temperature, friction=0.01 / units.fs, fixcm=False,
            rng=np.random.default_rng(1),
        )  # fmt: skip
    else:
        dynamics = IsotropicMTKNPT(
            atoms, timestep * units.fs, temperature, 0.0, tdamp=100 * units.fs, pdamp=500 * units.fs
        )
    rows: list[tuple[float, ...]] = []

    def note() -> None:
        stress = atoms.get_stress(include_ideal_gas=True)
        pressure = -stress[:3].mean() / units.GPa
        rows.append((atoms.get_potential_energy(), pressure, atoms.get_volume()))

    dynamics.attach(note, interval=max(1, round(50 / timestep)))
    dynamics.run(max(20, int(1000 * picoseconds / timestep)))
    table = np.array(rows)[len(rows) // 5 :]
    return {name: table[:, k] for k, name in enumerate(QUANTITIES)}


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Row:
    """Means with errors, difference in standard errors, ratio of standard deviations."""
    found: Row = {}
    for name in QUANTITIES:
        if theirs[name].std() <= 1e-9 * abs(theirs[name].mean()):
            continue  # held fixed, as the volume of NVT is
        one, other = average_blocks(ours[name]), average_blocks(theirs[name])
        error = math.hypot(one.error, other.error)
        found[name] = {
            "fastff": one.mean, "fastff_error": one.error, "ase": other.mean, "ase_error": other.error,
            "standard_errors_apart": abs(one.mean - other.mean) / error,
            "deviation_ratio": float(ours[name].std() / theirs[name].std()),
        }  # fmt: skip
    return found


def compare_ensembles(
    student: Student, model: Path | str, atoms: Atoms, temperature: float, span: float, ase_span: float,
    timestep: float,
) -> Row:  # fmt: skip
    """Both thermostats and constant pressure beside the exact distribution and beside ASE."""
    arguments = (student, atoms, temperature, span, timestep)
    row: Row = {"picoseconds": span, "ase_picoseconds": ase_span, "timestep_fs": timestep}
    kept = {}
    for thermostat in ("langevin", "rescale"):
        kept[thermostat], n_free = sample(*arguments, thermostat=thermostat)
        row[f"kinetic energy, {thermostat}"] = test_kinetic(kept[thermostat], n_free, temperature)
    ase_arguments = (model, atoms, temperature, ase_span, timestep)
    row["nvt beside ase langevin"] = compare(kept["langevin"], sample_ase(*ase_arguments, "nvt"))
    pressed, n_free = sample(*arguments, ensemble="npt", thermostat="rescale", relaxation=100.0)
    row["kinetic energy, npt"] = test_kinetic(pressed, n_free, temperature)
    mean = average_blocks(pressed["pressure_GPa"])
    row["pressure"] = {"mean_GPa": mean.mean, "error_GPa": mean.error, "target_GPa": 0.0}
    row["npt beside ase mtk"] = compare(pressed, sample_ase(*ase_arguments, "npt"))
    return row


def main() -> None:
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, metavar="MATERIAL=MODEL")
    parser.add_argument("--ensembles", nargs="*", default=[], metavar="MATERIAL=MODEL")
    parser.add_argument("--budget-seconds", type=float, default=300.0)
    parser.add_argument("--tiny", action="store_true", help="short, on the CPU")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    device = torch.device("cpu" if tiny else "cuda")
    record: Row = {"provenance": tuning.describe_machine(device), "failures": []}
    commit = os.environ.get("FASTFF_COMMIT")
    record["provenance"]["commit"] = commit or record["provenance"].get("commit")
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    folder.mkdir(parents=True, exist_ok=True)

    def stage(key: str, pair: str, work: Callable[[Student, Path, Material], Row]) -> None:
        name, _, model = pair.partition("=")
        if time.time() - start > arguments.budget_seconds:
            record["failures"].append({"what": f"{key} {pair}", "error": "no time left"})
            return
        try:
            path, material = resolve_model(model), MATERIALS[name]
            student = load_model(path, device=device)
            identity: Row = {
                "material": name, "phase": material.phase, "model": path.stem,
                "architecture": student.config.architecture, "cutoff_A": student.cutoff,
                "sha256": student.header.get("sha256"),
            }  # fmt: skip
            row = {**identity, **work(student, path, material)}
            record.setdefault(key, []).append(row)
            print(f"[{time.time() - start:5.1f} s] {key} {json.dumps(row)}", flush=True)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0][:300]
            reason = f"{type(error).__name__}: {line}"
            record["failures"].append({"what": f"{key} {pair}", "error": reason})
            traceback.print_exc(limit=-3)
        record["seconds"] = time.time() - start
        (folder / "md_statistics.json").write_text(json.dumps(record, indent=1) + "\n")

    repeats, settling, span = (2, 0.02, 0.1) if tiny else (7, 5.0, 100.0)

    def drift(student: Student, path: Path, material: Material) -> Row:
        size = repeats if material.phase == "crystal" else max(2, repeats - 2)
        atoms = equilibrate(student, material, size, settling)
        return {"atoms": len(atoms), **measure_drift(student, atoms, span)}

    def ensembles(student: Student, path: Path, material: Material) -> Row:
        atoms = equilibrate(student, material, 2 if tiny else 3, settling)
        spans = (0.5, 0.05) if tiny else (200.0, 30.0)
        row = compare_ensembles(student, path, atoms, material.temperature, *spans, 2.0)
        return {"atoms": len(atoms), "temperature_set_K": material.temperature, **row}

    for pair in arguments.models:
        stage("drift", pair, drift)
    for pair in arguments.ensembles:
        stage("ensembles", pair, ensembles)
    print(f"failures: {record['failures']}\n{record['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
