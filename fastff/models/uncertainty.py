"""Uncertainty from last-layer features: an error bar of energies, and how far every atom is from the training data.

Here: fitting on training structures, calibration on held-out ones, measuring, the parameters. Not here: features
(:meth:`fastff.models.base.Student.evaluate_features`), files, calculators.

The energy of a student is linear in its last-layer features, so the variance of a prediction is ``f^T C^-1 f`` up to a
constant, with ``C`` the second moments of the features over the training set and the constant set on held-out errors:
Bigi, Chong, Ceriotti and Grasselli, "A prediction rigidity formalism for low-cost uncertainties in trained neural
networks", Mach. Learn.: Sci. Technol. 5, 045018 (2024), equations 10 to 14. The grade of an atom is the Mahalanobis
distance of its features from those of its species in the training set, over the distance within which 99.9 % of
held-out atoms lie: about one at the edge of the training data, and above it outside. Where the inputs of the last
layers are bounded, the features are those of unbounded inputs, or error bars and grades would stop growing there.

Where two atoms are so near that the radial basis follows their distance no longer (``StudentConfig.inner_limit``), both
stop to grow: the grade still tells that the atoms are outside, the error bar nothing of the core repulsion, which is
far off a teacher's energies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from fastff.errors import DataError, UsageError
from fastff.graph import Graph, batch_graphs
from fastff.models.base import Features, Prediction, Student

MAX_COMPONENTS = 128
"""Most principal components that are kept of the features of a structure, and of an atom."""

GRADE_ATOMS = 65_536
"""Atoms that are graded together; each takes some kilobytes for a moment."""

DESCRIBE_ATOMS = 2048
"""Atoms whose features are found together in a fit."""

_RIDGES = tuple(10.0**power for power in range(-8, 1))
"""Regularisations tried, relative to the largest second moment; the held-out likelihood chooses."""

_ATOM_RIDGE = 1e-4
"""Least variance of an atom's features along any direction, relative to the largest."""

_EDGE = 0.999
"""Share of held-out atoms whose grade is at most one."""

Policy = Literal["ignore", "warn", "raise"]


@dataclass(frozen=True)
class UncertaintyParameters:
    """What :func:`measure_uncertainty` needs beside the student; small tensors in a model file.

    Attributes
    ----------
    energy_components : (n_kept, n_species * n_features) tensor
        Orthonormal principal directions of the summed features of a structure.
    energy_weights : (n_kept,) float64 tensor
        Variance in eV^2 per squared feature along each.
    energy_rest : () float64 tensor
        The same, across all of them.
    atom_means : (n_species, n_features) tensor
    atom_components : (n_species, n_kept, n_features) tensor
        Directions scaled so that the squared length of the projection is the grade's square.
    atom_rest : (n_species,) float64 tensor
        Squared grade per squared feature across them.
    """

    energy_components: Tensor
    energy_weights: Tensor
    energy_rest: Tensor
    atom_means: Tensor
    atom_components: Tensor
    atom_rest: Tensor

    def to(self, device: torch.device | str) -> UncertaintyParameters:
        """Copy on a device; dtypes stay."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return UncertaintyParameters(**moved)

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, as a model file stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> UncertaintyParameters:
        """The parameters that :meth:`to_tensors` gave.

        Raises
        ------
        ValueError
            If one is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(tensors) != names:
            raise ValueError(f"uncertainty tensors {sorted(tensors)} are not {sorted(names)}")
        return cls(**tensors)


@dataclass(frozen=True)
class Uncertainty:
    """How far a prediction can be trusted.

    Attributes
    ----------
    energy : (n_systems,) float64 tensor, eV
        Standard deviation of the total energy.
    grades : (n_atoms,) float64 tensor
        Extrapolation grade; above one an atom is farther from the training data than 99.9 % of held-out atoms.
    """

    energy: Tensor
    grades: Tensor


def fit_uncertainty(
    student: Student,
    training: Sequence[Graph],
    validation: Sequence[Graph],
    validation_energies: Sequence[float],
) -> UncertaintyParameters:
    """Fit and calibrate the uncertainty of a trained student.

    Parameters
    ----------
    student : Student
        Its parameters must not change afterwards.
    training : sequence of Graph
        Structures it was trained on, one each; some hundreds are enough.
    validation : sequence of Graph
        Structures of other trajectories, at least four.
    validation_energies : sequence of float
        The labels of ``validation``, eV.

    Returns
    -------
    UncertaintyParameters
        On the CPU.

    Raises
    ------
    DataError
        If there are too few structures.
    """
    if len(training) < 4 or len(validation) < 4 or len(validation) != len(validation_energies):
        raise DataError(
            f"{len(training)} training and {len(validation)} held-out structures with "
            f"{len(validation_energies)} energies; give at least four each, and one energy per held-out structure"
        )
    seen, held = _describe(student, training), _describe(student, validation)
    wanted = torch.tensor(list(validation_energies), dtype=torch.float64)
    errors = torch.stack([one.energy for one in held]) - wanted
    components, weights, rest = _fit_energy(seen, held, errors)
    means, directions, across = _fit_atoms(student, seen, held)
    return UncertaintyParameters(
        components.float(), weights, rest, means.float(), directions.float(), across
    )


@torch.no_grad()
def measure_uncertainty(
    student: Student, graph: Graph, parameters: UncertaintyParameters | None = None
) -> Uncertainty:
    """Uncertainty of a batch, without forces.

    Parameters
    ----------
    student : Student
    graph : Graph
        On the student's device.
    parameters : UncertaintyParameters, optional
        By default those that came with the model file, ``student.uncertainty``.

    Raises
    ------
    UsageError
        If the student has none.
    """
    fitted = choose_parameters(student, parameters)
    return _assess(student, graph, student.compute_features(graph), fitted)


@torch.no_grad()
def predict_with_uncertainty(
    student: Student, graph: Graph, parameters: UncertaintyParameters | None = None
) -> tuple[Prediction, Uncertainty]:
    """Prediction and uncertainty from one pass of the student; arguments and errors of :func:`measure_uncertainty`."""
    fitted = choose_parameters(student, parameters)
    prediction, features = student.predict_features(graph)
    return prediction, _assess(student, graph, features, fitted)


def choose_parameters(
    student: Student, parameters: UncertaintyParameters | None = None
) -> UncertaintyParameters:
    """Those given, or those that came with the model file, on the student's device.

    Raises
    ------
    UsageError
        If there are none.
    """
    parameters = parameters or student.uncertainty
    if parameters is None:
        raise UsageError(
            "this model file holds no uncertainty; fit one with fastff.models.uncertainty.fit_uncertainty"
        )
    return parameters.to(student.device)


def _assess(
    student: Student, graph: Graph, features: Features, fitted: UncertaintyParameters
) -> Uncertainty:
    species = student.find_species(graph.numbers)
    rows = features.unbounded.double()
    summed = _sum_species(rows, species, graph.batch, graph.n_systems, len(student.elements))
    places = find_places(species, len(student.elements))
    return Uncertainty(_measure_energies(summed, fitted), _grade(rows, places, fitted))


def _measure_energies(summed: Tensor, fitted: UncertaintyParameters) -> Tensor:
    """Standard deviations (n_systems,), eV, from the features summed over the atoms of each species."""
    components = fitted.energy_components.double()
    return _weigh(summed, components, fitted.energy_weights, fitted.energy_rest).sqrt()


@dataclass(frozen=True)
class _Description:
    """A structure as the fit sees it."""

    energy: Tensor
    features: Tensor
    species: Tensor
    summed: Tensor


@torch.no_grad()
def _describe(student: Student, graphs: Sequence[Graph]) -> list[_Description]:
    """What the fit sees of each structure, on the CPU; about :data:`DESCRIBE_ATOMS` atoms are evaluated together."""
    found: list[_Description] = []
    chunk: list[Graph] = []
    for k, graph in enumerate(graphs, start=1):
        chunk.append(graph)
        counts = [one.n_atoms for one in chunk]
        if sum(counts) < DESCRIBE_ATOMS and k < len(graphs):
            continue
        batch = batch_graphs(chunk).to(student.device)
        prediction, features = student.predict_features(batch)
        rows, species = features.unbounded.double().cpu(), student.find_species(batch.numbers).cpu()
        summed = _sum_species(rows, species, batch.batch.cpu(), len(chunk), len(student.elements))
        parts = rows.split(counts), species.split(counts)
        found += [
            _Description(*one) for one in zip(prediction.energy.cpu(), *parts, summed, strict=True)
        ]
        chunk = []
    return found


def _sum_species(
    features: Tensor, species: Tensor, batch: Tensor, n_systems: int, n_species: int
) -> Tensor:
    """Features summed over the atoms of each species of each structure, (n_systems, n_species * n_features)."""
    sums = features.new_zeros(n_systems * n_species, features.shape[1])
    sums = sums.index_add(0, batch * n_species + species, features)
    return sums.view(n_systems, n_species * features.shape[1])


def _fit_energy(
    seen: list[_Description], held: list[_Description], errors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Principal directions of the training features per atom, and the variances that make held-out errors likeliest."""
    rows = torch.stack([one.summed / len(one.species) for one in seen])
    moments = rows.T @ rows / len(rows)
    values, vectors = torch.linalg.eigh(moments)
    kept = min(MAX_COMPONENTS, len(rows), len(values))
    values, components = values[-kept:].flip(0).clamp_min(0.0), vectors[:, -kept:].flip(1).T
    sizes = torch.tensor([len(one.species) for one in held], dtype=torch.float64)
    per_atom = torch.stack([one.summed for one in held]) / sizes[:, None]
    relative = errors / sizes
    lengths = per_atom.norm(dim=1)
    # an isolated atom has no features, and an error all the same
    told = lengths > 1e-6 * lengths.max()
    if bool(told.any()):
        per_atom, relative = per_atom[told], relative[told]
    best: tuple[float, Tensor, Tensor] | None = None
    for ridge in _RIDGES:
        floor = (ridge * values[0]).clamp_min(1e-300)
        weights, rest = 1.0 / (values + floor), 1.0 / floor
        shape = _weigh(per_atom, components, weights, rest).clamp_min(1e-300)
        scale = (relative.square() / shape).mean().clamp_min(1e-30)
        loss = float((scale * shape).log().mean())
        if best is None or loss < best[0]:
            best = loss, weights * scale, rest * scale
    assert best is not None
    return components.contiguous(), best[1], best[2]


def _weigh(rows: Tensor, components: Tensor, weights: Tensor, rest: Tensor) -> Tensor:
    """Quadratic form of rows (n, d): weighted along the components, and ``rest`` across them."""
    along = (rows @ components.T).square()
    across = (rows.square().sum(dim=1) - along.sum(dim=1)).clamp_min(0.0)
    return along @ weights + across * rest


def _fit_atoms(
    student: Student, seen: list[_Description], held: list[_Description]
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and whitening directions of each species' features, scaled on held-out atoms."""
    n_species, n_features = len(student.elements), seen[0].features.shape[1]
    means = torch.zeros(n_species, n_features, dtype=torch.float64)
    n_kept = min(MAX_COMPONENTS, n_features)
    directions = torch.zeros(n_species, n_kept, n_features, dtype=torch.float64)
    rest = torch.zeros(n_species, dtype=torch.float64)
    for k in range(n_species):
        rows = torch.cat([one.features[one.species == k] for one in seen])
        others = torch.cat([one.features[one.species == k] for one in held])
        if len(rows) == 0:
            rest[k] = torch.inf  # never seen: any atom of it is an extrapolation
            continue
        means[k] = rows.mean(dim=0)
        centered = rows - means[k]
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(rows))
        floor = (_ATOM_RIDGE * values[-1]).clamp_min(1e-12)
        weights = 1.0 / torch.maximum(values.flip(0)[:n_kept], floor)
        components = vectors.flip(1).T[:n_kept]
        distances = _weigh(
            (others if len(others) else rows) - means[k], components, weights, 1.0 / floor
        )
        edge = torch.quantile(_thin(distances), _EDGE).clamp_min(1e-12)
        directions[k] = components * (weights / edge).sqrt()[:, None]
        rest[k] = 1.0 / (floor * edge)
    return means, directions, rest


def _thin(values: Tensor, most: int = 1_000_000) -> Tensor:
    """At most ``most`` evenly spaced values: torch.quantile takes no more than 16 million."""
    return values[:: max(1, -(-len(values) // most))]


def _grade(features: Tensor, places: Sequence[Tensor], fitted: UncertaintyParameters) -> Tensor:
    """Extrapolation grade of every atom, (n_atoms,) float64; ``places`` are the atoms of each species."""
    grades = features.new_zeros(len(features), dtype=torch.float64)
    for k, mine in enumerate(places):
        scaled, rest = fitted.atom_components[k].double(), fitted.atom_rest[k]
        sizes = scaled.square().sum(dim=1, keepdim=True)
        for part in mine.split(GRADE_ATOMS) if len(mine) else ():
            centered = features[part].double() - fitted.atom_means[k].double()
            along = (centered @ scaled.T).square()
            inside = (along / sizes.T.clamp_min(1e-300)).sum(dim=1)
            across = (centered.square().sum(dim=1) - inside).clamp_min(0.0)
            outside = torch.where(torch.isfinite(rest), across * rest, torch.inf)
            grades.index_copy_(0, part, (along.sum(dim=1) + outside).sqrt())
    return grades


def find_places(species: Tensor, n_species: int) -> list[Tensor]:
    """The atoms of each species, int64. Waits for the device."""
    return [(species == k).nonzero().flatten() for k in range(n_species)]


def assess_structure(
    rows: Tensor, places: Sequence[Tensor], fitted: UncertaintyParameters
) -> Tensor:
    """Uncertainty of one structure, without waiting for the device.

    Parameters
    ----------
    rows : (n_atoms, n_features) tensor
        Unbounded last-layer features.
    places : sequence of (n,) int64 tensors
        The atoms of each species.
    fitted : UncertaintyParameters
        On the same device.

    Returns
    -------
    (1 + n_atoms,) float64 tensor
        Standard deviation of the total energy in eV, then the grades of :class:`Uncertainty`.
    """
    parts = [
        [rows[part].double().sum(dim=0) for part in mine.split(GRADE_ATOMS)] for mine in places
    ]
    summed = torch.cat([torch.stack(sums).sum(dim=0) for sums in parts])[None]
    return torch.cat([_measure_energies(summed, fitted), _grade(rows, places, fitted)])


def apply_extrapolation_policy(
    uncertainty: Uncertainty, policy: Policy, *, threshold: float = 2.0
) -> str | None:
    """What to say, or raise, of atoms whose grade exceeds a threshold.

    Parameters
    ----------
    uncertainty : Uncertainty
        Of one structure.
    policy : {"ignore", "warn", "raise"}
    threshold : float

    Returns
    -------
    str or None
        One line if the policy is ``"warn"`` and an atom is beyond; the caller issues the warning, so that it
        points at the user's line.

    Raises
    ------
    DataError
        The same line, if the policy is ``"raise"``.
    UsageError
        If the policy is none of the three.
    """
    if policy not in ("ignore", "warn", "raise"):
        raise UsageError(f"on_extrapolation {policy!r} is not one of ignore, warn, raise")
    outside = ~(uncertainty.grades <= threshold)  # also what is not a number
    beyond = outside.nonzero().flatten().tolist()
    if policy == "ignore" or not beyond:
        return None
    worst = int(uncertainty.grades.argmax())
    shown = ", ".join(map(str, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
    message = (
        f"{len(beyond)} atoms ({shown}) are outside what the student was trained on: extrapolation grade "
        f"{float(uncertainty.grades[worst]):.3g} at atom {worst}, limit {threshold:g}; label such structures "
        "and train again"
    )
    if policy == "raise":
        raise DataError(message)
    return message
