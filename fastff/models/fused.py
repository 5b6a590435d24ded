"""A moment student as the fused kernels take it.

Here: the parameters of a :class:`~fastff.models.moment.MomentStudent` collected for
:class:`~fastff.kernels.moment_potential.evaluate.FusedPotential`. Not here: kernels, launches,
the choice of a back end.
"""

from __future__ import annotations

from fastff.kernels.moment_potential.layout import PotentialWeights
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
