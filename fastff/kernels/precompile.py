"""Compilation of launch candidates in several processes, before they are measured one by one.

Here: the shares of work, and the processes. Not here: the measurement (``measuring.py``). Triton keeps what it compiles
on disk, where the process that measures finds it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import torch

from fastff.kernels import candidates, contract, tuning

Widths = Mapping[str, int]
N_EDGES = 5200
"""Size of the workloads (108 atoms): small, because many processes hold them; compiled kernels do not depend on it."""


@dataclass(frozen=True)
class Share:
    """Each ``step``-th candidate from number ``first``, but those before number ``start``."""

    widths: tuple[dict[str, int], ...]
    ops: tuple[str, ...] | None
    device: str
    first: int
    step: int
    start: int = 0
    deadline: float = float("inf")


def precompile_candidates(
    widths: Sequence[Widths],
    device: torch.device,
    n_processes: int,
    *,
    ops: Sequence[str] | None = None,
    budget: float = float("inf"),
) -> int:
    """Launch every candidate at every width once, in processes of their own; return how many ran.

    What fails here is not reported: it fails again, with its reason, when it is measured. A process whose device a
    candidate has lost is replaced by one that goes on behind it. No candidate is begun after ``budget`` seconds.
    """
    plain = tuple(dict(one) | {"n_edges": N_EDGES} for one in widths)
    chosen = None if ops is None else tuple(ops)
    shares = [
        Share(plain, chosen, str(device), k, n_processes, deadline=time.time() + budget)
        for k in range(n_processes)
    ]
    return _run_shares(shares, compile_share)


def _run_shares(shares: Sequence[Share], run: Callable[[Share], tuple[int, int | None]]) -> int:
    """Run shares until each has come to its end; return how many candidates ran."""
    total = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), mp_context=context, max_tasks_per_child=1) as pool:
        running: dict[Future[tuple[int, int | None]], Share] = {
            pool.submit(run, one): one for one in shares
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                share = running.pop(future)
                try:
                    n_done, lost_at = future.result()
                    total += n_done
                    if lost_at is not None:
                        rest = replace(share, start=lost_at + 1)
                        running[pool.submit(run, rest)] = rest
                except BrokenProcessPool:  # the rest is compiled while it is measured
                    return total
    return total


def compile_share(share: Share) -> tuple[int, int | None]:
    """Launch the candidates of a share; return how many ran, and the number of one that lost the device."""
    from triton.errors import TritonError

    seen: set[tuple[str, str]] = set()
    number = n_done = 0
    for one in share.widths:
        for workload in contract.list_workloads(one, torch.device(share.device), share.ops):
            name = (workload.space.kernel, workload.key)
            if name in seen:
                continue
            seen.add(name)
            for config in candidates.list_candidates(workload):
                number += 1
                if number % share.step != share.first or number < share.start:
                    continue
                if time.time() > share.deadline:
                    return n_done, None
                try:
                    with tuning.override(workload.space.kernel, config):
                        workload.run()
                        torch.cuda.synchronize()
                except (RuntimeError, TritonError):
                    if _is_device_lost():
                        return n_done, number
                    continue
                n_done += 1
            del workload  # before the next one is built: other processes need the memory too
            torch.cuda.empty_cache()
    return n_done, None


def _is_device_lost() -> bool:
    """Whether CUDA calls fail in this process from now on."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
