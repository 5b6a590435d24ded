"""Judge a student of ``bench/study.py`` and, if it may be shipped, add it to the models that come with the package.

Run from the root of the repository, for example

    python bench/zoo.py --add STUDY/models/cuau__m2-l.safetensors --name cuau-7net-0 --labels LABELS/cuau.npz \\
        --about "Random alloy of copper and gold, 1:1, solid." --runs solid:950 solid:1425 --timestep 2
    python bench/zoo.py --write

A student is refused unless

- the smallest of its force, energy and stress accuracy on test trajectories is at least 95 %, both as the trainer
  recorded it and as found again here from the labels;
- its file names teacher, licence and citation;
- it passes every test of ``fastff check``, made on a frame of the material too. A test named by
  ``--accept TEST=REASON`` may fail; the reason goes into the card;
- atoms pushed together in the hottest test frames meet a barrier of 20 kT, at the highest temperature of the training
  data, before the energy falls, or it does not fall;
- dynamics in every run of ``--runs PHASE:KELVIN`` lasts ``--seconds`` of computing without a failure.

What was found, reference numbers, machine, versions, commit and this command are stamped into the header of
``fastff/zoo/NAME.safetensors``, from which cards are made. ``--write`` makes ``docs/models.md`` from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

LEAST_ACCURACY = 0.95
MOST_BYTES = 700_000
RECOMPUTED_WITHIN = 0.002
"""Labels are exported in single precision."""
LEAST_BARRIER = 20.0
"""kT at the highest temperature of the training data: a pair that tries 1e13 times a second needs some 50 us."""
PAGE = ROOT / "docs" / "models.md"


def find_accuracy_fault(header: dict[str, Any], found: dict[str, float] | None = None) -> str:
    """Why the accuracy is not enough, or not what the file says; empty if it is."""
    stated = {key: header["accuracy"]["test"].get(key) for key in ("force", "energy", "stress")}
    for source, values in (("recorded", stated), ("found again", found or stated)):
        for key, value in values.items():
            if value is None or not value >= LEAST_ACCURACY:
                shown = "unknown" if value is None else f"{100 * value:.3f} %"
                return f"{key} accuracy ({source}) is {shown}, less than {100 * LEAST_ACCURACY:g} %"
            if abs(value - stated[key]) > RECOMPUTED_WITHIN:
                return f"{key} accuracy is {value:.4f} here but {stated[key]:.4f} in the file"
    return ""


def find_header_fault(header: dict[str, Any]) -> str:
    """What the file does not say of its teacher; empty if it says all."""
    teacher = header.get("teacher") or {}
    missing = [k for k in ("name", "version", "licence", "citation") if not teacher.get(k)]
    return f"the file does not name the teacher's {', '.join(missing)}" if missing else ""


def find_barrier_fault(pushes: dict[str, Any], highest: float) -> str:
    """Which pair of elements collapses too easily; empty if none does."""
    from ase.units import kB

    least = LEAST_BARRIER * kB * highest
    for pair, row in pushes.items():
        if row["barrier"] is not None and row["barrier"] < least:
            return (
                f"{pair} pushed together falls to {row['lowest']:.3g} eV behind a barrier of {row['barrier']:.2g} eV, "
                f"less than {LEAST_BARRIER:g} kT at {highest:.0f} K ({least:.2g} eV)"
            )
    return ""


def find_gate_fault(record: dict[str, Any], accepted: dict[str, str]) -> str:
    """Tests of the gate that failed and were not accepted; empty if there are none."""
    from fastff.testing import CheckReport

    report = CheckReport.from_dict(record)
    failed = {check.test for check in report.checks if check.status == "fail"}
    left = sorted(failed - set(accepted))
    return f"the physics gate fails: {', '.join(left)}" if left else ""


def run_gate(path: Path, atoms: Any, folder: Path) -> dict[str, Any]:
    """Stamp the gate's outcome into a model file with ``fastff check``, and return it."""
    from ase.io import write

    from fastff.checkpoint import read_header

    write(folder / "frame.xyz", atoms, format="extxyz")
    words = ["check", str(path), "--structures", str(folder / "frame.xyz"), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "fastff", *words], env=environment, check=False)
    record = read_header(path).get("check")
    if done.returncode not in (0, 6) or record is None:
        raise SystemExit(f"fastff check ended with code {done.returncode}")
    return dict(record)


def refuse(fault: str) -> None:
    """Stop if there is one."""
    if fault:
        raise SystemExit(f"not shipped: {fault}")


def add(arguments: argparse.Namespace) -> None:
    """Judge a student and write it into the package."""
    import torch

    torch.set_num_threads(1)
    from bench import zoo_measures as measures
    from fastff.checkpoint import load_model, read_header, stamp_header
    from fastff.inference import predict
    from fastff.report.metrics import measure_accuracy
    from fastff.report.provenance import collect_provenance
    from fastff.zoo.names import SUFFIX, find_folder

    accepted = dict(entry.split("=", 1) for entry in arguments.accept)
    header = read_header(arguments.add)
    refuse(find_header_fault(header) or find_accuracy_fault(header))
    material, student = measures.Material(arguments.labels), load_model(arguments.add)
    predicted = predict(student, [frame.atoms for frame in material.test])
    reference = [frame.labels for frame in material.test]
    images = [frame.atoms for frame in material.test]
    whole = measure_accuracy(reference, predicted, images)
    found = {key: getattr(whole, key) for key in ("force", "energy", "stress")}
    print("accuracy found again:", found, flush=True)
    refuse(find_accuracy_fault(header, found))
    hottest = [material.pick(row["phase"], 1e9).atoms for row in material.plan["ladders"]]
    pushes = measures.push_together(load_model(arguments.add), hottest)
    print("pushed together:", json.dumps(pushes), flush=True)
    refuse(find_barrier_fault(pushes, float(header["temperature"][1])))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / f"{arguments.name}{SUFFIX}"
        path.write_bytes(arguments.add.read_bytes())
        phase, kelvin = arguments.runs[0].split(":")
        gate = run_gate(path, material.pick(phase, float(kelvin)).atoms, folder)
        refuse(find_gate_fault(gate, accepted))
        stability = []
        for run in arguments.runs:
            stability.append(
                measures.run_dynamics(path, material, run, arguments.timestep, arguments.seconds)
            )
            print("stable:", json.dumps(stability[-1]), flush=True)
        atoms = material.pick(phase, float(kelvin)).atoms
        entry = {
            "name": arguments.name,
            "about": arguments.about,
            "n_parameters": sum(p.numel() for p in student.parameters()),
            "data": material.describe(),
            "found_again": found,
            "trajectories": measures.measure_trajectories(material, predicted),
            "pushes": pushes,
            "stability": stability,
            "speed": measures.measure_speed(path, atoms, header["config"]["architecture"]),
            "reference": measures.compute_reference(path),
            "accepted": accepted,
            "provenance": collect_provenance().model_dump(mode="json"),
        }
        stamp_header(path, {"zoo": entry})
        size = path.stat().st_size
        if size >= MOST_BYTES:
            raise SystemExit(f"not shipped: {size} bytes, at least {MOST_BYTES}")
        target = find_folder() / path.name
        target.write_bytes(path.read_bytes())
    print(f"shipped: {target.name}, {size} bytes; now --write the page")


def render_page() -> str:
    """``docs/models.md``: the cards of all shipped students."""
    from fastff.checkpoint import read_header
    from fastff.zoo import list_shipped, render_card, resolve_model

    lines = [
        "# Shipped models",
        "",
        "Students that come with the package, found by name wherever a model is asked for: "
        "`FastFFCalculator(NAME)`, `load_model(NAME)`, `fastff md NAME STRUCTURE`. `fastff models` lists them, "
        "`fastff models NAME` prints a card. Made by `python bench/zoo.py --write` from the headers of the files; "
        "what a student must meet to be among them: [bench/zoo.py](../bench/zoo.py).",
        "",
        "Energy accuracy leaves out one constant for each composition. Each student knows the compositions of its card "
        "alone: energies of others may be off by a constant that no figure here counts, so do not compare them.",
        "",
    ]
    cards = []
    for name in list_shipped():
        path = resolve_model(name)
        cards.append(render_card(name, read_header(path), path.stat().st_size))
    return "\n".join([*lines, *cards])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, help="model file of a student")
    parser.add_argument("--name", help="what it will be called")
    parser.add_argument("--labels", type=Path, help="exported labels (.npz) it was trained on")
    parser.add_argument("--about", default="", help="one or two sentences for the card")
    parser.add_argument("--runs", nargs="+", default=[], metavar="PHASE:KELVIN", help="dynamics")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--seconds", type=float, default=75.0, help="of computing, for each run")
    parser.add_argument("--accept", nargs="+", default=[], metavar="TEST=REASON")
    parser.add_argument("--write", action="store_true", help="make docs/models.md")
    arguments = parser.parse_args()
    if arguments.add:
        if not (arguments.name and arguments.labels and arguments.runs):
            parser.error("--add needs --name, --labels and --runs")
        add(arguments)
    if arguments.write:
        PAGE.write_text(render_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
