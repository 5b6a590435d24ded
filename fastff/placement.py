"""Where a student lives and in which numbers: devices and dtypes by the names that users give.

Here: :func:`choose_device`, :func:`place_student`, arguments of other calculators. Not here: model files, and the
choice of kernels (:mod:`fastff.evaluator`).
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch

from fastff.errors import UsageError
from fastff.kernels.moment_potential.workspace import PRECISIONS, Options
from fastff.models import Student

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float32-high": torch.float32,
    "float32-highest": torch.float32,
}
"""Dtypes of students by the names that users may give."""

_MEANINGLESS = frozenset(
    {
        "atoms_adapter",
        "system_config",
        "edge_method",
        "max_num_neighbors",
        "half_supercell",
        "conservative",
        "gpu_preprocessing",
        "verbose",
        "energy_terms",
        "matmul_prec",
        "atoms",
    }
)


def place_student(student: Student, device: torch.device, dtype: torch.dtype) -> Student:
    """The student itself if it fits, else a converted copy: others may be using it."""
    there = student.device
    same_device = there.type == device.type and (there.index or 0) == (device.index or 0)
    if student.dtype == dtype and same_device:
        return student
    return copy.deepcopy(student).to(device=device, dtype=dtype)


def choose_device(device: str | None) -> torch.device:
    """The device of a name; by default cuda where there is one.

    Raises
    ------
    UsageError
        If there is no such device, or students do not run there.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r} is not one; use 'cpu' or 'cuda'") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(
            f"device {device!r} is not supported, students run on the CPU and on CUDA; use 'cpu' or 'cuda'"
        )
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} requested but no CUDA GPU is usable; use device='cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {device!r} requested but there are {torch.cuda.device_count()} CUDA GPUs, counted from 0"
        )
    return chosen


def read_compatibility(
    arguments: dict[str, Any], dtype: str, precision: str | None
) -> tuple[torch.dtype, str]:
    """Dtype and kernel precision that arguments ask for; meaningless ones warn once, unknown ones raise.

    ``precision`` is that of the fused kernels, or, as ORBCalculator has it, a dtype.
    """
    chosen, products = dtype, Options().precision
    if precision in DTYPES:
        chosen = precision
    elif precision is not None:
        if precision not in PRECISIONS:
            raise UsageError(
                f"precision {precision!r} is not one of {', '.join((*PRECISIONS, *DTYPES))}"
            )
        products = precision
    if arguments.pop("use_float64", False):
        chosen = "float64"
    idle = sorted(set(arguments) & _MEANINGLESS)
    unknown = sorted(set(arguments) - _MEANINGLESS)
    if unknown:
        raise UsageError(
            f"unknown argument {unknown[0]!r}; FastFFCalculator takes model, device, dtype, precision, charge, spin, "
            "skin, close_contacts, on_extrapolation, directory"
        )
    if idle:
        warnings.warn(
            f"FastFFCalculator has no use for {', '.join(idle)}; ignored", UserWarning, stacklevel=3
        )
    if chosen not in DTYPES:
        raise UsageError(f"dtype {chosen!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[chosen], products
