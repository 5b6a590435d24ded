"""Adjoint of the moments: gradients in the moments to forces, virial and message gradients."""
