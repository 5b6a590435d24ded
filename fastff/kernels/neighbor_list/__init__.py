"""Neighbor matrix of one structure, built on the device: cell list, any periodicity, several images."""

from __future__ import annotations

from fastff.kernels.neighbor_list.op import NeighborList, build_neighbors

__all__ = ["NeighborList", "build_neighbors"]
