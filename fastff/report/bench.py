"""One bench run: a student judged against its teacher, or against labels that exist.

Here: :func:`run_bench`, which measures and returns a verified :class:`~fastff.report.record.BenchRecord`, and
:func:`write_results`. Not here: what the stages do (:mod:`fastff.report.judging`, :mod:`fastff.report.stages`),
definitions (:mod:`fastff.report.metrics`), pages (:mod:`fastff.report.html`), the command line
(:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ase
import torch

from fastff.distill.constraints import copy_fixed, describe_lifted
from fastff.errors import UnsupportedElementError, UsageError
from fastff.labels import Frame
from fastff.report.baselines import Baseline, check_names, judge_baseline
from fastff.report.comparison import describe_model
from fastff.report.ending import NEVER, Agenda, EndedEarlyError, Watch, describe_fault
from fastff.report.gpumd import check_gpumd
from fastff.report.judging import (
    Progress,
    Run,
    ignore_progress,
    judge_dynamics,
    judge_labels,
)
from fastff.report.plan import (
    FULL_PLAN,
    BenchPlan,
    choose_seeds,
    find_temperature,
)
from fastff.report.provenance import collect_provenance
from fastff.report.race import find_headline_size
from fastff.report.record import REJECTED, seal_record, write_record
from fastff.report.schema import BenchRecord, compute_ratios
from fastff.report.stages import (
    Measured,
    calibrate_student,
    measure_noises,
    measure_properties,
    measure_speed,
)
from fastff.report.verdict import write_verdict

if TYPE_CHECKING:
    from fastff.teachers.base import Teacher


@dataclass(frozen=True)
class BenchResult:
    """A verified record and the held-out frames it is about."""

    record: BenchRecord
    frames: list[Frame]


def run_bench(
    model_path: str | Path,
    *,
    labels: Path | None = None,
    label_keys: Mapping[str, str] | None = None,
    structures: Sequence[ase.Atoms] | None = None,
    teacher: Teacher | None = None,
    temperature: tuple[float, float] | None = None,
    plan: BenchPlan = FULL_PLAN,
    baselines: Sequence[Baseline] = (),
    gpumd: tuple[Path, Path] | None = None,
    command: Sequence[str] | None = None,
    progress: Progress = ignore_progress,
    watch: Watch = NEVER,
    keep: Callable[[BenchResult], None] | None = None,
) -> BenchResult:
    """Judge the student in ``model_path``.

    A run that ``watch`` ends early returns what it has measured until then; its record says what is missing.

    Parameters
    ----------
    model_path : path
        A model file.
    labels : path, optional
        Labelled frames to be judged on; needs no teacher.
    label_keys : mapping, optional
        What their file calls ``energy``, ``forces``, ``stress`` or ``virial``, where not as usual.
    structures : sequence of ase.Atoms, optional
        Where held-out dynamics starts and what is timed; by default the structures that the model file holds.
    teacher : Teacher, optional
        Drives and labels held-out dynamics unless ``labels`` are given, and is timed beside the student.
    temperature : (float, float), optional
        K; by default the range that the model file holds, or 300 K.
    plan : BenchPlan
    baselines : sequence of Baseline, optional
        Other models, judged on the same frames and timed on the same structures.
    gpumd : (path, path), optional
        Executable of GPUMD and a NEP model file for it; it is timed on the same structures.
    command : sequence of str, optional
        Command line to record, default that of this process.
    progress : callable
        Receives (what is being done, done, total).
    watch : Watch
        When to end early.
    keep : callable, optional
        Receives what was measured before an error, which is raised all the same.

    Raises
    ------
    EndedEarlyError
        It was to end before the first frames were compared: there is nothing to return.
    UsageError
        Neither labels nor teacher.
    DataError
        Unusable frames or labels; labels in a wrong unit; a calculator that does not reproduce the labels.
    RejectedRecordError
        What was measured contradicts itself; the error holds it.
    UnsupportedElementError
        Student, teacher or a baseline does not know an element of the structures.
    """
    from fastff.checkpoint import load_model

    if labels is None and teacher is None:
        raise UsageError("nothing to compare with: give --compare-teacher or --labels FILE.")
    student = load_model(model_path, device=plan.device)
    keys = dict(label_keys or {})
    run = Run(
        Path(model_path), student, plan, progress, teacher, baselines, gpumd, watch=watch, label_keys=keys,
    )  # fmt: skip
    found = Measured(describe_model(run.path, student), Agenda(list_stages(run), watch))
    seeds = choose_seeds(student.header, structures)
    _check_elements(run, seeds)
    if teacher is not None:
        for atoms in seeds:
            copy_fixed(atoms)  # refuses those of which no atom may move
    _check_baselines(run, seeds)
    ended = None
    try:
        _measure(run, found, labels, seeds, temperature)
        watch.close()
    except EndedEarlyError as error:
        watch.close()
        if not run.sets:
            raise
        ended = found.agenda.describe_end(str(error))
    except Exception as error:
        watch.close()
        if keep is not None and run.sets:
            ended = found.agenda.describe_end(describe_fault(error))
            keep(_assemble(run, found, command, ended))
        raise
    return _assemble(run, found, command, ended)


def list_stages(run: Run) -> list[str]:
    """What a run will do, in its order."""
    stages = {
        "accuracy": True,
        "accuracy of other models": bool(run.baselines),
        "noise floor": True,
        "calibration": run.student.uncertainty is not None,
        "physics": run.teacher is not None and run.plan.physics != "none",
        "speed": run.teacher is not None,
    }
    return [stage for stage, planned in stages.items() if planned]


def _measure(
    run: Run,
    found: Measured,
    labels: Path | None,
    seeds: list[ase.Atoms],
    temperature: tuple[float, float] | None,
) -> None:
    """One stage after the other; what is measured goes into ``run`` and ``found`` at once."""
    begin = found.agenda.begin
    begin("accuracy")
    try:
        if labels is not None:
            run.notes += describe_lifted(dict(enumerate(seeds)))
            judge_labels(run, labels)
        else:
            judge_dynamics(run, seeds, temperature)
    finally:
        found.agenda.details = run.open_sets
    frames = run.sets[0][1]
    seeds = seeds or [frames[0].atoms]
    if run.baselines:
        begin("accuracy of other models")
        for baseline in run.baselines:
            run.watch.check()
            found.judged.append(judge_baseline(baseline, run.sets))
    begin("noise floor")
    measure_noises(run, found, frames)
    if run.student.uncertainty is None:
        run.notes.append("no calibration of uncertainties: the model file holds none")
    else:
        begin("calibration")
        found.calibration = calibrate_student(run)
    if run.teacher is None:
        return
    limits = find_temperature(run.header, temperature)
    if run.plan.physics != "none":
        begin("physics")
        measure_properties(run, found, seeds[0], frames[0], limits)
    begin("speed")
    measure_speed(run, found, seeds[0], frames, limits)


def _assemble(
    run: Run, found: Measured, command: Sequence[str] | None, ended: str | None
) -> BenchResult:
    """The verified record of what was measured."""
    from fastff.distill.labelling import describe_caveats

    comparisons, curves = tuple(comparison for comparison, _ in run.sets), tuple(found.curves)
    headline = find_headline_size(curves)
    ratios = compute_ratios(curves)
    provenance = collect_provenance(command)
    ratio = next((r for r in ratios if r.mode == "ase-call" and r.n_atoms == headline), None)
    verdict = write_verdict(
        found.model, comparisons, found.teacher_noise, ratio, provenance, run.plan.required, run.path.name,
        found.physics, ended, found.calibration, curves,
    )  # fmt: skip
    record = BenchRecord(
        model=found.model,
        teacher=run.teacher_record,
        teacher_measured=run.teacher is not None,
        comparisons=comparisons,
        teacher_noise=found.teacher_noise,
        student_noise=found.student_noise,
        speed=curves,
        ratios=ratios,
        headline_size=headline,
        verdict=verdict,
        notes=(*describe_caveats(run.teacher_record), *run.notes),
        durations=run.durations,
        provenance=provenance,
        baselines=tuple(found.judged),
        calibration=found.calibration,
        physics=found.physics,
        ended=ended,
    )
    return BenchResult(seal_record(record), run.sets[0][1])


def write_results(result: BenchResult, folder: Path) -> dict[str, Path]:
    """Write ``bench.json``, ``report.html``, ``bench.md`` and the frames the teacher made, ``heldout.h5``."""
    from fastff.distill.export import write_labels
    from fastff.report.html import render_report
    from fastff.report.markdown import write_tables

    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("bench.json", "report.html", "bench.md")}
    (folder / REJECTED).unlink(missing_ok=True)  # of an earlier run
    write_record(result.record, paths["bench.json"])
    paths["report.html"].write_text(render_report(result.record), encoding="utf-8")
    paths["bench.md"].write_text(write_tables(result.record), encoding="utf-8")
    if result.record.main.frames.source == "teacher-md":
        paths["heldout.h5"] = folder / "heldout.h5"
        paths["heldout.h5"].unlink(missing_ok=True)
        held = {frame.trajectory for frame in result.frames}
        write_labels(paths["heldout.h5"], result.frames, result.record.teacher, held)
    return paths


def _check_elements(run: Run, seeds: Sequence[ase.Atoms]) -> None:
    """Refuse structures that a side does not know before the teacher drives them for minutes.

    Raises
    ------
    UnsupportedElementError
    """
    from fastff.models.base import describe_unknown

    for number, atoms in enumerate(seeds):
        if not set(atoms.numbers.tolist()) <= set(run.student.elements):
            unknown = describe_unknown(torch.as_tensor(atoms.numbers), run.student.elements)
            name = f"structure {number} ({atoms.get_chemical_formula()})"
            raise UnsupportedElementError(f"{name}: {unknown}")
        if run.teacher is not None:
            run.teacher.check_elements(atoms)


def _check_baselines(run: Run, seeds: Sequence[ase.Atoms]) -> None:
    """Refuse what cannot be compared before any work is done."""
    taken = {str(run.header["sha256"]): "student"}
    if run.teacher is not None:
        taken[run.teacher.info.name] = "teacher"
    check_names(run.baselines, taken)
    for baseline in run.baselines:
        baseline.check_elements(seeds)
        baseline.try_elements(seeds)
    if run.gpumd is not None:
        if run.teacher is None:
            raise UsageError("--gpumd is timed beside the teacher; add --compare-teacher")
        check_gpumd(*run.gpumd, seeds[0])
