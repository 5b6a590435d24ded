"""What ``bench/zoo.py`` measures of a student: accuracy by trajectory, barriers, dynamics, speed, reference numbers.

Here: measurements. Not here: which of them a student must meet, or where they go (``bench/zoo.py``).
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FALL = 1.0
"""eV by which an energy must drop to count as a fall."""
N_PUSHED, N_POINTS, CLOSEST = 8, 40, 0.3
SPEED_ATOMS = 500
GPU_RECORD = "fused-rounded-h100.json"


class Material:
    """Labels of one system: phases, and test frames by phase."""

    def __init__(self, path: Path) -> None:
        from bench.study_systems import SYSTEMS, list_replicas
        from bench.study_training import split_trajectories
        from fastff.distill.formats import read_labels

        frames = read_labels(path).frames
        self.test = split_trajectories(frames)[2]
        with np.load(path, allow_pickle=False) as archive:
            self.record = json.loads(str(archive["record"]))
        plan = self.record["study"]
        (system,) = (one for one in SYSTEMS if one.name == plan["system"])
        n_replicas = 1 + max(frame.trajectory for frame in frames)
        replicas = list_replicas(system, n_replicas)
        self.phases = {k: ladder.phase for k, (ladder, _) in enumerate(replicas)}
        self.n_atoms, self.formula = len(frames[0].atoms), frames[0].atoms.get_chemical_formula()
        self.plan = plan

    def pick(self, phase: str, kelvin: float) -> Any:
        """Last frame of the test trajectory of a phase that is nearest in temperature."""
        mine = [frame for frame in self.test if self.phases[frame.trajectory] == phase]
        if not mine:
            raise SystemExit(
                f"no test frames of phase {phase!r}; phases: {set(self.phases.values())}"
            )
        return min(mine, key=lambda f: (abs(f.temperature - kelvin), f.trajectory, -f.step))

    def describe(self) -> dict[str, Any]:
        """What the card says of the labels."""
        keys = ("phase", "low", "high", "expansion", "melt")
        return {
            "system": self.plan["system"],
            "formula": self.formula,
            "n_atoms": self.n_atoms,
            "phases": [{key: row[key] for key in keys} for row in self.plan["ladders"]],
            "provenance": self.record["provenance"],
        }


def measure_trajectories(material: Material, predicted: list[Any]) -> list[dict[str, Any]]:
    """Force accuracy of every test trajectory."""
    from fastff.report.metrics import measure_accuracy

    rows = []
    for number in sorted({frame.trajectory for frame in material.test}):
        places = [k for k, frame in enumerate(material.test) if frame.trajectory == number]
        mine = [material.test[k] for k in places]
        found = measure_accuracy(
            [frame.labels for frame in mine],
            [predicted[k] for k in places],
            [frame.atoms for frame in mine],
        )
        rows.append(
            {
                "phase": material.phases[number],
                "temperature": mine[0].temperature,
                "n_frames": len(mine),
                "force": found.force,
                "force_mae": found.force_mae,
                "force_rms": found.force_rms,
            }
        )
    return rows


def push_together(student: Any, frames: list[Any]) -> dict[str, Any]:
    """Least barrier, eV, before the energy falls as a pair of near atoms is pushed to 0.3 Å, by pair of elements.

    All other atoms stay where they are; the way is straight. None where the energy nowhere falls by 1 eV.
    """
    from itertools import combinations_with_replacement

    from ase.data import chemical_symbols

    from fastff.testing.subject import StudentSubject

    subject, rng = StudentSubject(student.double()), np.random.default_rng(0)
    found: dict[str, Any] = {}
    for first, second in combinations_with_replacement(student.elements, 2):
        barriers, lowest, n_pushed = [], [], 0
        for atoms in frames:
            apart = atoms.get_all_distances(mic=True)
            np.fill_diagonal(apart, np.inf)
            firsts, seconds = (np.flatnonzero(atoms.numbers == z) for z in (first, second))
            for i in rng.choice(firsts, min(N_PUSHED, len(firsts)), replace=False):
                j = min((j for j in seconds if j != i), key=lambda j: apart[i, j])
                energies = trace_push(subject, atoms, int(i), int(j))
                highest = np.maximum.accumulate(energies)
                (falls,) = np.nonzero(highest - energies > FALL)
                n_pushed += 1
                if len(falls):
                    barriers.append(float(highest[falls[0]]))
                    lowest.append(float(energies[falls[0] :].min()))
        found[f"{chemical_symbols[first]}-{chemical_symbols[second]}"] = {
            "n_pushed": n_pushed,
            "n_falling": len(barriers),
            "barrier": min(barriers, default=None),
            "lowest": min(lowest, default=None),
        }
    return found


def trace_push(subject: Any, atoms: Any, i: int, j: int) -> np.ndarray:
    """Energies, eV, relative to the first, as two atoms approach each other."""
    vector = atoms.get_distance(i, j, mic=True, vector=True)
    length = float(np.linalg.norm(vector))
    images = []
    for distance in np.linspace(length, CLOSEST, N_POINTS):
        moved, shift = atoms.copy(), 0.5 * (length - distance) * vector / length
        moved.positions[i] += shift
        moved.positions[j] -= shift
        images.append(moved)
    energies = np.asarray(subject.respond(images).energy)
    return energies - energies[0]


def run_dynamics(
    path: Path, material: Material, run: str, timestep: float, seconds: float
) -> dict[str, Any]:
    """NVT from a frame of a test trajectory for some seconds of computing; raises if it fails."""
    from fastff.checkpoint import load_model
    from fastff.md.potentials import make_potential
    from fastff.md.run import simulate
    from fastff.md.settings import MDSettings

    phase, kelvin = run.split(":")
    frame = material.pick(phase, float(kelvin))
    potential = make_potential(load_model(path))

    def go(n_steps: int, every: int) -> Any:
        settings = MDSettings(
            n_steps, timestep, temperature=float(kelvin), interval=20, frame_interval=every,
            on_extrapolation="warn",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            return simulate(potential, frame.atoms, settings, Path(folder) / "run")

    probe = go(100, 50)
    n_steps = max(200, int(100 * seconds / probe.seconds))
    every = max(1, n_steps // 100)
    result = go(n_steps, every)
    return {
        "phase": phase,
        "temperature": float(kelvin),
        "start": {"temperature": frame.temperature, "trajectory": frame.trajectory},
        "timestep": timestep,
        "ps": result.step * timestep / 1000.0,
        "n_atoms": len(frame.atoms),
        "mean_temperature": result.summary.temperature.mean,
        "outside": result.n_extrapolations,
        "n_frames": result.step // every + 1,
        "seconds": round(result.seconds, 1),
    }


def measure_speed(path: Path, atoms: Any, architecture: str) -> dict[str, Any]:
    """Time of a call on this machine, and of untrained students of this size on a GPU from the record of kernels."""
    from fastff.calculator import FastFFCalculator
    from fastff.memory import keep_freed_memory
    from fastff.models import ARCHITECTURES
    from fastff.report.provenance import collect_provenance

    keep_freed_memory()
    while len(atoms) < 0.8 * SPEED_ATOMS:
        atoms = atoms.repeat(
            [2 if k == int(np.argmin(atoms.cell.lengths())) else 1 for k in range(3)]
        )
    atoms.calc, times = FastFFCalculator(path, device="cpu"), []
    for _ in range(8):
        atoms.positions += 2.0  # beyond the skin: a new neighbor list
        start = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - start)
    where = collect_provenance()
    cpu = {
        "n_atoms": len(atoms),
        "ms": 1e3 * float(np.median(times[2:])),
        "machine": where.machine,
        "load": where.load,
    }
    record = json.loads((ROOT / "bench" / "results" / "kernels" / GPU_RECORD).read_text())
    sizes = ARCHITECTURES[architecture]
    hops, channels = sizes.get("n_hops", 2), sizes.get("n_channels", 16)
    gpu = [
        {
            "n_atoms": row["atoms"],
            "ms": row["graph"]["median_ms"],
            "atom_steps_per_s": row["atom_steps_per_s"],
            "gpu": record["provenance"]["gpu"],
            "commit": record["provenance"]["commit"],
            "record": GPU_RECORD,
        }
        for row in record["evaluations"]
        if (row["hops"], row["channels"]) == (hops, channels)
        and row["virial"]
        and row["scatter"] == "fixed"
        and row["atoms"] in (1372, 108_000)
    ]
    return {"cpu": cpu, "gpu": gpu}


def compute_reference(path: Path) -> dict[str, Any]:
    """Energy, forces of three atoms and stress of the file's own structure, in double precision on the CPU."""
    import torch

    from fastff.checkpoint import load_model
    from fastff.inference import predict
    from fastff.report.comparison import read_header_structures

    student = load_model(path, dtype=torch.float64)
    atoms = read_header_structures(student.header)[0]
    (found,) = predict(student, [atoms])
    assert found.stress is not None
    return {
        "structure": 0,
        "energy": float(found.energy),
        "forces": found.forces[:3].tolist(),
        "stress": found.stress.tolist(),
    }
