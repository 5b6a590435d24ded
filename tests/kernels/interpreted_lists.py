"""Lists of neighbors, their searches and the skin check in Triton's interpreter.

Run by ``test_engine.py`` in the process of ``interpreted_engine.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from untrained import make_student

from fastff import batch_lists, kernels, resident
from fastff.errors import DataError
from fastff.kernels import contract, dispatch
from fastff.kernels.neighbor_list import build_neighbors
from fastff.kernels.neighbor_list import op as list_op
from fastff.kernels.neighbor_list.plan import make_frame
from fastff.kernels.skin_check import check_skin, take_snapshot
from fastff.neighbors import VerletCache

from .lists import FULL, NASTY, draw_structure, list_by_op

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_engine.py"
)


@pytest.mark.parametrize("name", NASTY)
def test_lists_of_nasty_cells(name):
    positions, cell, flags = NASTY[name]
    reach = 0.5 if name == "skewed" else 4.0
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


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("flags", [FULL, (False, False, False)])
def test_atoms_too_far_for_their_wraps_are_refused(backend, flags):
    """They are counted in 32 bits, and an overflow would put the atom elsewhere."""
    positions = torch.tensor(NASTY["molecule"][0])
    cell = np.eye(3) * 9.0
    with kernels.use(backend):
        for far in (2.0**40, float("nan")):
            positions[2, 1] = far
            with pytest.raises(DataError, match="not finite, or 2\\^30 cells away"):
                build_neighbors(positions, cell, flags, 4.0)
        positions[2, 1] = 2.0**29
        found = build_neighbors(positions, cell, flags, 4.0)
        back = positions - torch.tensor(found.wraps.numpy() @ cell)
        assert not any(flags) or ((back >= 0).all() and (back <= 9.0).all())


def test_rows_grow_and_buffers_stay():
    positions, cell = torch.tensor(NASTY["molecule"][0]), np.eye(3) * 9.0
    with kernels.use("triton"):
        small = build_neighbors(positions, cell, FULL, 4.0, n_slots=1)
        assert small.matrix.n_slots >= int(small.matrix.counts.max()) > 1
        again = build_neighbors(positions, cell, FULL, 4.0, out=small.matrix)
        assert again.matrix is small.matrix


def test_wide_entries(monkeypatch):
    positions, cell, flags = NASTY["left-handed"]
    expected = list_by_op(positions, cell, flags, 4.0)
    monkeypatch.setattr(list_op, "_INT32", 64)
    with kernels.use("triton"):
        found = build_neighbors(torch.tensor(positions), np.asarray(cell), FULL, 4.0)
        assert found.matrix.entries.dtype == torch.int64
        assert list_by_op(positions, cell, flags, 4.0) == expected


@pytest.mark.parametrize("seed", range(12))
def test_skin_check_is_that_of_the_cache(seed):
    """Random moves and strains; single precision or a bound that is not tight would show."""
    rng = np.random.default_rng(seed)
    pbc = rng.random(3) < 0.5
    cell = np.diag(rng.uniform(2.5, 6.0, 3)) + rng.normal(scale=0.5, size=(3, 3))
    positions = rng.uniform(0, 6, (5, 3))
    strain = np.eye(3) + rng.normal(scale=(0.0, 0.02)[seed % 2], size=(3, 3))
    frame = make_frame(cell, tuple(bool(p) for p in pbc))
    snapshot = take_snapshot(torch.tensor(positions), frame, 5.0, 1.0)
    cache = VerletCache(5.0, 1.0)
    cache.update(positions, cell, pbc)
    seen = set()
    for width in (0.0, 0.02, 0.1, 0.2, 0.3):
        moved = positions @ strain + rng.normal(scale=width, size=positions.shape)
        answers = [cache.needs_rebuild(moved, cell @ strain, pbc)]
        for backend in ("torch", "triton"):
            stale = torch.zeros((), dtype=torch.int32)
            with kernels.use(backend):
                check_skin(torch.tensor(moved), torch.tensor(cell @ strain), snapshot, stale)
            answers.append(bool(stale))
        assert answers[0] == answers[1] == answers[2]
        seen.add(answers[0])
    assert True in seen


def test_skin_check_reads_strided_tensors_and_refuses_other_sizes():
    positions = torch.linspace(0.0, 8.0, 27, dtype=torch.float64).view(9, 3)
    cell = torch.eye(3, dtype=torch.float64) * 9 + torch.arange(9.0).view(3, 3) / 9
    snapshot = take_snapshot(positions, make_frame(cell.numpy(), FULL), 5.0, 1.0)
    stale = torch.zeros((), dtype=torch.int32)
    with kernels.use("triton"):
        check_skin(positions.T.contiguous().T, cell.T.contiguous().T, snapshot, stale)
        assert stale == 0
        with pytest.raises(DataError, match=r"3 atoms and a cell \(3, 3\), the snapshot 9"):
            check_skin(positions[:3], cell, snapshot, stale)


def test_skin_check_at_its_edge():
    positions = torch.zeros(300, 3, dtype=torch.float64)
    cell = torch.eye(3, dtype=torch.float64) * 9
    snapshot = take_snapshot(positions, make_frame(cell.numpy(), FULL), 5.0, 1.0)

    def check(moved, cell):
        stale = torch.zeros((), dtype=torch.int32)
        with kernels.use("triton"):
            check_skin(moved, cell, snapshot, stale)
        return int(stale)

    far = positions.clone()
    far[299, 1] = 0.4999999
    assert check(far, cell) == 0
    far[299, 1] = 0.5000001
    assert check(far, cell) == 1
    assert check(positions, cell * (5 / 6 + 1e-6)) == 0
    # the position grid would wrap around pairs of 6 Å that end up 59 Å apart or more
    assert check(positions, cell * 9.83) == 0
    assert check(positions, cell * 9.84) == 1
    assert check(positions, cell * torch.tensor([1.0, 9.84, 1.0])) == 1
    assert check(positions, cell * (5 / 6 - 1e-6)) == 1
    assert check(positions, cell * 1.3) == 0
    assert check(positions, cell.roll(1, 0)) == 0, "a rotation strains nothing"
    far[299, 1] = float("nan")
    assert check(far, cell) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_skin_checks_agree_on_cells_that_are_none(value):
    """The list is stale; without atoms it never is."""
    positions = torch.tensor(NASTY["left-handed"][0])
    old = np.asarray(NASTY["left-handed"][1], dtype=float)
    cell = torch.tensor(old)
    cell[1] = value
    for chosen, expected in ((positions, 1), (positions[:0], 0)):
        for backend in ("triton", "torch"):
            snapshot = take_snapshot(chosen, make_frame(old, FULL), 3.0, 0.5)
            stale = torch.zeros((), dtype=torch.int32)
            with kernels.use(backend):
                check_skin(chosen, cell, snapshot, stale)
            assert int(stale) == expected, backend


@pytest.mark.parametrize("wide", [False, True])
def test_lists_of_many_cells(wide, monkeypatch):
    """Rows of all structures in one launch, then of a few that moved: those of the definition, pair by pair."""
    monkeypatch.setattr(batch_lists, "_INT32", 64 if wide else 2**31)
    drawn = [draw_structure(k, (bool(k & 1), bool(k & 2), bool(k & 4)))[:3] for k in range(6)]
    reach = 1.2
    big = np.random.default_rng(1).uniform(0.0, 4.0, size=(70, 3)), np.eye(3), (False, False, False)
    drawn.append(big)
    sizes = [len(positions) for positions, _, _ in drawn]
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    pbc = np.array([flags for _, _, flags in drawn], dtype=bool)
    positions = torch.tensor(np.concatenate([p for p, _, _ in drawn]))
    cells = torch.tensor(np.array([c for _, c, _ in drawn]))
    found = {}
    for backend in ("torch", "triton"):
        lists = batch_lists.DeviceLists(sizes, pbc, batch, reach)
        with kernels.use(backend), contract.poison_allocations():
            lists.renew(positions, cells, range(len(sizes)))
            moved = positions + 0.3 * torch.sin(5.0 * positions)
            lists.renew(moved, cells, [2, 6])
        edges, shifts = lists.join_edges()
        rows = [tuple(row) for row in torch.cat([edges.T, shifts], dim=1).tolist()]
        assert len(rows) == len(set(rows)) > 50
        assert lists.pack().matrix.entries.dtype == (torch.int64 if wide else torch.int32)
        found[backend] = set(rows)
    assert dispatch._last_calls["neighbor_list"][0] == "triton"
    assert found["triton"] == found["torch"]


@pytest.mark.parametrize("sort_from", [1, 10_000])
def test_repeated_searches_give_the_lists_of_the_first(sort_from, monkeypatch):
    """Entry by entry after moves and wraps; rows that overflow, another cell and NaN lead back to the first search."""
    monkeypatch.setattr(resident, "SORT_FROM", sort_from)
    rng = np.random.default_rng(4)
    cell = np.diag([7.2, 8.6, 10.4]) + rng.normal(scale=0.3, size=(3, 3))
    positions, numbers = torch.tensor(rng.uniform(0, 9, (20, 3))), torch.full((20,), 29)
    box = torch.tensor(cell)
    potential = resident.ResidentPotential(make_student("m1", (29,), cutoff=3.0), skin=0.3)
    slow: list[int] = []

    def build(*arguments, **options):
        slow.append(1)
        return build_neighbors(*arguments, **options)

    monkeypatch.setattr(resident, "build_neighbors", build)
    with kernels.use("triton"):
        potential.attach(positions, numbers, box, torch.tensor(FULL))
        for turn in range(4):
            if turn < 3:
                positions += torch.tensor(rng.normal(scale=0.8, size=(20, 3)))
                positions[turn] += 3 * box[1] - 2 * box[2]
            else:
                positions[2:19] = positions[1] + 0.1 * torch.tensor(rng.normal(size=(17, 3)))
            potential.stale.fill_(1)
            potential.rebuild()
            assert int(potential.stale) == 0
            fresh = build_neighbors(positions, box, FULL, 3.3, sort_atoms=sort_from == 1)
            kept = potential._neighbors
            assert torch.equal(kept.order, fresh.order)
            assert torch.equal(kept.wraps, fresh.wraps)
            assert torch.equal(kept.matrix.counts, fresh.matrix.counts)
            for row, count in enumerate(fresh.matrix.counts.tolist()):
                mine, theirs = (m.entries[row, :count] for m in (kept.matrix, fresh.matrix))
                assert torch.equal(mine, theirs)
            assert torch.equal(potential._species, potential._kinds[fresh.order])
            assert torch.equal(potential._snapshot.positions, positions)
            assert len(slow) == (1 if turn < 3 else 2)
        box *= 1.01
        potential.rebuild()
        assert len(slow) == 3
        assert potential._search is None, "cells that move are not worth it"
        potential.attach(positions, numbers, box, torch.tensor(FULL))
        positions[3, 1] = torch.nan
        with pytest.raises(DataError, match="not finite"):
            potential.rebuild()
