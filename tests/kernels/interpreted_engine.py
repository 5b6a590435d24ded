"""Kernels between positions and results in Triton's interpreter: lists, skin check, staging, the evaluator.

Run by ``test_engine.py`` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest
tests/kernels/interpreted_engine.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastff import kernels
from fastff.kernels import contract, dispatch
from fastff.kernels.neighbor_list import build_neighbors

from .lists import NASTY, draw_structure, list_by_op

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_engine.py"
)
FULL = (True, True, True)


@pytest.mark.parametrize("name", NASTY)
def test_lists_of_nasty_cells(name):
    positions, cell, flags = NASTY[name]
    reach = 1.0 if name == "skewed" else 4.0
    expected = list_by_op(positions, cell, flags, reach)
    with kernels.use("triton"):
        assert list_by_op(positions, cell, flags, reach) == expected
    assert dispatch._last_calls["neighbor_list"][0] == "triton"


@pytest.mark.parametrize("seed", range(16))
def test_lists_of_random_cells(seed):
    flags = (bool(seed & 1), bool(seed & 2), bool(seed & 4))
    positions, cell, pbc, reach = draw_structure(seed, flags)
    options = {"sort_atoms": bool(seed & 8), "reverse": bool(seed & 1)}
    expected = list_by_op(positions, cell, pbc, reach)
    with kernels.use("triton"), contract.poison_allocations():
        assert list_by_op(positions, cell, pbc, reach, **options) == expected


def test_rows_grow_and_buffers_stay():
    positions = torch.tensor(NASTY["two bins"][0])
    cell = np.asarray(NASTY["two bins"][1])
    with kernels.use("triton"):
        small = build_neighbors(positions, cell, FULL, 4.0, n_slots=1)
        assert small.matrix.n_slots >= int(small.matrix.counts.max()) > 1
        again = build_neighbors(positions, cell, FULL, 4.0, out=small.matrix)
        assert again.matrix is small.matrix


def test_wide_entries(monkeypatch):
    from fastff.kernels.neighbor_list import op

    positions, cell, flags = NASTY["two bins"]
    expected = list_by_op(positions, cell, flags, 4.0)
    monkeypatch.setattr(op, "_INT32", 64)
    with kernels.use("triton"):
        found = build_neighbors(torch.tensor(positions), np.asarray(cell), FULL, 4.0)
        assert found.matrix.entries.dtype == torch.int64
        assert list_by_op(positions, cell, flags, 4.0) == expected
