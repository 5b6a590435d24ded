"""Between the user's atoms and the rows of a neighbor matrix: positions in, results out, close contacts."""

from __future__ import annotations
