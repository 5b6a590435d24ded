"""Launch configurations as data: declared beside the kernels, measured on request, looked up at launch.

Here: the record of a configuration, the tables (user, shipped) and the look-up. Not here: the candidates (each op's
``kernels.py``), the workloads (each op's ``cases.py``), their measurement, which fills the user table
(``candidates.py``), the command (``fastff.cli.tune``).

A look-up never measures: a miss takes the written default, because a timed choice in the middle of a run would decide
the order of summation. Keys hold the dtype and the widths of features, never a number of atoms or edges.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch

from fastff.errors import DataError
from fastff.kernels.dispatch import is_interpreted

TABLE_FORMAT: Final = 1
_SHIPPED_TABLES: Final = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class LaunchConfig:
    """One way to launch a kernel: block sizes by the kernel's parameter names, warps and pipeline stages."""

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int = 1

    def to_arguments(self) -> dict[str, int]:
        """Return the keyword arguments of a Triton launch.

        Contraction to fused multiply-add is asked for by name, because its default differs between versions of Triton.
        """
        return {
            **self.blocks,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads."""
        return {
            "blocks": dict(self.blocks),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> LaunchConfig:
        """Read one table entry; other fields (the time) are ignored."""
        blocks = {str(name): int(value) for name, value in entry["blocks"].items()}
        return cls(blocks, int(entry["num_warps"]), int(entry["num_stages"]))


@dataclass(frozen=True)
class LaunchSpace:
    """What a kernel declares: its name in the tables, the written default and the candidates to measure.

    ``exceptions`` are written defaults of single keys, for widths at which another configuration is known to be better.
    """

    kernel: str
    default: LaunchConfig
    candidates: tuple[LaunchConfig, ...] = ()
    exceptions: tuple[tuple[str, LaunchConfig], ...] = ()

    def find_default(self, key: str) -> LaunchConfig:
        """Return the written default of a key."""
        return dict(self.exceptions).get(key, self.default)


@dataclass(frozen=True)
class Workload:
    """One kernel at one key, ready to be measured.

    Attributes
    ----------
    space : LaunchSpace
    key : str
        From :func:`make_key`.
    launch : callable
        Runs the kernel through its launcher and returns its output tensor or tensors. Where there is a ``restore``,
        that must have been called before: the kernel writes over its input.
    reference : callable
        The same result from the definition, in float64.
    tolerance : float
        Largest accepted ``|out - ref| / |ref|`` (Frobenius norms) of a candidate.
    restore : callable, optional
        Puts the input of a kernel that works in place into its buffers.
    definition : callable, optional
        Returns the definition in a dtype, as a callable that torch can compile.
    """

    space: LaunchSpace
    key: str
    launch: Callable[[], Any]
    reference: Callable[[], Any]
    tolerance: float = 1e-4
    restore: Callable[[], None] | None = None
    definition: Callable[[torch.dtype], Callable[[], Any]] | None = None

    def run(self) -> Any:
        """Launch over fresh input."""
        if self.restore is not None:
            self.restore()
        return self.launch()


@dataclass(frozen=True)
class Measurement:
    """Outcome of one candidate."""

    kernel: str
    key: str
    config: LaunchConfig
    time_ms: float | None
    error: float | None
    rejected: str | None = None
    """Why it was not timed, if it was not."""
    faulted: bool = False
    """Whether it was rejected because it lost the device or its process."""


_override: dict[str, LaunchConfig] = {}


def make_key(dtype: torch.dtype, **widths: int) -> str:
    """Make a table key, for example ``"float32,features=64"``."""
    parts = [f"{name}={value}" for name, value in sorted(widths.items())]
    return ",".join([str(dtype).removeprefix("torch."), *parts])


def lookup(space: LaunchSpace, key: str, device: torch.device) -> LaunchConfig:
    """Return the configuration to launch with: user table, shipped table, written default, in this order."""
    if space.kernel in _override:
        return _override[space.kernel]
    if device.type != "cuda" or is_interpreted():
        return space.find_default(key)
    arch = find_arch(device.index)
    for table in (_load_user_table(arch), _load_shipped_table(arch)):
        entry = table.get((space.kernel, key))
        if entry is not None and entry.blocks.keys() == space.default.blocks.keys():
            return entry
    return space.find_default(key)


def list_settings(space: LaunchSpace, key: str) -> dict[str, LaunchConfig]:
    """Return the written default of a key, under ``""``, and what shipped tables say instead, by architecture."""
    default = space.find_default(key)
    tables = {path.stem: _load_shipped_table(path.stem) for path in _SHIPPED_TABLES.glob("*.json")}
    shipped = {arch: table.get((space.kernel, key), default) for arch, table in tables.items()}
    return {"": default} | {arch: one for arch, one in shipped.items() if one != default}


@contextlib.contextmanager
def override(kernel: str, config: LaunchConfig) -> Iterator[None]:
    """Launch ``kernel`` with ``config`` whatever the tables say; for measurements and tests."""
    previous = _override.get(kernel)
    _override[kernel] = config
    try:
        yield
    finally:
        del _override[kernel]
        if previous is not None:
            _override[kernel] = previous


def is_overridden(kernel: str) -> bool:
    """Whether :func:`override` holds for a kernel now."""
    return kernel in _override


@lru_cache
def find_arch(index: int | None = None) -> str:
    """Return the architecture name tables are filed under: ``"sm_90"``, ``"gfx942"``."""
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(index).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def find_shipped_table(arch: str) -> Path:
    """Return where the table of an architecture that comes with the package lives (it need not exist)."""
    return _SHIPPED_TABLES / f"{arch}.json"


def find_user_table(arch: str) -> Path:
    """Return where the user's table of an architecture lives (it need not exist)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastff" / "kernels" / f"{arch}.json"


def read_table(path: Path) -> dict[tuple[str, str], LaunchConfig]:
    """Read a table of configurations by (kernel, key).

    Raises
    ------
    DataError
        The file is damaged or of another format.
    """
    try:
        data = json.loads(path.read_text())
        if data["format"] != TABLE_FORMAT:
            raise ValueError(f"format {data['format']}, expected {TABLE_FORMAT}")
        return {
            (kernel, key): LaunchConfig.from_dict(entry)
            for kernel, entries in data["entries"].items()
            for key, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a table of launch configurations ({error}): delete it or run 'fastff tune' again"
        ) from error


def write_table(
    path: Path,
    measurements: Sequence[Measurement],
    provenance: dict[str, Any],
    *,
    finished: Collection[tuple[str, str]] | None = None,
    base: Path | None = None,
) -> None:
    """Write the fastest accepted configuration of every (kernel, key); entries of other keys in the file are kept.

    Every entry holds the provenance of its own measurement: GPU, driver, torch, triton, commit and date. Candidates
    that lost the device are listed apart with their reason, under ``failed``; the look-up does not read them.

    Parameters
    ----------
    path : Path
    measurements : sequence of Measurement
    provenance : dict
    finished : collection of (kernel, key), optional
        Those of which every candidate was measured; all by default. Others are added, but replace no entry: the best
        of a few candidates may be slower than what an earlier measurement chose among all.
    base : Path, optional
        Table whose entries are taken where there is no file at ``path`` yet.
    """
    entries: dict[str, dict[str, Any]] = {}
    failed: dict[str, dict[str, Any]] = {}
    source = path if path.exists() else base
    if source is not None and source.exists():
        read_table(source)
        earlier = json.loads(source.read_text())
        entries, failed = earlier["entries"], earlier.get("failed", {})
    if finished is not None:
        measurements = [
            one
            for one in measurements
            if (one.kernel, one.key) in finished or one.key not in entries.get(one.kernel, {})
        ]
    for best in select_fastest(measurements):
        entry = best.config.to_dict() | {
            "time_ms": best.time_ms,
            "error": best.error,
            "provenance": provenance,
        }
        entries.setdefault(best.kernel, {})[best.key] = entry
    for kernel, key in {(one.kernel, one.key) for one in measurements}:
        failed.get(kernel, {}).pop(key, None)
    for one in measurements:
        if one.faulted:
            lost = one.config.to_dict() | {"reason": one.rejected}
            failed.setdefault(one.kernel, {}).setdefault(one.key, []).append(lost)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    content = {"format": TABLE_FORMAT, "entries": entries}
    content |= {"failed": kept} if (kept := {k: v for k, v in failed.items() if v}) else {}
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
    _load_user_table.cache_clear()


def select_fastest(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Keep the fastest accepted measurement of every (kernel, key)."""
    best: dict[tuple[str, str], Measurement] = {}
    for one in measurements:
        current = best.get((one.kernel, one.key))
        if one.time_ms is not None and (
            current is None or current.time_ms is None or one.time_ms < current.time_ms
        ):
            best[one.kernel, one.key] = one
    return list(best.values())


def find_relative_error(output: Any, reference: Any) -> float:
    """Largest ``|out - ref| / |ref|`` over the tensors of a result; infinite if a NaN is among them."""
    outputs = output if isinstance(output, tuple | list) else (output,)
    references = reference if isinstance(reference, tuple | list) else (reference,)
    worst = 0.0
    for one, ref in zip(outputs, references, strict=True):
        if ref.numel() == 0:
            continue
        scale = float(ref.double().norm()) or 1.0
        error = float((one.double() - ref.double()).norm()) / scale
        worst = max(worst, float("inf") if math.isnan(error) else error)
    return worst


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Describe GPU, driver, torch, triton, commit and date, for tables and benchmark results.

    The commit is ``FASTFF_COMMIT`` where that is set, for machines that hold no repository, else what git says.
    """
    from importlib import metadata

    gpu = driver = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(device)
        driver = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    triton = metadata.version("triton") if _has_distribution("triton") else None
    return {
        "gpu": gpu,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "fastff": metadata.version("fastff") if _has_distribution("fastff") else None,
        "commit": os.environ.get("FASTFF_COMMIT")
        or _run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@lru_cache
def _load_user_table(arch: str) -> dict[tuple[str, str], LaunchConfig]:
    path = find_user_table(arch)
    return read_table(path) if path.is_file() else {}


@lru_cache
def _load_shipped_table(arch: str) -> dict[tuple[str, str], LaunchConfig]:
    path = find_shipped_table(arch)
    return read_table(path) if path.is_file() else {}


def _has_distribution(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _run(command: list[str]) -> str | None:
    """First line a command prints, ``None`` if it cannot be run here."""
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
