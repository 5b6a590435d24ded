"""Energy, forces and virial of the moment family from positions and a neighbor matrix, in a handful of launches."""

from __future__ import annotations

from fastff.kernels.moment_potential.op import MomentPotential, moment_potential

__all__ = ["MomentPotential", "moment_potential"]
