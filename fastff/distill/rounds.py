"""On-policy distillation: a student's own dynamics say what the teacher labels next.

Here: :class:`Rounds`, the order of the steps of a round and when to stop. Not here: dynamics and choice of structures
(:mod:`fastff.distill.harvest`), budgets (:mod:`fastff.distill.roundplan`), the log (:mod:`fastff.distill.roundlog`),
what frames a student is judged by (:mod:`fastff.distill.groups`), training (:mod:`fastff.distill.ladder`).

A round: the student drives many walkers; frames of the gate's walkers are labelled and the student is judged by them,
which were never trained on and come from its own dynamics. If it passes, that is the end. Otherwise frames of the other
walkers, chosen by uncertainty and diversity, are labelled, and training continues with old and new frames. After the
last round there is one more gate. Every step leaves a file, so that a run that was killed continues where it was.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastff.distill.constraints import hold_atoms
from fastff.distill.explore import ExploreSettings
from fastff.distill.groups import group_frames, group_test_frames, meets_target
from fastff.distill.harvest import (
    SOURCE,
    Harvest,
    WalkerPlan,
    add_seconds,
    choose_starts,
    extend_split,
    find_frames,
    harvest,
    name_composition,
    plan_walkers,
    read_harvest,
    write_harvest,
)
from fastff.distill.jobs import count_batch_atoms
from fastff.distill.ladder import (
    Ladder,
    Trained,
    calibrate_uncertainty,
    choose_settings,
    judge_again,
    measure_student,
    pick_torch_device,
    replay_frames,
)
from fastff.distill.lost import adopt_frames, find_lost
from fastff.distill.origins import name_cell
from fastff.distill.plan import ROUND_NUMBERS, WALKER_NUMBERS, SamplingPlan
from fastff.distill.ranks import gather_from_ranks
from fastff.distill.roundlog import GateRow, measure_calibration, read_rows, write_rows
from fastff.distill.roundplan import RoundsPlan
from fastff.distill.sampling import LabelsStructures
from fastff.distill.split import PHYSICAL_SOURCES, Split
from fastff.distill.store import LabelStore
from fastff.inference import split_chunks
from fastff.labels import Frame
from fastff.models import Student
from fastff.report.metrics import Accuracy

LEAST_GAIN = 0.04
"""A round that lowers what the score on the validation frames lacks of one by a smaller part does not help."""
NO_GAIN = "the last round did not help"
GROWTH = 1.5
"""How many times the frames of the last training from scratch are worth another one after the rounds."""
PICOSECONDS = {"cpu": (1.0, 2.0), "cuda": (10.0, 20.0)}
"""Time of every walker in the first round and in later ones."""
LEAST_STEPS, MOST_STEPS = 200, 20_000
"""Of every walker."""


@dataclass
class RoundsListener:
    """What a front end wants to be told."""

    on_explore: Callable[[int, int, int], None] = lambda number, step, n_steps: None
    on_label: Callable[[int, int, int], None] = lambda number, done, total: None
    on_gate: Callable[[GateRow], None] = lambda row: None


@dataclass(frozen=True)
class RoundsOutcome:
    """What came of all rounds: student, frames by use, one row per gate, accuracy on test frames by group, and what
    each walker's trajectory is of."""

    trained: Trained
    split: Split
    rows: list[GateRow]
    sources: dict[str, Accuracy]
    kinds: dict[int, str]


@dataclass
class Rounds:
    """Carries out rounds for one student after the first sampling.

    Attributes
    ----------
    teacher : LabelsStructures
    sampling : SamplingPlan
        Of the first sampling.
    plan : RoundsPlan
    store : LabelStore
        Open for appending.
    ladder : Ladder
    folder : Path
        For the files of the rounds.
    listener : RoundsListener
    hot : set of int
        Trajectories above the range of temperatures.
    kinds : dict
        What each walker's trajectory is of.
    """

    teacher: LabelsStructures
    sampling: SamplingPlan
    plan: RoundsPlan
    store: LabelStore
    ladder: Ladder
    folder: Path
    listener: RoundsListener
    hot: set[int] = field(default_factory=set)
    kinds: dict[int, str] = field(default_factory=dict)
    rows: list[GateRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started, self._n_labelled = time.perf_counter(), 0
        self._earlier = read_rows(self.folder) if self.ladder.resume else []
        self.device = pick_torch_device(self.ladder.device)
        self._held = {
            name_cell(index): cell.atoms
            for index, cell in enumerate(self.sampling.cells)
            if cell.atoms.constraints
        }

    def run(self, split: Split, trained: Trained, seconds: float = 0.0) -> RoundsOutcome:
        """Go round until the gate is passed, a round no longer helps, or the budget is spent.

        Parameters
        ----------
        split : Split
            Of the frames of the first sampling.
        trained : Trained
            Trained on them.
        seconds : float
            Time that both have taken.
        """
        self._before = max([seconds, *(row.seconds for row in self._earlier)])
        self._n_first = len(split.train)
        reason = "" if self.plan.n_rounds else "no rounds"
        for number in range(1, self.plan.n_rounds + 2):
            reason = self._find_last(number, reason)
            trained.student.uncertainty = calibrate_uncertainty(trained.student, split)
            harvested = self.gather(number, trained.student, split, reason)
            self.kinds |= {pick.trajectory: pick.kind for pick in harvested.picks}
            reason = harvested.record["last"]
            fresh = self.label(number, harvested, ("validation", "test"))
            split = extend_split(split, fresh, harvested.picks)
            row, lost = self.judge(number, trained, split, fresh, harvested)
            if self.passes(row):
                reason = "target met"
            row = replace(row, decision=reason or "another round")
            self._log(row)
            if reason:
                break
            adopted, met = adopt_frames(split, lost)
            new = self.label(number, harvested, ("train",))
            known = replace(adopted, train=split.train)
            trained, helped = self.improve(number, trained, known, [*met, *new])
            split = extend_split(adopted, new, harvested.picks)
            helped = self._recall_gain(number, helped)
            if not helped:
                reason = NO_GAIN
            if not helped or number == self.plan.n_rounds:
                trained = self.finish(trained, split)
        sources = self.measure_sources(trained, split)
        return RoundsOutcome(trained, split, self.rows, sources, self.kinds)

    def _find_last(self, number: int, reason: str) -> str:
        """Why this gate is the last one, whatever it shows; empty if it is not."""
        minutes = self.plan.minutes
        if reason:
            return reason
        if number > self.plan.n_rounds:
            return "all rounds done"
        if minutes is not None and self.elapsed + self._last_round > 60.0 * minutes:
            return "time spent"
        return ""

    def _recall_gain(self, number: int, helped: bool) -> bool:
        """Whether a round helped as an earlier process, perhaps with another :data:`LEAST_GAIN`, went on by."""
        path = self.folder / f"round-{number + 1}.npz"
        if self.ladder.resume and path.exists():
            return bool(read_harvest(path).record["last"] != NO_GAIN)
        return helped

    @property
    def elapsed(self) -> float:
        """Wall time of the whole distillation, s, earlier processes included up to their last gate."""
        return self._before + time.perf_counter() - self._started

    @property
    def _last_round(self) -> float:
        """What the latest round took, s."""
        times = [row.seconds for row in self.rows]
        return float(np.diff(times)[-1]) if len(times) > 1 else 0.0

    # --- the steps of a round ---

    def gather(self, number: int, student: Student, split: Split, last: str) -> Harvest:
        """Let walkers go, or read what they found; ``last`` says why nothing is to be trained on, or is empty."""
        path = self.folder / f"round-{number}.npz"
        if self.ladder.resume and path.exists():
            return read_harvest(path)
        start = time.perf_counter()
        known = [f for f in split.train if f.source in PHYSICAL_SOURCES] or split.train
        starts = [self.hold(frame) for frame in choose_starts(known)]
        plan = self._plan_walkers(number, known)
        walkers = plan_walkers(starts, plan, number, find_kind=self.find_kind)
        moving = copy.deepcopy(student).to(self.device)
        found = harvest(
            moving,
            walkers,
            self._choose_settings(number, len(walkers)),
            known,
            n_gate=self.plan.gate,
            n_train=0 if last else self.plan.train,
            more=lambda wave: plan_walkers(starts, plan, number, wave, self.find_kind),
            on_step=lambda step, n_steps: self.listener.on_explore(number, step, n_steps),
        )
        found = add_seconds(
            replace(found, record={**found.record, "last": last}), time.perf_counter() - start
        )
        write_harvest(path, found)
        return found

    def find_kind(self, frame: Frame) -> str:
        """Which structure of the user's a frame began as: isomers, and phases of one composition, are several."""
        cell = self.sampling.find_cell(frame.trajectory)
        if cell is not None:
            return name_cell(cell)
        return self.kinds.get(frame.trajectory) or name_composition(frame)

    def hold(self, frame: Frame) -> Frame:
        """The frame with the fixed atoms of the structure it began as; label files keep no constraints."""
        like = self._held.get(self.find_kind(frame))
        return frame if like is None else replace(frame, atoms=hold_atoms(frame.atoms, like))

    def _plan_walkers(self, number: int, known: Sequence[Frame]) -> WalkerPlan:
        on_gpu = self.device.type == "cuda"
        room = (20_000 if on_gpu else 1_200) / float(np.mean([len(f.atoms) for f in known]))
        n_cells = len(set(map(self.find_kind, known)))
        n_gate = min(room / 4, max(n_cells, 8 if on_gpu else 3), self.plan.gate / 2)  # a frame each
        n_gate = int(np.clip(n_gate, 3, 64))
        wanted = max(n_cells, 32, self.plan.train / 50) if on_gpu else max(n_cells, 8)
        n_train = int(np.clip(min(room / 2, wanted), 4, 256))
        first = self.sampling.number_trajectory(ROUND_NUMBERS + number * WALKER_NUMBERS)
        return WalkerPlan(n_train, n_gate, self.sampling.temperatures, self.sampling.seed, first)

    def _choose_settings(self, number: int, n_walkers: int) -> ExploreSettings:
        on_gpu = self.device.type == "cuda"
        timestep = self.sampling.dynamics[0].settings.timestep
        picoseconds = PICOSECONDS["cuda" if on_gpu else "cpu"][number > 1]
        n_steps = int(np.clip(round(1000.0 * picoseconds / timestep), LEAST_STEPS, MOST_STEPS))
        check = max(1, round((20.0 if on_gpu else 8.0) / timestep))
        wanted = np.clip(8 * self.plan.train / n_walkers, 20, 200)
        return ExploreSettings(
            n_steps=n_steps,
            timestep=timestep,
            check=check,
            stride=check * max(1, round(n_steps / (check * wanted))),
            max_force=self.sampling.max_force,
            seed=self.sampling.seed + 1000 * number,
        )

    def label(self, number: int, harvested: Harvest, uses: Sequence[str]) -> list[Frame]:
        """Label the structures of some uses, unless that was done, and return the sound frames."""
        picks = [pick for pick in harvested.picks if pick.use in uses]
        waiting = [pick for pick in picks if not self.store.has(pick.atoms)]
        done = len(picks) - len(waiting)
        for use in uses:
            mine = [pick for pick in waiting if pick.use == use]
            start = 0
            for chunk in split_chunks(
                [pick.atoms for pick in mine], count_batch_atoms(self.teacher)
            ):
                labels = self.teacher.label(chunk)
                frames = [
                    Frame(p.atoms, one, SOURCE, p.trajectory, p.temperature, p.step)
                    for p, one in zip(mine[start : start + len(chunk)], labels, strict=True)
                ]
                held_out = use == "test"
                self.store.append(frames, held_out=held_out, force_limit=self.sampling.max_force)
                start += len(chunk)
                done += len(chunk)
                self.listener.on_label(number, done, len(picks))
        self._n_labelled += len(picks)
        self.hot |= {pick.trajectory for pick in harvested.picks if pick.hot}
        return find_frames(self.store, picks)

    def improve(
        self, number: int, trained: Trained, split: Split, new: Sequence[Frame]
    ) -> tuple[Trained, bool]:
        """Train on with new frames, or a larger student where this one is too small; the better one, and if it helped.

        Both are compared on the same validation frames, those of this round included.
        """
        known = judge_again(trained, split.validation, self.device)
        replayed = replace(split, train=replay_frames(split.train, new))
        label = f"{trained.name}-round-{number}"
        later = self.ladder.train(trained.name, replayed, label, start=trained.student)
        helped = is_gain(known.score, later.score)
        best = max((known, later), key=self.ladder.rank)
        whole = replace(split, train=[*split.train, *new])
        climbed = self.ladder.climb(whole, present=best, suffix=f"-round-{number}", grow=helped)
        if climbed is not best:
            best, self._n_first = climbed, len(whole.train)
        return best, is_gain(known.score, best.score)

    def finish(self, trained: Trained, split: Split) -> Trained:
        """After the last round, train once more from scratch where frames have multiplied since; the better one.

        Rounds go on from weights that were found on few frames, with few steps each.
        """
        worth = len(split.train) >= GROWTH * self._n_first and self._has_time(trained, split)
        if not gather_from_ranks(worth)[0]:  # what the first of several processes finds
            return trained
        known = judge_again(trained, split.validation, self.device)
        later = self.ladder.train(trained.name, split, f"{trained.name}-final")
        return max((known, later), key=self.ladder.rank)

    def _has_time(self, trained: Trained, split: Split) -> bool:
        """Whether a training from scratch would end within the minutes there are."""
        if self.plan.minutes is None:
            return True
        steps = choose_settings(
            self.ladder.request, trained.name, split, self.ladder.device
        ).n_steps
        each = trained.result.seconds / max(1, trained.result.n_steps)
        return self.elapsed + each * steps < 60.0 * self.plan.minutes

    # --- judging ---

    def judge(
        self,
        number: int,
        trained: Trained,
        split: Split,
        fresh: Sequence[Frame],
        harvested: Harvest,
    ) -> tuple[GateRow, frozenset[int]]:
        """Measure a student on what it met and on the first sampling's validation frames.

        Returns the row, and the trajectories of gate walkers on which the student is lost.
        """
        student = copy.deepcopy(trained.student).to(self.device)
        held = {pick.trajectory for pick in harvested.picks if pick.use == "validation"}
        mine = [frame for frame in fresh if frame.trajectory in held]
        first = [f for f in split.validation if f.source != SOURCE]
        groups = group_frames(first, mine, self.hot)
        lost = gather_from_ranks(find_lost(student, mine))[0]
        row = GateRow(
            round=number,
            student=trained.name,
            evaluations=self.sampling.n_evaluations + self._n_labelled,
            n_train=len(split.train),
            seconds=round(self.elapsed, 1),
            accuracy={name: measure_student(student, frames) for name, frames in groups.items()},
            dynamics={**harvested.record, "gate_lost": len(lost)},
            calibration=measure_calibration(student, mine),
        )
        return row, lost

    def passes(self, row: GateRow) -> bool:
        """Whether a gate is passed: accuracy of each group, and no blow-up of its walkers."""
        target = self.ladder.request.target
        return not row.dynamics["gate_blown_up"] and meets_target(row.accuracy, target)

    def measure_sources(self, trained: Trained, split: Split) -> dict[str, Accuracy]:
        """Accuracy on test frames: those of the first sampling, and of the last gate's walkers."""
        groups = group_test_frames(split.test, self.rows[-1].round, self.hot)
        return {name: measure_student(trained.student, frames) for name, frames in groups.items()}

    def _log(self, row: GateRow) -> None:
        """Append a row, or keep the one that an earlier process wrote."""
        written = next((old for old in self._earlier if old.round == row.round), None)
        self.rows.append(replace(row, seconds=written.seconds) if written else row)
        write_rows(self.folder, self.rows)
        self.listener.on_gate(self.rows[-1])


def is_gain(before: float, after: float) -> bool:
    """Whether scores on the same validation frames differ by enough for another round."""
    return after - before >= LEAST_GAIN * (1.0 - before)
