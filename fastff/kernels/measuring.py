"""Measurement of launch candidates in a process of its own, which a faulting kernel may take down.

Here: the process that measures, and the one that watches it, notes what was lost and goes on in a new one. Not here:
how one candidate is measured (``candidates.py``), where results are kept (``tuning.py``), compilation beforehand
(``precompile.py``).

A kernel that reads or writes outside its memory leaves a CUDA context in which every later call fails. The candidate
that did it is recorded with the reason, and a new process goes on behind it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from fastff.kernels import candidates, contract
from fastff.kernels.tuning import LaunchConfig, Measurement, Workload

Widths = Mapping[str, int]
CANDIDATE_LIMIT: Final = 60.0
"""Seconds after which a candidate, its compilation included, counts as hanging."""
START_LIMIT: Final = 180.0
"""Seconds that a process may take to start, or to build the workloads of an op and their float64 results."""


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Tools:
    """What the measuring process calls; functions that a new process can import. Tests put others in."""

    list_workloads: Callable[..., Iterator[Workload]] = contract.list_workloads
    measure: Callable[[Workload, LaunchConfig, Any], Measurement] = candidates.measure_candidate
    synchronize: Callable[[], None] = _synchronize


@dataclass(frozen=True)
class Request:
    """What one process is to measure: every pair of ``parts`` (widths, op) but the candidates of ``done``."""

    parts: tuple[tuple[dict[str, int], str], ...]
    device: str
    done: frozenset[str]
    deadline: float
    tools: Tools


@dataclass(frozen=True)
class Outcome:
    """What was measured, and one line on everything that was not as it should be."""

    measurements: tuple[Measurement, ...]
    remarks: tuple[str, ...]
    n_unmeasured: int
    """Pairs of widths and op that the time did not suffice for, wholly or in part."""
    finished: frozenset[tuple[str, str]] = frozenset()
    """Kernels and keys all of whose candidates were measured."""


def measure_apart(
    widths: Sequence[Widths],
    device: torch.device,
    *,
    ops: Sequence[str] | None = None,
    budget: float = float("inf"),
    report: Callable[[str], None] = lambda line: None,
    tools: Tools | None = None,
    candidate_limit: float = CANDIDATE_LIMIT,
    start_limit: float = START_LIMIT,
) -> Outcome:
    """Measure every candidate of every workload once, in a process that is replaced when it is lost.

    All ops at the first widths come before those at the next ones, so what matters most is named first.

    Parameters
    ----------
    widths : sequence of mapping
        Widths of the models, as ``contract.list_workloads`` takes them.
    device : torch.device
    ops : sequence of str, optional
        Names of ops; all of ``contract.list_tunable`` by default.
    budget : float
        Seconds after which no further candidate is begun.
    report : callable
        Called with the name of every kernel and key when its measurement begins.
    tools : Tools, optional
    candidate_limit, start_limit : float
        Seconds without a word after which the process is ended.

    Returns
    -------
    Outcome
    """
    chosen = contract.list_tunable() if ops is None else tuple(ops)
    parts = tuple((dict(one), op) for one in widths for op in chosen)
    request = Request(
        parts, str(device), frozenset(), time.time() + budget, tools if tools else Tools()
    )
    watch = _Watch(request, report, candidate_limit, start_limit)
    while watch.parts and time.time() < request.deadline:
        watch.run_process()
    return Outcome(
        tuple(watch.measured.values()),
        tuple(watch.remarks),
        len(watch.parts),
        frozenset(watch.finished),
    )


class _Watch:
    """The side that does not touch the GPU: starts processes and keeps what they say."""

    def __init__(
        self, request: Request, report: Callable[[str], None], candidate_limit: float, start: float
    ) -> None:
        self.request, self.report = request, report
        self.limits = {True: candidate_limit, False: start}
        self.parts = list(request.parts)
        self.measured: dict[str, Measurement] = {}
        self.finished: set[tuple[str, str]] = set()
        self.remarks: list[str] = []
        self.current: tuple[str, str, LaunchConfig] | None = None

    def run_process(self) -> None:
        """Run one process to its end, and note why it ended early if it did."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        request = replace(self.request, parts=tuple(self.parts), done=frozenset(self.measured))
        process = context.Process(target=_measure_parts, args=(there, request), daemon=True)
        process.start()
        there.close()
        self.current = None
        patience = 0.0
        try:
            reason = self._listen(here)
            patience = 5.0 if not reason else 0.5  # one that hangs or lost its device may never end
        finally:
            process.join(patience)
            if process.is_alive():
                process.kill()
                process.join()
            here.close()
        if reason is not None:
            self._note_loss(reason if reason else _describe_exit(process.exitcode))

    def _listen(self, connection: Connection) -> str | None:
        """Take messages until the process ends; return why it was lost: empty if it did not say, None if it was not."""
        while True:
            limit = self.limits[self.current is not None]
            if not connection.poll(limit):
                return f"nothing came for {limit:.0f} s"
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                return ""
            if kind == "begin":
                self.current = content
                self.report(f"{content[0]} {content[1]}")
            elif kind == "result":
                self.measured[_identify(content.kernel, content.key, content.config)] = content
                self.current = None
            elif kind == "finished":
                self.finished.add(content)
            elif kind == "part":
                self.parts.remove(content)
                self.current = None
            elif kind == "lost":
                return str(content)
            else:  # "end": all parts are done, or the time is over
                return None

    def _note_loss(self, reason: str) -> None:
        if self.current is None:
            widths, op = self.parts.pop(0)
            self.remarks.append(f"{op} at {widths} was left out: its workload failed: {reason}")
            return
        kernel, key, config = self.current
        lost = Measurement(kernel, key, config, None, None, reason, faulted=True)
        self.measured[_identify(kernel, key, config)] = lost
        self.remarks.append(f"{kernel} {key} {_describe(config)} failed: {reason}")


def _measure_parts(connection: Connection, request: Request) -> None:
    """Measure in this process and tell the watching one; return early once the device is lost."""
    done = set(request.done)
    try:
        for widths, op in request.parts:
            if not _measure_part(connection, request, widths, op, done):
                break
            _free_memory()
            connection.send(("part", (widths, op)))
        connection.send(("end", None))
    except Exception as error:
        connection.send(("lost", f"{type(error).__name__}: {_find_first_line(error)}"))
        connection.close()
        os._exit(1)  # a lost device can hang or abort the orderly end


def _measure_part(
    connection: Connection, request: Request, widths: Widths, op: str, done: set[str]
) -> bool:
    """Measure one op at one set of widths; return False when the time is over."""
    workloads = request.tools.list_workloads(widths, torch.device(request.device), (op,))
    return all(_measure_workload(connection, request, one, done) for one in workloads)


def _measure_workload(
    connection: Connection, request: Request, workload: Workload, done: set[str]
) -> bool:
    """Measure the candidates that are not ``done``; return False when the time is over."""
    kernel, key = workload.space.kernel, workload.key
    configs = [
        one
        for one in candidates.list_candidates(workload)
        if _identify(kernel, key, one) not in done
    ]
    if not configs:
        connection.send(("finished", (kernel, key)))
        return True
    if time.time() > request.deadline:
        return False
    reference = workload.reference()
    request.tools.synchronize()
    for config in configs:
        if time.time() > request.deadline:
            return False
        connection.send(("begin", (kernel, key, config)))
        try:
            found = request.tools.measure(workload, config, reference)
        except RuntimeError as error:
            request.tools.synchronize()  # raises when the device is lost
            found = Measurement(kernel, key, config, None, None, _find_first_line(error))
        request.tools.synchronize()
        done.add(_identify(kernel, key, config))
        connection.send(("result", found))
    connection.send(("finished", (kernel, key)))
    return True


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _identify(kernel: str, key: str, config: LaunchConfig) -> str:
    return f"{kernel} {key} {_describe(config)}"


def _describe(config: LaunchConfig) -> str:
    blocks = ", ".join(f"{name}={value}" for name, value in sorted(config.blocks.items()))
    return f"{blocks}, warps={config.num_warps}, stages={config.num_stages}"


def _describe_exit(code: int | None) -> str:
    return (
        f"its process was ended by signal {-code}"
        if code is not None and code < 0
        else f"its process ended with code {code}"
    )


def _find_first_line(error: BaseException) -> str:
    """First line of an error's text: CUDA errors put what happened there and general advice below."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()
