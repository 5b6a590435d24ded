"""Measurement of launch candidates on this GPU, one after another.

Here: what is measured of a workload. Not here: tables of results (``tuning.py``),
the process that a faulting kernel may take down (``measuring.py``).
"""

from __future__ import annotations

from typing import Any

import torch

from fastff.errors import MissingDependencyError
from fastff.kernels.failures import is_compile_failure
from fastff.kernels.tuning import LaunchConfig, Measurement, Workload, find_relative_error, override


def list_candidates(workload: Workload) -> tuple[LaunchConfig, ...]:
    """Return the written default and all other candidates of a workload, in the order they are measured."""
    default = workload.space.find_default(workload.key)
    return (default, *(one for one in workload.space.candidates if one != default))


def measure(workload: Workload) -> list[Measurement]:
    """Measure every candidate of a workload in this process; ``fastff tune`` does it in one of its own.

    A candidate after which the device is lost ends the measurement with its error: nothing can be launched after it.
    :func:`fastff.kernels.measuring.measure_apart` goes on in a new process instead.

    Raises
    ------
    MissingDependencyError
        There is no CUDA device or no Triton.
    """
    if not torch.cuda.is_available():
        raise MissingDependencyError("measuring kernels needs a CUDA device, none is visible")
    reference = workload.reference()
    return [measure_candidate(workload, one, reference) for one in list_candidates(workload)]


def measure_candidate(workload: Workload, config: LaunchConfig, reference: Any) -> Measurement:
    """Time one candidate on this GPU (median over repeats, device events).

    One that does not fit the GPU, does not compile, needs more memory than is free, or whose result is off, is
    rejected with the reason and not timed. Any other error of a launch is raised.
    """
    from triton.testing import do_bench

    time_ms = error = rejected = None
    with override(workload.space.kernel, config):
        try:
            output = workload.run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            error = find_relative_error(output, reference)
            if error <= workload.tolerance:
                time_ms = float(do_bench(workload.run, return_mode="median"))
            else:
                rejected = f"relative error {error:.1e} above {workload.tolerance:.0e}"
        except torch.OutOfMemoryError as failure:
            rejected = f"not enough memory on this GPU: {_find_last_line(failure)}"
        except Exception as failure:
            if not is_compile_failure(failure):
                raise
            rejected = f"does not compile for this GPU: {_find_last_line(failure)}"
    return Measurement(workload.space.kernel, workload.key, config, time_ms, error, rejected)


def _find_last_line(error: BaseException) -> str:
    """Last line of an error's text, where compilers put what is wrong; the type if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
