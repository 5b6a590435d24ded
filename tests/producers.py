"""Records as a producer with one fault would write them. Not here: any test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.build import bulk
from untrained import make_student

from fastff.checkpoint import save_model
from fastff.inference import predict
from fastff.models.uncertainty import fit_uncertainty
from fastff.neighbors import atoms_to_graph
from fastff.report.baselines import load_baseline
from fastff.report.bench import run_bench
from fastff.report.physics.derive import derive_quantities
from fastff.report.physics.record import (
    DiffusionCurve,
    DiffusionItem,
    DimerCurve,
    DimerItem,
    ElasticItem,
    EosItem,
    LeftOut,
    NveItem,
    PhononItem,
    PhysicsPart,
    RdfCurve,
    RdfItem,
    StabilityItem,
    StabilityRun,
    VacancyItem,
)
from fastff.report.plan import BenchPlan
from fastff.report.schema import BenchRecord, compute_digest, compute_ratios
from fastff.report.stamps import Stamped, stamp_part
from fastff.report.verdict import write_verdict
from fastff.teachers import load_teacher

PLAN = BenchPlan(
    n_frames=8, n_temperatures=4, n_equilibrate=4, interval=2, sizes=(32, 108), budget=0.1,
    md_atoms=32, outside=True, n_noise=2, physics="none",
)  # fmt: skip

Stage = Literal["measured", "assembled", "written"]


def edit(
    record: BenchRecord, change: Callable[[dict[str, Any]], object], stage: Stage = "written"
) -> BenchRecord:
    """A record with one change to its JSON, and everything that is made later than ``stage`` made from it.

    A fault while measuring is stamped; one while the record is put together goes into ratios and verdict; one in the
    last step only into the digest.
    """
    content = json.loads(record.model_dump_json())
    change(content)
    assert content != json.loads(record.model_dump_json()), "nothing was planted"
    return seal(BenchRecord.model_validate_json(json.dumps(content)), stage)


def seal(record: BenchRecord, stage: Stage) -> BenchRecord:
    """Stamps, ratios, verdict and digest, as far as they are made later than ``stage``."""
    if stage == "measured":
        record = stamp_all(record)
    if stage != "written":
        record = record.model_copy(update={"ratios": compute_ratios(record.speed)})
        verdict = write_verdict(
            record.model, record.comparisons, record.teacher_noise, record.headline,
            record.provenance, record.verdict.required, record.model.name, record.physics,
            record.ended, record.calibration, record.speed,
        )  # fmt: skip
        record = record.model_copy(update={"verdict": verdict})
    return record.model_copy(update={"digest": compute_digest(record)})


def stamp_all(record: BenchRecord) -> BenchRecord:
    """The record with a fresh stamp on every part."""
    changes: dict[str, Any] = {}
    for name in ("model", "teacher_noise", "student_noise", "calibration"):
        part = getattr(record, name)
        if isinstance(part, Stamped):
            changes[name] = stamp_part(part)
    for name in ("comparisons", "speed", "baselines"):
        changes[name] = tuple(stamp_part(part) for part in getattr(record, name))
    if record.physics is not None:
        items = tuple(stamp_part(item) for item in record.physics.items)
        changes["physics"] = record.physics.model_copy(update={"items": items})
    return record.model_copy(update=changes)


def make_model(path: Path) -> None:
    """An untrained student of copper and gold with an uncertainty and a learning curve."""
    student = make_student("m1", (29, 79), cutoff=4.0, energy_scale=0.02)
    frames = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True, a=3.7).repeat(2)
        atoms.numbers[::4] = 79
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    graphs = [atoms_to_graph(atoms, student.cutoff) for atoms in frames]
    energies = [e.energy + 0.01 * k for k, e in enumerate(predict(student, frames[8:]))]
    student.uncertainty = fit_uncertainty(student, graphs[:8], graphs[8:], energies)
    curve = [
        {"step": 10 * k, "accuracy": 0.1 * k, "force_accuracy": 0.1 * k, "force_mae": 0.5 - 0.05 * k}
        for k in range(1, 5)
    ]  # fmt: skip
    header = {"teacher": {}, "temperature": [300, 500], "training": {"learning_curve": curve}}
    save_model(path, student, header)


def make_physics(teacher: dict[str, Any], student: dict[str, Any]) -> PhysicsPart:
    """Items with numbers by hand, the student's a little off."""
    volumes = tuple(np.linspace(10.0, 13.0, 7))
    curves = [tuple(0.05 * (v - v0) ** 2 for v in volumes) for v0 in (11.5, 11.6)]
    stiffness = np.diag([100.0] * 3 + [60.0] * 3) + 50.0 * np.pad(np.ones((3, 3)), (0, 3))
    matrices = [tuple(map(tuple, (f * stiffness).tolist())) for f in (1.0, 0.9)]
    items = (
        EosItem(title="EOS", description="", volumes=volumes, teacher=curves[0], student=curves[1]),
        ElasticItem(title="elastic", description="", cubic=True, teacher=matrices[0], student=matrices[1]),
        VacancyItem(
            title="vacancies", description="", formula={"Cu": 1}, n_atoms=32, teacher_perfect=-112.0,
            student_perfect=-111.0, teacher_vacant={"Cu": -107.2}, student_vacant={"Cu": -106.6},
        ),
        DimerItem(title="pairs", description="", contact="shortest", curves=(
            DimerCurve(
                pair="Cu-Cu", distances=(2.0, 2.5, 3.0), teacher=(-1.0, -2.0, 0.0), student=(-1.5, -1.2, 0.0),
            ),
            DimerCurve(pair="Au-Cu", distances=(2.0, 2.5, 3.0), teacher=(1.0, -2.0, 0.0), student=(3.0, 0.7, 0.0)),
        )),
        NveItem(
            title="NVE", description="", temperature=400.0, time_step=2.0,
            teacher={"times": (0.0, 1.0, 2.0), "energies": (0.0, 0.1, 0.1)},
            student={"times": (0.0, 1.0, 2.0), "energies": (0.0, 0.2, 0.1)},
        ),
        PhononItem(
            title="phonons", description="", path=(0.0, 0.4, 1.0), marks=((0.0, "Γ"), (0.4, "X"), (1.0, "L")),
            teacher=((0.0, 0.0), (3.0, 5.0), (4.0, 6.0)), student=((0.0, 0.0), (2.9, 5.2), (4.1, 5.8)),
        ),
        RdfItem(title="g(r)", description="", temperature=400.0, n_blocks=4, peak="first", curves=(RdfCurve(
            pair="Cu-Cu", radii=(2.0, 2.5, 3.0, 3.5), teacher=(0.0, 2.5, 1.0, 0.8), teacher_error=(0.0, 0.1, 0.1, 0.1),
            student=(0.0, 2.2, 1.2, 0.8), student_error=(0.0, 0.1, 0.1, 0.2),
        ),)),
        DiffusionItem(title="diffusion", description="", temperature=400.0, curves=(DiffusionCurve(
            element="Cu", times=(0.0, 1.0, 2.0), teacher=(0.0, 2.0, 4.0), student=(0.0, 2.2, 4.4),
            teacher_blocks=(0.30, 0.36), student_blocks=(0.35, 0.39),
        ),)),
        StabilityItem(title="stability", description="", time_step=2.0, runs=(
            StabilityRun(temperature=500.0, n_steps=500, done=500),
            StabilityRun(temperature=750.0, n_steps=500, done=400, reason="planted"),
        )),
    )  # fmt: skip
    sides = {"teacher": teacher, "student": student}
    return PhysicsPart(
        mode="auto",
        material="Cu3Au, a crystal",
        **sides,
        items=tuple(
            stamp_part(
                item.model_copy(update={"quantities": derive_quantities(item), "identity": sides})
            )
            for item in items
        ),
        left_out=(LeftOut(title="Surfaces", reason="planted errors need none"),),
    )


def make_record(path: Path) -> BenchRecord:
    """A bench run with everything that a record can hold, of a model that is written to ``path``."""
    make_model(path)
    alloy = bulk("Cu", cubic=True, a=3.7)
    alloy.numbers[0] = 79
    found = run_bench(
        path,
        structures=[alloy],
        teacher=load_teacher("ase:ase.calculators.emt:EMT", device="cpu"),
        plan=PLAN,
        baselines=[load_baseline("analytic:morse", "cpu")],
    ).record
    curve = found.find_curve("teacher", "ase-call")
    physics = make_physics(curve.identity, {"sha256": found.model.sha256})
    # memory of this size is not measured in full: it is known here
    curves = []
    for curve in found.speed:
        size = 30_000 if curve.role == "student" else 400_000
        points = [
            p.model_copy(update={"peak_memory": size * p.n_atoms if curve.memory_kind else None})
            for p in curve.points
        ]
        curves.append(curve.model_copy(update={"points": tuple(points)}))
    return seal(found.model_copy(update={"physics": physics, "speed": tuple(curves)}), "measured")
