"""Labelled frames as torch-geometric batches of what a student has to learn.

Here: statistics that set a student's scales, frames to :class:`~torch_geometric.data.Data`, loaders. Not here:
losses, the training loop, reading label files.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from fastff.distill.resident import PER_FRAME, ResidentBatches, count_bytes
from fastff.errors import DataError
from fastff.gathering import gather_graph
from fastff.graph import Graph, batch_graphs, edge_vectors
from fastff.inference import split_chunks
from fastff.labels import Frame, HessianVector
from fastff.models import Student
from fastff.models.dense import lay_out_edges
from fastff.neighbors import atoms_to_graph
from fastff.units import VOIGT

SLOTS_ON_GPU = 8
"""What rows of neighbors are a multiple of where compiled code depends on their length."""


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


PREPARE_ATOMS = 4096
"""Most atoms that are laid out together."""


@torch.no_grad()
def prepare_frames(
    frames: Sequence[Frame], student: Student, device: torch.device | str = "cpu"
) -> list[ResidualData]:
    """Lay out frames with equally many slots and subtract what the student does not learn.

    Computed on ``device``; what is returned is on the CPU. Slots for a GPU are a multiple of :data:`SLOTS_ON_GPU`, so
    that batches of like frames have one shape and compiled code fits them.
    """
    worker = (
        student if student.device == torch.device(device) else copy.deepcopy(student).to(device)
    )
    hessian = any(frame.hessian_vector is not None for frame in frames)
    parts: list[dict[str, Tensor]] = []
    done = 0
    for chunk in split_chunks([frame.atoms for frame in frames], PREPARE_ATOMS):
        own = frames[done : done + len(chunk)]
        parts.append(_prepare_batch(own, worker, hessian, done))
        done += len(chunk)
    n_slots = max((part["senders"].shape[1] for part in parts), default=1)
    if torch.device(device).type == "cuda":
        n_slots = SLOTS_ON_GPU * math.ceil(n_slots / SLOTS_ON_GPU)
    data: list[ResidualData] = []
    for part in parts:
        counts = [int(count) for count in part["n_atoms"]]
        _widen(part, counts, n_slots, student.cutoff)
        rows = {
            name: value.split([1] * len(counts) if name in PER_FRAME else counts)
            for name, value in part.items()
        }
        for k, count in enumerate(counts):
            fields = {name: values[k] for name, values in rows.items()}
            index = torch.tensor([len(data)])
            data.append(ResidualData(num_nodes=count, frame_index=index, **fields))
    return data


def _prepare_batch(
    frames: Sequence[Frame], student: Student, hessian: bool, first: int
) -> dict[str, Tensor]:
    """Fields of :class:`ResidualData` of some frames, joined, on the CPU; senders count from each frame's first."""
    structures = [frame.atoms for frame in frames]
    graph = gather_graph(structures, student.cutoff, student.device, first=first)
    species = student.find_species(graph.numbers)
    vectors = edge_vectors(graph)
    baseline = student.evaluate_baseline(graph, vectors, species)
    dense = lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff)
    scale = float(student.energy_scale)

    def put(rows: Any) -> Tensor:
        return torch.as_tensor(np.asarray(rows, dtype=np.float64), device=student.device)

    counts = torch.bincount(graph.batch, minlength=graph.n_systems)
    starts = counts.cumsum(0) - counts
    unknown = np.full(6, np.nan)
    forces = put(np.concatenate([frame.labels.forces for frame in frames]))
    energy = put([frame.labels.energy for frame in frames])
    stress = put([unknown if (s := f.labels.stress) is None else s for f in frames])
    fields = {
        "vectors": dense.vectors,
        "senders": dense.senders - starts[graph.batch][:, None],
        "species": species,
        "volume": torch.linalg.det(graph.cell).abs(),
        "n_atoms": counts.double(),
        "target_energy": (energy - baseline.energy) / scale,
        "target_forces": (forces - baseline.forces) / scale,
        "target_stress": (stress - stack_voigt(baseline.stress)) / scale,
        "force_size": forces.norm(dim=1) / scale,
    }
    if hessian:
        products = _prepare_products([f.hessian_vector for f in frames], student, graph, vectors)
        fields |= {"direction": products[0], "target_product": products[1] / scale}
    return {
        name: (value.to(student.dtype) if value.is_floating_point() else value).cpu()
        for name, value in fields.items()
    }


def _prepare_products(
    targets: Sequence[HessianVector | None], student: Student, graph: Graph, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Directions and Hessian-vector products (n_atoms, 3), eV/Å^2, less those of the core repulsion.

    The latter by the same differences as the teacher's. Zeros and NaN for a structure without a target.
    """
    directions = torch.zeros(graph.n_atoms, 3, dtype=torch.float64)
    products = torch.full_like(directions, torch.nan)
    steps = torch.ones(len(targets), dtype=torch.float64)
    counts = torch.bincount(graph.batch, minlength=len(targets)).tolist()
    rows = zip(targets, directions.split(counts), products.split(counts), strict=True)
    for k, (target, direction, product) in enumerate(rows):
        if target is not None:
            direction.copy_(torch.as_tensor(target.direction))
            product.copy_(torch.as_tensor(target.product))
            steps[k] = target.step
    directions, products, steps = (x.to(vectors.device) for x in (directions, products, steps))
    receivers, senders = graph.edge_index
    own = steps[graph.batch][:, None]
    moves = own[receivers] * (directions[senders] - directions[receivers])
    species = student.find_species(graph.numbers)
    plus, minus = (
        student.evaluate_baseline(graph, vectors + sign * moves, species).forces for sign in (1, -1)
    )
    return directions, products - (minus - plus) / (2 * own)


def _widen(part: dict[str, Tensor], counts: Sequence[int], n_slots: int, cutoff: float) -> None:
    """Give rows ``n_slots`` slots; see :class:`~fastff.models.dense.DenseEdges` for what empty ones hold."""
    vectors, senders = part["vectors"], part["senders"]
    n_atoms, filled = senders.shape
    if filled == n_slots:
        return
    rows = torch.cat([torch.arange(count) for count in counts])
    wide = vectors.new_tensor([cutoff, 0.0, 0.0]).repeat(n_atoms, n_slots, 1)
    wide[:, :filled] = vectors
    part["vectors"] = wide
    part["senders"] = torch.cat([senders, rows[:, None].expand(-1, n_slots - filled)], dim=1)


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
    device = torch.device(device)
    data = prepare_frames(frames, student, device)
    if seed is None:
        return DataLoader(data, batch_size=batch_size)
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
