"""What ``fastff train`` shows: the plan, progress, gates of rounds, the verdict. Not here: its options."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fastff.cli.terminal import print_warning, stop_bar

if TYPE_CHECKING:
    from rich.console import Console

    from fastff.distill.roundlog import GateRow
    from fastff.distill.run import DistillOutcome, Listener
    from fastff.report.metrics import Accuracy


def warn_of_findings(split: Any, report: Any) -> None:
    """What is doubtful about the labels is said even when nothing else is."""
    if not report.sound:
        print_warning(str(report))


def describe_small_sets(split: Any) -> list[str]:
    """What to say about sets of so few frames that their accuracy is a rough guess."""
    return [
        f"only {len(frames)} {name} frames: their accuracy is a rough guess; label more trajectories"
        for name, frames in (("validation", split.validation), ("test", split.test))
        if len(frames) < 10
    ]


def build_listener(console: Console, displays: ExitStack) -> Listener:
    """A listener that prints the plan, progress bars and short summaries; ``displays`` takes the bars down."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from fastff.distill.labelling import describe_caveats, describe_check
    from fastff.distill.rounds import RoundsListener
    from fastff.distill.run import Listener
    from fastff.report.verdict import format_percent

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    labelling = Progress(*columns, console=console)
    label_task = labelling.add_task("labelling", total=None, note="")
    training = Progress(*columns, console=console)
    exploring = Progress(*columns, console=console)
    explore_task = exploring.add_task("round", total=None, note="")
    displays.callback(stop_bar, exploring)
    displays.callback(stop_bar, labelling)
    displays.callback(stop_bar, training)

    def show_plan(plan: Any, teacher: Any) -> None:
        info = teacher.info
        console.print(f"[bold]teacher[/]  {info.name} ({info.version}), licence {info.licence}")
        for note in (*info.notes, *describe_caveats(info)):
            console.print(f"         {note}", style="yellow")
        console.print(str(plan), markup=False, soft_wrap=True)

    def show_check(check: Any) -> None:
        console.print(f"[bold]check[/]    {describe_check(check)}", soft_wrap=True)

    def show_rounds(plan: Any) -> None:
        console.print(f"[bold]rounds[/]   {plan}", soft_wrap=True)
        labelling.start()

    def show_sampling(progress: Any) -> None:
        labelling.update(
            label_task, completed=progress.done, total=progress.total, note=progress.kind
        )

    def show_sampled(report: Any) -> None:
        stop_bar(labelling)
        console.print(str(report), markup=False, soft_wrap=True)

    def show_split(split: Any, report: Any) -> None:
        console.print(f"frames   {split}", markup=False, soft_wrap=True)
        for line in describe_small_sets(split):
            console.print(f"         {line}", markup=False, soft_wrap=True, style="yellow")
        if not report.sound:
            console.print(str(report), markup=False, soft_wrap=True)

    def show_student(name: str, settings: Any) -> None:
        stop_bar(exploring)
        console.print(
            f"[bold]student[/]  {name}, cut-off {settings.cutoff:g} Å, {settings.n_steps} steps of "
            f"about {settings.batch_atoms} atoms",
            soft_wrap=True,
        )

        for task in training.task_ids:
            training.remove_task(task)
        training.add_task("training", total=settings.n_steps, note="")
        training.start()

    def show_step(progress: Any) -> None:
        note = (
            "" if progress.accuracy is None else f"validation {format_percent(progress.accuracy)}"
        )
        training.update(
            training.task_ids[-1], completed=progress.step, total=progress.n_steps, note=note
        )

    def show_trained(name: str, result: Any, accuracy: Accuracy) -> None:
        stop_bar(training)
        console.print(
            f"         {result.n_steps} steps in {result.seconds:.0f} s ({result.stopped}); "
            f"validation accuracy {format_percent(accuracy.overall)}",
            soft_wrap=True,
        )

    def show_exploring(number: int, step: int, n_steps: int) -> None:
        show_bar(f"round {number}", step, n_steps, "student dynamics")

    def show_labelling(number: int, done: int, total: int) -> None:
        show_bar(f"round {number}", done, total, "teacher")

    def show_bar(name: str, done: int, total: int, note: str) -> None:
        exploring.start()
        exploring.update(explore_task, description=name, completed=done, total=total, note=note)

    def show_gate(row: GateRow) -> None:
        stop_bar(exploring)
        console.print(
            f"[bold]round {row.round}[/]  {row.student} trained on {row.n_train} frames; {row.evaluations} evaluations "
            f"and {row.seconds:.0f} s so far; {row.decision}",
            soft_wrap=True,
        )
        for name, accuracy in row.accuracy.items():
            console.print(f"         {describe_group(name, accuracy)}", soft_wrap=True)
        console.print(f"         {describe_dynamics(row)}", soft_wrap=True)

    return Listener(
        on_plan=show_plan,
        on_check=show_check,
        on_rounds=show_rounds,
        on_sampling=show_sampling,
        on_sampled=show_sampled,
        on_split=show_split,
        on_student=show_student,
        on_step=show_step,
        on_trained=show_trained,
        rounds=RoundsListener(show_exploring, show_labelling, show_gate),
    )


def describe_group(name: str, accuracy: Accuracy) -> str:
    """Accuracy of one group of frames in a line."""
    from fastff.report.verdict import format_percent

    return (
        f"{name}: {format_percent(accuracy.overall)} (forces {format_percent(accuracy.force)}, "
        f"energy {format_percent(accuracy.energy)}, stress {format_percent(accuracy.stress)}; "
        f"{'only ' if accuracy.n_frames < 10 else ''}{accuracy.n_frames} frames)"
    )


def describe_dynamics(row: GateRow) -> str:
    """How stable the walkers of a gate were, in a line."""
    found = row.dynamics
    lost = found.get("gate_lost", 0)
    told = f", {lost} that judge went where the student misses the forces" if lost else ""
    return (
        f"dynamics of {found['walkers']} walkers, {found['picoseconds']:.3g} ps: {found['blown_up']} blew up "
        f"({found['gate_blown_up']} of {found['gate_walkers']} that judge), {found['extrapolated']} extrapolated{told}"
    )


def print_verdict(console: Console, outcome: DistillOutcome) -> None:
    """Five lines: result, forces, energy and stress, time, next command."""
    from fastff.report.verdict import format_percent
    from fastff.teachers import is_known

    test, (kind, weakest) = outcome.test, outcome.weakest
    word = "[green]target met[/]" if outcome.passed else "[red]target missed[/]"
    console.print(
        f"[bold]verdict[/]  {outcome.architecture}: accuracy {format_percent(weakest.overall)} on "
        f"{weakest.n_frames} {kind}, "
        f"limited by {weakest.limiting}; {word} ({format_percent(outcome.target)})",
        soft_wrap=True,
    )
    for name, accuracy in outcome.sources.items():
        console.print(f"         {describe_group(name, accuracy)}", soft_wrap=True)
    if outcome.rows:
        console.print(f"         {describe_dynamics(outcome.rows[-1])}", soft_wrap=True)
    console.print(
        f"         forces {format_percent(test.force)} (MAE {1e3 * test.force_mae:.1f} meV/Å, "
        f"teacher RMS {test.force_rms:.2f} eV/Å)",
        soft_wrap=True,
    )
    energy_mae = "" if test.energy_mae is None else f" (MAE {1e3 * test.energy_mae:.2f} meV/atom)"
    console.print(
        f"         energy {format_percent(test.energy)}{energy_mae}, stress {format_percent(test.stress)}",
        soft_wrap=True,
    )
    for text in outcome.caveats:
        console.print(f"         {text}", style="yellow", markup=False, soft_wrap=True)
    if outcome.hessian is not None:
        console.print(
            f"         Hessian-vector products {format_percent(outcome.hessian.accuracy)} "
            f"({outcome.hessian.n_frames} test frames, teacher RMS {outcome.hessian.rms:.2f} eV/Å^2)",
            soft_wrap=True,
        )
    times = ", ".join(f"{name} {value:.0f} s" for name, value in outcome.seconds.items())
    console.print(f"         time: {times}; model: {outcome.model}", soft_wrap=True)
    known = outcome.teacher is not None and is_known(outcome.teacher)
    against = "--compare-teacher" if known else "--labels FILE"
    console.print(f"next     fastff bench {outcome.model} {against}", soft_wrap=True)
