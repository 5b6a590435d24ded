"""Energy, forces and virial of the moment family from positions and a neighbor matrix, in a handful of launches."""
