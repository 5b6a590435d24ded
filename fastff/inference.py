"""Energies, forces and stress of many structures at once.

Here: batching, chunking and conversion to plain arrays. Not here: models, files, ASE calculators, batches that are
evaluated again and again (:mod:`fastff.batches`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import numpy as np
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress

from fastff.electronic import Charges, check_electronic, read_electronic
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.evaluator import find_student_obstacle
from fastff.gathering import search_on_device
from fastff.graph import Graph, batch_graphs
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.op import OP
from fastff.kernels.moment_potential.workspace import Options
from fastff.labels import Labels
from fastff.memory import (
    DeviceMemoryError,
    describe_shortage,
    explain_shortage,
    is_out_of_memory,
    release_memory,
)
from fastff.models import Prediction, Student
from fastff.models.base import describe_unknown
from fastff.models.fused import collect_weights
from fastff.models.moment import MomentStudent
from fastff.neighbors import atoms_to_graph
from fastff.packed import BatchOutcome, convert_prediction, evaluate_packed, pack_batch
from fastff.structures import CloseContacts, check_structure

MAX_RETRIES = 3
"""How often a batch is halved where memory runs out."""

_log = logging.getLogger(__name__)
_Named = tuple[str, Atoms]


@torch.inference_mode()
def predict(
    model: Student,
    structures: Atoms | Iterable[Atoms],
    *,
    batch_atoms: int = 4096,
    precision: str = Options().precision,
    close_contacts: CloseContacts = "raise",
    charges: Charges = "raise",
) -> list[Labels]:
    """Evaluate a student on one structure, or on many of any sizes.

    Parameters
    ----------
    model : Student
    structures : ase.Atoms or iterable of ase.Atoms
        Not modified.
    batch_atoms : int
        Most atoms evaluated together; a larger structure is evaluated alone. Where memory runs out, the number is
        halved, at most three times; a single structure is tried once more when everything kept has been dropped.
    precision : {"tf32x3", "tf32", "ieee"}
        Of matrix products of the fused kernels.
    close_contacts : {"raise", "warn", "ignore"}
        What to do about atoms that coincide; see :func:`fastff.structures.check_structure`.
    charges : {"raise", "ignore"}
        What to do about a total charge or spin of a structure, which no student knows.

    Returns
    -------
    list of Labels
        In the order given; of length one for a single structure. Stress is None unless a structure is periodic in all
        three directions.

    Raises
    ------
    DataError
        If a structure cannot be used, with its place in the list.
    UsageError
        If a structure is charged or has a spin, or ``batch_atoms`` is not positive.
    UnsupportedElementError
        If a structure holds an element that the student does not know, likewise.
    DeviceMemoryError
        If memory runs out even so; the message says how many atoms were asked for.
    BackendError
        If Triton is forced and cannot run.

    Notes
    -----
    Takes the fused kernels where :func:`fastff.evaluator.choose_path` would, else torch. Keeps nothing between calls:
    several threads may call it at once.
    """
    if charges not in get_args(Charges):
        raise UsageError(f"charges {charges!r} is not one of {', '.join(get_args(Charges))}")
    if batch_atoms < 1:
        raise UsageError(f"batch_atoms {batch_atoms} must be at least 1")
    structures = list_structures(structures)
    results: list[Labels] = []
    session = _Session(model, Options(precision=precision))
    for chunk in split_chunks(structures, batch_atoms):
        named: list[_Named] = []
        for number, atoms in enumerate(chunk, start=len(results)):
            name = f"structure {number}" if len(structures) > 1 else "structure"
            check_structure(atoms, name=name, close_contacts=close_contacts)
            if charges == "raise":
                check_electronic(read_electronic(atoms), name)
            _check_elements(atoms, model, name)
            named.append((name, atoms))
        results.extend(_evaluate(session, named, retries=MAX_RETRIES))
    return results


def list_structures(structures: Atoms | Iterable[Atoms]) -> list[Atoms]:
    """One structure or many, as a list.

    Raises
    ------
    UsageError
        Something is no structure.
    """
    found = [structures] if isinstance(structures, Atoms) else list(structures)
    for number, atoms in enumerate(found):
        if not isinstance(atoms, Atoms):
            raise UsageError(f"structure {number} is no ase.Atoms but a {type(atoms).__name__}")
    return found


class _Session:
    """One call of :func:`predict`: the student, and the fused kernels with their buffers where they are used."""

    def __init__(self, model: Student, options: Options) -> None:
        self.model, self._obstacle = model, find_student_obstacle(model)
        self._options = options
        self._fused: FusedPotential | None = None

    def evaluate(self, graph: Graph) -> BatchOutcome:
        """Evaluate a batch on the student's device."""
        return dispatch.run(
            OP,
            self.model.device,
            lambda: self._evaluate_fused(graph),
            lambda: convert_prediction(self.model(graph), graph.cell),
            self._obstacle,
        )

    def forget(self) -> None:
        """Drop buffers."""
        self._fused = None

    def _evaluate_fused(self, graph: Graph) -> BatchOutcome:
        model = self.model
        assert isinstance(model, MomentStudent)
        species = model.find_species(graph.numbers)
        if self._fused is None:
            self._fused = FusedPotential(collect_weights(model), model.device, self._options)
        packed = pack_batch(graph.edge_index, graph.shifts, graph.batch, graph.n_systems)
        return evaluate_packed(self._fused, packed, graph.positions, graph.cell, species)


def _evaluate(session: _Session, named: Sequence[_Named], retries: int) -> list[Labels]:
    """Evaluate structures together, or in halves of about equal size where memory runs out; one alone, once more."""
    model = session.model
    try:
        graph = _join(named, model)
        return split_outcome(session.evaluate(graph), graph)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = error.with_traceback(None)  # its frames hold tensors
    session.forget()
    release_memory()
    n_atoms = sum(len(atoms) for _, atoms in named)
    if retries == 0:
        raise DeviceMemoryError(describe_shortage(n_atoms, model.device)) from reason
    if len(named) == 1:
        return _evaluate(session, named, retries=0)
    _log.info("memory ran out with %d atoms; evaluating them in two parts", n_atoms)
    middle = _find_middle([len(atoms) for _, atoms in named])
    parts = named[:middle], named[middle:]
    return [label for part in parts for label in _evaluate(session, part, retries - 1)]


def _join(named: Sequence[_Named], model: Student) -> Graph:
    """One graph on the student's device; errors name the structure."""
    if model.device.type == "cuda":
        try:
            return search_on_device([atoms for _, atoms in named], model.cutoff, model.device)
        except DataError:
            pass  # found again below, by its name
    graphs = [_list_neighbors(atoms, model.cutoff, name) for name, atoms in named]
    return batch_graphs(graphs).to(model.device)


def _find_middle(sizes: Sequence[int]) -> int:
    """Where to cut a sequence so that the larger part is smallest; neither is empty."""
    total, before, best = sum(sizes), 0, (sum(sizes), 1)
    for cut in range(1, len(sizes)):
        before += sizes[cut - 1]
        best = min(best, (max(before, total - before), cut))
    return best[1]


def _list_neighbors(atoms: Atoms, cutoff: float, name: str) -> Graph:
    try:
        with explain_shortage(len(atoms), torch.device("cpu")):
            return atoms_to_graph(atoms, cutoff)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _check_elements(atoms: Atoms, model: Student, name: str) -> None:
    if not set(atoms.numbers.tolist()) <= set(model.elements):
        numbers = torch.as_tensor(atoms.numbers)
        raise UnsupportedElementError(f"{name}: {describe_unknown(numbers, model.elements)}")


def split_chunks(structures: Sequence[Atoms], batch_atoms: int) -> Iterator[list[Atoms]]:
    """Cut a sequence into runs of at most ``batch_atoms`` atoms, each with at least one structure."""
    chunk: list[Atoms] = []
    size = 0
    for atoms in structures:
        if chunk and size + len(atoms) > batch_atoms:
            yield chunk
            chunk, size = [], 0
        chunk.append(atoms)
        size += len(atoms)
    if chunk:
        yield chunk


def split_prediction(prediction: Prediction, graph: Graph) -> list[Labels]:
    """Cut a batch's prediction into one record of float64 arrays per structure."""
    return split_outcome(convert_prediction(prediction, graph.cell), graph)


def split_outcome(outcome: BatchOutcome, graph: Graph) -> list[Labels]:
    """Cut what was found for a batch into one record of float64 arrays per structure."""
    energy, forces = outcome.energy.cpu().numpy(), outcome.forces.cpu().numpy()
    virial, energies = outcome.virial.cpu().numpy(), outcome.energies.cpu().numpy()
    cells, periodic = graph.cell.cpu().numpy(), graph.pbc.all(dim=1).tolist()
    counts = torch.bincount(graph.batch, minlength=graph.n_systems).tolist()
    results, start = [], 0
    for k, count in enumerate(counts):
        stop = start + count
        stress = None
        if periodic[k]:
            volume = abs(float(np.linalg.det(cells[k])))
            stress = full_3x3_to_voigt_6_stress(virial[k] / volume)
        results.append(
            Labels(
                energy=float(energy[k]),
                forces=forces[start:stop].copy(),
                stress=stress,
                energies=energies[start:stop].copy(),
            )
        )
        start = stop
    return results
