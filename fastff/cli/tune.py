"""``fastff tune``: measure launch configurations of the kernels on this GPU and keep the fastest.

Here: the command, which widths it measures, its table. Not here: the measurement and the files
(:mod:`fastff.kernels.tuning`), the candidates (beside the kernels).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastff.cli.terminal import DeviceOption, make_console, resolve_device
from fastff.errors import MissingDependencyError

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from fastff.kernels.tuning import Measurement
    from fastff.models import StudentConfig


def tune(
    model: Annotated[
        Path | None,
        typer.Argument(help="Model file whose widths to tune for; the built-in sizes if left out."),
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the table here instead of the user's cache."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=0, help="Processes that compile the candidates first; 0 compiles while measuring."
        ),
    ] = 4,
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
    from fastff.kernels import tuning

    path = out or tuning.find_user_table(tuning.find_arch(target.index))
    configs = list_configs(model)
    if processes > 0:
        from fastff.kernels.precompile import precompile_candidates

        with make_console(stderr=True).status("Compiling the candidates"):
            precompile_candidates([list_widths(one) for one in configs], target, processes)
    measured = measure_kernels(configs, target)
    tuning.write_table(path, measured, tuning.describe_machine(target))
    console = make_console()
    console.print(build_table(measured))
    console.print(f"Written to {path}")


def list_configs(model: Path | None) -> list[StudentConfig]:
    """Configurations to tune for: the one of a model file, or those of all architectures."""
    from fastff.models import ARCHITECTURES, StudentConfig, configure_student

    if model is None:
        return [configure_student(name, (1,)) for name in ARCHITECTURES]
    from fastff.checkpoint import read_header

    return [StudentConfig(**read_header(model)["config"])]


def list_widths(config: StudentConfig) -> dict[str, int]:
    """Widths that the workloads of the ops are built from; ``n_mixed`` for moment students alone."""
    widths = {
        "n_radial": config.n_radial,
        "l_max": 3,
        "n_channels": config.n_channels,
        "n_hidden": max(config.hidden),
    }
    return (
        widths if config.architecture.startswith("painn") else widths | {"n_mixed": config.n_mixed}
    )


def measure_kernels(configs: Iterable[StudentConfig], device: torch.device) -> list[Measurement]:
    """Measure every kernel once per key, with a progress line for each."""
    from fastff.kernels import contract, tuning

    console = make_console(stderr=True)
    measured: dict[tuple[str, str], list[Measurement]] = {}
    for config in configs:
        for workload in contract.list_workloads(list_widths(config), device):
            name = (workload.space.kernel, workload.key)
            if name not in measured:
                with console.status(f"{workload.space.kernel} {workload.key}"):
                    measured[name] = tuning.measure(workload)
    return [one for several in measured.values() for one in several]


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
