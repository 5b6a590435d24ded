"""Edge features: radial basis times envelope and real spherical harmonics of edge vectors."""

from __future__ import annotations

from fastff.kernels.edge_features.op import edge_features

__all__ = ["edge_features"]
