"""The ``fastff`` program: its table of commands, how they are loaded, and how errors leave it.

Here: :data:`COMMANDS`, the lazy command group, :func:`main`. Not here: what a command does (its own module), or the
classes of errors (:mod:`fastff.errors`).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastff.cli.terminal import print_error
from fastff.errors import FastFFError

DEBUG_VARIABLE = "FASTFF_DEBUG"
INTERRUPTED_EXIT_CODE = 130


@dataclass(frozen=True)
class CommandSource:
    """Where a sub-command is defined, as a plain typer function, and the heading it is listed under."""

    module: str
    function: str
    panel: str


COMMANDS: dict[str, CommandSource] = {
    "train": CommandSource("fastff.cli.train", "train", "Make a model"),
    "label": CommandSource("fastff.cli.label", "label", "Make a model"),
    "merge": CommandSource("fastff.cli.merge", "merge", "Make a model"),
    "labels": CommandSource("fastff.cli.labels", "labels", "Make a model"),
    "bench": CommandSource("fastff.cli.bench", "bench", "Judge a model"),
    "check": CommandSource("fastff.cli.check", "check", "Judge a model"),
    "models": CommandSource("fastff.cli.models", "models", "Use a model"),
    "predict": CommandSource("fastff.cli.predict", "predict", "Use a model"),
    "md": CommandSource("fastff.cli.md", "md", "Use a model"),
    "teachers": CommandSource("fastff.cli.teachers", "teachers", "This machine"),
    "doctor": CommandSource("fastff.cli.doctor", "doctor", "This machine"),
    "tune": CommandSource("fastff.cli.tune", "tune", "This machine"),
}


class LazyGroup(TyperGroup):
    """Commands of :data:`COMMANDS`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command; None when there is none of that name."""
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            self.commands[cmd_name] = _build_command(cmd_name, COMMANDS[cmd_name])
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load every command when the name is unknown, so that the nearest can be suggested."""
        if args and self.get_command(ctx, args[0]) is None:
            for name in COMMANDS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends with one line and the conventional code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None


def _build_command(name: str, source: CommandSource) -> Any:
    function = getattr(importlib.import_module(source.module), source.function)
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name, rich_help_panel=source.panel)(function)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"fastff {version('fastff')}")
        raise typer.Exit()


@app.callback()
def run(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help=f"Show the traceback of errors; also {DEBUG_VARIABLE}=1. Goes anywhere."
        ),
    ] = False,
) -> None:
    """Distil a foundation force field into a small, fast student for one material."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; ``sys.argv[1:]`` when None.

    Raises
    ------
    SystemExit
        Always. 0 success, 2 usage, 3 missing package or weights, 4 bad data, 5 model file, 6 failed check,
        130 interrupted, 143 terminated, 1 anything else.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end] or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    kept = [word for k, word in enumerate(given) if word != "--debug" or k > end]
    try:
        app(args=kept, prog_name="fastff")
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.exit(report_exception(error))


def report_exception(error: Exception) -> int:
    """Print one line about ``error`` and return the exit code it stands for."""
    if isinstance(error, FastFFError):
        print_error(str(error))
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("fastff"):
        print_error(
            f"the package {error.name!r} is not installed; `fastff doctor` says how to get it"
        )
        return 3
    if isinstance(error, OSError):
        print_error(str(error))
        return 1
    print_error(
        f"unexpected {type(error).__name__}: {error} (this is a defect of fastff: please report it with the "
        "traceback that --debug shows)"
    )
    return 1
