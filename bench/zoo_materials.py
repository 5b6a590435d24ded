"""What ``bench/zoo.py`` judges a student on: labels of ``bench/study.py``, or the test frames of a recipe's run.

Here: reading them, phases, choice of start frames, whether they and the student belong together. Not here:
measurements (``bench/zoo_measures.py``), rules (``bench/zoo.py``).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "bench" / "results" / "recipes"
WORDS = ("molecule", "wire", "slab")
"""What matter is called that extends in less than three directions."""


class Material(ABC):
    """Test frames of one material, by phase.

    Attributes
    ----------
    test : list of Frame
    timestep : float
        fs, for dynamics unless another one is asked for.
    n_hottest : int
        Frames of each phase in which atoms may be pushed together.
    """

    test: list[Any]
    timestep = 1.0
    n_hottest = 1

    @abstractmethod
    def name_phase(self, frame: Any) -> str:
        """The phase, or kind of structure, of a test frame."""

    @property
    def phases(self) -> tuple[str, ...]:
        """All of which there are test frames."""
        return tuple(dict.fromkeys(map(self.name_phase, self.test)))

    @abstractmethod
    def name_row(self, frame: Any) -> dict[str, Any]:
        """What frames have in common whose accuracy is one row of the card."""

    @abstractmethod
    def rank(self, frame: Any) -> tuple[float, ...]:
        """Among frames equally near in temperature, that of the lowest rank is taken."""

    def list_starts(self, phase: str) -> list[Any]:
        """Test frames of a phase from which dynamics may start."""
        mine = [frame for frame in self.test if self.name_phase(frame) == phase]
        if not mine:
            raise SystemExit(f"no test frames of phase {phase!r}; phases: {set(self.phases)}")
        return mine

    def sort_starts(self, phase: str, kelvin: float) -> list[Any]:
        """The same, those of dynamics nearest in temperature first."""

        def order(frame: Any) -> tuple[float, ...]:
            distance = abs(frame.temperature - kelvin)
            return distance if np.isfinite(distance) else np.inf, *self.rank(frame)

        return sorted(self.list_starts(phase), key=order)

    def pick(self, phase: str, kelvin: float) -> Any:
        """The first of these."""
        return self.sort_starts(phase, kelvin)[0]

    def list_hottest(self) -> list[list[Any]]:
        """Structures of the hottest test frames of every phase, one or some more."""
        count = self.n_hottest
        return [[f.atoms for f in self.sort_starts(p, 1e9)[:count]] for p in self.phases]

    def list_groups(self) -> dict[str, list[int]]:
        """Places of the test frames of each group whose accuracy the file states beside that on all of them."""
        return {}

    def list_runs(self) -> list[str]:
        """Dynamics unless other runs are asked for, as ``PHASE:KELVIN``."""
        return []

    def find_fault(self) -> str:
        """Why these frames cannot be those that the student was tested on; empty if they can."""
        return ""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the card says of the data."""


class StudyMaterial(Material):
    """Labels of one system of the study.

    Parameters
    ----------
    path : Path
        Exported labels (.npz).
    """

    def __init__(self, path: Path) -> None:
        from bench.study_systems import SYSTEMS, list_replicas
        from bench.study_training import split_trajectories
        from fastff.distill.formats import read_labels

        frames = read_labels(path).frames
        self.test = sorted(split_trajectories(frames)[2], key=lambda frame: frame.trajectory)
        with np.load(path, allow_pickle=False) as archive:
            self.record = json.loads(str(archive["record"]))
        plan = self.record["study"]
        (system,) = (one for one in SYSTEMS if one.name == plan["system"])
        n_replicas = 1 + max(frame.trajectory for frame in frames)
        replicas = list_replicas(system, n_replicas)
        self.ladders = {k: ladder.phase for k, (ladder, _) in enumerate(replicas)}
        self.n_atoms, self.formula = len(frames[0].atoms), frames[0].atoms.get_chemical_formula()
        self.plan = plan

    def name_phase(self, frame: Any) -> str:
        return str(self.ladders[frame.trajectory])

    def name_row(self, frame: Any) -> dict[str, Any]:
        """One of each trajectory; these have temperatures of their own."""
        return {
            "trajectory": frame.trajectory,
            "phase": self.name_phase(frame),
            "temperature": frame.temperature,
        }

    def rank(self, frame: Any) -> tuple[float, ...]:
        """The last frame of a trajectory."""
        return frame.trajectory, -frame.step

    def describe(self) -> dict[str, Any]:
        """System, phases with their temperatures and strains, and who labelled."""
        keys = ("phase", "low", "high", "expansion", "melt")
        return {
            "system": self.plan["system"],
            "formula": self.formula,
            "n_atoms": self.n_atoms,
            "phases": [{key: row[key] for key in keys} for row in self.plan["ladders"]],
            "provenance": self.record["provenance"],
        }


class RecipeMaterial(Material):
    """Test frames of a recipe's run.

    Dynamics starts from frames of students' own dynamics, those of the last gate first: the student itself went there.

    Parameters
    ----------
    path : Path
        Label file of the run, or what ``fastff labels --held-out --export`` made of it.
    recipe : Path
    header : dict
        Of the student.
    """

    n_hottest = 8  # a molecule on a slab is alone in each

    def __init__(self, path: Path, recipe: Path, header: dict[str, Any]) -> None:
        from fastff.distill.formats import read_labels
        from fastff.distill.origins import read_origins
        from fastff.report.heldout import choose_time_step

        self.labelled, self.recipe, self.header = read_labels(path), recipe, header
        self.origins = read_origins(self.labelled.record)
        held_out = self.labelled.held_out
        self.test = [frame for frame in self.labelled.frames if frame.trajectory in held_out]
        if not self.test:
            raise SystemExit(f"{path} marks no frames as held out for testing")
        self.test.sort(key=self.place)
        self.timestep = min(choose_time_step(atoms.numbers) for atoms in self.seeds)

    def place(self, frame: Any) -> tuple[Any, ...]:
        """Where a frame stands: by source, the teacher's first, by kind and by temperature."""
        from fastff.distill.harvest import SOURCE

        kelvin = frame.temperature if np.isfinite(frame.temperature) else -1.0
        return frame.source == SOURCE, self.name_phase(frame), kelvin, *self.rank(frame)

    @property
    def request(self) -> dict[str, Any]:
        """What the run was asked for."""
        return dict(self.header["training"]["request"])

    @cached_property
    def seeds(self) -> list[Any]:
        """The user's structures."""
        from fastff.structures import read_header_structures

        return read_header_structures(self.header)

    @cached_property
    def formulas(self) -> list[str]:
        """Of each of these, reduced."""
        from fastff.report.metrics import reduce_formula

        return [reduce_formula(atoms) for atoms in self.seeds]

    @cached_property
    def kinds(self) -> list[str]:
        """Name for each of these: crystal, slab, ..., with the composition where there are several."""
        from fastff.distill.cells import build_supercell, classify_cell

        names = []
        for atoms, formula in zip(self.seeds, self.formulas, strict=True):
            cell = build_supercell(atoms, 2 * self.header["cutoff"], self.request["max_atoms"])
            word = classify_cell(cell) if all(cell.axes) else WORDS[sum(cell.axes)]
            names.append(word if len(set(self.formulas)) == 1 else f"{formula} {word}")
        return names

    def name_phase(self, frame: Any) -> str:
        """Kind of the structure that a frame began as; kinds of its composition where the file does not say which."""
        from fastff.report.metrics import reduce_formula

        if frame.trajectory in self.origins:
            return self.kinds[self.origins[frame.trajectory]]
        formula = reduce_formula(frame.atoms)
        possible = [k for k, own in zip(self.kinds, self.formulas, strict=True) if own == formula]
        return " or ".join(dict.fromkeys(possible)) or formula

    def name_row(self, frame: Any) -> dict[str, Any]:
        """One of each source, kind and temperature."""
        kelvin = frame.temperature
        return {
            "source": frame.source,
            "phase": self.name_phase(frame),
            "temperature": round(kelvin, 3) if np.isfinite(kelvin) else None,
        }

    def rank(self, frame: Any) -> tuple[float, ...]:
        """The last frame of a walker, of the latest round."""
        from fastff.distill.plan import find_round

        return -find_round(frame.trajectory), frame.trajectory, -frame.step

    def list_starts(self, phase: str) -> list[Any]:
        """Those of students' own dynamics, if there are any."""
        from fastff.distill.harvest import SOURCE

        mine = super().list_starts(phase)
        return [frame for frame in mine if frame.source == SOURCE] or mine

    def list_groups(self) -> dict[str, list[int]]:
        """As a run with rounds divides them."""
        from fastff.distill.groups import group_test_frames

        rounds, high = self.header["training"]["rounds"], self.header["temperature"][1]
        if not rounds:
            return {}
        hot = {frame.trajectory for frame in self.test if frame.temperature > high}
        groups = group_test_frames(self.test, rounds[-1]["round"], hot)
        places = {id(frame): k for k, frame in enumerate(self.test)}
        return {name: [places[id(frame)] for frame in mine] for name, mine in groups.items()}

    def list_runs(self) -> list[str]:
        """Every kind at the highest temperature, and at that of the hottest walkers."""
        from fastff.distill.harvest import OVERHEAT

        high = float(self.header["temperature"][1])
        return [f"{phase}:{k:g}" for phase in self.phases for k in (high, OVERHEAT * high)]

    def find_fault(self) -> str:
        """Another teacher, another request, other frames, or frames that were trained on."""
        from fastff.distill.content import describe_difference, find_known, hash_structure
        from fastff.distill.request import read_config

        training = self.header["training"]
        if words := describe_difference(self.header["teacher"], self.labelled.teacher):
            return f"the test frames were labelled by another teacher: {words}"
        asked = read_config(self.recipe).model_dump(mode="json")
        changed = [k for k, value in self.request.items() if k in asked and asked[k] != value]
        if changed:
            return f"{self.recipe} asks for another {', '.join(changed)} than the run that made the file"
        if len(self.test) != training["n_test"]:
            return f"{len(self.test)} test frames here but {training['n_test']} in the file"
        hashes = [hash_structure(frame.atoms).hex() for frame in self.test]
        known = sum(find_known(hashes, training["frame_hashes"]))
        return f"{known} of the test frames were trained on" if known else ""

    def describe(self) -> dict[str, Any]:
        """Recipe, kinds of structures, whether its target was met, and what ``bench/recipes.py`` found."""
        from fastff.distill.harvest import OVERHEAT

        return {
            "recipe": f"train/{self.recipe.name}",
            "kinds": self.list_kinds(),
            "target": self.request["target"],
            "overheat": OVERHEAT,
            "passed": self.is_passed(),
            "record": self.read_record(),
        }

    def list_kinds(self) -> list[dict[str, Any]]:
        """Each with its composition, structures, sizes and test frames."""
        rows = []
        for phase in self.phases:
            mine = [frame for frame in self.test if self.name_phase(frame) == phase]
            rows.append(
                {
                    "phase": phase,
                    "formula": " or ".join(sorted({f.atoms.get_chemical_formula() for f in mine})),
                    "n_structures": sum(kind in phase.split(" or ") for kind in self.kinds),
                    "n_test": len(mine),
                }
            )
        return rows

    def is_passed(self) -> bool:
        """Whether the run met its target, as ``fastff train`` says at its end."""
        from fastff.distill.groups import meets_target
        from fastff.report.metrics import Accuracy

        found = {
            name: Accuracy.from_dict(part) for name, part in self.header["accuracy"].items() if part
        }
        target, rounds = self.request["target"], self.header["training"]["rounds"]
        if not rounds:
            return bool(found["test"].overall >= target)
        return not rounds[-1]["dynamics"]["gate_blown_up"] and meets_target(found, target)

    def read_record(self) -> dict[str, Any] | None:
        """What the record of this student says that its header does not; None if there is none of it."""
        path = RECORDS / f"{self.recipe.stem}.json"
        record = json.loads(path.read_text()) if path.exists() else None
        if record is None or record["student"]["sha256"] != self.header["sha256"]:
            print(f"no record of this student in {RECORDS.relative_to(ROOT)}", flush=True)
            return None
        keys = ("endurance", "pairs", "notes", "wall_seconds")
        known = self.header["accuracy"]
        return {
            "name": f"bench/results/recipes/{path.name}",
            "accuracy": [row for row in record["accuracy"] if row["group"] not in known],
            **{key: record[key] for key in keys},
            "provenance": {k: record["provenance"][k] for k in ("gpu", "commit", "date")},
        }
