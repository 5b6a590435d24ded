"""Training steps with the generic Triton ops, torch, and torch.compile; and second derivatives of each generic op.

Run from the root of the repository: ``python bench/kernels/training_step.py [--budget-seconds 70]``. Needs torch and
this repository, and a GPU for anything but ``--tiny``; ``--only second`` leaves out the steps. A step is what
``fastff train`` does with one batch: losses of forces, energies and stress, backward, and the optimiser (SOAP) or not;
frames are copper-gold crystals and boxes of water with random labels. ``auto`` is what a user gets, ``triton`` forces
the kernels where a student has any, ``torch`` is the reference, ``compiled`` is torch.compile of it. ``graph``
replays losses and their backward pass from a CUDA graph, as the trainer does; ``plain`` does not. Gradients are
compared with those of the student in float64.

Compiling takes longest and comes last; what the time did not suffice for says so. Writes ``training_step.json`` to the
folder ``OUT`` if that variable is set, else to ``bench/results/kernels``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.build import bulk, molecule

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from fastff import kernels  # noqa: E402
from fastff.distill.captured import CapturedLosses  # noqa: E402
from fastff.distill.data import choose_batch_size, prepare_frames  # noqa: E402
from fastff.distill.losses import ResidualLosses, pick_fields  # noqa: E402
from fastff.distill.module import DistillationModule  # noqa: E402
from fastff.distill.resident import ResidentBatches  # noqa: E402
from fastff.distill.train import TrainSettings, prepare_student  # noqa: E402
from fastff.kernels import dispatch, tuning  # noqa: E402
from fastff.labels import Frame, Labels  # noqa: E402
from fastff.report.inner import synchronize  # noqa: E402
from fastff.report.kernel_work import ROWS_ON_CPU, list_suites, list_tensors, to_double  # noqa: E402

GENERIC = ("edge_features", "segment_sum", "segment_gather", "fused_mlp")
MODELS = ("m1", "m2", "m2-l", "m3-l", "painn")
SYSTEMS = ("cuau", "water")
SIZES = (512, 1024)
NO_TIME = "not run: the time was used up"
Row = dict[str, Any]


def build_frames(system: str, n_frames: int, repeats: int) -> list[Frame]:
    """Rattled structures (copper-gold: 4 ``repeats``^3 atoms, water: 3 ``repeats``^3) with random labels."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(n_frames):
        atoms = build_water(repeats, rng) if system == "water" else build_alloy(repeats, rng)
        n_atoms = len(atoms)
        labels = Labels(
            float(rng.normal()), rng.normal(size=(n_atoms, 3)), rng.normal(size=6) * 0.01
        )
        frames.append(Frame(atoms, labels, "file", k, float("nan"), -1))
    return frames


def build_alloy(repeats: int, rng: np.random.Generator) -> ase.Atoms:
    atoms = bulk("Cu", "fcc", a=3.95, cubic=True) * (repeats, repeats, repeats)
    atoms.numbers[rng.permutation(len(atoms))[: len(atoms) // 2]] = 79
    atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return atoms


def build_water(repeats: int, rng: np.random.Generator) -> ase.Atoms:
    """Randomly turned molecules on a cubic grid, at the density of the liquid."""
    spacing = 3.105
    atoms = ase.Atoms(cell=[spacing * repeats] * 3, pbc=True)
    for place in np.ndindex(repeats, repeats, repeats):
        one = molecule("H2O")
        one.rotate(360.0 * rng.random(), rng.normal(size=3), center="COM")
        one.positions += spacing * (np.array(place) + 0.5) - one.get_center_of_mass()
        atoms += one
    return atoms


class Setting:
    """One student and one batch of a system, as the trainer makes them, on a device."""

    def __init__(
        self,
        model: str,
        system: str,
        batch_atoms: int,
        repeats: int,
        device: torch.device,
        cutoff: float = 5.0,
    ) -> None:
        frames = build_frames(system, max(12, batch_atoms // (3 * repeats**3)), repeats)
        settings = TrainSettings(architecture=model, batch_atoms=batch_atoms, cutoff=cutoff)
        student, self.statistics = prepare_student(frames, settings)
        n_frames = choose_batch_size(frames, batch_atoms)
        data = prepare_frames(frames, student, device)
        batches = ResidentBatches(
            data, n_frames, device, seed=0, padding_vector=(student.cutoff, 0.0, 0.0)
        )
        self.fields = pick_fields(next(iter(batches)))
        self.module = DistillationModule(
            student, self.statistics, [], n_steps=1000, learning_rate=1e-6
        ).to(device)
        self.about: Row = {
            "model": model, "system": system, "cutoff": cutoff, "batch_atoms": batch_atoms,
            "atoms": int(self.fields[5].sum()), "slots": self.fields[1].shape[1],
        }  # fmt: skip
        self.exact = self._differentiate_exactly()

    def _differentiate_exactly(self) -> list[Tensor]:
        student = copy.deepcopy(self.module.student).double()
        fields = tuple(f.double() if f.is_floating_point() else f for f in self.fields)
        with kernels.use("torch"):
            self.weigh(ResidualLosses(student, self.statistics)(*fields)).backward()
        return [p.grad for p in student.parameters() if p.grad is not None]

    def weigh(self, losses: Tensor) -> Tensor:
        weights = self.module.loss_weights.at(0.5, len(losses))
        return sum((w * one for w, one in zip(weights, losses, strict=True)), losses.new_zeros(()))

    def find_error(self) -> float:
        """Of the gradients that are there now, relative to the whole of them in float64."""
        found = [p.grad for p in self.module.student.parameters() if p.grad is not None]
        whole = [
            torch.cat([part.double().flatten() for part in one]) for one in (found, self.exact)
        ]
        return tuning.find_relative_error(*whole)

    def list_rows(
        self, backend: str, manner: str, budget: float, ops: list[str] | None = None
    ) -> Iterator[Row]:
        """Times of one backend without and with the optimiser."""
        row = {**self.about, "backend": backend, "manner": manner}
        parameters = list(self.module.student.parameters())
        optimizer = self.module._build_optimizer()
        kept = [p.detach().clone() for p in parameters]
        try:
            with kernels.use({"compiled": "torch"}.get(backend, backend)):
                dispatch._last_calls.clear()
                losses: Any = ResidualLosses(self.module.student, self.statistics)
                if backend == "compiled":
                    torch.compiler.reset()
                    losses = losses if manner == "graph" else torch.compile(losses, dynamic=False)
                run = losses
                if manner == "graph":
                    run = CapturedLosses(losses, compiled=backend == "compiled")

                def step() -> None:
                    for parameter in parameters:
                        parameter.grad = None
                    self.weigh(run(*self.fields)).backward()

                def step_all() -> None:
                    step()
                    optimizer.step()

                start = time.perf_counter()
                for _ in range(2):  # the second of one shape is recorded
                    step()
                synchronize()
                row["first_seconds"] = time.perf_counter() - start
                row["gradient_error"] = self.find_error()
                if manner == "graph" and backend == "compiled" and not run.compiled:
                    raise RuntimeError("it was not compiled")
                used = sorted(k for k, v in dispatch._last_calls.items() if v[0] == "triton")
                row["triton_ops"] = used
                for name, call in (("backward", step), ("backward and optimizer", step_all)):
                    yield {**row, "up_to": name, **measure(call, budget)}
        except Exception as error:  # what cannot be compiled or captured is a result too
            yield {**row, "error": describe_error(error)}
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None


def describe_error(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}"


def measure(call: Callable[[], Any], budget: float) -> Row:
    """Median, 10 and 90 % quantile of the time of a call in ms: blocks of calls between synchronisations, warm."""
    for _ in range(3):
        call()

    def time_block(calls: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return 1e3 * (time.perf_counter() - start) / calls

    single = time_block(2)
    calls = max(1, min(50, int(1e2 * budget / single)))
    blocks = max(3, min(15, int(1e3 * budget / (single * calls))))
    times = sorted(time_block(calls) for _ in range(blocks))
    return {
        "median_ms": statistics.median(times), "q10_ms": times[len(times) // 10],
        "q90_ms": times[-1 - len(times) // 10], "blocks": blocks, "calls": calls,
    }  # fmt: skip


def list_second(device: torch.device, variant: str, budget: float, tiny: bool) -> Iterator[Row]:
    """Values of each generic op, gradient in its first argument, and gradient of that in all of them."""
    for suite in list_suites():
        name = suite.function.__name__
        if name not in GENERIC:
            continue
        case = next(c for c in suite.cases if c.production != tiny)
        arguments = case.build(device, torch.float32)
        row = {"op": name, "rows": len(arguments[0]), "variant": variant}
        most = ROWS_ON_CPU.get(name, len(arguments[0]))
        try:
            with kernels.use({"triton": "triton", "auto": "auto"}.get(variant, "torch")):
                function = suite.function if variant in ("triton", "auto") else suite.reference
                few = (arguments[0][:most], *arguments[1:])
                found = differentiate_twice(function, few, variant == "compiled")()
                exact = differentiate_twice(suite.reference, to_double(few), False)()
                row["error_of_result"] = tuning.find_relative_error(found, exact)
                del found, exact
                call = differentiate_twice(function, arguments, variant == "compiled")
                yield {**row, **measure(call, budget)}
        except Exception as error:
            yield {**row, "error": describe_error(error)}
        if device.type == "cuda":
            torch.cuda.empty_cache()


def differentiate_twice(
    function: Callable[..., Any], arguments: Any, compiled: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """A call that gives values, first and second derivative; compiled, nested pullbacks become one graph.

    A training step reads all three. Without the first two a compiler leaves out what only they need: of linear ops two
    kernels of three.
    """
    leaves = [one.detach() for one in list_tensors(arguments)]

    def fill(tensors: tuple[Tensor, ...]) -> Any:
        rest = iter(tensors)

        def put(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(rest) if value.is_floating_point() else value
            if isinstance(value, tuple | list):
                return type(value)(put(one) for one in value)
            return value

        return put(arguments)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(list_tensors(function(*fill(tensors))))

    with torch.no_grad():
        outputs = run(*leaves)
    generator = torch.Generator(leaves[0].device).manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        numbers = torch.randn(tensor.shape, generator=generator, device=tensor.device)
        return numbers.to(tensor.dtype)

    seeds, turn = tuple(draw(one) for one in outputs), draw(leaves[0])

    def call() -> tuple[Tensor, ...]:
        inputs = [one.requires_grad_() for one in leaves]
        cotangents = [one.requires_grad_() for one in seeds]
        found = run(*inputs)
        (first,) = torch.autograd.grad(found, inputs[0], cotangents, create_graph=True)
        second = torch.autograd.grad(
            first, [*inputs, *cotangents], turn, allow_unused=True, materialize_grads=True
        )
        return (*(one.detach() for one in found), first.detach(), *second)

    def pull(first: Tensor, rest: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> Tensor:
        return torch.func.vjp(lambda x: run(x, *rest), first)[1](given)[0]

    def compose(*tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(leaves)
        own, given, direction = tensors[:n], tensors[n:-1], tensors[-1]
        first, back = torch.func.vjp(lambda *x: pull(x[0], x[1:n], x[n:]), *own, *given)
        return (*run(*own), first, *back(direction))

    if not compiled:
        return call
    torch.compiler.reset()
    graph = torch.compile(compose)

    def call_compiled() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return graph(*leaves, *seeds, turn)

    return call_compiled


def list_steps(
    arguments: argparse.Namespace, device: torch.device, settings: dict[Any, Setting]
) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """What is to be measured, most wanted first: name of a list of the record, and a function that makes its rows."""
    on_gpu = device.type == "cuda"
    budget = 0.02 if arguments.tiny else 0.12
    manners = [m for m in arguments.manners if on_gpu or m == "plain"]
    repeats = 2 if arguments.tiny else {"cuau": 3, "water": 4}
    keys = [(m, s, n) for n in arguments.sizes for s in arguments.systems for m in arguments.models]

    def find(key: tuple[str, str, int]) -> Setting:
        if key not in settings:
            size = repeats if isinstance(repeats, int) else repeats[key[1]]
            settings[key] = Setting(*key, size, device, arguments.cutoff)
        return settings[key]

    def make(key: tuple[str, str, int], backend: str, manner: str) -> Callable[[], Iterator[Row]]:
        return lambda: find(key).list_rows(backend, manner, budget)

    if arguments.only == "second":
        keys = []
    for key in keys:
        for manner in manners:
            yield "steps", make(key, "torch", manner)
            # a moment student has no generic op in its training step, which "triton_ops" of auto shows once
            if on_gpu and (key[0] == "painn" or (manner, key[2]) == ("graph", arguments.sizes[0])):
                yield "steps", make(key, "auto", manner)
            if on_gpu and key[0] == "painn":
                yield "steps", make(key, "triton", manner)
    variants = ("triton", "eager", "compiled") if on_gpu else ("eager", "compiled")
    for variant in () if arguments.only == "steps" else variants:
        if variant != "compiled" or not arguments.no_compile:
            yield "second", lambda v=variant: list_second(device, v, budget, arguments.tiny)
    if arguments.no_compile:
        return
    for key in sorted(keys, key=lambda key: (key[2], key[0] == "painn", key[1])):
        for manner in manners:
            yield "steps", make(key, "compiled", manner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=600.0)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="atoms a batch")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--cutoff", type=float, default=5.0, help="of the students, Å")
    parser.add_argument(
        "--manners", nargs="+", choices=("graph", "plain"), default=["graph", "plain"]
    )
    parser.add_argument("--only", choices=("steps", "second"), help="both if left out")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small everything, on a CPU too")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        raise SystemExit("needs a CUDA device; --tiny tries the program on a CPU")
    begin = time.perf_counter()
    machine = tuning.describe_machine(device)
    record: Row = {"provenance": machine, "steps": [], "second": [], "not_run": 0}
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / "kernels")
    target = folder / "training_step.json"
    for name, make in list_steps(arguments, device, {}):
        if time.perf_counter() - begin > arguments.budget_seconds:
            record["not_run"] += 1
            continue
        for row in make():
            record[name].append(row)
            value = f"{row['median_ms']:9.3f} ms" if "median_ms" in row else row["error"]
            words = [str(row[k]) for k in ("model", "system", "batch_atoms", "op") if k in row]
            words += [str(row[k]) for k in ("backend", "variant", "manner", "up_to") if k in row]
            print(
                f"{time.perf_counter() - begin:6.1f} s  {' '.join(words):<60} {value}", flush=True
            )
        record["seconds"] = time.perf_counter() - begin
        target.write_text(json.dumps(record, indent=1) + "\n")
    if record["not_run"]:
        print(f"{NO_TIME} for {record['not_run']} parts")
        target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
