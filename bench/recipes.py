"""Run recipes of ``train/`` and measure the students they give.

Run from the root of the repository, for example

    python bench/recipes.py --recipes cuau-sevennet nacl-sevennet --gpus 2 --seconds 540 --out OUT

and the same again until all are done: what is finished is kept, and distillation goes on as by ``fastff train
--resume``. A recipe is the name of a file in ``train/``, or the path of one. Each runs in a process of its own, one on
each of ``--gpus`` GPUs at a time; its log is ``OUT/logs/NAME.log``, its files are in ``OUT/work/NAME``. After
``--seconds`` the processes are ended.

What is measured of a finished student:

- accuracy on its held-out frames: of the first sampling, of its own dynamics, and of that at high temperature, as
  ``fastff train`` shows them; on fresh dynamics of the teacher within the range of temperatures and beyond (1.5 times
  the highest, strained by ±5 %, a larger cell), as ``fastff bench`` does;
- endurance: eight replicas for ``--stability-ps`` at the highest temperature and a tenth of that at 1.5 times it, or as
  far as they come in ``--stability-seconds`` each;
- pair distributions beside the teacher's at the highest temperature, within ``--rdf-seconds`` of the teacher.

``OUT/NAME.json`` is the record, ``OUT/NAME.partial.json`` that of what has been measured so far. ``python
bench/tabulate.py`` makes a table of those in ``bench/results/recipes``.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

Row = dict[str, Any]


class Clock(threading.Thread):
    """Wall time of every stage, written each second: a process that is killed has told what it took.

    Attributes
    ----------
    pieces : list of dict
        One for each process that worked on the recipe: date, commit, GPU and ``seconds`` by stage.
    """

    def __init__(self, path: Path, begin: float) -> None:
        from fastff.report.provenance import collect_provenance

        super().__init__(daemon=True)
        self.path, self._stage, self._since = path, "start", begin
        self._lock, self._over = threading.Lock(), threading.Event()
        where = collect_provenance()
        self.piece: Row = {
            "date": where.date, "commit": where.commit, "gpu": where.gpu, "cpu": where.cpu, "seconds": {},
        }  # fmt: skip
        self.pieces: list[Row] = json.loads(path.read_text()) if path.exists() else []
        self.pieces.append(self.piece)

    def enter(self, stage: str) -> None:
        """Count what follows for another stage."""
        with self._lock:
            self._count()
            self._stage = stage

    def _count(self) -> None:
        now, seconds = time.perf_counter(), self.piece["seconds"]
        seconds[self._stage] = round(seconds.get(self._stage, 0.0) + now - self._since, 3)
        self._since = now

    def write(self) -> None:
        """Bring the file up to date."""
        from fastff.checkpoint import write_atomically

        with self._lock:
            self._count()
            write_atomically(self.path, json.dumps(self.pieces).encode())

    def run(self) -> None:
        """Write each second."""
        while not self._over.wait(1.0):
            self.write()

    def stop(self) -> None:
        """Write once more, and no longer."""
        self._over.set()
        self.join()
        self.write()

    def sum_stages(self) -> dict[str, float]:
        """Seconds of every stage in all processes."""
        total: dict[str, float] = {}
        with self._lock:
            for piece in self.pieces:
                for stage, seconds in piece["seconds"].items():
                    total[stage] = round(total.get(stage, 0.0) + seconds, 1)
        return total


class Recipe:
    """One recipe on its way to a record."""

    def __init__(self, path: Path, arguments: argparse.Namespace) -> None:
        from fastff.distill.request import read_config

        self.path, self.arguments = path, arguments
        self.request = read_config(path)
        self.folder = arguments.out / "work" / path.stem
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clock = Clock(self.folder / "clock.json", BEGIN)

    def keep(self, stage: str, measure: Callable[[], Any]) -> Any:
        """What a stage found, measured unless an earlier process has."""
        from fastff.checkpoint import write_atomically

        path = self.folder / f"{stage}.json"
        if not path.exists():
            self.clock.enter(stage)
            write_atomically(path, json.dumps(measure()).encode())
            self.clock.enter("between")
            print(f"{stage}: {path.read_text()[:2000]}", flush=True)
        return json.loads(path.read_text())

    def run(self) -> None:
        """All stages, and the record after each."""
        self.clock.start()
        try:
            found = self.keep("distillation", self.distil)
            if found["request"] != self.request.model_dump(mode="json"):
                raise SystemExit(f"{self.path} has changed since; choose another --out")
            for stage, measure in self.stages.items():
                self.write("partial.json", found)
                self.keep(stage, measure)
        finally:
            self.clock.stop()
        self.write("json", found)
        (self.arguments.out / f"{self.path.stem}.partial.json").unlink(missing_ok=True)

    @property
    def stages(self) -> dict[str, Callable[[], Any]]:
        """What is measured of a finished student, the longest last."""
        return {
            "accuracy": self.judge,
            "pairs": self.compare,
            "endurance-1": lambda: self.endure(1),
            "endurance-0": lambda: self.endure(0),
        }

    def write(self, suffix: str, found: Row) -> None:
        """Write the record of what has been measured so far."""
        from fastff.checkpoint import write_atomically

        text = json.dumps(self.gather(found), indent=1) + "\n"
        write_atomically(self.arguments.out / f"{self.path.stem}.{suffix}", text.encode())

    @cached_property
    def teacher(self) -> Any:
        """For what is measured of a finished student."""
        from fastff.teachers import load_teacher

        assert self.request.teacher is not None
        chosen = dict(option.split("=", 1) for option in self.arguments.measure_options)
        return load_teacher(
            self.request.teacher,
            device=self.arguments.device,
            weights=self.request.teacher_weights,
            options={**self.request.teacher_options, **chosen},
        )

    def load_student(self) -> Any:
        """The finished student, on the device."""
        from fastff.checkpoint import load_model
        from fastff.distill.ladder import pick_torch_device

        return load_model(self.model, device=str(pick_torch_device(self.arguments.device)))

    @property
    def model(self) -> Path:
        from fastff.distill.run import MODEL_NAME

        return self.folder / "run" / MODEL_NAME

    @cached_property
    def seeds(self) -> list[Any]:
        from fastff.structures import read_structures

        assert self.request.structures is not None
        return read_structures(self.request.structures)

    @cached_property
    def plan(self) -> Any:
        """Cells and time step as in the first sampling."""
        from fastff.distill.planning import plan_sampling

        return plan_sampling(
            self.seeds,
            self.teacher.info,
            temperatures=self.request.temperatures,
            budget=15 * len(self.seeds) + 100,  # enough for every seed
            cutoff=self.request.cutoff,
            max_atoms=self.request.max_atoms,
        )

    # --- stages ---

    def distil(self) -> Row:
        """What ``fastff train`` does, continued if it was begun."""
        from bench.recipes_measures import describe_accuracy
        from fastff.distill.request import CONFIG_NAME
        from fastff.distill.rounds import RoundsListener
        from fastff.distill.run import Listener, distill

        out = self.folder / "run"
        listener = Listener(
            on_trained=lambda name, result, found: print(name, found.overall, flush=True),
            rounds=RoundsListener(on_gate=print_gate),
        )
        outcome = distill(
            self.request,
            out,
            device=self.arguments.device,
            resume=(out / CONFIG_NAME).exists(),
            listener=listener,
        )
        groups = {outcome.test_kind: outcome.test} if not outcome.sources else outcome.sources
        return {
            "request": self.request.model_dump(mode="json"),
            "student": outcome.architecture,
            "passed": outcome.passed,
            "evaluations": outcome.evaluations,
            "accuracy": [describe_accuracy(name, found) for name, found in groups.items()],
            "gates": [row.to_dict() for row in outcome.rows],
        }

    def judge(self) -> tuple[list[Row], list[str]]:
        """Accuracy on fresh dynamics of the teacher; a note why there is none where these fail."""
        from bench.recipes_measures import judge_afresh
        from fastff.errors import FastFFError

        seconds = self.arguments.accuracy_seconds
        try:
            return judge_afresh(self.model, self.load_student(), self.teacher, self.seeds, seconds)
        except FastFFError as error:  # the next attempt would end the same way
            return [], [f"accuracy on fresh dynamics: {error}"]

    def endure(self, number: int) -> Row:
        """Long dynamics at the highest temperature (0), or a tenth of it at 1.5 times that (1)."""
        from bench.recipes_measures import measure_endurance

        return measure_endurance(
            self.load_student(),
            self.plan.cells,
            self.request.temperatures[1] * (1.0, 1.5)[number],
            self.plan.dynamics[0].settings.timestep,
            self.arguments.stability_ps * (1.0, 0.1)[number],
            self.arguments.stability_seconds,
            self.folder / f"endurance-{number}.npz",
        )

    def compare(self) -> list[Row]:
        """Pair distributions of both sides at the highest temperature."""
        from bench.recipes_measures import compare_pairs

        return compare_pairs(
            self.load_student(),
            self.teacher,
            self.plan.cells,
            self.request.temperatures[1],
            self.plan.dynamics[0].settings.timestep,
            self.arguments.rdf_seconds,
        )

    def gather(self, found: Row) -> Row:
        """The record; its lists hold flat rows, which ``tabulate.py`` shows; notes name what is not measured."""
        from fastff.checkpoint import read_header
        from fastff.report.provenance import collect_provenance

        kept = {
            stage: json.loads(path.read_text())
            for stage in self.stages
            if (path := self.folder / f"{stage}.json").exists()
        }
        fresh, notes = kept.get("accuracy", [[], []])
        notes = notes + [f"not measured: {stage}" for stage in self.stages if stage not in kept]
        header, seconds = read_header(self.model), self.clock.sum_stages()
        on_gpu = sum(sum(piece["seconds"].values()) for piece in self.clock.pieces if piece["gpu"])
        return {
            "what": f"The recipe {self.path.name}: one student and what was measured of it. Accuracies and differences "
            "are fractions, temperatures K, time steps fs.",
            "recipe": self.path.stem,
            "request": found["request"],
            "teacher": header["teacher"],
            "measure_options": self.arguments.measure_options,
            "student": {
                "architecture": found["student"],
                "cutoff": self.request.cutoff,
                "sha256": header["sha256"],
                "bytes": self.model.stat().st_size,
            },
            "passed": found["passed"],
            "evaluations_of_teacher": found["evaluations"],
            "accuracy": found["accuracy"] + fresh,
            "endurance": [kept[name] for name in ("endurance-0", "endurance-1") if name in kept],
            "pairs": kept.get("pairs", []),
            "notes": notes,
            "gates": {str(row["round"]): row for row in found["gates"]},
            "seconds": seconds,
            "wall_seconds": round(sum(seconds.values()), 1),
            "device_seconds": round(on_gpu, 1),
            "pieces": {str(number): piece for number, piece in enumerate(self.clock.pieces, 1)},
            "provenance": collect_provenance().model_dump(mode="json"),
        }


def print_gate(row: Any) -> None:
    """One line of the log: what a gate found."""
    found = {name: round(accuracy.overall, 4) for name, accuracy in row.accuracy.items()}
    print(
        f"gate {row.round} after {row.evaluations} evaluations: {found}, {row.decision}", flush=True
    )


def find_recipe(name: str) -> Path:
    """File of a recipe by name or path."""
    path = ROOT / "train" / f"{name}.yaml"
    return path if path.exists() else Path(name)


def run_all(arguments: argparse.Namespace) -> list[str]:
    """Run the recipes that have no record, one on each GPU; returns the names of those not finished."""
    from bench.study_schedule import Pool, Task

    tasks = []
    for path in map(find_recipe, arguments.recipes):
        record = arguments.out / f"{path.stem}.json"
        if not record.exists():
            tasks.append(Task(path.stem, ("--one", str(path)), record))
    pool = Pool(arguments, time.monotonic() + arguments.seconds, Path(__file__))
    return pool.run(tasks, max(1, arguments.gpus))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", required=True, help="names in train/, or paths")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "recipes")
    parser.add_argument("--seconds", type=float, default=1e9, help="then end, to be continued")
    parser.add_argument("--gpus", type=int, default=0, help="0 leaves the choice to each process")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--accuracy-seconds", type=float, default=90.0, help="of fresh dynamics")
    parser.add_argument("--stability-ps", type=float, default=1000.0)
    parser.add_argument("--stability-seconds", type=float, default=900.0, help="at each of two")
    parser.add_argument("--rdf-seconds", type=float, default=120.0, help="of the teacher")
    parser.add_argument(
        "--measure-options",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="of the teacher beside which a student is measured, as accelerator=cueq",
    )
    parser.add_argument("--one", type=Path, help="run this here (used by the program itself)")
    arguments = parser.parse_args()
    if arguments.one:
        Recipe(arguments.one, arguments).run()
        return
    failed = run_all(arguments)
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}; run again to go on")


if __name__ == "__main__":
    main()
