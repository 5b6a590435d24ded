"""``fastff doctor``: what this machine has, what is missing, and what to do about it.

Here: the checks and their table. Not here: physics checks of a model, or timing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from fastff.cli.terminal import make_console
from fastff.errors import FastFFError

MIN_PYTHON = (3, 11)
BROKEN_EXIT_CODE = 3

CORE_PACKAGES = {
    "numpy": "numpy",
    "ase": "ase",
    "h5py": "h5py",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "torch_geometric": "torch-geometric",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
}
"""Import name -> distribution of what every installation needs beside torch, lightning and vesin."""

MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")


class Status(StrEnum):
    """Outcome of one check; only ``fail`` makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes
    ----------
    name : str
        What was looked at.
    status : Status
    detail : str
        What was found.
    remedy : str
        What to do about it; empty when all is well.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this installation: packages, GPU, kernels, teachers, cache."""
    checks = run_checks()
    broken = any(check.status is Status.FAIL for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        _print_checks(checks)
    if broken:
        raise typer.Exit(BROKEN_EXIT_CODE)


def run_checks() -> list[Check]:
    """Run every check. One that fails in an unforeseen way is reported as failed, with its exception."""
    checks: list[Check] = []
    for part in CHECKS:
        try:
            checks.extend(part())
        except Exception as error:  # a broken package may raise anything, and that is the finding
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            name = part.__name__.removeprefix("check_")
            checks.append(Check(name, Status.FAIL, reason, "reinstall fastff in a new environment"))
    return checks


def check_python() -> Iterator[Check]:
    """Version of the interpreter."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        yield Check("python", Status.FAIL, found, f"install Python {wanted} or newer")
    else:
        yield Check("python", Status.OK, found)


def check_packages() -> Iterator[Check]:
    """Presence of the packages that every installation needs, without importing the slow ones."""
    for module, distribution in CORE_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            yield Check(distribution, Status.FAIL, "not installed", f"pip install {distribution}")
        else:
            yield Check(distribution, Status.OK, _read_version(distribution))


def check_lightning() -> Iterator[Check]:
    """Lightning is there and is not one of the releases that carried malware."""
    found = _read_version("lightning")
    remedy = "pip install 'lightning>=2.6.4'"
    if found in MALICIOUS_LIGHTNING:
        yield Check(
            "lightning", Status.FAIL, f"{found} was malicious", f"{remedy} and change your secrets"
        )
    elif importlib.util.find_spec("lightning") is None:
        yield Check("lightning", Status.FAIL, "not installed", remedy)
    else:
        yield Check("lightning", Status.OK, found)


def check_vesin() -> Iterator[Check]:
    """The neighbor list finds the twelve nearest neighbors in fcc copper."""
    from ase.build import bulk

    from fastff.neighbors import build_edges

    atoms = bulk("Cu")
    edges, _ = build_edges(atoms.positions, atoms.cell.array, atoms.pbc, 3.0)
    if edges.shape[1] == 12:
        yield Check("vesin", Status.OK, _read_version("vesin"))
    else:
        yield Check(
            "vesin",
            Status.FAIL,
            f"{_read_version('vesin')} found {edges.shape[1]} neighbors in fcc copper instead of 12",
            "pip install --force-reinstall vesin",
        )


def check_torch() -> Iterator[Check]:
    """Torch works, and which GPUs it sees."""
    import torch

    total = float(torch.ones(3, dtype=torch.float64).sum())
    if total != 3.0:
        yield Check("torch", Status.FAIL, f"1 + 1 + 1 = {total}", "reinstall torch")
        return
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} CPU threads"
    yield Check("torch", Status.OK, f"{torch.__version__}, {threads}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield Check("gpu", Status.OK, f"cuda:{index} {properties.name}, {memory}")
    elif Path("/proc/driver/nvidia/version").exists():
        build = torch.version.cuda or "no CUDA"
        yield Check(
            "gpu",
            Status.WARN,
            f"an NVIDIA driver is loaded but torch (built for {build}) sees no GPU",
            "install a torch built for CUDA, and check CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
    else:
        yield Check("gpu", Status.OK, "none; models run on the CPU")


def check_triton() -> Iterator[Check]:
    """Triton is needed only where there is a GPU."""
    import torch

    if importlib.util.find_spec("triton") is not None:
        yield Check("triton", Status.OK, _read_version("triton"))
    elif torch.cuda.is_available():
        yield Check(
            "triton", Status.WARN, "not installed; the GPU runs torch ops", "pip install triton"
        )
    else:
        yield Check("triton", Status.OK, "not installed, not needed without a GPU")


def check_kernels() -> Iterator[Check]:
    """Which back end each op takes; ops that take the same one for the same reason share a line."""
    from fastff.kernels import explain

    try:
        rows = explain()
    except FastFFError as error:
        yield Check("kernels", Status.FAIL, str(error), "unset or correct the variable it names")
        return
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for row in rows:
        groups.setdefault((row.backend, row.reason, row.is_error), []).append(row.op)
    for (backend, reason, is_error), ops in groups.items():
        detail = f"{backend} for {', '.join(ops)} ({reason})"
        if is_error:
            yield Check("kernels", Status.FAIL, detail, "unset FASTFF_BACKEND, or set it to auto")
        else:
            yield Check("kernels", Status.OK, detail)


def check_compilation() -> Iterator[Check]:
    """Kernels that would be launched are launched once, on little; what the compiler says of those that it refuses."""
    from fastff.kernels import explain, use
    from fastff.kernels.dispatch import list_failures

    try:
        launched = [row.op for row in explain() if row.backend == "triton" and not row.is_error]
    except FastFFError:
        return  # check_kernels reports it
    if not launched:
        return
    with use("auto"):
        launch_little()
    failures = list_failures()
    for op, failure in failures.items():
        yield Check(
            "compilation",
            Status.WARN,
            f"{op} runs in torch, slower: a Triton kernel failed to compile ({failure.reason})\n{failure.message}",
            "update the driver, torch and triton",
        )
    if not failures:
        yield Check("compilation", Status.OK, f"kernels of {', '.join(launched)} compile")


def launch_little() -> None:
    """Launch the kernels of the ops, and those of dynamics of a small student, on the device of :func:`explain`."""
    import torch
    from ase.build import bulk

    from fastff.kernels import contract
    from fastff.md.engine import Engine
    from fastff.md.potentials import make_potential
    from fastff.md.settings import MDSettings
    from fastff.md.state import build_state
    from fastff.models import build_student, configure_student

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for suite in contract.list_suites():
        contract.launch_once(suite, device)
    student = build_student(configure_student("m1", (29,))).float().to(device).eval()
    settings = MDSettings(n_steps=1)
    state = build_state(bulk("Cu", cubic=True), settings, device)
    engine = Engine(make_potential(student.requires_grad_(False)), state, settings)
    engine.advance(1)
    engine.observe()


def check_teachers() -> Iterator[Check]:
    """Which teachers can label structures here; training from existing labels needs none."""
    from fastff.teachers import TeacherStatus, list_teachers

    families: dict[str, list[TeacherStatus]] = {}
    for status in list_teachers():
        families.setdefault(status.family, []).append(status)
    for family, members in families.items():
        ready = [m.name for m in members if m.installed and m.weights_present]
        if ready:
            yield Check(f"teacher {family}", Status.OK, ", ".join(ready))
        else:
            missing = "weights missing" if any(m.installed for m in members) else "not installed"
            yield Check(f"teacher {family}", Status.WARN, missing, members[0].install_hint)


def check_cache() -> Iterator[Check]:
    """The per-user cache, where measured launch configurations go, can be written."""
    from fastff.kernels.tuning import find_user_table

    folder = find_user_table("any").parent
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Check(
            "cache",
            Status.WARN,
            f"cannot write below {existing}: {error.strerror}",
            "set XDG_CACHE_HOME to a folder you can write to",
        )
    else:
        yield Check("cache", Status.OK, str(folder))


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    check_python,
    check_torch,
    check_triton,
    check_lightning,
    check_packages,
    check_vesin,
    check_kernels,
    check_compilation,
    check_teachers,
    check_cache,
)
"""Every check, in the order of the report."""


def _read_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "version unknown"


def _print_checks(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    styles = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in checks:
        detail = Text(check.detail)
        if check.remedy:
            detail.append(f"\n-> {check.remedy}", style="bold")
        table.add_row(Text(check.status, style=styles[check.status]), check.name, detail)
    console = make_console()
    console.print(table)
    counts = {s: sum(c.status is s for c in checks) for s in Status}
    console.print(
        f"\n{counts[Status.OK]} ok, {counts[Status.WARN]} to know of, {counts[Status.FAIL]} broken"
    )
