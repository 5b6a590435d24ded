"""The few lines that say what a bench run found.

Here: :func:`write_verdict` and number formats shared by terminal, Markdown and HTML. Not here: the figures themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from fastff.models import LADDER
from fastff.report.metrics import Accuracy
from fastff.report.physics.present import present_physics
from fastff.report.physics.summary import describe_physics
from fastff.report.spread import LEAST_TRAJECTORIES
from fastff.units import EV_PER_A3_TO_GPA, show_formula, show_number, show_percent

if TYPE_CHECKING:
    from fastff.report.calibration import CalibrationData
    from fastff.report.noise import NoiseFloor
    from fastff.report.physics.record import PhysicsPart
    from fastff.report.provenance import Provenance
    from fastff.report.schema import BenchRecord, Comparison, ModelPart, SpeedRatio, Verdict
    from fastff.report.speed import SpeedCurve

UNDEFINED = "–"
WORDING = 8
"""To be raised whenever the lines of a verdict are written differently: stored lines of this wording are compared with
what their record gives, of others only the figures."""

MUCH = 0.2
"""Share of the atoms of a set of frames beyond the training data from which on the verdict says so."""

WIDE = 0.05
"""Width of an interval from which on no accuracy is quoted without it."""


def format_percent(value: float | None, digits: int = 1) -> str:
    """As :func:`~fastff.units.show_percent`, or a dash where there is no value."""
    return UNDEFINED if value is None else show_percent(value, digits)


def format_interval(accuracy: Accuracy, quantity: str) -> str:
    """95 % interval of a quantity or of ``"overall"`` in parentheses, rounded outwards; empty where there is none."""
    if quantity not in accuracy.intervals:
        return ""
    low, high = accuracy.intervals[quantity]
    return f"({show_percent(low).removesuffix(' %')} to {show_percent(high, up=True)})"


def describe_method(accuracy: Accuracy, n_trajectories: int) -> str:
    """What the intervals of a comparison come from, or that there are none."""
    if not accuracy.intervals and n_trajectories >= LEAST_TRAJECTORIES:
        return "no interval was estimated"
    if not accuracy.intervals:
        return f"no interval: {n_trajectories} {'trajectory' if n_trajectories == 1 else 'trajectories'}"
    method = "too narrow, " if accuracy.intervals_by == "bootstrap" else ""
    return f"95 % interval, {method}{accuracy.intervals_by} over {n_trajectories} trajectories"


def format_share(value: float | None) -> str:
    """A fraction in percent, to two significant digits; from 100 % on to whole percents, without an exponent."""
    if value is None:
        return UNDEFINED
    return f"{show_number(value * 100, 2)} %" if value < 0.995 else f"{value * 100:,.0f} %"


def format_seconds(value: float | None) -> str:
    """Seconds to three significant digits, in ms below one second."""
    if value is None:
        return UNDEFINED
    return f"{show_number(value)} s" if value >= 1.0 else f"{show_number(value * 1e3)} ms"


def format_ratio(value: float | None) -> str:
    """``135.4`` as ``135×``; two digits below ten."""
    if value is None:
        return UNDEFINED
    return f"{value:.0f}×" if value >= 10.0 else f"{value:.2g}×"


def describe_ratio(ratio: float) -> tuple[str, str]:
    """How many times faster or slower, and which: ``0.92`` as ``("1.1×", "slower")``."""
    return (
        (format_ratio(ratio), "faster") if ratio >= 1.0 else (format_ratio(1.0 / ratio), "slower")
    )


def format_count(value: float | None) -> str:
    """A large count to three significant digits with k or M."""
    if value is None:
        return UNDEFINED
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{show_number(value / limit)}{unit}"
    return show_number(value)


def format_bytes(value: int | None) -> str:
    """Memory in MiB or GiB."""
    if value is None:
        return UNDEFINED
    if value < 2**20:
        return "< 1 MiB"
    if value < 2**30:
        return f"{value / 2**20:.0f} MiB"
    return f"{value / 2**30:.2g} GiB" if value < 10 * 2**30 else f"{value / 2**30:.0f} GiB"


def format_error(accuracy: Accuracy, quantity: str) -> str:
    """MAE and RMSE of ``"force"``, ``"energy"`` or ``"stress"`` in the units of tables."""
    if quantity == "force":
        return f"MAE {show_number(accuracy.force_mae * 1e3)}, RMSE {show_number(accuracy.force_rmse * 1e3)} meV/Å"
    if (
        quantity == "energy"
        and accuracy.energy_mae is not None
        and accuracy.energy_rmse is not None
    ):
        mae, rmse = (show_number(1e3 * v) for v in (accuracy.energy_mae, accuracy.energy_rmse))
        return f"MAE {mae}, RMSE {rmse} meV/atom"
    if (
        quantity == "stress"
        and accuracy.stress_mae is not None
        and accuracy.stress_rmse is not None
    ):
        pair = accuracy.stress_mae, accuracy.stress_rmse
        mae, rmse = (show_number(EV_PER_A3_TO_GPA * v) for v in pair)
        return f"MAE {mae}, RMSE {rmse} GPa"
    return UNDEFINED


def write_verdict(
    model: ModelPart,
    comparisons: tuple[Comparison, ...],
    noise: NoiseFloor | None,
    headline: SpeedRatio | None,
    provenance: Provenance,
    required: float | None,
    model_path: str,
    physics: PhysicsPart | None = None,
    ended: str | None = None,
    calibration: CalibrationData | None = None,
    curves: Sequence[SpeedCurve] = (),
) -> Verdict:
    """Lines on accuracy, errors, temperatures, atoms beyond the training data, noise floor, speed, limits and physics;
    and the command to run next.

    ``curves`` say what the teacher was timed without. Of a run that ``ended`` early, a last line says so, and no
    required accuracy is met.
    """
    from fastff.report.schema import Verdict

    main = comparisons[0]
    accuracy = main.read_accuracy()
    passed = judge_required(accuracy.overall, required, ended)
    lines = (
        _judge_accuracy(accuracy, main, required, passed),
        f"Errors: force {format_error(accuracy, 'force')} of {show_number(accuracy.force_rms * 1e3)} meV/Å RMS; energy "
        f"{format_error(accuracy, 'energy')}; stress {format_error(accuracy, 'stress')}.",
        *_judge_temperatures(accuracy),
        *([] if calibration is None else _judge_trust(calibration, comparisons)),
        _judge_noise(accuracy, noise, ended),
        _judge_speed(headline, provenance, list_absent(curves)),
        _judge_limits(model, comparisons),
        *([] if physics is None else [describe_physics(present_physics(physics, main))]),
        *([] if ended is None else [f"Incomplete: {ended}."]),
    )
    usage = f"fastff predict {model_path} STRUCTURES"
    command = usage
    if passed is False:
        command = _suggest_training(model)
    elif calibration is not None and calibration.beyond[0] >= MUCH:
        command = _suggest_teaching(model)
    return Verdict(
        required=required, passed=passed, lines=lines, next_command=command, wording=WORDING
    )


def list_lines(record: BenchRecord) -> tuple[str, ...]:
    """The lines of a record's verdict in the present wording, so that pages of old records say what is known today."""
    stored = record.verdict
    if stored.wording == WORDING:
        return stored.lines
    return write_verdict(
        record.model, record.comparisons, record.teacher_noise, record.headline, record.provenance, stored.required,
        record.model.name, record.physics, record.ended, record.calibration, record.speed,
    ).lines  # fmt: skip


def judge_required(overall: float, required: float | None, ended: str | None) -> bool | None:
    """Whether the required accuracy is met; None where nothing is required, and where a run ended too early to tell."""
    if required is None or (ended is not None and overall >= required):
        return None
    return overall >= required


def _suggest_training(model: ModelPart) -> str:
    """The next larger student; after the largest, more labels."""
    larger = dict(pairwise(LADDER)).get(model.architecture)
    change = f"--student {larger}" if larger else "--budget MORE"
    return f"{_suggest_teaching(model)} {change}"


def _suggest_teaching(model: ModelPart) -> str:
    """A student of the structures that it was judged on, which are beyond its training data."""
    return f"fastff train --teacher {model.teacher.get('name', 'NAME')} --structures FILE"


def _judge_accuracy(
    accuracy: Accuracy, main: Comparison, required: float | None, passed: bool | None
) -> str:
    parts = ", ".join(
        f"{name} {format_percent(value)}"
        for name, value in (
            ("force", accuracy.force),
            ("energy", accuracy.energy),
            ("stress", accuracy.stress),
        )
    )
    interval = describe_method(accuracy, main.frames.n_trajectories)
    if "overall" in accuracy.intervals:
        interval = f"{format_interval(accuracy, 'overall').strip('()')}, {interval}"
    bar = ""
    if required is not None:
        words = {True: "met", False: "NOT MET", None: "reached, but the run ended early"}
        bar = f"; required {format_percent(required)}: {words[passed]}"
        low, high = accuracy.intervals.get("overall", (accuracy.overall, accuracy.overall))
        if low < required < high:
            bar += ", but the interval holds the required value"
    return (
        f"Accuracy: {format_percent(accuracy.overall)} ({parts}; {interval}) on {main.frames.n_frames} {main.name} of "
        f"{', '.join(map(show_formula, main.frames.formulas))}{bar}."
    )


def _judge_temperatures(accuracy: Accuracy) -> list[str]:
    """The temperature with the smallest accuracy, where the frames have several."""
    found = [
        (row[quantity], row["temperature"], quantity)
        for row in accuracy.per_temperature
        for quantity in ("force", "energy", "stress")
        if row["temperature"] is not None and row[quantity] is not None
    ]
    if not found:
        return []
    value, temperature, quantity = min(found)
    return [f"Worst temperature: {temperature:.0f} K, {quantity} {format_percent(value)}."]


def _judge_trust(calibration: CalibrationData, comparisons: tuple[Comparison, ...]) -> list[str]:
    """Where many atoms are beyond the training data by the student's own grades, and what its error bars are worth
    there and on the frames that decide; nothing where both are in order.
    """
    doubtful = calibration.list_doubtful()
    beyond = {
        c.name: f"{c.name} ({_list_formulas(c)}) {100.0 * share:.0f} %"
        for c, share in zip(comparisons, calibration.beyond, strict=True)
        if share >= MUCH
    }
    wrong = [c.name for c in comparisons if c.name in doubtful and c.name in beyond]
    if comparisons[0].name in doubtful and comparisons[0].name not in beyond:
        wrong.insert(0, comparisons[0].name)
    where = "there" if wrong == list(beyond) else f"on {' and '.join(wrong)}"
    words = f"error bars {where} are not to be trusted: errors are larger than they say."
    if not beyond:
        return [words[0].upper() + words[1:]] if wrong else []
    first, *others = beyond.values()
    shown = "; ".join([f"{first} of the atoms", *others])
    end = words if wrong else "error bars there are extrapolated."
    return [f"Beyond the training data by the student's own grades: {shown}; {end}"]


def _list_formulas(comparison: Comparison) -> str:
    """The first three, and how many more there are."""
    formulas = comparison.frames.formulas
    more = f" and {len(formulas) - 3} more" if len(formulas) > 3 else ""
    return ", ".join(map(show_formula, formulas[:3])) + more


def _judge_noise(accuracy: Accuracy, noise: NoiseFloor | None, ended: str | None) -> str:
    if noise is None and ended is not None:
        return "Noise floor: not measured."
    if noise is None:
        return "Noise floor: not measured, because the teacher was not run."
    if accuracy.force is None:
        return f"Noise floor: the teacher disagrees with itself by {format_share(noise.force)} of its RMS force."
    share = noise.force / max(1.0 - accuracy.force, 1e-12)
    meaning = (
        "the student's error is its own"
        if share < 0.1
        else "part of the error is the teacher's noise"
    )
    return (
        f"Noise floor: the teacher disagrees with itself by {format_share(noise.force)} of its RMS force, the student "
        f"with the teacher by {format_share(1.0 - accuracy.force)}: {meaning}."
    )


def list_absent(curves: Sequence[SpeedCurve]) -> tuple[str, ...]:
    """Settings of the teacher that were not available, as ``accelerator cueq``, where there was nothing else to try."""
    teacher = next((c for c in curves if c.role == "teacher" and c.mode == "ase-call"), None)
    if teacher is None or teacher.identity.get("tried"):
        return ()
    lines = teacher.identity.get("unavailable", [])
    return tuple(line.partition(":")[0] for line in lines)


def _judge_speed(
    headline: SpeedRatio | None, provenance: Provenance, absent: tuple[str, ...]
) -> str:
    if headline is None:
        return "Speed: not compared with the teacher in this run."
    number, word = describe_ratio(headline.ratio)
    return (
        f"Speed: {number} {word} than the teacher at {headline.n_atoms} atoms "
        f"({format_seconds(headline.student_seconds)} against {format_seconds(headline.teacher_seconds)} per ASE call, "
        f"{provenance.machine})"
        f"{f'; the teacher without {_list_settings(absent)}, not available here' if absent else ''}."
    )


def _list_settings(absent: tuple[str, ...]) -> str:
    """``accelerator cueq, flash``: what several settings are values of is said once."""
    shown: list[str] = []
    for previous, setting in zip(("", *absent), absent, strict=False):
        name, _, value = setting.partition(" ")
        shown.append(value if value and previous.partition(" ")[0] == name else setting)
    return ", ".join(shown)


def _quote_wide(accuracy: Accuracy) -> str:
    """The interval of the overall accuracy after a space, where it is wider than :data:`WIDE`."""
    low, high = accuracy.intervals.get("overall", (0.0, 0.0))
    return f" {format_interval(accuracy, 'overall')}" if high - low > WIDE else ""


def _judge_limits(model: ModelPart, comparisons: tuple[Comparison, ...]) -> str:
    outside = "; ".join(
        f"{c.name}: {format_percent(c.read_accuracy().overall)}{_quote_wide(c.read_accuracy())}"
        for c in comparisons[1:]
    )
    span = (
        f"trained for {model.temperature[0]:.0f} to {model.temperature[1]:.0f} K"
        if model.temperature is not None
        else "the training temperature is not recorded"
    )
    if outside:
        return f"Limits: {span}; outside the {comparisons[0].name}: {outside}."
    return f"Limits: {span}; nothing beyond these frames was tested."
