"""Labelled frames as torch-geometric batches.

Here: frames to :class:`~torch_geometric.data.Data`, loaders, batches to :class:`~fastff.graph.Graph`, and the
statistics that set a student's scales. Not here: losses, the training loop, reading label files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from fastff.errors import DataError
from fastff.graph import Graph
from fastff.labels import Frame
from fastff.neighbors import atoms_to_graph


@dataclass(frozen=True)
class LabelStatistics:
    """What the training labels say about scales.

    Attributes
    ----------
    elements : tuple of int
        Atomic numbers present, ascending.
    composition_energies : tuple of float
        ``E0`` per element, eV: least squares of the energies on the composition, of least norm where that is
        not unique.
    force_rms : float
        eV/Å, over all components.
    energy_spread : float
        eV/atom, standard deviation of the energy per atom about the fit.
    stress_rms : float
        eV/Å^3; 0 without periodic frames.
    """

    elements: tuple[int, ...]
    composition_energies: tuple[float, ...]
    force_rms: float
    energy_spread: float
    stress_rms: float


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
    per_element, *_ = np.linalg.lstsq(counts, energy, rcond=1e-9)
    n_atoms = counts.sum(axis=1)
    residual = (energy - counts @ per_element) / n_atoms
    forces = np.concatenate([f.labels.forces.ravel() for f in frames])
    force_rms = float(np.sqrt(np.mean(forces**2)))
    if not force_rms > 0.0:
        raise DataError("all training forces are zero; the frames hold nothing to learn")
    stresses = [f.labels.stress for f in frames if f.labels.stress is not None]
    stress_rms = float(np.sqrt(np.mean(np.square(stresses)))) if stresses else 0.0
    return LabelStatistics(
        elements=tuple(elements),
        composition_energies=tuple(float(e) for e in per_element),
        force_rms=force_rms,
        energy_spread=max(float(residual.std()), 1e-5),
        stress_rms=stress_rms,
    )


def frame_to_data(frame: Frame, cutoff: float, index: int = 0) -> Data:
    """One labelled frame with its neighbour list; labels in float64, a missing stress as NaN."""
    graph = atoms_to_graph(frame.atoms, cutoff)
    stress = frame.labels.stress
    return Data(
        pos=graph.positions,
        numbers=graph.numbers,
        cell=graph.cell,
        pbc=graph.pbc,
        edge_index=graph.edge_index,
        shifts=graph.shifts,
        energy=torch.tensor([frame.labels.energy], dtype=torch.float64),
        forces=torch.as_tensor(frame.labels.forces, dtype=torch.float64),
        stress=torch.as_tensor(
            np.full(6, np.nan) if stress is None else stress, dtype=torch.float64
        )[None],
        frame_index=torch.tensor([index]),
    )


def batch_to_graph(batch: Batch) -> Graph:
    """The graph inside a torch-geometric batch."""
    return Graph(
        positions=batch.pos,
        numbers=batch.numbers,
        cell=batch.cell,
        pbc=batch.pbc,
        batch=batch.batch,
        edge_index=batch.edge_index,
        shifts=batch.shifts,
    )


def build_loader(
    frames: Sequence[Frame], cutoff: float, batch_size: int, *, seed: int | None = None
) -> DataLoader:
    """Batches of frames, shuffled anew at every epoch if ``seed`` is given.

    The order depends on seed and epoch alone, so a resumed run sees what an uninterrupted one would have seen.
    """
    data = [frame_to_data(frame, cutoff, index) for index, frame in enumerate(frames)]
    sampler = None
    if seed is not None:
        sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=seed)  # type: ignore[arg-type]
    return DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=False)


def choose_batch_size(frames: Sequence[Frame], batch_atoms: int) -> int:
    """Frames per batch so that a batch holds about ``batch_atoms`` atoms, at least one."""
    mean = float(np.mean([len(frame.atoms) for frame in frames]))
    return max(1, min(len(frames), round(batch_atoms / mean)))


def collate_sample(frames: Sequence[Frame], cutoff: float, n_atoms: int) -> Graph:
    """A graph of evenly spread frames with about ``n_atoms`` atoms, for calibration."""
    mean = float(np.mean([len(frame.atoms) for frame in frames]))
    count = max(1, min(len(frames), round(n_atoms / mean)))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return batch_to_graph(
        Batch.from_data_list([frame_to_data(frames[k], cutoff) for k in np.unique(chosen)])
    )


def stack_voigt(stress: Tensor) -> Tensor:
    """(n, 3, 3) symmetric stress to (n, 6) in ASE's Voigt order."""
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return stress[:, rows, columns]
