"""What ``fastff bench --kernels`` runs around the evaluation, at 108,000 atoms, with definitions and least work.

Here: the half steps of dynamics, staging, and the neighbor list where its definition is too slow. Not here: ops, the
evaluation, the skin check, the small neighbor list (:mod:`fastff.report.kernel_work`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastff.kernels import philox
from fastff.report import kernel_work
from fastff.report.kernel_work import Maker, Work, compile_all, count_bytes
from fastff.units import BOLTZMANN_EV_PER_K, FEMTOSECOND

REACH = 5.5
"""Å, cut-off and skin of the lists."""
TEMPERATURE = 300.0
MASS = 63.546
FIRST_STEP = 5


def list_makers(device: torch.device) -> list[tuple[Maker, tuple[str, ...]]]:
    """As :func:`fastff.report.kernel_work.list_makers`; nothing where there is no CUDA device."""
    if device.type != "cuda":
        return []
    staging = ("staging, positions", "staging, contacts", "staging, results")
    return [
        (make_steps, ("md_step, NVT",)),
        (make_staging, staging),
        (make_large_list, ("neighbor_list, bins",)),
    ]


def make_steps(device: torch.device) -> Iterator[Work]:
    """Both halves of a step of Langevin dynamics (BAOAB), noise included, without the evaluation between them."""
    from fastff.kernels.md_step import Motion, Schedule, StepKernels, reference
    from fastff.kernels.moment_potential.cases import build_lattice

    system = build_lattice("Cu", kernel_work.CELLS, 5.4, device, rattle=0.1)
    start = system.positions.double()
    n_atoms = len(start)
    generator = torch.Generator().manual_seed(0)
    timestep, thermal = 2.0 * FEMTOSECOND, BOLTZMANN_EV_PER_K * TEMPERATURE
    decay, seed = math.exp(-2.0 / 100.0), 7

    def draw(scale: float) -> Tensor:
        normal = torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)
        return (scale * normal).to(device)

    speeds, forces = draw(math.sqrt(thermal / MASS)), draw(1.0)
    inverse = torch.full((n_atoms, 1), 1.0 / MASS, dtype=torch.float64, device=device)
    masses = torch.full_like(inverse, MASS)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    step = torch.full((), FIRST_STEP, dtype=torch.int64, device=device)
    flag = torch.zeros((), dtype=torch.bool, device=device)
    motion = Motion(
        start.clone(), speeds.clone(), inverse, step.clone(), step + 10**9, flag.clone(), flag.clone(),
        zero.clone(),
    )  # fmt: skip
    schedule = Schedule(timestep, 1.0, "langevin", decay, thermal, 0.0, seed)
    kernels = StepKernels(motion, schedule)
    stale = torch.zeros((), dtype=torch.int32, device=device)

    def restore() -> None:
        motion.positions.copy_(start)
        motion.velocities.copy_(speeds)
        motion.step.copy_(step)
        motion.heat.zero_()

    def run() -> tuple[Tensor, ...]:
        kernels.begin(forces)
        kernels.finish(forces, zero, stale)
        return motion.positions, motion.velocities, motion.heat

    atoms, bath = torch.arange(n_atoms, device=device), zero + thermal

    def define() -> tuple[Tensor, ...]:
        kicked = reference.kick(speeds, forces, inverse, timestep)
        half = reference.drift(start, kicked, 0.5 * timestep)
        noise = philox.draw_normals(atoms, step.view(1, 1), seed)[0]
        noisy = reference.add_noise(kicked, inverse, decay, bath, noise)
        heat = reference.measure_kinetic(noisy, masses) - reference.measure_kinetic(kicked, masses)
        moved = reference.drift(half, noisy, 0.5 * timestep)
        return moved, reference.kick(noisy, forces, inverse, timestep), heat

    def read(found: Any) -> tuple[Tensor, ...]:
        return found[0] - start, *found[1:]

    # first half: reads four arrays and writes two; second half: reads three and writes one
    n_bytes = 2.0 * count_bytes(start) + 4.0 * count_bytes(speeds) + 2.0 * count_bytes(inverse)
    n_bytes += 2.0 * count_bytes(forces)
    exact = read(define())
    yield Work(
        "md_step, NVT", "forward", n_atoms, exact, n_bytes, 0.0, run, compile_all(define),
        restore=restore, read=read,
    )  # fmt: skip


def make_staging(device: torch.device) -> Iterator[Work]:
    """Positions to the rows of a list, the closest pair, and results back to the atoms."""
    from fastff.kernels.moment_potential.cases import build_lattice
    from fastff.kernels.moment_potential.layout import quantize_coordinates
    from fastff.kernels.neighbor_list import build_neighbors
    from fastff.kernels.staging import op, reference

    system = build_lattice("Cu", kernel_work.CELLS, 5.4, device, rattle=0.1)
    positions, cell = system.positions.double(), system.cell.double().to(device)
    n_atoms = len(positions)
    neighbors = build_neighbors(positions, cell, (True, True, True), REACH, sort_atoms=True)
    matrix, order, wraps = neighbors.matrix, neighbors.order, neighbors.wraps
    stage = op.Stage(n_atoms, neighbors.images, device)

    def run_stage() -> tuple[Tensor, Tensor]:
        op.stage_positions(positions, cell, neighbors, stage)
        return stage.staged, matrix.translations

    def define_stage() -> tuple[Tensor, Tensor]:
        return reference.stage_positions(positions, cell, order, wraps, stage.shifts)

    exact = tuple(part.clone() for part in define_stage())
    n_bytes = 2.0 * count_bytes(positions) + order.nbytes + wraps.nbytes
    n_bytes += stage.shifts.nbytes + matrix.translations.nbytes
    yield Work(
        "staging, positions", "forward", n_atoms, exact, n_bytes, 0.0, run_stage,
        compile_all(define_stage),
    )  # fmt: skip

    kinds = torch.zeros(n_atoms, 1, dtype=torch.int32, device=device)
    sites = torch.cat([quantize_coordinates(exact[0]).int(), kinds], dim=1).contiguous()
    limit = 2.4
    far = torch.full_like(stage.nearest, 0x7F800000)

    def run_contacts() -> Tensor:
        op.find_contacts(sites, matrix, limit, stage)
        return stage.nearest.view(torch.float32)[0]

    def define_contacts() -> Tensor:
        return reference.find_contacts(sites, matrix, limit, torch.float32)

    n_pairs = int(matrix.counts.sum())
    n_bytes = float(sites.nbytes + matrix.counts.nbytes + n_pairs * matrix.entries.element_size())
    yield Work(
        "staging, contacts", "forward", n_atoms, reference.find_contacts(sites, matrix, limit),
        n_bytes, 0.0, run_contacts, compile_all(define_contacts),
        restore=lambda: stage.nearest.copy_(far),
    )  # fmt: skip

    generator = torch.Generator().manual_seed(1)
    forces = torch.randn(n_atoms, 3, generator=generator).to(device)
    energies, totals = (
        torch.randn(n, generator=generator, dtype=torch.float64).to(device) for n in (n_atoms, 7)
    )
    stale = torch.zeros((), dtype=torch.int32, device=device)
    squared = torch.full((1,), 4.0, device=device)
    buffer = torch.zeros(op.HEADER + 4 * n_atoms, dtype=torch.float64, device=device)
    results = op.Results(buffer)
    stage.nearest.copy_(squared.view(torch.int32))

    def run_publish() -> Tensor:
        op.publish_results(forces, energies, totals, stale, order, stage, results)
        return buffer

    def define_publish() -> Tensor:
        return reference.publish_results(forces, energies, totals, squared[0], stale, order)

    n_bytes = float(forces.nbytes + energies.nbytes + order.nbytes + buffer.nbytes)
    yield Work(
        "staging, results", "forward", n_atoms, define_publish(), n_bytes, 0.0, run_publish,
        compile_all(define_publish),
    )  # fmt: skip


def make_large_list(device: torch.device) -> Iterator[Work]:
    """The neighbor list beside bins in torch: its definition looks at 3e11 vectors, which takes a minute a call."""
    from fastff.kernels.moment_potential.cases import build_lattice
    from fastff.kernels.neighbor_list.reference import find_pairs_by_bins

    system = build_lattice("Cu", kernel_work.CELLS, 5.4, device, rattle=0.1)
    yield kernel_work.compare_lists("neighbor_list, bins", system, REACH, find_pairs_by_bins)
