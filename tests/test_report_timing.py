"""Timing rules, memory, supercells and provenance, with calculators whose cost is known."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes

from fastff.errors import DataError, UsageError
from fastff.kernels.replay import Replay
from fastff.memory import release_memory
from fastff.report import inner
from fastff.report.inner import is_shortage
from fastff.report.markdown import describe_memory
from fastff.report.memory import PeakMemory
from fastff.report.provenance import collect_provenance
from fastff.report.race import choose_dynamics_sizes
from fastff.report.schema import compute_ratios
from fastff.report.speed import SpeedPoint, convert_to_ns_per_day, summarize
from fastff.report.stepping import time_dynamics
from fastff.report.supercells import GAP, build_supercells
from fastff.report.timing import (
    Timed,
    TimingPlan,
    time_calculator,
    time_calculators,
)


class Clockwork(Calculator):
    """Takes a fixed time per atom, remembers what it was asked, and can run out of memory."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, seconds_per_atom=0.0, fails_above=None, error=None, hoard=0):
        super().__init__()
        self.seconds_per_atom, self.fails_above, self.error = seconds_per_atom, fails_above, error
        self.hoard = hoard
        self.seen = []

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.fails_above is not None and len(atoms) > self.fails_above:
            raise self.error
        ballast = np.ones(self.hoard // 8)
        self.seen.append(atoms.get_positions())
        time.sleep(self.seconds_per_atom * len(atoms))
        self.results = {
            "energy": float(ballast[:1].sum()),
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.zeros(6),
        }


def make_cells(*sizes):
    return [
        Atoms(f"Cu{n}", positions=np.random.default_rng(n).normal(size=(n, 3)) * 9) for n in sizes
    ]


PLAN = TimingPlan(budget=0.5, min_repeats=3, max_repeats=5, warmup=2)


def test_times_are_those_of_the_calculator():
    curve = time_calculator(lambda: Clockwork(1e-3), make_cells(10, 20), plan=PLAN)
    for point, expected in zip(curve.points, (0.010, 0.020), strict=True):
        assert point.status == "measured"
        assert len(point.seconds) >= 3
        assert expected <= point.median < 3 * expected
        assert point.q10 <= point.median <= point.q90
        assert point.atom_steps_per_second == pytest.approx(point.n_atoms / point.median)


def test_every_call_is_on_atoms_moved_by_more_than_a_skin():
    calculator = Clockwork()
    curve = time_calculator(lambda: calculator, make_cells(10), plan=PLAN)
    # One evaluation per call: forces, energy and stress come from the same pass.
    n_warm = len(calculator.seen) - len(curve.points[0].seconds)
    assert PLAN.warmup <= n_warm <= PLAN.long_warmup  # on a busy machine not the longer one
    for before, after in zip(calculator.seen[:-1], calculator.seen[1:], strict=True):
        assert np.linalg.norm(after - before, axis=1).min() > 1.3


def test_both_sides_see_the_same_places():
    first, second = Clockwork(), Clockwork()
    entries = [Timed("teacher", "a", lambda: first, {}), Timed("student", "b", lambda: second, {})]
    time_calculators(entries, make_cells(6), PLAN)
    for mine, other in zip(first.seen, second.seen, strict=False):
        np.testing.assert_array_equal(mine, other)


def test_slow_calculator_stops_but_required_size_is_measured():
    plan = TimingPlan(budget=0.1, min_repeats=3, max_repeats=4, warmup=1, required=(160,))
    calculator = Clockwork(2e-3)
    curve = time_calculator(lambda: calculator, make_cells(10, 25, 120, 160, 320), plan=plan)
    status = {p.n_atoms: p.status for p in curve.points}
    assert status == {
        10: "measured", 25: "too-slow", 120: "too-slow", 160: "measured", 320: "too-slow"
    }  # fmt: skip
    late = curve.find(320)
    assert late.median is None
    assert late.seconds == ()
    assert "budget is 0.1 s" in late.reason
    assert len(curve.find(160).seconds) >= 3
    # 25 atoms cost one warm call, 120 and 320 were not tried at all.
    assert sorted({len(p) for p in calculator.seen}) == [10, 25, 160]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.cuda.OutOfMemoryError("x"),
    ],
)
def test_out_of_memory_is_a_point_not_a_crash(error):
    curve = time_calculator(
        lambda: Clockwork(fails_above=15, error=error), make_cells(10, 20, 30), plan=PLAN
    )
    assert [p.status for p in curve.points] == ["measured", "out-of-memory", "not-run"]
    assert curve.points[1].median is None
    assert "stopped at 20 atoms" in curve.points[2].reason


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="no kernel image"):
        time_calculator(
            lambda: Clockwork(fails_above=5, error=RuntimeError("no kernel image")),
            make_cells(10),
            plan=PLAN,
        )
    assert not is_shortage(ValueError("out of range"))


def test_a_size_that_cannot_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(PeakMemory, "measure", lambda self: 2**30)
    monkeypatch.setattr(PeakMemory, "measure_free", lambda self: 3 * 2**30)
    calculator = Clockwork()
    curve = time_calculator(lambda: calculator, make_cells(10, 40), plan=PLAN)
    assert [p.status for p in curve.points] == ["measured", "too-large"]
    assert "4.0 GiB" in curve.points[1].reason
    assert max(len(p) for p in calculator.seen[-3:]) == 10


def test_largest_leaves_out_bigger_structures_visibly():
    entry = Timed("teacher", "t", Clockwork, {}, largest=10)
    curve = time_calculators([entry], make_cells(10, 20), PLAN)[0]
    assert [p.status for p in curve.points] == ["measured", "not-run"]


def test_structures_must_ascend_and_exist():
    with pytest.raises(UsageError, match="ascending"):
        time_calculator(Clockwork, make_cells(20, 10))
    with pytest.raises(UsageError, match="at least one"):
        time_calculator(Clockwork, [])


def test_dynamics_are_timed_step_by_step():
    calculator = Clockwork(1e-3)
    entry = Timed("student", "s", lambda: calculator, {})
    atoms = bulk("Cu", cubic=True).repeat(2)
    curve = time_dynamics(entry, [atoms], temperature=300, time_step=2.0, budget=1.0, max_steps=30)
    point = curve.points[0]
    assert "from 300 K" in curve.includes
    assert curve.mode == "ase-md"
    assert curve.time_step == 2.0
    assert 0.032 <= point.mean < 0.1
    # Atoms have moved as in dynamics: a little at each step.
    moves = np.linalg.norm(calculator.seen[-1] - calculator.seen[-2], axis=1)
    assert 0 < moves.max() < 0.2


def test_dynamics_has_every_size_that_its_calls_allow():
    entry = Timed("teacher", "t", lambda: Clockwork(1e-4), {})
    cells = [bulk("Cu", cubic=True).repeat(k) for k in (1, 2, 3, 4)]
    points = [summarize(len(cell), "Cu", [1e-4 * len(cell)] * 3, None) for cell in cells[:3]]
    lost = SpeedPoint(n_atoms=256, formula="Cu", status="out-of-memory", reason="planted")
    calls = time_calculator(lambda: Clockwork(1e-4), cells[:1], plan=PLAN).model_copy(
        update={"points": (*points, lost)}
    )
    # 8 steps of 10.8 ms are more than 0.05 s
    assert choose_dynamics_sizes([calls], 4, 0.05) == {4, 256, 32}
    curve = time_dynamics(
        entry, cells, temperature=450, time_step=2.0, budget=0.05, calls=calls, required=(4,),
        max_steps=5,
    )  # fmt: skip
    status = {p.n_atoms: p.status for p in curve.points}
    assert status == {4: "measured", 32: "measured", 108: "too-slow", 256: "out-of-memory"}
    assert "a call takes 0.0108 s" in curve.find(108).reason
    late = time_dynamics(
        entry, cells[2:3], temperature=450, time_step=2.0, budget=0.05, calls=calls,
        required=(108,), max_steps=5,
    )  # fmt: skip
    assert late.find(108).status == "measured"


class Hiccup(Clockwork):
    """Takes long at the given calls, as a compiler does that meets a new number of neighbors."""

    def __init__(self, *late):
        super().__init__(5e-5)
        self.late = late

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        if len(self.seen) in self.late:
            time.sleep(0.5)
        super().calculate(atoms, properties, system_changes)


def test_compiling_in_the_first_steps_of_dynamics_is_warm_up():
    entry = Timed("teacher", "t", lambda: Hiccup(6, 12), {})
    atoms = bulk("Cu", cubic=True).repeat(2)
    curve = time_dynamics(entry, [atoms], temperature=300, time_step=2.0, budget=1.0)
    assert curve.points[0].mean < 0.01
    assert curve.points[0].counts is None


def test_the_median_counts_where_single_blocks_of_dynamics_take_far_longer():
    entry = Timed("teacher", "t", lambda: Hiccup(60), {})
    atoms = bulk("Cu", cubic=True).repeat(2)
    curve = time_dynamics(entry, [atoms], temperature=300, time_step=2.0, budget=1.0, max_steps=200)
    point = curve.points[0]
    assert point.mean > 1.5 * point.median
    assert point.per_step == point.median
    assert "the median counts" in point.reason
    assert "at 32 atoms the median of blocks" in curve.includes
    other = curve.model_copy(update={"role": "student"})
    assert compute_ratios((curve, other))[0].teacher_seconds == point.median


def test_ns_per_day_by_hand():
    # 10 ms a step of 1 fs: 8.64 million steps a day, 8.64 ns.
    assert convert_to_ns_per_day(0.01, 1.0) == pytest.approx(8.64)


def test_summary_by_hand():
    point = summarize(100, "Cu", [1.0, 2.0, 6.0], None)
    assert (point.median, point.mean, point.atom_steps_per_second) == (2.0, 3.0, 50.0)
    assert point.q10 == pytest.approx(1.2)
    assert point.q90 == pytest.approx(5.2)


def test_peak_memory_sees_a_large_array():
    memory = PeakMemory("cpu")
    memory.reset()
    if memory.measure() is None:
        pytest.skip("this system has no resettable high-water mark of resident memory")
    block = np.ones(16 * 2**20)  # 128 MiB
    del block
    release_memory()
    peak = memory.measure()
    assert 120 * 2**20 < peak < 400 * 2**20
    memory.reset()
    assert memory.measure() < peak - 100 * 2**20
    assert memory.measure_free() > 0


def test_what_torch_keeps_for_new_tensors_is_free(monkeypatch):
    """After a call at a smaller size most of a GPU's memory is in torch's cache, which the next call uses."""
    numbers = {"memory_allocated": 2, "memory_reserved": 60}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    assert PeakMemory("cuda").measure_free() == 10 + 60 - 2


def test_memory_of_another_process_is_not_measured_and_never_zero(monkeypatch):
    entry = Timed("teacher", "t", Clockwork, {}, own_process=True)
    cells = [bulk("Cu", cubic=True)]
    curve = time_calculators([entry], cells, PLAN)[0]
    dynamics = time_dynamics(entry, cells, temperature=300, time_step=2.0, budget=0.1, max_steps=3)
    for one in (curve, dynamics):
        assert one.points[0].status == "measured"
        assert one.points[0].peak_memory is None
        assert "process of its own" in one.memory_kind
    assert describe_memory(curve.points[0]) == "not measured"
    # on a GPU, where torch allocated nothing, something else did
    memory = PeakMemory("cpu")
    memory.device = torch.device("cuda")
    monkeypatch.setattr(memory, "_read", lambda key: 2**20)
    memory.base = 2**20
    assert memory.measure() is None


def test_supercells_reach_the_sizes():
    cells = build_supercells(bulk("Cu", cubic=True), [64, 500, 2000])
    assert [len(c) for c in cells] == [64, 500, 2048]
    for cell in cells:
        lengths = cell.cell.lengths()
        assert lengths.max() / lengths.min() < 2.1
        assert cell.pbc.all()
    assert len({len(c) for c in build_supercells(bulk("Cu"), [1, 1, 2])}) == 2


def test_slab_grows_only_in_its_plane():
    slab = fcc111("Pt", (2, 2, 3), vacuum=8.0)
    big = build_supercells(slab, [200])[0]
    assert big.pbc.tolist() == slab.pbc.tolist()
    assert np.ptp(big.positions[:, 2]) < np.ptp(slab.positions[:, 2]) + 1.0
    assert len(big) > 150


def test_molecules_stand_apart():
    cluster = build_supercells(molecule("H2O"), [24], rattle=0.0)[0]
    assert len(cluster) == 24
    assert not cluster.pbc.any()
    distances = cluster.get_all_distances()
    different = np.arange(24)[:, None] // 3 != np.arange(24)[None, :] // 3
    assert distances[different].min() >= GAP - 1e-6


def test_supercells_refuse_nonsense():
    with pytest.raises(DataError, match="without atoms"):
        build_supercells(Atoms(), [10])
    with pytest.raises(DataError, match="below 1"):
        build_supercells(bulk("Cu"), [0])


def test_provenance_names_machine_and_versions_but_no_paths():
    provenance = collect_provenance(["/some/where/bin/fastff", "bench", "model file"])
    assert provenance.command == "fastff bench 'model file'"
    assert provenance.packages["torch"] == torch.__version__
    assert provenance.cores >= 1
    assert provenance.date.endswith("+00:00")
    text = json.dumps(provenance.model_dump())
    assert "/some/where" not in text
    assert provenance.machine


def test_commit_of_a_copied_tree(monkeypatch):
    """A tree without its repository is told its commit; whether it was changed, nobody knows."""
    monkeypatch.setenv("FASTFF_COMMIT", "0123abc")
    found = collect_provenance()
    assert (found.commit, found.dirty) == ("0123abc", None)


class Counter:
    """A potential that a graph can hold, and what was asked of it; buffers move at some builds."""

    capturable, device = True, torch.device("cpu")

    def __init__(self, moves):
        self.moves, self.asked = list(moves), []

    def rebuild(self):
        self.asked.append("list")
        return self.moves.pop(0) if self.moves else False

    def compute(self):
        self.asked.append("evaluation")


@pytest.mark.parametrize("moves", [(), (False, False, True)])
def test_list_and_model_replay_what_calculators_replay(monkeypatch, moves):
    """A recorded evaluation is kept from list to list, as in a calculator, and dropped where buffers have moved."""
    made = []

    class Spy(Replay):
        def __init__(self, function, device):
            super().__init__(function, device)
            self.n_calls = 0
            made.append(self)

        def __call__(self):
            self.n_calls += 1
            super().__call__()

    potential = Counter(moves)
    monkeypatch.setattr("fastff.kernels.replay.Replay", Spy)
    monkeypatch.setattr(inner, "_attach", lambda student, atoms: potential)
    seconds = inner._time_list(None, None, TimingPlan(max_repeats=5))
    count = len(seconds)
    assert count >= 5
    assert potential.asked == ["list", "evaluation"] * (count + 4)  # four to warm up
    assert [spy.n_calls for spy in made] == ([2, count + 2] if moves else [count + 4])


def test_model_alone_makes_no_list(monkeypatch):
    potential = Counter(())
    monkeypatch.setattr(inner, "_attach", lambda student, atoms: potential)
    inner._time_model(None, None, TimingPlan(max_repeats=5))
    assert set(potential.asked) == {"evaluation"}
