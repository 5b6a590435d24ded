"""Where a number comes from: machine, software, code version, time and command.

Here: :func:`collect_provenance`, used by every record of a result. Not here: the results themselves.
Paths and names of users or hosts are left out on purpose: records are made to be published.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

PACKAGES = (
    "fastff", "torch", "triton", "ase", "numpy", "vesin", "lightning", "torch-geometric",
    "sevenn", "chgnet", "orb-models", "fennol", "jax", "mace-torch", "phonopy", "spglib", "scipy",
)  # fmt: skip


class Provenance(BaseModel):
    """Machine, software, code version, time and command of one result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: str
    command: str
    commit: str | None
    dirty: bool | None
    cpu: str
    cores: int
    threads: int
    memory: int | None
    load: float | None
    gpu: str | None
    gpu_memory: int | None
    driver: str | None
    cuda: str | None
    system: str
    python: str
    packages: dict[str, str]

    @property
    def machine(self) -> str:
        """One line that names the hardware."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        cpu = f"{self.cpu}, {self.cores} cores, {threads}"
        return f"{self.gpu}; {cpu}" if self.gpu else cpu


def collect_provenance(command: Sequence[str] | None = None) -> Provenance:
    """Describe this machine, this process and this moment.

    Parameters
    ----------
    command : sequence of str, optional
        The command line that reproduces the result; ``sys.argv`` by default. Absolute paths are reduced to their last
        part.

    Returns
    -------
    Provenance
        ``commit`` and ``dirty`` are None unless fastff runs from a git checkout; ``load`` is the machine's one-minute
        load average, which tells a reader whether timings had the machine to themselves.
    """
    words = [strip_folder(word) for word in (sys.argv if command is None else command)]
    commit, dirty = _read_commit()
    gpu: dict[str, Any] = {"gpu": None, "gpu_memory": None, "driver": None, "cuda": None}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu = {
            "gpu": device.name,
            "gpu_memory": int(device.total_memory),
            "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(words),
        commit=commit,
        dirty=dirty,
        cpu=_read_cpu(),
        cores=count_cores(),
        threads=torch.get_num_threads(),
        memory=_read_memory(),
        load=find_load(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_read_versions(),
        **gpu,
    )


def strip_folder(word: str) -> str:
    """``word`` without folders of absolute paths, also where they follow ``:``, ``=`` or ``,``."""
    return re.sub(r"(?:(?<=[:=,])|^)/(?!/)(?:[^/,]*/)*(?=[^/])", "", word)


def _read_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__
    return versions


def _read_commit() -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout that holds this file; (None, None) outside one.

    ``FASTFF_COMMIT`` names the commit where a copy of its tree, not a checkout, is run: nothing is known of changes.
    """
    named = os.environ.get("FASTFF_COMMIT")
    if named:
        return named, None
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    commit = _run("git", "-C", str(root), "rev-parse", "HEAD")
    status = _run("git", "-C", str(root), "status", "--porcelain", "--", "fastff")
    return commit, None if status is None else bool(status)


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


def find_load() -> float | None:
    """One-minute load average; None where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def count_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
