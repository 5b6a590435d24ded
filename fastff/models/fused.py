"""A moment student as the fused kernels take it.

Here: the parameters of a :class:`~fastff.models.moment.MomentStudent` collected for
:class:`~fastff.kernels.moment_potential.evaluate.FusedPotential`, and its last-layer features from what the kernels
leave on their way. Not here: kernels, launches, the choice of a back end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.kernels.moment_potential.layout import PotentialWeights
from fastff.kernels.moment_potential.workspace import Workspace
from fastff.models.moment import MomentStudent


def collect_weights(student: MomentStudent) -> PotentialWeights:
    """Parameters of a student, detached, on its device and in its dtype; float64 buffers stay float64."""
    core = None
    if student.core is not None:
        core = (student.core.inverse_length, student.core.reach, student.core.strength)
    blocks = tuple(
        type(block.weights)(*(part.detach() for part in block.weights)) for block in student.blocks
    )
    return PotentialWeights(
        cutoff=student.cutoff,
        radial=(student.radial_weights * student.moment_scale[:, None, None, None]).detach(),
        pair_factors=student.pair_factors.detach(),
        blocks=blocks,
        energy_scale=student.energy_scale,
        composition=student.composition_energies,
        core=core,
        inner=student.inner_distances,
    )


class FusedFeatures:
    """Last-layer features of a fused evaluation, unbounded as in :class:`~fastff.models.base.Features`.

    The kernels keep no hidden layers, but for a moment the inputs of all of them: this evaluates the perceptrons once
    more, in torch. Perceptrons are those of the student: parameters must not change while this is used.

    Parameters
    ----------
    student : MomentStudent
        In float32.
    """

    def __init__(self, student: MomentStudent) -> None:
        self._blocks, self._alone = student.blocks, student.describe_vacuum()
        self._n_channels = student.config.n_channels

    @torch.no_grad()
    def __call__(self, space: Workspace, species: Tensor) -> Tensor:
        """Features (n_atoms, n_features) of every row, while ``space.invariants`` holds invariants: as ``look`` of
        :meth:`~fastff.kernels.moment_potential.evaluate.FusedPotential.evaluate`. Never waits for the device."""
        found = []
        for hop, (block, alone) in enumerate(zip(self._blocks, self._alone, strict=True)):
            inputs = space.invariants[hop]
            if hop > 0:
                inputs = torch.cat([inputs, space.messages[hop - 1][:, : self._n_channels]], dim=1)
            found.append(block.evaluate_raw(inputs, species) - alone[species])
        return torch.cat(found, dim=1)
