"""Processes that train one student, or label, together.

Here: whether this process was started as one of several, and how Lightning is to join them. Not here: starting them
(:mod:`fastff.distill.launch`, torchrun, SLURM), the division of batches (:mod:`fastff.distill.data`).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from fastff.errors import UsageError
from fastff.report.provenance import count_cores


def count_processes() -> int:
    """Processes of the group that a launcher started this one in; 1 without a launcher.

    Raises
    ------
    UsageError
        SLURM was asked for tasks in a way that Lightning does not take.
    """
    environments: tuple[type[ClusterEnvironment], ...] = (TorchElasticEnvironment, SLURMEnvironment)
    for environment in environments:
        if environment.detect():
            try:
                return int(environment().world_size())
            except RuntimeError as error:
                raise UsageError(" ".join(str(error).split())) from error
    if LightningEnvironment().creates_processes_externally:  # LOCAL_RANK is set
        return int(os.environ.get("WORLD_SIZE", "1"))
    return 1


def check_group(devices: int, nodes: int) -> bool:
    """Whether the processes that are to work together have been started already.

    Parameters
    ----------
    devices, nodes : int
        Processes of each node, and nodes.

    Raises
    ------
    UsageError
        The numbers make no sense, or a launcher started another number of processes, or none on several nodes.
    """
    if devices < 1 or nodes < 1:
        raise UsageError(
            f"{devices} devices on {nodes} nodes make no sense; use at least 1 of each"
        )
    wanted, found = devices * nodes, count_processes()
    if found > 1 and found != wanted:
        raise UsageError(
            f"the launcher started {found} processes, but devices x nodes is {devices} x {nodes}; make them equal"
        )
    if found == 1 and nodes > 1:
        raise UsageError(
            f"work on {nodes} nodes needs a launcher that starts a process for every device: srun or torchrun"
        )
    return found == wanted


def check_launched(devices: int, nodes: int, *, labels_exist: bool) -> None:
    """Refuse what a whole distillation cannot do with these processes, before any work.

    Raises
    ------
    UsageError
        As :func:`check_group`; or a launcher started several processes and there is something to label first.
    """
    check_group(devices, nodes)
    if count_processes() > 1 and not labels_exist:
        raise UsageError(
            f"a launcher started {count_processes()} processes that would wait for the teacher; label first with "
            "`fastff label`, then train with --labels"
        )


def share_cores(n_processes: int) -> int:
    """Threads for each of several processes of this machine: what the environment says, or its part of the cores.

    SLURM's ``--cpus-per-task`` is the share of a process only where every process is a task of its own; a single task
    that starts the others divides its cores.
    """
    if threads := _read_count("OMP_NUM_THREADS"):
        return threads
    if _read_count("SLURM_NTASKS") > 1 and (cores := _read_count("SLURM_CPUS_PER_TASK")):
        return cores
    return max(1, count_cores() // n_processes)


def _read_count(name: str) -> int:
    """A number above 0 from the environment, else 0."""
    said = os.environ.get(name, "")
    return int(said) if said.isdigit() else 0


def place_trainer(device: str, devices: int = 1, nodes: int = 1) -> dict[str, Any]:
    """Lightning's options for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is a GPU or the CPU.

    Raises
    ------
    UsageError
        One device is named, or fewer GPUs are there than are asked for.
    """
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device
    on_gpu = chosen.startswith("cuda")
    if devices * nodes == 1:
        if not on_gpu:
            return {"accelerator": "cpu", "devices": 1}
        return {"accelerator": "gpu", "devices": [torch.device(chosen).index or 0]}
    if chosen not in ("cpu", "auto", "cuda"):
        raise UsageError(f"device {device} with {devices} devices: name the kind only, cpu or cuda")
    if on_gpu and torch.cuda.device_count() < devices:
        raise UsageError(
            f"{devices} devices asked for, but this machine has {torch.cuda.device_count()} GPUs"
        )
    return {
        "accelerator": "gpu" if on_gpu else "cpu",
        "devices": devices,
        "num_nodes": nodes,
        "strategy": DDPStrategy(
            process_group_backend=None if on_gpu else "gloo",
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # they do not change in training
        ),
    }


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, on every one of them; the tensor itself where there is one."""
    if count_ranks() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def gather_from_ranks(value: Any) -> list[Any]:
    """A value of every process, in the order of ranks, on every one of them."""
    if count_ranks() == 1:
        return [value]
    gathered: list[Any] = [None] * count_ranks()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def find_rank() -> int:
    """Number of this process within the group that has joined, from 0."""
    return torch.distributed.get_rank() if count_ranks() > 1 else 0


def count_ranks() -> int:
    """Processes of the group that has joined; 1 without one."""
    available = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if available else 1
