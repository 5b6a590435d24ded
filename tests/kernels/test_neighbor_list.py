"""The neighbor list of tensors against vesin and against the list of graphs. Kernel: ``interpreted_lists.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastff.errors import DataError
from fastff.kernels.moment_potential.layout import list_shifts, unpack_neighbors
from fastff.kernels.neighbor_list import build_neighbors, reference
from fastff.kernels.neighbor_list import op as list_op
from fastff.kernels.neighbor_list.plan import assign_bins, make_frame
from fastff.neighbors import build_edges, complete_cell

from .lists import FULL, NASTY, draw_structure, list_by_op, list_by_vesin


def expect(positions, cell, pbc, reach):
    pbc = np.asarray(pbc, dtype=bool)
    completed = complete_cell(positions, np.asarray(cell, dtype=float), pbc, reach)
    edges, shifts = build_edges(positions, completed, pbc, reach)
    return {(*e, *s) for e, s in zip(edges.T.tolist(), shifts.tolist(), strict=True)}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_cells(name):
    positions, cell, flags = NASTY[name]
    assert list_by_op(positions, cell, flags, 4.0) == expect(positions, cell, flags, 4.0)


def test_periodic_cells_by_vesin():
    positions, cell, flags = NASTY["left-handed"]
    found = list_by_op(positions, cell, flags, 4.0)
    assert found == list_by_vesin(positions, cell, np.array(flags, bool), 4.0)
    assert len(found) > 20


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), flags=st.tuples(*[st.booleans()] * 3), sort_atoms=st.booleans())
def test_random_cells(seed, flags, sort_atoms):
    positions, cell, pbc, reach = draw_structure(seed, flags)
    found = list_by_op(positions, cell, pbc, reach, sort_atoms=sort_atoms, n_slots=2)
    assert found == expect(positions, cell, pbc, reach)


@pytest.mark.parametrize("name", NASTY)
def test_bins_in_torch_give_the_pairs_of_the_definition(name):
    positions, cell, flags = NASTY[name]
    check_bins(positions, cell, flags, 0.5 if name == "skewed" else 4.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), flags=st.tuples(*[st.booleans()] * 3))
def test_bins_in_torch_in_random_cells(seed, flags):
    check_bins(*draw_structure(seed, flags))


def check_bins(positions, cell, pbc, reach):
    frame = make_frame(np.asarray(cell, dtype=float), tuple(bool(p) for p in pbc))
    bins = assign_bins(torch.tensor(positions), frame, reach)
    for span, size, periodic in zip(bins.spans, bins.shape, pbc, strict=True):
        assert periodic or span < size
    if np.prod([2 * span + 1 for span in bins.spans]) > 1000:
        return  # one sweep each
    found = []
    for search in (reference.find_pairs, reference.find_pairs_by_bins):
        receivers, senders, codes, wraps, images = search(torch.tensor(positions), frame, reach)
        shifts = list_shifts(images)[codes]
        rows = torch.cat([receivers[:, None], senders[:, None], shifts], dim=1).tolist()
        assert len(rows) == len({tuple(row) for row in rows})
        found.append((sorted(rows), wraps.tolist()))
    assert found[0] == found[1]


def test_large_structures_take_bins_in_torch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(1200, 3, generator=generator, dtype=torch.float64) * 24
    with monkeypatch.context() as patch:
        patch.setattr(reference, "find_pairs", None)
        found = list_by_op(positions, np.eye(3) * 24, (1, 1, 0), 3.0, sort_atoms=True)
    assert found == expect(positions.numpy(), np.eye(3) * 24, (1, 1, 0), 3.0)
    assert len(found) > 5000
    by_bins = build_neighbors(positions, np.eye(3) * 24, FULL, 3.0).matrix
    monkeypatch.setattr(list_op, "BINS_FROM", 2000)
    by_definition = build_neighbors(positions, np.eye(3) * 24, FULL, 3.0).matrix
    filled = torch.arange(by_bins.n_slots) < by_bins.counts[:, None]
    assert torch.equal(by_bins.counts, by_definition.counts)
    assert torch.equal(by_bins.entries[filled], by_definition.entries[filled])


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)])
def test_bins_of_flat_structures_are_swept_once(pbc):
    """Not once for every bin that would fit into the reach: a sheet took 6,000 sweeps, a wire a hundred million."""
    positions = torch.zeros(60, 3, dtype=torch.float64)
    positions[:, 0] = torch.arange(60) * 2.5
    cell = np.diag([150.0, 6.0, 0.0]) * np.array(pbc)
    bins = assign_bins(positions, make_frame(cell, pbc), 6.0)
    assert bins.shape[2] == 1
    assert bins.spans[2] == 0
    check_bins(positions.numpy(), cell, pbc, 6.0)


def test_rows_are_unwrapped_by_their_wraps():
    positions, cell, _ = NASTY["many boxes away"]
    found = build_neighbors(torch.tensor(positions), cell, FULL, 4.0, sort_atoms=True)
    staged = torch.tensor(positions)[found.order] - found.wraps.double() @ torch.tensor(cell)
    fractional = staged @ torch.tensor(cell).inverse()
    assert float(fractional.min()) >= -1e-12
    assert float(fractional.max()) <= 1 + 1e-12
    senders, codes, filled = unpack_neighbors(found.matrix)
    shifts = found.matrix.translations[:, :3].double() * 2.0**-26
    vectors = staged[senders] - staged[:, None] + shifts[codes]
    wrapped = (vectors + 32.0) % 64.0 - 32.0
    assert float(wrapped.norm(dim=-1)[filled].max()) < 4.0


def test_reverse_index():
    positions, cell, _ = NASTY["two bins"]
    found = build_neighbors(torch.tensor(positions), cell, FULL, 4.0, reverse=True)
    matrix = found.matrix
    senders, codes, filled = unpack_neighbors(matrix)
    back = matrix.reverse[filled].long()
    rows = torch.arange(matrix.n_atoms)[:, None].expand_as(senders)[filled]
    assert torch.equal(senders.flatten()[back], rows)
    assert torch.equal(codes.flatten()[back], (2 * found.images + 1) ** 3 - 1 - codes[filled])
    assert torch.equal(back.sort().values, filled.flatten().nonzero().flatten())


def test_a_pair_listed_from_one_side_is_its_own_reverse():
    """As rounding may list it where it is as far apart as the reach; another slot's forces would go to its atoms."""
    positions, cell, _ = NASTY["two bins"]
    found = build_neighbors(torch.tensor(positions), cell, FULL, 4.0)
    whole = list_op._add_reverse(found).matrix
    row, last = 4, int(whole.counts[4]) - 1
    partner = int(whole.reverse[row, last])
    found.matrix.counts[row] -= 1
    lone = list_op._add_reverse(found).matrix
    assert int(lone.reverse.flatten()[partner]) == partner
    filled = torch.arange(lone.n_slots) < lone.counts[:, None]
    filled.view(-1)[partner] = False
    assert torch.equal(lone.reverse[filled], whole.reverse[filled])


def test_no_reverse_index_of_an_earlier_list_is_kept():
    positions, cell, _ = NASTY["two bins"]
    first = build_neighbors(torch.tensor(positions), cell, FULL, 4.0, reverse=True)
    again = build_neighbors(torch.tensor(positions) + 1.0, cell, FULL, 4.0, out=first.matrix)
    assert again.matrix.entries is first.matrix.entries
    assert again.matrix.reverse is None


def test_buffers_stay_until_they_are_too_small():
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(60, 3, generator=generator, dtype=torch.float64) * 12
    first = build_neighbors(positions, np.eye(3) * 12, FULL, 4.0)
    again = build_neighbors(positions + 0.1, np.eye(3) * 12, FULL, 4.0, out=first.matrix)
    assert again.matrix is first.matrix
    squeezed = build_neighbors(positions * 0.6, np.eye(3) * 7.2, FULL, 4.0, out=first.matrix)
    assert squeezed.matrix is not first.matrix
    assert int(squeezed.matrix.counts.max()) > first.matrix.n_slots
    assert list_by_op(positions * 0.6, np.eye(3) * 7.2, FULL, 4.0, n_slots=1) == expect(
        (positions * 0.6).numpy(), np.eye(3) * 7.2, FULL, 4.0
    )


def test_wide_entries_where_int32_would_overflow(monkeypatch):
    positions, cell, flags = NASTY["two bins"]
    expected = expect(positions, cell, flags, 4.0)
    monkeypatch.setattr(list_op, "_INT32", 64)
    found = build_neighbors(torch.tensor(positions), np.asarray(cell), FULL, 4.0)
    assert found.matrix.entries.dtype == torch.int64
    assert list_by_op(positions, cell, flags, 4.0) == expected


def test_bins_are_limited():
    """A thin gas fills a few thousand bins, not one per reach."""
    positions = torch.rand(100, 3, dtype=torch.float64) * 1e4
    bins = assign_bins(positions, make_frame(np.eye(3) * 1e4, FULL), 3.0)
    assert np.prod(bins.shape) <= 4096
    assert bins.spans == (1, 1, 1)
    assert int(bins.keys.max()) < np.prod(bins.shape)


@pytest.mark.parametrize(
    ("cell", "pbc", "n_atoms", "most"),
    [
        (np.diag([100.0, 100.0, 0.0]), (True, True, False), 3900, 200),
        (np.diag([3000.0, 0.0, 0.0]), (True, False, False), 2000, 40),
        (np.zeros((3, 3)), (False, False, False), 12, 24),
    ],
)
def test_first_rows_of_flat_structures_are_no_wider_than_dense_ones(cell, pbc, n_atoms, most):
    """Of a sheet, a wire and a flat molecule, whose volume is next to nothing."""
    lengths = torch.tensor(np.where(np.diag(cell) > 0.0, np.diag(cell), [5.0, 0.0, 0.0]))
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64) * lengths
    frame = make_frame(cell, pbc)
    assert list_op._guess_slots(n_atoms, 6.0, assign_bins(positions, frame, 6.0), frame) <= most


@pytest.mark.parametrize(
    ("positions", "cell", "reach", "message"),
    [
        (torch.zeros(2, 2), np.eye(3), 3.0, r"shape \(2, 2\)"),
        (torch.zeros(2, 3), np.eye(3), 0.0, "reach 0.0 Å must be positive"),
        (torch.zeros(2, 3), np.eye(3), float("inf"), "reach inf Å must be positive and finite"),
        (torch.zeros(2, 3), np.ones(3), 3.0, r"cell has shape \(3,\)"),
        (torch.zeros(2, 3), np.zeros((3, 3)), 3.0, "no volume"),
        (torch.zeros(2, 3), np.ones((3, 3)), 3.0, "no volume"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), np.eye(3), 3.0, "not finite"),
        (torch.zeros(2, 3), np.diag([9.0, 9.0, 0.01]), 3.0, "0.01 Å thin"),
    ],
)
def test_bad_input(positions, cell, reach, message):
    with pytest.raises(DataError, match=message):
        build_neighbors(positions, cell, FULL, reach)


def test_no_atoms():
    found = build_neighbors(torch.zeros(0, 3), np.eye(3), FULL, 3.0)
    assert found.matrix.n_atoms == 0
