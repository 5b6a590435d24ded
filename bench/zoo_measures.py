"""What ``bench/zoo.py`` measures of a student: accuracy by group and trajectory, barriers, dynamics, speed, reference.

Here: measurements. Not here: on what frames (``bench/zoo_materials.py``), which of them a student must meet, or where
they go (``bench/zoo.py``).
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bench.zoo_materials import Material
    from fastff.report.metrics import Accuracy

ROOT = Path(__file__).resolve().parents[1]
FALL = 1.0
"""eV by which an energy must drop to count as a fall."""
N_PUSHED, N_POINTS, CLOSEST = 8, 40, 0.3
SPEED_ATOMS = 500
LEAST_PICOSECONDS = 1.2
"""Of dynamics, however long it takes."""
GPU_RECORDS = (
    "fused-rounded-h100.json",
    "fused-directed-h100.json",
    "hidden-layers-h100.json",
)
"""Of whole evaluations; the first one that has the size of a student says how fast it is."""
GPU_ATOMS = (1372, 108_000)


def measure_places(material: Material, predicted: list[Any], places: list[int]) -> Accuracy:
    """Accuracy on some of the test frames."""
    from fastff.report.metrics import measure_accuracy

    mine = [material.test[k] for k in places]
    return measure_accuracy(
        [frame.labels for frame in mine],
        [predicted[k] for k in places],
        [frame.atoms for frame in mine],
    )


def measure_parts(material: Material, predicted: list[Any]) -> dict[str, dict[str, Any]]:
    """Accuracy on all test frames, as ``test``, and on each group of them."""
    parts = {"test": list(range(len(material.test))), **material.list_groups()}
    found = {}
    for name, places in parts.items():
        accuracy = measure_places(material, predicted, places)
        found[name] = {key: getattr(accuracy, key) for key in ("force", "energy", "stress")}
    return found


def measure_rows(material: Material, predicted: list[Any]) -> list[dict[str, Any]]:
    """Force accuracy of test frames by what the material tells apart."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for k, frame in enumerate(material.test):
        places.setdefault(tuple(material.name_row(frame).items()), []).append(k)
    rows = []
    for name, members in places.items():
        found = measure_places(material, predicted, members)
        rows.append(
            {
                **dict(name),
                "n_frames": len(members),
                "force": found.force,
                "force_mae": found.force_mae,
                "force_rms": found.force_rms,
            }
        )
    return rows


def push_together(student: Any, phases: list[list[Any]]) -> dict[str, Any]:
    """Least barrier, eV, before the energy falls as a pair of near atoms is pushed to 0.3 Å, by pair of elements.

    All other atoms stay where they are; the way is straight. None where the energy nowhere falls by 1 eV, and where no
    frame holds such a pair (``n_pushed`` is 0). Of each phase :data:`N_PUSHED` atoms are pushed, those of the first of
    its frames and of others where it holds too few.
    """
    from itertools import combinations_with_replacement

    from ase.data import chemical_symbols

    from fastff.testing.subject import StudentSubject

    subject, rng = StudentSubject(student.double()), np.random.default_rng(0)
    found: dict[str, Any] = {}
    for first, second in combinations_with_replacement(student.elements, 2):
        barriers, lowest, n_pushed = [], [], 0
        for frames in phases:
            for atoms, i, j in choose_pushes(frames, first, second, rng):
                energies = trace_push(subject, atoms, i, j)
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


def choose_pushes(
    frames: list[Any], first: int, second: int, rng: np.random.Generator
) -> list[tuple[Any, int, int]]:
    """Atoms of one element, at random, each with the nearest of another, by frame."""
    chosen: list[tuple[Any, int, int]] = []
    for atoms in frames:
        firsts, seconds = (np.flatnonzero(atoms.numbers == z) for z in (first, second))
        if len(seconds) < (2 if first == second else 1):
            continue
        apart = atoms.get_all_distances(mic=True)
        np.fill_diagonal(apart, np.inf)
        left = N_PUSHED - len(chosen)
        for i in rng.choice(firsts, min(left, len(firsts)), replace=False):
            j = min((j for j in seconds if j != i), key=lambda j: apart[i, j])
            chosen.append((atoms, int(i), int(j)))
    return chosen


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
    """NVT from a frame of a test trajectory for some seconds of computing, 1.2 ps at least; raises if it fails."""
    from fastff.checkpoint import load_model
    from fastff.md.potentials import make_potential
    from fastff.md.run import simulate
    from fastff.md.settings import MDSettings

    phase, kelvin = run.rsplit(":", 1)
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
    least = max(200, math.ceil(1000.0 * LEAST_PICOSECONDS / timestep))
    n_steps = max(least, int(100 * seconds / probe.seconds))
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


def measure_speed(path: Path, atoms: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Time of a call on this machine, and of untrained students of this size on a GPU from a record of kernels."""
    from fastff.calculator import FastFFCalculator
    from fastff.memory import keep_freed_memory
    from fastff.report.provenance import collect_provenance

    keep_freed_memory()
    atoms = atoms.copy()
    while len(atoms) < 0.8 * SPEED_ATOMS and atoms.pbc.any():
        lengths = np.where(atoms.pbc, atoms.cell.lengths(), np.inf)
        atoms = atoms.repeat([2 if k == int(np.argmin(lengths)) else 1 for k in range(3)])
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
    return {"cpu": cpu, "gpu": find_gpu_rows(config)}


def find_gpu_rows(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Speed of untrained students of one size from the records of kernels; none for those without fused kernels.

    Parameters
    ----------
    config : dict
        Of the student, as its header has it.

    Raises
    ------
    SystemExit
        No record has this size: without it nothing, or the speed of another student, would be shown.
    """
    from fastff.models import ARCHITECTURES
    from fastff.models.base import StudentConfig

    architecture = config["architecture"]
    if architecture.startswith("painn"):
        return []
    hops = config.get("n_hops") or ARCHITECTURES[architecture]["n_hops"]
    wanted = (hops, config["n_channels"], config.get("message_degree", 0))
    hidden = tuple(config.get("hidden", (64, 64)))
    usual = StudentConfig(architecture, tuple(config["elements"]), n_mixed=config["n_channels"])
    sizes = ("n_radial", "n_mixed", "l_max", "body_order")  # those that records do not tell
    others = [k for k in sizes if k in config and np.any(config[k] != np.array(getattr(usual, k)))]
    for name in () if others else GPU_RECORDS:
        record = json.loads((ROOT / "bench" / "results" / "kernels" / name).read_text())
        rows = [
            {
                "n_atoms": row["atoms"],
                "neighbors": row["listed_neighbors"],
                "ms": row["graph"]["median_ms"],
                "atom_steps_per_s": row["atom_steps_per_s"],
                "gpu": record["provenance"]["gpu"],
                "commit": record["provenance"]["commit"],
                "record": name,
            }
            for row in record["evaluations"]
            if (row["hops"], row["channels"], row.get("message_degree", 0)) == wanted
            and tuple(row.get("hidden", (64, 64))) == hidden
            and row["virial"]
            and row["scatter"] == "fixed"
            and row["atoms"] in GPU_ATOMS
        ]
        if rows:
            return rows
    besides = f" with another {', '.join(others)}" if others else ""
    raise SystemExit(
        f"not shipped: {' and '.join(GPU_RECORDS)} have no speed of {wanted[0]} hops, {wanted[1]} channels, messages "
        f"of degree {wanted[2]} and hidden layers of {hidden[0]} and {hidden[1]}{besides}; measure it first"
    )


def compute_reference(path: Path) -> dict[str, Any]:
    """Energy, forces of three atoms and stress of the file's own structure, in double precision on the CPU.

    The stress is None where the structure has none.
    """
    import torch

    from fastff.checkpoint import load_model
    from fastff.inference import predict
    from fastff.structures import read_header_structures

    student = load_model(path, dtype=torch.float64)
    atoms = read_header_structures(student.header)[0]
    (found,) = predict(student, [atoms])
    return {
        "structure": 0,
        "energy": float(found.energy),
        "forces": found.forces[:3].tolist(),
        "stress": None if found.stress is None else found.stress.tolist(),
    }
