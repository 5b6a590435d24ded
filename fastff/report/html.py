"""One self-contained page that shows a bench record.

Here: :func:`render_report`, and :func:`read_embedded`, which gets the record back out of a page. Not here: the figures
(:mod:`fastff.report.figures`), tables (:mod:`fastff.report.markdown`), the words around them
(``templates/report.html.j2``).

A page is made from a record and nothing else, after the record was verified, and carries it: every number on it can be
traced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastff.errors import DataError
from fastff.report import figures, speed_figures, trust_figures
from fastff.report.markdown import (
    describe_contest,
    describe_doubt,
    describe_intervals,
    describe_mark,
    describe_offsets,
    describe_range,
    describe_teacher,
    sentence,
    tabulate_accuracy,
    tabulate_dynamics,
    tabulate_speed,
    tabulate_temperatures,
)
from fastff.report.physics.present import describe_item, present_physics
from fastff.report.physics.record import PhysicsPart
from fastff.report.physics.rest import list_symmetries
from fastff.report.physics.scatter import describe_criterion
from fastff.report.physics_figures import draw_item
from fastff.report.plotdata import DISTANCE_FRAMES
from fastff.report.record import verify_record
from fastff.report.schema import BenchRecord
from fastff.report.speed import SpeedCurve
from fastff.report.tables import (
    STATUS_WORDS,
    describe_calibration,
    describe_paths,
    tabulate_baselines,
    tabulate_calibration,
    tabulate_paths,
    tabulate_physics,
)
from fastff.report.verdict import (
    UNDEFINED,
    describe_ratio,
    format_bytes,
    format_percent,
    format_share,
    list_lines,
)
from fastff.units import show_number

Figure = tuple[Markup, str]
"""SVG and caption."""


def render_report(record: BenchRecord, *, model_sha256: str | None = None) -> str:
    """Render the page of a record.

    Parameters
    ----------
    record : BenchRecord
        Sealed; it is verified again here.
    model_sha256 : str, optional
        SHA-256 of the tensors of the model the page is for; a record about another one is refused.

    Returns
    -------
    str
        HTML with inline figures and styles; needs no network and no other file.

    Raises
    ------
    DataError
        The record contradicts itself or is about another model.
    """
    verify_record(record, model_sha256=model_sha256)
    environment = Environment(
        loader=PackageLoader("fastff.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    physics = present_physics(record.physics, record.main) if record.physics else None
    content = json.dumps(record.model_dump(mode="json"), allow_nan=False, separators=(",", ":"))
    return environment.get_template("report.html.j2").render(
        record=record,
        title=describe_contest(record),
        verdict_lines=list_lines(record),
        tiles=_list_tiles(record),
        accuracy_table=tabulate_accuracy(record),
        intervals=describe_intervals(record),
        offsets=describe_offsets(record),
        speed_table=tabulate_speed(record),
        teacher_settings=describe_teacher(record),
        teacher_doubt=describe_doubt(record),
        only_trial=describe_mark(record),
        dynamics_table=tabulate_dynamics(record),
        element_table=_tabulate_elements(record),
        temperature_table=tabulate_temperatures(record),
        noise_table=_tabulate_noise(record),
        skipped=_list_skipped(record),
        accuracy_figures=_draw_accuracy(record),
        speed_figures=_draw_speed(record),
        baseline_table=tabulate_baselines(record) if record.baselines else None,
        trust_title=" and ".join(_list_trust(record)).capitalize(),
        trust_figures=_draw_trust(record),
        calibration_table=tabulate_calibration(record.calibration) if record.calibration else None,
        physics=physics,
        physics_table=tabulate_physics(record),
        physics_figures=_draw_physics(physics),
        physics_criterion=describe_criterion(physics) if physics else "",
        physics_symmetries=list_symmetries(physics) if physics else "",
        paths_table=tabulate_paths(record),
        paths_notes=describe_paths(record),
        data_figures=_draw_data(record),
        model_facts=_list_model_facts(record),
        provenance_facts=_list_provenance(record),
        sentence=sentence,
        describe_item=describe_item,
        embedded=Markup(content.replace("<", "\\u003c")),
    )


def read_embedded(page: str) -> BenchRecord:
    """The record that a page carries, verified.

    Raises
    ------
    DataError
        The page carries none, or one that was changed.
    """
    found = re.search(
        r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL
    )
    if found is None:
        raise DataError("this page carries no bench record: it was not written by 'fastff bench'.")
    record = BenchRecord.model_validate_json(found.group(1))
    verify_record(record)
    return record


def _list_tiles(record: BenchRecord) -> list[tuple[str, str, str]]:
    """Big number, what it is, what it is of."""
    accuracy = record.main.read_accuracy()
    mae, rms = (show_number(1e3 * v) for v in (accuracy.force_mae, accuracy.force_rms))
    tiles = [
        (format_percent(accuracy.overall), "accuracy", f"lowest of force, energy, stress: {accuracy.limiting}"),
        (mae, "meV/Å force MAE", f"of {rms} meV/Å RMS"),
    ]  # fmt: skip
    if record.headline is not None:
        number, word = describe_ratio(record.headline.ratio)
        spread = describe_range(record, record.headline.n_atoms, slower=word == "slower")
        of = f"one ASE call, {record.headline.n_atoms} atoms; {spread} from 10 to 90 % of the calls"
        tiles.append((number, word, of))
    if record.teacher_noise is not None:
        floor = format_share(record.teacher_noise.force)
        tiles.append((floor, "noise floor", "teacher against itself, of RMS force"))
    return tiles


def _tabulate_elements(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            symbol,
            str(entry.n_atoms),
            show_number(entry.mae * 1e3),
            show_number(entry.rmse * 1e3),
            format_percent(entry.accuracy),
        ]
        for symbol, entry in record.main.read_accuracy().per_element.items()
    ]
    return ["element", "atoms in frames", "MAE (meV/Å)", "RMSE (meV/Å)", "force accuracy"], rows


def _tabulate_noise(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    sides = [record.teacher_noise, record.student_noise]
    order = next((side.difference for side in sides if side is not None), "fourth")
    rows = []
    for label, name, kind in (
        ("force, rotated copy", "rotation_force", "share"),
        (f"force, 1e-3 Å jitter, {order} difference", "jitter_force", "share"),
        ("force, alone or in a batch", "batch_force", "share"),
        ("energy, rotated copy", "rotation_energy", "energy"),
        ("energy, alone or in a batch", "batch_energy", "energy"),
    ):
        row = [label]
        for side in sides:
            if side is None:
                row.append(UNDEFINED)
            elif kind == "share":
                row.append(format_share(getattr(side, name)))
            else:
                row.append(f"{getattr(side, name) * 1e3:.2g} meV/atom")
        rows.append(row)
    return ["self-disagreement", "teacher", "student"], rows


def _list_skipped(record: BenchRecord) -> list[str]:
    """Why points are missing, one line each."""
    lines = [
        f"{curve.label}, {point.n_atoms} atoms, {STATUS_WORDS[point.status]}: {point.reason}"
        for curve in record.speed
        for point in curve.points
        if point.status != "measured"
    ]
    return list(dict.fromkeys(lines))  # calls and steps are left out for the same reason


def _draw_accuracy(record: BenchRecord) -> list[Figure]:
    parity, accuracy = record.main.parity, record.main.read_accuracy()
    count = 3 * record.main.frames.n_atoms
    outside = f"; {parity.force.outside} beyond the axes" if parity.force.outside else ""
    drawn = [
        (figures.draw_force_parity(parity.force), f"Forces: {count} components{outside}."),
    ]
    if parity.energy:
        caption = f"Energies: {parity.n_energies} frames, each composition less its mean."
        drawn.append((figures.draw_energy_parity(parity.energy, parity.energy_groups), caption))
    if parity.stress:
        drawn.append(
            (figures.draw_stress_parity(parity.stress), f"Stress: {parity.n_stresses} components.")
        )
    drawn.append(
        (
            figures.draw_force_error(parity.force_bins, record.teacher_noise, accuracy.force_rms),
            "Length of the force error against the teacher's force, bins of equal population.",
        )
    )
    return [(Markup(svg), caption) for svg, caption in drawn]


def _describe_memory(curves: Sequence[SpeedCurve]) -> str:
    """What was measured, and of which calculators it was not."""
    kinds: dict[str, list[str]] = {}
    for curve in curves:
        kinds.setdefault(curve.memory_kind, []).append(curve.label)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{', '.join(labels)}: {kind}" for kind, labels in kinds.items())


def _draw_speed(record: BenchRecord) -> list[Figure]:
    curves = [curve for curve in record.speed if curve.mode == "ase-call"]
    if not curves:
        return []
    caption = (
        "Median time of a call or step of each side by what is timed, see the tables; bands are 10 to 90 % of the "
        "repeats, crosses sizes whose ASE call was not measured."
    )
    drawn = [(Markup(speed_figures.draw_speed(record.speed)), caption)]
    if any(point.peak_memory for curve in curves for point in curve.points):
        drawn.append(
            (Markup(speed_figures.draw_memory(curves)), f"Peak memory: {_describe_memory(curves)}.")
        )
    return drawn


def _list_trust(record: BenchRecord) -> list[str]:
    """What the section about trust is of."""
    parts = {"beyond the training range": len(record.comparisons) > 1}
    parts["uncertainty"] = record.calibration is not None
    return [part for part, there in parts.items() if there]


def _draw_trust(record: BenchRecord) -> list[Figure]:
    """Beyond the training range, where there are frames from there, and calibration of uncertainties."""
    drawn = []
    if len(record.comparisons) > 1:
        panel = trust_figures.draw_panel(
            record.comparisons, record.baselines, record.teacher_noise, record.verdict.required
        )
        drawn.append(
            (
                panel,
                "Force accuracy on every set of frames; marks where energy or stress is lower, which is then the "
                "accuracy of that set; negative values are shown as 0.",
            )
        )
    data = record.calibration
    if data is not None:
        caption = f"{describe_calibration(data)} Lines: error of one and two deviations."
        drawn.append((trust_figures.draw_calibration(data), caption))
        caption = "Force error by extrapolation grade, bins of equal population; atoms beyond 1 are in the table below."
        drawn.append((trust_figures.draw_grades(data), caption))
    return [(Markup(svg), caption) for svg, caption in drawn]


def _draw_physics(part: PhysicsPart | None) -> list[Figure]:
    items = part.items if part is not None else ()
    return [(Markup(svg), caption) for item in items for svg, caption in draw_item(item)]


def _draw_data(record: BenchRecord) -> list[Figure]:
    coverage, main = record.main.coverage, record.main
    chosen = "the"
    if main.frames.n_frames > DISTANCE_FRAMES:
        chosen = f"{DISTANCE_FRAMES} of the {main.frames.n_frames}"
    drawn = []
    curve = record.model.training.get("learning_curve")
    if isinstance(curve, list) and len(curve) > 1:
        caption = "Accuracy on validation frames while training, as the model file records it."
        drawn.append((Markup(figures.draw_learning_curve(curve)), caption))
    caption = f"Pair distances in {chosen} {main.name}."
    drawn.append((Markup(figures.draw_coverage(coverage)), caption))
    caption = f"Forces in the {main.name}."
    drawn.append((Markup(figures.draw_force_histogram(coverage)), caption))
    return drawn


def _list_model_facts(record: BenchRecord) -> list[tuple[str, str]]:
    model, teacher, frames = record.model, record.teacher, record.main.frames
    coverage = record.main.coverage
    facts = [
        ("student", f"{model.name}: {model.architecture}, {model.n_parameters} parameters, cut-off {model.cutoff:g} Å, "
         f"{model.dtype}, elements {', '.join(model.elements)}"),
        ("model SHA-256", model.sha256),
        ("teacher", " ".join(str(teacher[k]) for k in ("name", "version") if teacher.get(k)) or UNDEFINED),
        ("teacher's licence", str(teacher.get("licence") or UNDEFINED)),
        ("teacher's citation", str(teacher.get("citation") or UNDEFINED)),
        ("frames", f"{frames.n_frames} frames, {frames.n_atoms} atoms in all, {frames.n_trajectories} trajectories: "
         f"{frames.description}"),
        ("elements in frames", ", ".join(f"{s} {n}" for s, n in coverage.element_counts.items())),
    ]  # fmt: skip
    if coverage.volume_per_atom is not None:
        low, high = coverage.volume_per_atom
        shown = f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"
        facts.append(("volume", f"{shown} Å³/atom"))
    facts.append(("frames SHA-256", frames.digest))
    return facts


def _list_provenance(record: BenchRecord) -> list[tuple[str, str]]:
    p = record.provenance
    commit = UNDEFINED if p.commit is None else p.commit + (" with changes" if p.dirty else "")
    memory = format_bytes(p.memory)
    facts = [
        ("date", p.date),
        ("machine", f"{p.machine}, {memory}"),
        ("system", f"{p.system}, Python {p.python}"),
        ("software", ", ".join(f"{name} {version}" for name, version in p.packages.items())),
        ("commit", commit),
        ("load when measured", UNDEFINED if p.load is None else f"{p.load:g}"),
        (
            "durations",
            ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record.durations.items()),
        ),
        ("record", record.digest),
    ]
    if p.gpu:
        facts.insert(
            2, ("GPU", f"{p.gpu}, {format_bytes(p.gpu_memory)}, driver {p.driver}, CUDA {p.cuda}")
        )
    return facts
