"""Restart files: written in one step, checked on reading.

Here: writing and reading them, and putting a state back. Not here: when they are written.

A file is safetensors with a JSON header: step, a digest over the tensors, the settings and system it belongs to, and
the marks of log and trajectory (:mod:`fastff.md.marks`). Random numbers need no state: they depend on seed and step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from fastff.checkpoint import hash_tensors, write_atomically
from fastff.errors import DataError, UsageError
from fastff.md.settings import fingerprint
from fastff.md.snapshot import RESTART_FIELDS
from fastff.md.state import State

FORMAT_VERSION = 2
"""2 added the place of the trajectory to what a run is bound to, and digests to the marks."""
_KEY = "fastff-md"


@dataclass(frozen=True)
class RestartPoint:
    """What a restart file holds.

    Attributes
    ----------
    step : int
    binding : dict
        Settings, system, model and files that the run is bound to.
    marks : dict
        How far each output file had come; empty before the first frame, when whatever is in their places was begun by
        this run.
    tensors : dict of str to Tensor
        See :data:`~fastff.md.snapshot.RESTART_FIELDS`.
    """

    step: int
    binding: dict[str, Any]
    marks: dict[str, Any]
    tensors: dict[str, Tensor]


def write_restart(
    path: Path,
    step: int,
    arrays: Mapping[str, np.ndarray],
    binding: Mapping[str, Any],
    marks: Mapping[str, Any],
) -> None:
    """Write a restart file; the last one stays intact until the new one is complete on disk."""
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    record = {
        "format": FORMAT_VERSION,
        "step": step,
        "binding": binding,
        "binding_sha256": fingerprint(binding),
        "marks": marks,
        "sha256": hash_tensors(tensors),
    }
    write_atomically(path, serialize(tensors, metadata={_KEY: json.dumps(record)}))


def read_restart(path: Path) -> RestartPoint:
    """Read and check a restart file.

    Raises
    ------
    DataError
        If it is damaged, of another kind, or from a newer fastff.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            header = json.loads((handle.metadata() or {}).get(_KEY, "null"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(
            f"restart file {path} cannot be read ({' '.join(str(error).split())}); start the run anew in another folder"
        ) from error
    if not isinstance(header, dict):
        raise DataError(f"{path} is not a restart file of fastff; start the run anew")
    if header.get("format") != FORMAT_VERSION:
        raise DataError(
            f"restart file {path} has format {header.get('format')!r}, this fastff reads {FORMAT_VERSION}; "
            "continue with the version that wrote it"
        )
    intact = set(tensors) == set(RESTART_FIELDS) and hash_tensors(tensors) == header.get("sha256")
    if not intact or fingerprint(header["binding"]) != header.get("binding_sha256"):
        raise DataError(f"restart file {path} is damaged; start the run anew in another folder")
    return RestartPoint(header["step"], header["binding"], header["marks"], tensors)


def check_binding(point: RestartPoint, binding: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue a run of other settings, another structure or another model.

    Raises
    ------
    UsageError
        Names the first difference.
    """
    wanted = json.loads(json.dumps(binding))
    for part in wanted:
        old, new = point.binding.get(part), wanted[part]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            key = next(k for k in {**old, **new} if old.get(k) != new.get(k))
            part, old, new = f"{part} {key}", old.get(key), new.get(key)
        raise UsageError(
            f"{path} belongs to a run with {part} {old}, this one has {new}; "
            "repeat the options of that run, or start anew in another folder"
        )


def find_stored_skin(path: Path) -> float | None:
    """Skin in Å of the run that a restart file continues; None without a file.

    Raises
    ------
    DataError
        If there is a file and it cannot be read.
    """
    if not path.exists():
        return None
    return float(read_restart(path).binding["settings"]["skin"])


def restore_state(state: State, point: RestartPoint) -> tuple[Tensor, Tensor]:
    """Put a state back in place; return positions and cell at which its neighbor list was built."""
    for name in ("positions", "velocities", "cell", "heat", "work", "slope"):
        getattr(state, name).copy_(point.tensors[name])
    state.step.fill_(point.step)
    device = state.positions.device
    return point.tensors["list_positions"].to(device), point.tensors["list_cell"].to(device)


def remove_strays(path: Path) -> None:
    """Remove temporary files that a killed run has left beside ``path``."""
    for stray in path.parent.glob(f".{path.name}.*.tmp"):
        stray.unlink(missing_ok=True)
