"""Judge a student and, if it may be shipped, add it to the models that come with the package.

Run from the root of the repository, for a student of ``bench/study.py`` for example

    python bench/zoo.py --add STUDY/models/cuau__m2-l.safetensors --name cuau-7net-0 --labels LABELS/cuau.npz \\
        --about "Random alloy of copper and gold, 1:1, solid." --runs solid:950 solid:1425 --timestep 2

and for one of a recipe of ``train/``, after ``fastff train`` or ``bench/recipes.py``,

    fastff labels RUN/labels.h5 --held-out --export TEST.h5
    python bench/zoo.py --add RUN/model.safetensors --name cuau-m3 --test TEST.h5 --recipe train/cuau-sevennet.yaml \\
        --about "Random alloy of copper and gold, 1:1, solid."

TEST.h5 is small and all that is needed of the run beside the model. ``python bench/zoo.py --write`` makes the page.

A student is refused unless

- the smallest of its force, energy and stress accuracy on test frames is at least 95 %, both as the trainer recorded it
  and as found again here from the labels. Stress does not count where no test frame has one (slabs, molecules). After
  rounds this holds of the teacher's dynamics and of the student's own, each alone, too; of the latter above the range
  of temperatures forces alone count, and may fall short by the allowance of ``fastff/distill/groups.py``;
- test frames of a recipe are those of its run: as many, of the same teacher and request, none of them trained on;
- its file names teacher, licence and citation;
- it passes every test of ``fastff check``, made on a frame of the material too. A test named by
  ``--accept TEST=REASON`` may fail; the reason goes into the card;
- atoms pushed together in the hottest test frames meet a barrier of 20 kT, at the highest temperature of the training
  data, before the energy falls, or it does not fall;
- dynamics in every run of ``--runs PHASE:KELVIN`` lasts ``--seconds`` of computing, and 1.2 ps at least, without a
  failure. Left out for a recipe, runs are at its highest temperature and at 1.5 times it, of every kind of structure;
- a record of kernels has the speed of its size on a GPU.

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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.zoo_materials import Material

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

LEAST_ACCURACY = 0.95
KEYS = ("force", "energy", "stress")
MOST_BYTES = 1_700_000
"""Three hops of 64 channels take 0.75 to 0.8 MB; their uncertainty 0.2 MB for each element, which makes 1.4 MB of three
elements; hashes of 7,000 frames take 0.15 MB, the rest of the header 0.06 MB."""
RECOMPUTED_WITHIN = 0.002
"""Labels of the study are exported in single precision."""
LEAST_BARRIER = 20.0
"""kT at the highest temperature of the training data: a pair that tries 1e13 times a second needs some 50 us."""
PAGE = ROOT / "docs" / "models.md"


def find_accuracy_fault(
    header: dict[str, Any],
    found: dict[str, float] | None = None,
    groups: dict[str, dict[str, float]] | None = None,
) -> str:
    """Why the accuracy is not enough, or not what the file says; empty if it is.

    ``found`` is what was found again on all test frames, ``groups`` on each group of them that the file tells apart.
    """
    from fastff.distill.groups import ALLOWANCE, HOT, STUDENT, TEACHER

    stated = header["accuracy"]
    fault = find_part_fault("", stated["test"], found)
    for name in (TEACHER, STUDENT, HOT):
        if fault or name not in stated:
            continue
        if groups is not None and name not in groups:
            return f"the file states an accuracy of {name} frames, of which there are none here"
        keys, less = (("force",), ALLOWANCE) if name == HOT else (KEYS, 0.0)
        fault = find_part_fault(f"{name} ", stated[name], (groups or {}).get(name), keys, less)
    return fault


def find_part_fault(
    where: str,
    stated: dict[str, Any],
    found: dict[str, float] | None,
    keys: tuple[str, ...] = KEYS,
    less: float = 0.0,
) -> str:
    """The same of one group of frames; its accuracy may fall short by ``less``."""
    least = LEAST_ACCURACY - less
    for source, values in (("recorded", stated), ("found again", found or stated)):
        for key in keys:
            value, said = values.get(key), stated.get(key)
            name = f"{where}{key} accuracy"
            if key == "stress" and said is None and stated.get("n_stresses") == 0:
                if value is not None:
                    return f"{name} is {value:.4f} here but undefined in the file"
                continue
            if value is None or said is None or not value >= least:
                shown = "unknown" if value is None else f"{100 * value:.3f} %"
                return f"{name} ({source}) is {shown}, less than {100 * least:g} %"
            if abs(value - said) > RECOMPUTED_WITHIN:
                return f"{name} is {value:.4f} here but {said:.4f} in the file"
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


def read_material(arguments: argparse.Namespace, header: dict[str, Any]) -> Material:
    """Test frames of the study, or of the run of a recipe."""
    from bench.zoo_materials import RecipeMaterial, StudyMaterial

    if arguments.labels:
        return StudyMaterial(arguments.labels)
    return RecipeMaterial(arguments.test, arguments.recipe, header)


def add(arguments: argparse.Namespace) -> None:
    """Judge a student and write it into the package."""
    import torch

    torch.set_num_threads(1)
    from bench import zoo_measures as measures
    from fastff.checkpoint import load_model, read_header, stamp_header
    from fastff.inference import predict
    from fastff.report.provenance import collect_provenance
    from fastff.zoo.names import SUFFIX, find_folder

    accepted = dict(entry.split("=", 1) for entry in arguments.accept)
    header = read_header(arguments.add)
    refuse(find_header_fault(header) or find_accuracy_fault(header))
    measures.find_gpu_rows(header["config"])
    material, student = read_material(arguments, header), load_model(arguments.add)
    refuse(material.find_fault())
    runs = arguments.runs or material.list_runs()
    timestep = arguments.timestep or material.timestep
    predicted = predict(student, [frame.atoms for frame in material.test], charges="ignore")
    groups = measures.measure_parts(material, predicted)
    found = groups.pop("test")
    print("accuracy found again:", found, groups, flush=True)
    refuse(find_accuracy_fault(header, found, groups))
    pushes = measures.push_together(load_model(arguments.add), material.list_hottest())
    print("pushed together:", json.dumps(pushes), flush=True)
    refuse(find_barrier_fault(pushes, float(header["temperature"][1])))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / f"{arguments.name}{SUFFIX}"
        path.write_bytes(arguments.add.read_bytes())
        phase, kelvin = runs[0].rsplit(":", 1)
        gate = run_gate(path, material.pick(phase, float(kelvin)).atoms, folder)
        refuse(find_gate_fault(gate, accepted))
        stability = []
        for run in runs:
            stability.append(
                measures.run_dynamics(path, material, run, timestep, arguments.seconds)
            )
            print("stable:", json.dumps(stability[-1]), flush=True)
        atoms = material.pick(phase, float(kelvin)).atoms
        entry = {
            "name": arguments.name,
            "about": arguments.about,
            "n_parameters": sum(p.numel() for p in student.parameters()),
            "data": material.describe(),
            "found_again": found,
            "groups_found_again": groups,
            "trajectories": measures.measure_rows(material, predicted),
            "pushes": pushes,
            "stability": stability,
            "speed": measures.measure_speed(path, atoms, header["config"]),
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
    parser.add_argument("--labels", type=Path, help="exported labels of the study (.npz)")
    parser.add_argument("--test", type=Path, help="test frames of a recipe's run (.h5)")
    parser.add_argument("--recipe", type=Path, help="its recipe (.yaml)")
    parser.add_argument("--about", default="", help="one or two sentences for the card")
    parser.add_argument("--runs", nargs="+", default=[], metavar="PHASE:KELVIN", help="dynamics")
    parser.add_argument("--timestep", type=float, help="fs; by default 1, for a recipe by mass")
    parser.add_argument("--seconds", type=float, default=75.0, help="of computing, for each run")
    parser.add_argument("--accept", nargs="+", default=[], metavar="TEST=REASON")
    parser.add_argument("--write", action="store_true", help="make docs/models.md")
    arguments = parser.parse_args()
    if arguments.add:
        of_study, of_recipe = (
            arguments.labels and arguments.runs,
            arguments.test and arguments.recipe,
        )
        if not (arguments.name and bool(of_study) != bool(of_recipe)):
            parser.error("--add needs --name, and --labels and --runs or --test and --recipe")
        add(arguments)
    if arguments.write:
        PAGE.write_text(render_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
