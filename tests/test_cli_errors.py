"""How the program ends: exit codes, one line on standard error, tracebacks only when asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastff import errors
from fastff.cli import root

Run = Callable[..., tuple[int, str, str]]

raised: list[BaseException] = []


def explode() -> None:
    """Raise what the test wants raised."""
    raise raised.pop()


@pytest.fixture
def explosive(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Add a command that raises the exception given."""
    source = root.CommandSource(__name__, "explode", "Test")
    monkeypatch.setitem(root.COMMANDS, "explode", source)
    return raised.append


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.FastFFError, 1),
        (errors.UsageError, 2),
        (errors.MissingDependencyError, 3),
        (errors.DataError, 4),
        (errors.UnsupportedElementError, 4),
        (errors.ModelFileError, 5),
        (errors.AccuracyError, 6),
    ],
)
def test_own_errors_print_one_line_and_their_code(
    run_cli: Run, explosive: Callable[[BaseException], None], kind: type[Exception], code: int
) -> None:
    explosive(kind("the cell is [0 0 0]:\n  give a [bold]cell[/bold] " + "and more " * 30))
    status, out, err = run_cli("explode")
    assert status == code
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: the cell is [0 0 0]: give a [bold]cell[/bold] and more")


def test_debug_shows_the_traceback_wherever_it_stands(
    run_cli: Run, explosive: Callable[[BaseException], None]
) -> None:
    for arguments in (("--debug", "explode"), ("explode", "--debug")):
        explosive(errors.DataError("bad"))
        status, _, err = run_cli(*arguments)
        assert status == 4
        assert "Traceback (most recent call last)" in err
        assert err.endswith("error: bad\n")


def test_debug_variable(
    run_cli: Run, explosive: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, shown in (("1", True), ("0", False)):
        monkeypatch.setenv("FASTFF_DEBUG", value)
        explosive(errors.DataError("bad"))
        assert ("Traceback" in run_cli("explode")[2]) is shown


def test_unexpected_error_asks_for_a_report(
    run_cli: Run, explosive: Callable[[BaseException], None]
) -> None:
    explosive(RuntimeError("shape mismatch"))
    status, _, err = run_cli("explode")
    assert status == 1
    assert err.startswith("error: unexpected RuntimeError: shape mismatch")
    assert "please report" in err
    assert "--debug" in err
    assert err.count("\n") == 1


def test_missing_package_is_a_missing_dependency(
    run_cli: Run, explosive: Callable[[BaseException], None]
) -> None:
    explosive(ModuleNotFoundError("No module named 'sevenn'", name="sevenn"))
    status, _, err = run_cli("explode")
    assert status == 3
    assert "'sevenn' is not installed" in err


def test_own_module_missing_is_a_defect(
    run_cli: Run, explosive: Callable[[BaseException], None]
) -> None:
    explosive(ModuleNotFoundError("No module named 'fastff.nothing'", name="fastff.nothing"))
    status, _, err = run_cli("explode")
    assert status == 1
    assert "please report" in err


def test_operating_system_error_is_no_defect(
    run_cli: Run, explosive: Callable[[BaseException], None]
) -> None:
    explosive(PermissionError(13, "Permission denied", "out.json"))
    status, _, err = run_cli("explode")
    assert status == 1
    assert "Permission denied" in err
    assert "report" not in err


def test_interrupt(run_cli: Run, explosive: Callable[[BaseException], None]) -> None:
    explosive(KeyboardInterrupt())
    assert run_cli("explode") == (130, "", "error: interrupted\n")


def test_unknown_command_suggests_the_nearest(run_cli: Run) -> None:
    status, _, err = run_cli("predct")
    assert status == 2
    assert "'predict'" in err


@pytest.mark.parametrize(
    "arguments", [("predict",), ("doctor", "--no-such-option"), ("teachers", "extra")]
)
def test_usage_errors(run_cli: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = run_cli(*arguments)
    assert status == 2
    assert out == ""
    assert "Usage: fastff" in err
    assert "Traceback" not in err


def test_without_arguments_shows_help(run_cli: Run) -> None:
    status, out, err = run_cli()
    assert status == 2
    assert "predict" in out + err


def test_help_is_grouped_and_lists_every_installed_command(run_cli: Run) -> None:
    status, out, _ = run_cli("--help")
    assert status == 0
    assert {"train", "bench", "predict", "teachers", "doctor"} <= set(root.COMMANDS)
    for name, source in root.COMMANDS.items():
        assert f" {name} " in out
        assert source.panel in out


def test_command_whose_module_is_missing_is_a_defect(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = root.CommandSource("fastff.cli.no_such_module", "later", "Later")
    monkeypatch.setitem(root.COMMANDS, "later", source)
    code, _, err = run_cli("later")
    assert code == 1
    assert "fastff.cli.no_such_module" in err
    assert "please report" in err


def test_version(run_cli: Run) -> None:
    from importlib.metadata import version

    assert run_cli("--version") == (0, f"fastff {version('fastff')}\n", "")


HEAVY = ("torch", "ase", "numpy", "h5py", "lightning", "matplotlib", "torch_geometric", "triton")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom fastff.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_interrupt_signal_ends_the_process(tmp_path: Path) -> None:
    """Ctrl-C during work, in a process of its own: one line, code 130."""
    module = tmp_path / "waiting.py"
    module.write_text(
        "import time\ndef wait() -> None:\n"
        "    'Wait.'\n    print('waiting', flush=True)\n    time.sleep(60)\n"
    )
    program = (
        "import signal\n"  # a shell starts its background jobs with SIGINT ignored; this one must not be
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fastff.cli import root\n"
        "root.COMMANDS['wait'] = root.CommandSource('waiting', 'wait', 'Test')\n"
        "root.main(['wait'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "error: interrupted\n"
