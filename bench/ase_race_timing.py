"""Shared by ``ase_race.py`` and its teachers: moved structures, the clock of a call, memory of the device."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms

Row = dict[str, Any]


def make_frames(atoms: Atoms) -> list[np.ndarray]:
    """Positions of moved atoms, used in turns."""
    rng = np.random.default_rng(1)
    return [atoms.positions + rng.normal(scale=0.02, size=(len(atoms), 3)) for _ in range(8)]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_parts(
    atoms: Atoms, frames: list[np.ndarray], parts: list[Callable[[Any], Any]], calls: int
) -> list[Row]:
    """Wall times of functions called one after another on moved atoms, each given what the one before returned.

    Every frame is met before the clock starts, so that nothing is compiled or enlarged under it. Calls that are slow
    end after 8 s, but not before three.
    """
    times: list[list[float]] = [[] for _ in parts]
    begin, warm = 0.0, len(frames) if calls > 3 else 2
    for k, positions in enumerate(itertools.islice(itertools.cycle(frames), warm + calls)):
        if k == warm:
            begin = time.perf_counter()
        if k >= warm + 3 and time.perf_counter() - begin > 8.0:
            break
        atoms.positions[:] = positions
        value: Any = atoms
        for part, found in zip(parts, times, strict=True):
            wait()
            start = time.perf_counter()
            value = part(value)
            wait()
            found.append(1e3 * (time.perf_counter() - start))
    rows = []
    for found in times:
        ordered = sorted(found[warm:])
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        row = {"calls": len(ordered), "median_ms": statistics.median(ordered)}
        rows.append({**row, "q10_ms": low, "q90_ms": high})
    return rows


def start_memory() -> int:
    """Memory of torch in use now; its peak counts from here."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory(before: int) -> int | None:
    """Peak of torch's memory above what was in use."""
    return torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else None


def time_first(atoms: Atoms, positions: np.ndarray) -> Row:
    """Time of the first call, compilation included, and the size of its forces."""
    atoms.positions[:] = positions
    start = time.perf_counter()
    forces = atoms.get_forces()
    seconds = time.perf_counter() - start
    if not np.isfinite(forces).all():
        raise RuntimeError("forces are not finite")
    rms = float(np.sqrt((forces**2).mean()))
    return {"atoms": len(atoms), "force_rms": rms, "seconds_of_first_call": seconds}
