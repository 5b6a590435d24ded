"""Edge features: radial basis times envelope and real spherical harmonics of edge vectors."""
