"""``fastff train``: distil a teacher, or labels that exist, into a student.

Here: options. Not here: what is shown (:mod:`fastff.cli.train_view`), the distillation (:mod:`fastff.distill.run`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from fastff.cli.label_keys import LabelKeyOption, read_label_keys
from fastff.cli.terminal import DeviceOption, count_devices, make_console, resolve_device
from fastff.cli.train_view import build_listener, print_verdict, warn_of_findings
from fastff.errors import AccuracyError, UsageError

_SOURCE = "What to learn from"
_STUDENT = "Student"
_RUN = "Run"


def train(
    context: typer.Context,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Teacher, such as sevennet, chgnet:r2scan or orb; `fastff teachers` lists them.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            help="Your material: extxyz, cif, POSCAR or any format of ASE.", rich_help_panel=_SOURCE
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labelled frames (extxyz, labels.h5 of an earlier run): no teacher is imported.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    label_key: LabelKeyOption = None,
    temperature: Annotated[
        str, typer.Option(help="Range of interest in K, LOW-HIGH.", rich_help_panel=_SOURCE)
    ] = "300-900",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Teacher evaluations such as 20000, test frames included, or wall time such as 25min.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Most rounds in which the student's own dynamics are labelled; chosen by the budget, 0 for none.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    hessian_vectors: Annotated[
        int,
        typer.Option(
            min=0,
            help="Frames labelled beside their positions too, for Hessian-vector targets: two evaluations each.",
            rich_help_panel=_SOURCE,
        ),
    ] = 0,
    max_atoms: Annotated[
        int, typer.Option(help="Largest cell that is labelled.", rich_help_panel=_SOURCE)
    ] = 120,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(help="Weight file of the teacher.", rich_help_panel=_SOURCE),
    ] = None,
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for the teacher, such as modal=omat24; may be repeated.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    trust_teacher_file: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Load a weight file that needs pickle and is unknown; the reason is stored.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Recipe, or config.yaml of an earlier run; options given beside it override it.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    student: Annotated[
        str,
        typer.Option(
            help="m1, m2, m2-l, m3-l, painn (a baseline), or auto: the smallest of the first four to meet the target.",
            rich_help_panel=_STUDENT,
        ),
    ] = "auto",
    target_accuracy: Annotated[
        float,
        typer.Option(
            help="Wanted min(A_F, A_E, A_S) against the teacher.", rich_help_panel=_STUDENT
        ),
    ] = 0.95,
    cutoff: Annotated[
        float, typer.Option(help="Cut-off radius in Å.", rich_help_panel=_STUDENT)
    ] = 5.0,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps, rounded up to whole passes; chosen if left out.",
            rich_help_panel=_STUDENT,
        ),
    ] = None,
    stop_at: Annotated[
        float | None,
        typer.Option(help="Stop training at this validation accuracy.", rich_help_panel=_STUDENT),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of the optimiser; 0.005, or less for m3-l in small batches, if left out.",
            rich_help_panel=_STUDENT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder for everything; runs/NAME if left out.", rich_help_panel=_RUN
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out, with its config.yaml.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every random draw.", rich_help_panel=_RUN)] = 0,
    require: Annotated[
        bool,
        typer.Option(
            "--require", help="Exit with code 6 if the target is missed.", rich_help_panel=_RUN
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No plan and no progress.", rich_help_panel=_RUN)
    ] = False,
    device: DeviceOption = "auto",
    devices: Annotated[
        str,
        typer.Option(help="Of each node, to train on together; or auto.", rich_help_panel=_RUN),
    ] = "1",
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            help="More than 1: start this with srun or torchrun, see docs/multi_gpu.md.",
            rich_help_panel=_RUN,
        ),
    ] = 1,
) -> None:
    """Distil a teacher into a small, fast student for your material."""
    from fastff.distill.request import CONFIG_NAME, build_request, read_values, require_begun

    values: dict[str, Any] = {
        "teacher": teacher,
        "teacher_weights": teacher_weights,
        "teacher_options": read_options(teacher_option or (), trust_teacher_file),
        "structures": structures,
        "labels": labels,
        "label_keys": read_label_keys(label_key),
        "temperatures": parse_temperatures(temperature),
        "budget": int(budget) if budget and budget.isdigit() else budget,
        "rounds": rounds,
        "hessian_vectors": hessian_vectors,
        "max_atoms": max_atoms,
        "student": student,
        "target": target_accuracy,
        "cutoff": cutoff,
        "n_steps": steps,
        "learning_rate": learning_rate,
        "stop_at": stop_at,
        "seed": seed,
    }
    if config is None and resume and out is not None:
        require_begun(out)
        config = out / CONFIG_NAME
    if config is not None:
        given = {name for name in values if is_given(context, name)}
        values = {**read_values(config), **{name: values[name] for name in given}}
    request = build_request(**values)
    resolve_device(device)
    folder = out or name_folder(request.structures or request.labels, request.teacher)
    console = make_console()
    from fastff.distill.labelling import is_first_process
    from fastff.distill.run import Listener, distill

    with ExitStack() as displays:
        listener = (
            Listener(on_split=warn_of_findings) if quiet else build_listener(console, displays)
        )
        outcome = distill(
            request,
            folder,
            device=device,
            devices=count_devices(devices, device),
            nodes=nodes,
            resume=resume,
            listener=listener if is_first_process() else None,
        )
    if not is_first_process():
        return
    print_verdict(console, outcome)
    if require and not outcome.passed:
        from fastff.report.verdict import format_percent

        kind, weakest = outcome.weakest
        if weakest.overall >= outcome.target:
            reason = "its own dynamics fails above the range of temperatures, or blows up"
        else:
            reason = f"accuracy {format_percent(weakest.overall)} ({weakest.limiting}) on {kind} is below it"
        raise AccuracyError(
            f"target {format_percent(outcome.target)} missed: {reason}; raise --budget or --steps, or choose a larger "
            "--student"
        )


_OPTIONS = {
    "temperatures": ("temperature",),
    "target": ("target_accuracy",),
    "n_steps": ("steps",),
    "label_keys": ("label_key",),
    "teacher_options": ("teacher_option", "trust_teacher_file"),
}
"""Options of the settings that are spelt otherwise."""


def is_given(context: typer.Context, setting: str) -> bool:
    """Whether the user wrote an option of a setting, rather than leaving its default."""
    sources = [context.get_parameter_source(name) for name in _OPTIONS.get(setting, (setting,))]
    return any(source is not None and source.name != "DEFAULT" for source in sources)


def read_options(pairs: Sequence[str], trust: str | None = None) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs; values are YAML scalars. ``trust`` is why a weight file that needs pickle is loaded.

    Raises
    ------
    UsageError
        If a pair has no ``=`` or no key.
    """
    import yaml

    options: dict[str, Any] = {} if trust is None else {"trust": trust}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--teacher-option {pair!r} is not of the form KEY=VALUE")
        options[key.strip()] = yaml.safe_load(value)
    return options


def parse_temperatures(text: str) -> tuple[float, float]:
    """Read ``LOW-HIGH`` or one temperature, in K.

    Raises
    ------
    UsageError
        If the text is neither.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*(?:[-:,]\s*([\d.]+))?\s*K?\s*", text)
    try:
        if match is None:
            raise ValueError
        low = float(match.group(1))
        return low, float(match.group(2) or low)
    except ValueError:
        raise UsageError(f"--temperature {text!r} is not a range in K such as 300-900") from None


def name_folder(source: Path | None, teacher: str | None) -> Path:
    """Default output folder, named after the input and the teacher."""
    stem = source.stem if source is not None else "run"
    parts = [stem] + ([teacher] if teacher else [])
    return Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))
