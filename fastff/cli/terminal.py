"""What commands share on the terminal: consoles, one-line errors, device and dtype options.

Here: presentation and the options that several commands take. Not here: commands.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from fastff.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress


class DType(StrEnum):
    """Floating-point width that a model runs in."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


ModelArgument = Annotated[
    Path,
    typer.Argument(
        help="Model file written by `fastff train`, or the name of a shipped one (`fastff models`)."
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto prefers a GPU.")
]
DTypeOption = Annotated[DType, typer.Option("--dtype", help="Precision the model runs in.")]


def make_console(*, stderr: bool = False) -> Console:
    """Console on standard output (or error) as it is now, without the colouring of numbers and paths."""
    return Console(stderr=stderr, highlight=False)


def print_error(message: str) -> None:
    """Print ``error: message`` on standard error as one line, however long."""
    line = Text.assemble(("error: ", "bold red"), " ".join(message.split()))
    make_console(stderr=True).print(line, soft_wrap=True)


def print_warning(message: str) -> None:
    """Print ``warning: message`` on standard error as one line, however long."""
    line = Text.assemble(("warning: ", "bold yellow"), " ".join(message.split()))
    make_console(stderr=True).print(line, soft_wrap=True)


def stop_bar(bar: Progress) -> None:
    """Take a bar down if it is up; rich prints an empty line otherwise."""
    if bar.live.is_started:
        bar.stop()


def resolve_device(name: str) -> torch.device:
    """Turn what the user wrote into a device of this machine.

    Raises
    ------
    UsageError
        If ``name`` is not a device name fastff knows.
    MissingDependencyError
        If it asks for a GPU that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r} is not known; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise MissingDependencyError(
                f"--device {name} asks for a GPU but torch {torch.__version__} sees {count}; "
                "use --device cpu, or see `fastff doctor`"
            )
    return device


def count_devices(devices: str, device: str) -> int:
    """Turn what the user wrote into a number of devices; ``auto`` is every GPU in sight, and one where there is none.

    Raises
    ------
    UsageError
        If ``devices`` is no number above 0 and not ``auto``.
    """
    if devices != "auto":
        if not (devices.isdigit() and int(devices) > 0):
            raise UsageError(f"--devices {devices!r} is not a number above 0 or auto")
        return int(devices)
    import torch

    return 1 if device == "cpu" else max(1, torch.cuda.device_count())


def resolve_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of a ``--dtype`` option."""
    import torch

    return torch.float64 if dtype is DType.FLOAT64 else torch.float32
