"""``fastff tune``: measure launch configurations of the kernels on this GPU and keep the fastest.

Here: the command, which widths it measures, its table. Not here: the measurement
(:mod:`fastff.kernels.measuring`), the files (:mod:`fastff.kernels.tuning`), the candidates (beside the kernels).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fastff.cli.terminal import DeviceOption, make_console, resolve_device
from fastff.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from fastff.kernels.measuring import Outcome
    from fastff.kernels.tuning import Measurement
    from fastff.models import StudentConfig

COMPILING_SHARE: Final = 0.5
"""Share of the budget after which compilation goes on only as candidates are measured."""


def tune(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Model file, or shipped model, whose widths to tune for; if left out the built-in sizes, students "
            "before single ops."
        ),
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the table here instead of the user's cache; a new file begins with what the package's table "
            "of this GPU holds, and can take its place.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that compile the candidates first; 0 compiles while measuring. As many as there are "
            "cores, but 12 at most, if left out.",
        ),
    ] = None,
    ops: Annotated[
        list[str] | None,
        typer.Option("--op", "--ops", help="Measure this op alone; may be given several times."),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(min=1.0, help="Seconds after which no further candidate is begun."),
    ] = 240.0,
) -> None:
    """Measure the kernels on this GPU and store the fastest launch configurations.

    Runs look the table up and never measure by themselves. Results keep their accuracy; the order of summation, and
    with it the last digits, may differ between configurations.
    """
    target = resolve_device(device)
    if target.type != "cuda":
        raise MissingDependencyError(
            f"tuning needs a CUDA device and this run has {target.type}; the kernels are not used there, so nothing "
            "is lost"
        )
    from fastff.kernels import contract, tuning

    check_ops(ops, contract.list_tunable())
    arch = tuning.find_arch(target.index)
    path = out or tuning.find_user_table(arch)
    widths = list_all_widths(model)
    end = time.monotonic() + budget
    if processes is None:
        processes = min(os.cpu_count() or 1, 12)
    if processes > 0:
        from fastff.kernels.precompile import precompile_candidates

        with make_console(stderr=True).status("Compiling the candidates"):
            precompile_candidates(
                widths, target, processes, ops=ops, budget=COMPILING_SHARE * budget
            )
    outcome = measure_kernels(widths, target, ops, end - time.monotonic())
    tuning.write_table(
        path,
        outcome.measurements,
        tuning.describe_machine(target),
        finished=outcome.finished,
        base=None if out is None else tuning.find_shipped_table(arch),
    )
    console = make_console()
    console.print(build_table(outcome.measurements))
    for line in list_remarks(outcome, budget):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"Written to {path}")


def check_ops(ops: Sequence[str] | None, known: Sequence[str]) -> None:
    """Refuse names of ops that have nothing to measure.

    Raises
    ------
    UsageError
        With the names that there are.
    """
    if unknown := sorted(set(ops or ()) - set(known)):
        raise UsageError(
            f"--ops {', '.join(unknown)}: no such op to measure; choose from {', '.join(known)}"
        )


def list_remarks(outcome: Outcome, budget: float) -> list[str]:
    """One line per candidate or workload that failed, and one if the time was not enough."""
    lines = list(outcome.remarks)
    if outcome.n_unmeasured:
        lines.append(
            f"The budget of {budget:.0f} s is spent: {outcome.n_unmeasured} pairs of op and model are not or only "
            "partly measured; run again with a longer --budget, or with --ops for the rest"
        )
    return lines


def list_configs(model: Path | None) -> list[StudentConfig]:
    """Configurations to tune for: the one of a model file, or all architectures, with directed messages too."""
    from fastff.models import ARCHITECTURES, StudentConfig, configure_student

    if model is None:
        moments = [configure_student(name, (1,)) for name in ARCHITECTURES if name != "painn"]
        directed = configure_student("m2", (1,), message_degree=1)
        return [*moments, directed, configure_student("painn", (1,))]
    from fastff.checkpoint import read_header

    return [StudentConfig(**read_header(model)["config"])]


def list_all_widths(model: Path | None) -> list[dict[str, int]]:
    """Widths to measure at, the most important ones first: of m1 and m2, of larger students, of directed messages.

    Without a model the sizes of single ops in ``fastff bench --kernels`` (no width) come last.
    """
    widths = list_distinct([list_widths(one) for one in list_configs(model)])
    return widths if model is not None else [*widths, {}]


def list_widths(config: StudentConfig) -> dict[str, int]:
    """Widths that the workloads of the ops are built from; ``n_mixed`` for moment students alone.

    ``message_degree`` where messages are directed.
    """
    widths = {"n_radial": config.n_radial, "n_channels": config.n_channels}
    if config.architecture.startswith(
        "painn"
    ):  # directions alone, and perceptrons of one hidden layer
        return widths | {"l_max": 1, "n_hidden": config.hidden[0]}
    widths |= {"l_max": 3, "n_hidden": max(config.hidden), "n_mixed": config.n_mixed}
    if config.message_degree:
        widths["message_degree"] = config.message_degree
    return widths


def list_distinct(widths: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """Keep the first of equal widths."""
    return [one for k, one in enumerate(widths) if one not in widths[:k]]


def measure_kernels(
    widths: Sequence[dict[str, int]],
    device: torch.device,
    ops: Sequence[str] | None = None,
    budget: float = float("inf"),
) -> Outcome:
    """Measure every kernel once per key, apart from this process, and show which."""
    from fastff.kernels.measuring import measure_apart

    with make_console(stderr=True).status("Measuring") as status:
        return measure_apart(widths, device, ops=ops, budget=budget, report=status.update)


def build_table(measured: Sequence[Measurement]) -> Table:
    """One row per kernel and key: the fastest configuration, its time, and the time of the written default."""
    from rich.table import Table

    from fastff.kernels.tuning import select_fastest

    table = Table("kernel", "key", "configuration", "ms", "default ms", "rejected")
    for best in select_fastest(measured):
        same = [one for one in measured if (one.kernel, one.key) == (best.kernel, best.key)]
        default = same[0].time_ms
        blocks = ", ".join(f"{name}={value}" for name, value in best.config.blocks.items())
        table.add_row(
            best.kernel,
            best.key,
            f"{blocks}, warps={best.config.num_warps}, stages={best.config.num_stages}",
            f"{best.time_ms:.4f}",
            "rejected" if default is None else f"{default:.4f}",
            str(sum(one.rejected is not None for one in same)),
        )
    return table
