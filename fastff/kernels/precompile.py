"""Compilation of launch candidates in several processes, before they are measured one by one.

Here: the shares of work, and the processes. Not here: the measurement (``tuning.py``). Triton keeps what it compiles on
disk, where the process that measures finds it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from fastff.kernels import contract, tuning

Widths = Mapping[str, int]


def precompile_candidates(widths: Sequence[Widths], device: torch.device, n_processes: int) -> int:
    """Launch every candidate at every width once, in processes of their own; return how many ran.

    What fails here is not reported: it fails again, with its reason, when it is measured.
    """
    plain = [dict(one) for one in widths]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        shares = [
            pool.submit(compile_share, plain, str(device), k, n_processes)
            for k in range(n_processes)
        ]
        total = 0
        for share in shares:
            with contextlib.suppress(BrokenProcessPool):
                total += share.result()
    return total


def compile_share(widths: Sequence[Widths], device: str, first: int, step: int) -> int:
    """Launch each ``step``-th candidate from number ``first``; return how many ran."""
    from triton.errors import TritonError

    seen: set[tuple[str, str]] = set()
    number = n_done = 0
    for one in widths:
        for workload in contract.list_workloads(one, torch.device(device)):
            name = (workload.space.kernel, workload.key)
            if name in seen:
                continue
            seen.add(name)
            for config in tuning.list_candidates(workload):
                number += 1
                if number % step != first:
                    continue
                try:
                    with tuning.override(workload.space.kernel, config):
                        workload.launch()
                        torch.cuda.synchronize()
                except (RuntimeError, TritonError):
                    continue
                n_done += 1
            del workload  # before the next one is built: other processes need the memory too
            torch.cuda.empty_cache()
    return n_done
