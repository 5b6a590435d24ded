"""Labelled frames as torch-geometric batches of what a student has to learn.

Here: statistics that set a student's scales, frames to :class:`~torch_geometric.data.Data`, loaders. Not here:
losses, the training loop, reading label files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from fastff.distill.resident import ResidentBatches, count_bytes
from fastff.errors import DataError
from fastff.graph import Graph, batch_graphs, edge_vectors
from fastff.labels import Frame, HessianVector
from fastff.models import Student
from fastff.models.dense import lay_out_edges
from fastff.neighbors import atoms_to_graph
from fastff.units import VOIGT


@dataclass(frozen=True)
class LabelStatistics:
    """What the training labels say about scales.

    Attributes
    ----------
    elements : tuple of int
        Atomic numbers present, ascending.
    composition_energies : tuple of float
        ``E0`` per element, eV: least squares of the energies on the composition, of least norm where that is
        not unique, over the frames whose energy is not absurd (:func:`fit_composition`).
    force_rms : float
        eV/Å, of the median frame, so that a few close contacts do not set the scale of thermal forces.
    energy_spread : float
        eV/atom, spread of the energy per atom about the fit: 1.48 times the median absolute deviation.
    stress_rms : float
        eV/Å^3, of the median periodic frame; 0 without periodic frames.
    product_rms : float
        eV/Å^2, of the Hessian-vector product of the median frame that has one; 0 without any.
    """

    elements: tuple[int, ...]
    composition_energies: tuple[float, ...]
    force_rms: float
    energy_spread: float
    stress_rms: float
    product_rms: float = 0.0


def measure_labels(frames: Sequence[Frame]) -> LabelStatistics:
    """Elements, composition energies and scales of a training set.

    Raises
    ------
    DataError
        If there are no frames or every force is zero.
    """
    if not frames:
        raise DataError("no training frames; label more structures")
    elements = sorted({int(z) for frame in frames for z in frame.atoms.numbers})
    counts = np.array([[(f.atoms.numbers == z).sum() for z in elements] for f in frames], float)
    energy = np.array([f.labels.energy for f in frames])
    per_element = fit_composition(counts, energy)
    n_atoms = counts.sum(axis=1)
    residual = (energy - counts @ per_element) / n_atoms
    squares = np.array([np.mean(np.square(f.labels.forces)) for f in frames])
    force_rms = float(np.sqrt(np.median(squares) or squares.mean()))
    if not force_rms > 0.0:
        raise DataError("all training forces are zero; the frames hold nothing to learn")
    stresses = [np.mean(np.square(f.labels.stress)) for f in frames if f.labels.stress is not None]
    stress_rms = float(np.sqrt(np.median(stresses))) if stresses else 0.0
    products = [np.mean(np.square(f.hessian_vector.product)) for f in frames if f.hessian_vector]
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    return LabelStatistics(
        elements=tuple(elements),
        composition_energies=tuple(float(e) for e in per_element),
        force_rms=force_rms,
        energy_spread=max(spread, 1e-5),
        stress_rms=stress_rms,
        product_rms=float(np.sqrt(np.median(products))) if products else 0.0,
    )


def fit_composition(counts: np.ndarray, energy: np.ndarray, limit: float = 30.0) -> np.ndarray:
    """Energies per element (n_elements,) that add up to the energies of compositions, eV.

    Least squares over the frames whose residual per atom is within ``limit`` times the median absolute one of a first
    fit by least absolute deviations, which a few absurd energies do not move.

    Parameters
    ----------
    counts : (n_frames, n_elements) array
        Atoms of every element.
    energy : (n_frames,) array, eV
    limit : float
    """
    n_atoms = counts.sum(axis=1)
    weights = 1.0 / n_atoms
    deviation = np.zeros(len(energy))
    for _ in range(30):  # iteratively reweighted least squares
        rows = np.sqrt(weights)[:, None] * counts
        fit, *_ = np.linalg.lstsq(rows, np.sqrt(weights) * energy, rcond=1e-9)
        deviation = np.abs(energy - counts @ fit) / n_atoms
        weights = 1.0 / (n_atoms * np.maximum(deviation, 1e-3))
    keep = deviation <= limit * max(float(np.median(deviation)), 1e-3)
    fit, *_ = np.linalg.lstsq(counts[keep], energy[keep], rcond=1e-9)
    return np.asarray(fit)


class ResidualData(Data):
    """One frame as the learned part of a student sees it: composition energies and core repulsion taken off.

    Fixed shapes and no parameters behind them: everything here is computed once. Units: Å, and
    ``energy_scale`` for energies.

    Fields: ``vectors (n_atoms, n_slots, 3)``, ``senders (n_atoms, n_slots)``, ``species (n_atoms,)``,
    ``volume (1,)``, ``n_atoms (1,)``, ``target_energy (1,)``, ``target_forces (n_atoms, 3)``,
    ``target_stress (1, 6)`` (NaN where unknown), ``force_size (n_atoms,)``, the norm of the teacher's whole force,
    ``frame_index (1,)``; where any frame of the set has a Hessian-vector target, ``direction (n_atoms, 3)`` and
    ``target_product (n_atoms, 3)`` (zero and NaN where this frame has none).
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Senders count atoms; nothing else is an index."""
        return self.num_nodes if key == "senders" else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> int:
        """Everything is concatenated along its first axis."""
        return 0


def count_slots(graphs: Sequence[Graph]) -> int:
    """Largest number of neighbors of any atom, at least one."""
    counts = [torch.bincount(g.edge_index[0]).max() for g in graphs if g.n_edges]
    return max([1, *(int(count) for count in counts)])


def prepare_frames(frames: Sequence[Frame], student: Student) -> list[ResidualData]:
    """Lay out frames with equally many slots and subtract what the student does not learn."""
    graphs = [atoms_to_graph(frame.atoms, student.cutoff) for frame in frames]
    n_slots = count_slots(graphs)
    hessian = any(frame.hessian_vector is not None for frame in frames)
    data = []
    for index, (frame, graph) in enumerate(zip(frames, graphs, strict=True)):
        data.append(prepare_frame(frame, student, graph, n_slots, index))
        if hessian:
            target = frame.hessian_vector
            data[-1].direction, data[-1].target_product = prepare_product(target, student, graph)
    return data


@torch.no_grad()
def prepare_product(
    target: HessianVector | None, student: Student, graph: Graph
) -> tuple[Tensor, Tensor]:
    """Direction and Hessian-vector product (n_atoms, 3), ``energy_scale`` per Å^2, less that of the core repulsion.

    The latter by the same difference as the teacher's.
    """
    direction = torch.zeros(graph.n_atoms, 3, dtype=torch.float64)
    if target is None:
        return direction.to(student.dtype), torch.full_like(
            direction, torch.nan, dtype=student.dtype
        )
    direction += torch.as_tensor(target.direction)
    receivers, senders = graph.edge_index
    moves = target.step * (direction[senders] - direction[receivers])
    vectors, species = edge_vectors(graph), student.find_species(graph.numbers)
    plus, minus = (
        student.evaluate_baseline(graph, vectors + sign * moves, species).forces for sign in (1, -1)
    )
    product = torch.as_tensor(target.product) - (minus - plus) / (2 * target.step)
    scale = float(student.energy_scale)
    return direction.to(student.dtype), (product / scale).to(student.dtype)


@torch.no_grad()
def prepare_frame(
    frame: Frame, student: Student, graph: Graph, n_slots: int, index: int = 0
) -> ResidualData:
    """Lay out one frame and subtract what the student does not learn."""
    species = student.find_species(graph.numbers)
    vectors = edge_vectors(graph)
    baseline = student.evaluate_baseline(graph, vectors, species)
    dense = lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff, n_slots)
    scale = float(student.energy_scale)
    stress = torch.full((6,), torch.nan, dtype=torch.float64)
    if frame.labels.stress is not None:
        stress = torch.as_tensor(frame.labels.stress) - stack_voigt(baseline.stress)[0]
    return ResidualData(
        num_nodes=graph.n_atoms,
        vectors=dense.vectors.to(student.dtype),
        senders=dense.senders,
        species=species,
        volume=torch.linalg.det(graph.cell).abs().to(student.dtype),
        n_atoms=torch.tensor([float(graph.n_atoms)], dtype=student.dtype),
        target_energy=((frame.labels.energy - baseline.energy) / scale).to(student.dtype),
        target_forces=((torch.as_tensor(frame.labels.forces) - baseline.forces) / scale).to(
            student.dtype
        ),
        target_stress=(stress / scale)[None].to(student.dtype),
        force_size=(torch.as_tensor(frame.labels.forces).norm(dim=1) / scale).to(student.dtype),
        frame_index=torch.tensor([index]),
    )


RESIDENT_SHARE = 0.4
"""Part of a GPU's free memory that training frames may take."""


def build_loader(
    frames: Sequence[Frame],
    student: Student,
    batch_size: int,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    n_ranks: int = 1,
) -> DataLoader | ResidentBatches:
    """Batches of frames, shuffled anew at every epoch if ``seed`` is given.

    The order depends on seed and epoch alone, so a resumed run sees what an uninterrupted one would have seen. A
    shuffled loader leaves out the last, smaller batch of an epoch, so that batches keep one shape. On a GPU the frames
    stay in its memory if they fit. Of ``n_ranks`` processes, each gets ``batch_size`` frames of every batch that one
    process would see with ``n_ranks * batch_size``.
    """
    data = prepare_frames(frames, student)
    if seed is None:
        return DataLoader(data, batch_size=batch_size)
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if count_bytes(data) < RESIDENT_SHARE * free:
            return ResidentBatches(
                data,
                batch_size,
                device,
                seed=seed,
                padding_vector=(student.cutoff, 0.0, 0.0),
                rank=rank,
                n_ranks=n_ranks,
            )
    sampler: DistributedSampler[ResidualData] = DistributedSampler(
        data,  # type: ignore[arg-type]
        num_replicas=n_ranks,
        rank=rank,
        shuffle=True,
        seed=seed,
        drop_last=True,  # or frames would be doubled to fill up the ranks
    )
    return DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=True)


def choose_batch_size(frames: Sequence[Frame], batch_atoms: int, n_ranks: int = 1) -> int:
    """Frames per batch of all ranks, so that it holds about ``batch_atoms`` atoms; a multiple of ``n_ranks``.

    Raises
    ------
    DataError
        There are fewer frames than ranks.
    """
    if len(frames) < n_ranks:
        raise DataError(f"{len(frames)} training frames are too few for {n_ranks} processes")
    mean = float(np.mean([len(frame.atoms) for frame in frames]))
    per_rank = round(batch_atoms / mean / n_ranks)
    return n_ranks * max(1, min(len(frames) // n_ranks, per_rank))


def collate_sample(frames: Sequence[Frame], cutoff: float, n_atoms: int) -> Graph:
    """A graph of evenly spread frames with about ``n_atoms`` atoms, for calibration."""
    mean = float(np.mean([len(frame.atoms) for frame in frames]))
    count = max(1, min(len(frames), round(n_atoms / mean)))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return batch_graphs([atoms_to_graph(frames[k].atoms, cutoff) for k in np.unique(chosen)])


def stack_voigt(stress: Tensor) -> Tensor:
    """(n, 3, 3) symmetric stress to (n, 6) in ASE's Voigt order."""
    return torch.stack([stress[:, row, column] for row, column in VOIGT], dim=1)
