"""The teacher is timed at its best: settings are tried, checked against its labels, and said. Orb's: its own tests."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.morse import MorsePotential

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report.fastest import choose_fastest, describe_settings, find_untried_span
from fastff.report.inner import ModelClock
from fastff.report.race import join_curves
from fastff.report.timing import Timed, TimingPlan, time_calculators
from fastff.teachers import load_teacher
from fastff.teachers.base import Setting, Teacher, TeacherInfo


class SlowMorse(MorsePotential):
    """Morse's energies times ``scale`` after a nap; ``error`` is raised instead."""

    def __init__(self, seconds=0.0, scale=1.0, error=None):
        super().__init__(r0=2.6, epsilon=0.3)
        self.nap, self.scale, self.error = seconds, scale, error

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if self.error is not None:
            raise self.error
        super().calculate(atoms, properties, system_changes)
        time.sleep(self.nap)
        for key in ("energy", "forces", "stress"):
            self.results[key] = self.scale * self.results[key]


class ManyWays(Teacher):
    """A teacher with the settings it is given."""

    def __init__(self, settings, missing=()):
        self.info = TeacherInfo(
            "fake:many", "fake", "1", "none", None, "none", "none", (), True, 5.0
        )
        self.settings, self.missing = settings, list(missing)

    def _label_completed(self, structures):
        return [label(atoms) for atoms in structures]

    def calculator(self):
        return self.settings[0].make()

    def list_settings(self):
        return self.settings, self.missing


def label(atoms):
    image = atoms.copy()
    image.calc = SlowMorse()
    return Labels(image.get_potential_energy(), image.get_forces(), image.get_stress())


def make_atoms():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def choose(*settings, missing=()):
    atoms = make_atoms()
    teacher = ManyWays([Setting(values, make) for values, make in settings], missing)
    return choose_fastest(teacher, atoms, label(atoms), atoms, device="cpu", budget=0.5).small


def test_the_fastest_setting_that_says_the_same_is_timed():
    timed = choose(
        ({"compile": False}, lambda: SlowMorse(0.05)),
        ({"compile": True}, lambda: SlowMorse(0.01)),
        ({"accelerator": "wrong"}, lambda: SlowMorse(scale=1.2)),
        ({"accelerator": "broken"}, lambda: SlowMorse(error=RuntimeError("no compiler\nmore"))),
        missing=("accelerator x: its package is not installed",),
    )
    assert timed.identity["settings"] == {"compile": True}
    assert timed.factory().nap == 0.01
    own, best, wrong, broken = timed.identity["tried"]
    assert best["seconds"] < own["seconds"]
    assert (wrong["seconds"], wrong["reason"]) == (None, "does not give the teacher's labels")
    assert broken["reason"] == "RuntimeError: no compiler"
    text = describe_settings(timed.identity)
    assert (
        "timed with compile on: the fastest of 4 settings, medians of 3 to 5 ASE calls at 4 atoms"
        in text
    )
    assert "accelerator broken: RuntimeError: no compiler" in text
    assert "Not available on this machine: accelerator x: its package is not installed." in text


class Stale(SlowMorse):
    """Returns its first answer for ever, as a captured graph that is not fed again would."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if not hasattr(self, "kept"):
            self.kept = dict(self.results)
        self.results = dict(self.kept)


class WrongStress(SlowMorse):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["stress"] = self.results["stress"] + 0.01


def test_a_faster_setting_that_is_stale_wrong_in_stress_or_rough_is_not_chosen():
    timed = choose(
        ({"way": "own"}, lambda: SlowMorse(0.02)),
        ({"way": "stale"}, Stale),
        ({"way": "stress"}, WrongStress),
        ({"way": "rough"}, lambda: SlowMorse(scale=1.002)),
        ({"way": "good"}, lambda: SlowMorse(0.005, scale=1.0001)),
    )
    assert timed.identity["settings"] == {"way": "good"}
    own, *wrong, good = timed.identity["tried"]
    assert [one["reason"] for one in wrong] == ["does not give the teacher's labels"] * 3
    assert own["difference"] == pytest.approx(0.0, abs=1e-9)
    assert good["difference"] == pytest.approx(1e-4, rel=0.01)
    text = describe_settings(timed.identity)
    assert "forces within 1.0e-04 of their RMS" in text
    assert "chosen at this one size, that of the headline" in text


def test_one_setting_is_not_tried_but_checked():
    timed = choose(({}, lambda: SlowMorse(0.01)))
    assert timed.identity["tried"] == []
    assert "no choice of settings" in describe_settings(timed.identity)
    with pytest.raises(DataError, match="teacher's calculator does not give"):
        choose(({}, lambda: SlowMorse(scale=1.2)))


class Growing(SlowMorse):
    """Takes a fixed time, and more for each atom."""

    def __init__(self, fixed, each):
        super().__init__()
        self.fixed, self.each = fixed, each

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        self.nap = self.fixed + self.each * len(atoms)
        super().calculate(atoms, properties, system_changes)


def test_many_atoms_have_a_setting_of_their_own():
    atoms = make_atoms()
    larger = [atoms.repeat((n, 1, 1)) for n in (1, 2, 8, 500)]
    ways = [({"way": "lean"}, 0.0, 2e-3), ({"way": "rich"}, 0.03, 0.0)]
    teacher = ManyWays([Setting(values, partial(Growing, a, b)) for values, a, b in ways])
    best = choose_fastest(
        teacher, atoms, label(atoms), atoms, device="cpu", budget=2.0, larger=larger
    )
    assert best.small.identity is best.large.identity
    identity = best.small.identity
    assert (identity["settings"], identity["settings_large"]) == ({"way": "lean"}, {"way": "rich"})
    # 2,000 atoms would take too long, 8 are too few to differ
    assert {one["n_atoms"] for one in identity["tried_large"]} == {32}
    assert identity["large_from"] == 12
    parts = best.split(larger[:3])
    assert [[len(cell) for cell in part] for _, part in parts] == [[4, 8], [32]]
    assert [entry.factory().fixed for entry, _ in parts] == [0.0, 0.03]
    text = describe_settings(identity)
    assert (
        "timed with way lean: the fastest of 2 settings, medians of 3 to 5 ASE calls at 4 atoms"
        in text
    )
    assert (
        "From 12 atoms on with way rich: the fastest of 2 settings, medians of 3 to 5 ASE calls at 32 atoms"
        in text
    )
    assert "one size" not in text
    curves = join_curves([c for entry, part in parts for c in time_calculators([entry], part)])
    assert [[p.n_atoms for p in c.points] for c in curves] == [[4, 8, 32]]


def test_between_sizes_of_different_winners_both_are_tried():
    """By the mean of both sizes 24 atoms would be timed with what won at 80."""
    atoms = make_atoms()
    larger = [atoms.repeat((n, 1, 1)) for n in (1, 6, 20)]
    ways = [({"way": "lean"}, 0.0, 2e-3), ({"way": "rich"}, 0.1, 0.0)]
    teacher = ManyWays([Setting(values, partial(Growing, a, b)) for values, a, b in ways])
    best = choose_fastest(
        teacher, atoms, label(atoms), atoms, device="cpu", budget=2.0, larger=larger
    )
    assert best.limit == 18
    parts = best.split(larger)
    assert [[len(cell) for cell in part] for _, part in parts] == [[4, 24], [80]]
    assert "At 24 atoms with way lean: the fastest of 2 settings" in describe_settings(
        best.small.identity
    )
    assert find_untried_span(best.small.identity) is None
    earlier = {k: v for k, v in best.small.identity.items() if k != "tried_between"}
    assert find_untried_span(earlier) == (4, 80)
    same = {**earlier, "settings_large": earlier["settings"]}
    assert find_untried_span(same) is None


class Small(SlowMorse):
    """Has no room for more than ``most`` atoms."""

    def __init__(self, seconds, most):
        super().__init__(seconds)
        self.most = most

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if len(atoms) > self.most:
            raise MemoryError("out of memory")
        super().calculate(atoms, properties, system_changes)


@pytest.mark.parametrize(("most", "size"), [(32, 32), (16, 16), (8, None)])
def test_sizes_without_room_for_every_setting_are_no_trial(most, size):
    atoms = make_atoms()
    larger = [atoms.repeat((n, 1, 1)) for n in (1, 2, 4, 8)]
    settings = [
        Setting({"way": "slow"}, partial(Small, 0.03, most)),
        Setting({"way": "fast"}, partial(Small, 0.003, 64)),
    ]
    best = choose_fastest(
        ManyWays(settings), atoms, label(atoms), atoms, device="cpu", budget=2.0, larger=larger
    )
    identity = best.large.identity
    assert identity["settings"] == {"way": "fast"}
    assert identity.get("settings_large") == (None if size is None else {"way": "fast"})
    assert {one["n_atoms"] for one in identity.get("tried_large", [])} == (
        {size} if size else set()
    )
    assert best.large is best.small


def test_where_no_setting_can_be_tried_none_is_called_the_fastest():
    one = {"settings": {"compile": False}, "n_atoms": 500, "seconds": None, "reason": "MemoryError"}
    identity = {"settings": {"compile": False}, "tried": [one, one], "unavailable": []}
    text = describe_settings(identity)
    assert "compile off: none of 2 settings could be tried" in text
    assert "fastest" not in text


def test_fennol_is_tried_in_single_precision_in_one_more_process(monkeypatch, tmp_path):
    started = []

    class Worker:
        def __init__(self, python, device):
            self.device = device

        def ask(self, meta, **arrays):
            started.append((self.device, meta["double"]))
            found = {"cutoff": 5.2, "version": "1", "jax": "1", "platform": "cpu", "modules": {}}
            return found, {}

    monkeypatch.setattr("fastff.teachers.fennol.Worker", Worker)
    path = tmp_path / "ani.fnx"
    path.write_bytes(b"model")
    teacher = load_teacher(f"fennol:{path}", device="cpu", options={"python": "python"})
    settings, _ = teacher.list_settings()
    assert [setting.values["precision"] for setting in settings] == ["float64", "float32"]
    assert settings[0].make().teacher is teacher
    single = settings[1].make().teacher
    assert settings[1].make().teacher is single
    assert started == [("cpu", True), ("cpu", False)]
    assert single.info.name == teacher.info.name
    assert teacher.own_process


def test_a_record_from_before_says_so():
    assert "by default" in describe_settings({"name": "a", "version": "1"})


def test_sevennet_names_the_accelerators_that_are_not_here(monkeypatch):
    pytest.importorskip("sevenn", reason="sevenn is not installed")
    teacher = load_teacher("sevennet:7net-0", device="cpu")
    found = {"flashTP_e3nn": Path("somewhere")}
    monkeypatch.setattr("fastff.teachers.sevennet.find_package", found.get)
    settings, missing = teacher.list_settings()
    assert [setting.values["accelerator"] for setting in settings] == ["none", "flash"]
    assert missing == [
        "accelerator cueq: the package cuequivariance-torch is not installed",
        "accelerator oeq: the package openequivariance is not installed",
    ]
    # said to be there, but not: SevenNet would run without it and call it FlashTP
    atoms = make_atoms()
    timed = choose_fastest(
        teacher, atoms, teacher.label([atoms])[0], atoms, device="cpu", budget=0.1
    ).small
    assert timed.identity["settings"] == {"dtype": "float32", "accelerator": "none"}
    assert timed.identity["tried"][1]["seconds"] is None
    assert "FlashTP is requested" in timed.identity["tried"][1]["reason"]


class Machine(torch.nn.Module):
    def forward(self, x):
        return {"forces": x * 2.0}


def test_the_clock_measures_a_compiled_module_and_leaves_it_as_it_was():
    module = Machine()
    module.compile(backend="eager")
    before = module._compiled_call_impl
    clock = ModelClock(module)
    module(torch.ones(3))
    assert clock.take() > 0.0
    assert clock.trusted
    clock.close()
    assert module._compiled_call_impl is before


def test_the_clock_is_taken_off_where_a_calculator_fails():
    calculator = SlowMorse(error=RuntimeError("no kernel image"))
    calculator.model = Machine()
    entry = Timed("teacher", "t", lambda: calculator, {})
    plan = TimingPlan(budget=0.1)
    with pytest.raises(RuntimeError, match="no kernel image"):
        time_calculators([entry], [make_atoms()], plan)
    assert not calculator.model._forward_hooks
