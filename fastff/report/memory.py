"""Peak memory of a piece of work, on the GPU or in main memory.

Here: :class:`PeakMemory`, and what is still free. Not here: timing (:mod:`fastff.report.timing`).
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import torch

from fastff.memory import release_memory

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_GROUPS = Path("/sys/fs/cgroup")


class PeakMemory:
    """High-water mark of memory above what was in use when the object was made.

    On a CUDA device: bytes that torch's allocator handed out; None where it handed out none, since then something else
    does the work. On the CPU: resident set size of the process, from the kernel's own high-water mark where it can be
    reset (Linux); elsewhere nothing is measured and the values are None.

    Parameters
    ----------
    device : str
        ``"cpu"`` or a CUDA device; where the work is done.
    own_process : bool
        The work is done in another process: nothing is measured.
    """

    def __init__(self, device: str, *, own_process: bool = False) -> None:
        self.device = torch.device(device)
        self.own_process = own_process
        release_memory()
        self.base = self._read("VmRSS")

    @property
    def kind(self) -> str:
        """What the numbers mean, for a table."""
        if self.own_process:
            return "not measured, the calculator works in a process of its own"
        if self.device.type == "cuda":
            return "GPU memory allocated by torch, above that before the calculator was made"
        return "resident memory of the process, above that before the calculator was made"

    def reset(self) -> None:
        """Start a new high-water mark."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                _CLEAR.write_text("5")

    def measure(self) -> int | None:
        """Bytes at the high-water mark since :meth:`reset`, above the base; None where it cannot be measured."""
        peak = self._read("VmHWM")
        if self.own_process or peak is None or self.base is None:
            return None
        above = max(0, peak - self.base)
        return None if above == 0 and self.device.type == "cuda" else above

    def measure_free(self) -> int | None:
        """Bytes still available on the device, what torch keeps for new tensors included; None where unknown."""
        if self.device.type == "cuda":
            kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(
                self.device
            )
            return int(torch.cuda.mem_get_info(self.device)[0]) + kept
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
        except OSError:
            return None
        free = _find_kib(lines, "MemAvailable")
        limit = _read_container_room()
        return min((n for n in (free, limit) if n is not None), default=None)

    def _read(self, key: str) -> int | None:
        if self.device.type == "cuda":
            if key == "VmRSS":
                return int(torch.cuda.memory_allocated(self.device))
            return int(torch.cuda.max_memory_allocated(self.device))
        if not (_STATUS.exists() and os.access(_CLEAR, os.W_OK)):
            return None
        return _find_kib(_STATUS.read_text().splitlines(), key)


def _find_kib(lines: list[str], key: str) -> int | None:
    for line in lines:
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _read_container_room() -> int | None:
    """Room left under the control group's memory limit (version 2 or 1), bytes; None without a limit."""
    layouts = (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
    for limit_name, used_name, statistics_name in layouts:
        try:
            limit = (_GROUPS / limit_name).read_text().strip()
            used = int((_GROUPS / used_name).read_text())
            rows = [line.split() for line in (_GROUPS / statistics_name).read_text().splitlines()]
        except (OSError, ValueError):
            continue
        if not limit.isdigit():
            return None
        files = sum(int(value) for key, value in rows if key in ("inactive_file", "active_file"))
        return int(limit) - used + files
    return None
