"""What a student is trained on: relative errors of forces, energies, stress and Hessian-vector products.

Here: the weights of the terms and their definition. Not here: their replay on a GPU (:mod:`fastff.distill.captured`),
the optimiser, the schedule, validation (:mod:`fastff.distill.module`), the batches (:mod:`fastff.distill.data`).

Hessian-vector products are the exact derivative of the student's forces along a direction, by differentiating its
hand-written adjoint once more: the Hessian is symmetric, so that one backward pass through the gradient gives its
product with a vector. A step in which all frames have targets takes 2 to 2.7 times as long as without; evaluating the
student at both displaced structures takes 2.6 to 3.4 times as long (one CPU core), and neighbors would cross the
cut-off. On a CPU only the frames that have targets are differentiated again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastff.distill.data import LabelStatistics, stack_voigt
from fastff.models import Student


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, each of which is a squared relative error.

    Forces are compared in units of their root mean square, energies per atom in units of their spread, stress in
    units of its root mean square: near the end the terms are the squares of one minus the accuracies they train. Each
    is a Huber loss, and atoms pushed together count by their relative error (:func:`measure_strain`): a few close
    contacts among the labels teach the wall without outweighing thermal motion. The energy
    weight ramps from ``energy_start`` to ``energy`` over the run. Hessian-vector products, where labels have them, are
    compared in units of their root mean square.
    """

    forces: float = 1.0
    energy: float = 0.3
    energy_start: float = 0.03
    stress: float = 0.1
    hessian: float = 0.1

    def at(self, progress: float, n_terms: int) -> tuple[float, ...]:
        """Weights of the first ``n_terms`` terms (forces, energy, stress, Hessian) at this part of the schedule."""
        energy = self.energy_start + (self.energy - self.energy_start) * progress
        return (self.forces, energy, self.stress, self.hessian)[:n_terms]


HUBER_WIDTH = 0.1
"""Where the loss of a relative error turns from quadratic to linear."""

STRAINED_FORCE = 4.0
"""Teacher force, over the root mean square of a median frame, above which errors count relative to it."""

BATCH_FIELDS = (
    "vectors",
    "senders",
    "species",
    "batch",
    "volume",
    "n_atoms",
    "target_energy",
    "target_forces",
    "target_stress",
    "force_size",
)
"""What the loss reads of a batch, in order."""

HESSIAN_FIELDS = ("direction", "target_product")
"""What it reads beside them where labels have Hessian-vector targets."""


def pick_fields(batch: Any) -> tuple[Tensor, ...]:
    """Fields of a batch in the order of :data:`BATCH_FIELDS`, and of :data:`HESSIAN_FIELDS` if it has them."""
    names = BATCH_FIELDS + (HESSIAN_FIELDS if "direction" in batch else ())
    return tuple(batch[name] for name in names)


class ResidualLosses(nn.Module):
    """Terms of a batch; fixed shapes and no synchronisation, so that a GPU can replay it.

    ``n_atoms`` (n_systems,) counts the atoms of each frame without padding ones, which feel and exert no force. Each
    term is a Huber loss of the error over its scale in ``statistics``; that of forces, energy and stress is larger by
    :func:`measure_strain` where atoms are pushed together.

    Parameters
    ----------
    student : Student
    statistics : LabelStatistics
    conservative : bool
        Whether the teacher's forces derive from an energy. If not, its Hessian has an antisymmetric part that no
        student can follow, and only ``u H u`` along the direction ``u`` is compared, to which that part adds nothing.
    """

    force_unit: Tensor
    energy_unit: Tensor
    stress_unit: Tensor
    product_unit: Tensor

    def __init__(
        self, student: Student, statistics: LabelStatistics, *, conservative: bool = True
    ) -> None:
        super().__init__()
        self.student = student
        self.conservative = conservative
        scale = float(student.energy_scale)
        for name, size in (  # tensors: compiled code fits whatever their values
            ("force_unit", statistics.force_rms),
            ("energy_unit", statistics.energy_spread),
            ("stress_unit", max(statistics.stress_rms, 1e-12)),
            ("product_unit", max(statistics.product_rms, 1e-12)),
        ):
            unit = student.energy_scale.new_tensor(size / scale)
            self.register_buffer(name, unit, persistent=False)

    def forward(
        self,
        vectors: Tensor,
        senders: Tensor,
        species: Tensor,
        batch: Tensor,
        volume: Tensor,
        n_atoms: Tensor,
        target_energy: Tensor,
        target_forces: Tensor,
        target_stress: Tensor,
        force_size: Tensor,
        direction: Tensor | None = None,
        target_product: Tensor | None = None,
    ) -> Tensor:
        """Losses (3,) or (4,): forces, energy per atom, stress, and Hessian if a direction is given.

        Missing labels are masked before arithmetic.
        """
        rows = None
        if target_product is not None:
            rows = self._find_targeted(target_product, batch)
            if rows is None:
                vectors = vectors.detach().requires_grad_()
        energies, gradient = self.student.evaluate_dense(vectors, senders, species)
        n_systems = target_energy.shape[0]
        forces = sum_forces(gradient, senders)
        virial = torch.einsum("nsa,nsb->nab", vectors.detach(), gradient)
        virial = virial.new_zeros(n_systems, 3, 3).index_add(0, batch, virial)
        stress = stack_voigt(0.5 * (virial + virial.transpose(1, 2)) / volume[:, None, None])
        energy = energies.new_zeros(n_systems).index_add(0, batch, energies)
        known = torch.isfinite(target_stress)
        wanted = torch.where(known, target_stress, stress.detach())
        strain, strain_of_frame = measure_strain(force_size, self.force_unit, batch, n_systems)
        force_error = (forces - target_forces) / strain[:, None]
        energy_error = (energy - target_energy) / (n_atoms * strain_of_frame)
        stress_error = (stress - wanted) / strain_of_frame[:, None]
        terms = [
            relative_huber(force_error, self.force_unit).sum() / (3 * n_atoms.sum()),
            relative_huber(energy_error, self.energy_unit).mean(),
            relative_huber(stress_error, self.stress_unit).sum() / known.sum().clamp_min(1),
        ]
        if rows is not None and len(rows) == 0:
            terms.append(0.0 * energies.sum())
        elif direction is not None and target_product is not None:
            if rows is not None:  # of these frames alone
                vectors, senders, species = _pick_atoms(rows, vectors, senders, species)
                vectors.requires_grad_()
                direction, target_product, batch = (
                    part[rows] for part in (direction, target_product, batch)
                )
                gradient = self.student.evaluate_dense(vectors, senders, species)[1]
            product = -sum_forces(_turn(gradient, vectors, direction, senders), senders)
            terms.append(self._compare(product, target_product, direction, batch, n_systems))
        return torch.stack(terms)

    def _find_targeted(self, target: Tensor, batch: Tensor) -> Tensor | None:
        """Atoms of the frames that have a target, ascending; None for all of them.

        On a GPU all are taken: shapes must not depend on the batch, nor the host wait to learn them.
        """
        if target.is_cuda:
            return None
        known = torch.isfinite(target).any(dim=1)
        frames = torch.zeros(int(batch[-1]) + 1, dtype=torch.bool).index_fill(0, batch[known], True)
        return None if bool(frames.all()) else frames[batch].nonzero().flatten()

    def _compare(
        self, product: Tensor, target: Tensor, direction: Tensor, batch: Tensor, n_systems: int
    ) -> Tensor:
        """Term of the Hessian-vector products (n_atoms, 3); targets are NaN where there are none."""
        known = torch.isfinite(target)
        error = torch.where(known, product - torch.where(known, target, 0.0), 0.0)
        if not self.conservative:
            sums = error.new_zeros(n_systems, 2).index_add(
                0, batch, torch.stack([(error * direction).sum(1), direction.square().sum(1)], 1)
            )
            along = (sums[:, 0] / sums[:, 1].clamp_min(1e-12))[batch]
            error = along[:, None] * direction
        loss = relative_huber(error, self.product_unit)
        return loss.sum() / known.sum().clamp_min(1)


def sum_forces(gradient: Tensor, senders: Tensor) -> Tensor:
    """Forces (n_atoms, 3) from the gradient (n_atoms, n_slots, 3) of the energy in the edge vectors."""
    return gradient.sum(dim=1).index_add(0, senders.flatten(), -gradient.flatten(0, 1))


def _pick_atoms(
    rows: Tensor, vectors: Tensor, senders: Tensor, species: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, senders and species of whole frames, whose atoms are ``rows``."""
    places = torch.zeros(len(species), dtype=torch.int64).index_copy(
        0, rows, torch.arange(len(rows))
    )
    return vectors[rows].detach(), places[senders[rows]], species[rows]


def _turn(gradient: Tensor, vectors: Tensor, direction: Tensor, senders: Tensor) -> Tensor:
    """Change of the gradient per displacement along ``direction`` (n_atoms, 3); shaped like the gradient, 1/Å."""
    moves = direction.index_select(0, senders.flatten()).view_as(vectors) - direction[:, None]
    (change,) = torch.autograd.grad(gradient, vectors, moves, create_graph=True)
    return change


def count_labels(fields: tuple[Tensor, ...]) -> Tensor:
    """How many labels each term of :class:`ResidualLosses` averages over, for fields as of :func:`pick_fields`."""
    known = dict(zip(BATCH_FIELDS + HESSIAN_FIELDS, fields, strict=False))
    counts = [
        known["n_atoms"].sum(),
        known["n_atoms"].new_tensor(float(len(known["n_atoms"]))),
        torch.isfinite(known["target_stress"]).sum(),
    ]
    if "target_product" in known:
        counts.append(torch.isfinite(known["target_product"]).sum())
    return torch.stack([count.to(known["n_atoms"].dtype) for count in counts])


def measure_strain(
    force_size: Tensor, unit: float | Tensor, batch: Tensor, n_systems: int
) -> tuple[Tensor, Tensor]:
    """How far the teacher's force on each atom exceeds what counts as thermal, at least one, and the most of a frame.

    Parameters
    ----------
    force_size : (n_atoms,) tensor
        Norm of the teacher's whole force, core repulsion included.
    unit : float or () tensor
        Root mean square of the components in a median frame.
    batch : (n_atoms,) int64 tensor
        Frame of every atom.
    n_systems : int

    Returns
    -------
    strain : (n_atoms,) tensor
        ``max(1, |F| / (4 unit))``.
    strain_of_frame : (n_systems,) tensor
    """
    strain = (force_size / (STRAINED_FORCE * unit)).clamp_min(1.0)
    return strain, strain.new_ones(n_systems).scatter_reduce(0, batch, strain, "amax")


def relative_huber(error: Tensor, unit: float | Tensor) -> Tensor:
    """Huber loss of ``error / unit``, quadratic up to :data:`HUBER_WIDTH`, elementwise."""
    return functional.huber_loss(
        error / unit, torch.zeros_like(error), reduction="none", delta=HUBER_WIDTH
    )
