"""Workloads that fail as kernels do, for a measuring process that imports them. Not here: tests."""

from __future__ import annotations

import os
import signal
import time

from fastff.kernels.tuning import LaunchConfig, LaunchSpace, Measurement, Workload

CONFIGS = tuple(LaunchConfig({"BLOCK": block}, 1) for block in (1, 2, 3, 4))
_state = {"lost": False}


def list_workloads(widths, device, ops):
    """Two keys of one kernel for each op; the op named ``unbuildable`` raises instead."""
    (op,) = ops
    if op == "unbuildable":
        raise ValueError("no such lattice\nand more")
    for number in range(2):
        space = LaunchSpace(op, CONFIGS[0], CONFIGS)
        yield Workload(space, f"width={widths['width']},number={number}", int, int)


def measure(workload: Workload, config: LaunchConfig, reference: object) -> Measurement:
    """Time BLOCK ms, but for what the op's name asks BLOCK=2 to do."""
    kernel, block = workload.space.kernel, config.blocks["BLOCK"]
    if block == 2 and kernel == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if block == 2 and kernel == "hangs":
        time.sleep(60.0)
    if block == 2 and kernel == "loses":
        _state["lost"] = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice")
    if block == 2 and kernel == "rejects":
        raise RuntimeError("too much of something")
    if block == 1 and kernel == "slow":
        time.sleep(3.0)
    synchronize()
    return Measurement(kernel, workload.key, config, float(block), 0.0)


def synchronize() -> None:
    """Fail after a lost device, as CUDA does for the rest of the process."""
    if _state["lost"]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice")


def make_tools():
    from fastff.kernels.measuring import Tools

    return Tools(list_workloads, measure, synchronize)
