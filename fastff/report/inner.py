"""Where the time of a call goes: the model alone, list and model, and steps of fastff's own dynamics.

Here: :func:`time_student` (those three for a student) and :class:`ModelClock` (the part of an ASE call that a
calculator spends in its torch model). Not here: ASE calls as a whole (:mod:`fastff.report.timing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ase
import torch
from ase.calculators.calculator import BaseCalculator

from fastff.errors import SimulationUnstableError
from fastff.memory import DeviceMemoryError, is_out_of_memory
from fastff.report.memory import PeakMemory
from fastff.report.speed import Mode, SpeedCurve, SpeedPoint, Timed, TimingPlan, summarize

if TYPE_CHECKING:
    from fastff.models import Student

MODEL_INCLUDES = "energy, forces and virial on a neighbor list that is there; no list, no transfers"
LIST_INCLUDES = (
    "neighbor list made anew, then the evaluation as in the model alone; no transfers of results"
)
LOOP_INCLUDES = "one step of fastff's own dynamics: NVE on the device from {temperature:g} K, lists rebuilt in time"


def synchronize() -> None:
    """Wait until the CUDA device has done its work, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


SHORTAGES = (MemoryError, RuntimeError, DeviceMemoryError)
"""Classes of errors that may say that memory ran out."""


def is_shortage(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, in fastff's words or any library's."""
    return isinstance(error, DeviceMemoryError) or is_out_of_memory(error)


class ModelClock:
    """Time spent inside the torch module of a calculator, from hooks around its forward pass.

    A module that was compiled in place is timed around its compiled call: hooks would become part of it.

    Forces that a module takes by differentiating inside its forward pass are part of it; those that a calculator takes
    afterwards are not, and then the clock is no measure of the model: it is not trusted where the output still carries
    gradients and holds no forces.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds = 0.0
        self._start = 0.0
        self.trusted = True
        self._module = module
        self._compiled = getattr(module, "_compiled_call_impl", None)
        if self._compiled is not None:
            module._compiled_call_impl = self._call_compiled
            self._handles = []
            return
        self._handles = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end),
        ]

    @classmethod
    def find(cls, calculator: BaseCalculator) -> ModelClock | None:
        """A clock on the first torch module among the attributes of a calculator; None if there is none."""
        for value in vars(calculator).values():
            if isinstance(value, torch.nn.Module) and not isinstance(value, torch.jit.ScriptModule):
                return cls(value)
        return None

    def _call_compiled(self, *arguments: Any, **keywords: Any) -> Any:
        self._begin()
        output = self._compiled(*arguments, **keywords)  # type: ignore[misc]
        self._end(self._module, arguments, output)
        return output

    def _begin(self, *_: Any) -> None:
        synchronize()
        self._start = time.perf_counter()

    def _end(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        synchronize()
        self.seconds += time.perf_counter() - self._start
        if any(tensor.requires_grad for tensor in _list_tensors(output, depth=0)) and not any(
            "force" in str(key).lower() for key in _list_keys(output)
        ):
            self.trusted = False

    def take(self) -> float:
        """Seconds since the last time, and start again."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        """Leave the module as it was."""
        if self._compiled is not None:
            self._module._compiled_call_impl = self._compiled
        for handle in self._handles:
            handle.remove()


def _list_keys(output: Any) -> list[Any]:
    return list(output.keys()) if hasattr(output, "keys") else []


def _list_tensors(output: Any, depth: int) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if depth > 2:
        return []
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(values, list | tuple) and not isinstance(output, dict):
        return []
    return [tensor for value in values for tensor in _list_tensors(value, depth + 1)]


def time_student(
    entry: Timed,
    student: Student,
    structures: Sequence[ase.Atoms],
    plan: TimingPlan,
    progress: Callable[[str], None],
    *,
    time_step: float,
    temperature: float,
    found: list[SpeedCurve] | None = None,
) -> list[SpeedCurve]:
    """Time the three inner paths of a student at every size, by the rules of :mod:`fastff.report.timing`.

    Dynamics has steps of ``time_step`` (fs) and begins at ``temperature`` (K), as that of ASE does.
    Sizes whose single call exceeds the budget of the plan end a path; out of memory is a point, not a crash.
    ``found`` receives every curve when it is done, or as far as it came.
    """
    curves = [] if found is None else found
    loop = partial(_time_loop, time_step=time_step, temperature=temperature)
    paths: tuple[tuple[Mode, str, Callable[..., list[float]]], ...] = (
        ("model", MODEL_INCLUDES, _time_model),
        ("model-list", LIST_INCLUDES, _time_list),
        ("md-loop", LOOP_INCLUDES.format(temperature=temperature), loop),
    )
    for mode, includes, measure in paths:
        memory = PeakMemory(entry.device)
        points: list[SpeedPoint] = []
        stopped = ""
        try:
            for atoms in structures:
                plan.watch.check()
                point, stopped = _time_path(measure, student, atoms, plan, memory, stopped)
                points.append(point)
        finally:
            with plan.watch.hold():
                curves.append(
                    SpeedCurve(
                        role=entry.role,
                        label=entry.label,
                        mode=mode,
                        includes=includes,
                        device=entry.device,
                        threads=torch.get_num_threads(),
                        identity=entry.identity,
                        memory_kind=memory.kind,
                        time_step=time_step if mode == "md-loop" else None,
                        points=tuple(points),
                    )
                )
        progress(f"{entry.label}, {mode}")
    return curves


def _time_path(
    measure: Callable[..., list[float]],
    student: Student,
    atoms: ase.Atoms,
    plan: TimingPlan,
    memory: PeakMemory,
    stopped: str,
) -> tuple[SpeedPoint, str]:
    """The point of one size, and why larger ones are left out, if they are."""
    count, formula = len(atoms), atoms.get_chemical_formula(empirical=True)
    if stopped:
        point = SpeedPoint(n_atoms=count, formula=formula, status="not-run", reason=stopped)
        return point, stopped
    memory.reset()
    try:
        seconds = measure(student, atoms, plan)
        point = summarize(count, formula, seconds, memory.measure())
        if seconds[0] * plan.min_repeats > plan.budget:
            stopped = f"takes {seconds[0]:.3g} s at {count} atoms already"
    except SimulationUnstableError as error:
        point = SpeedPoint(n_atoms=count, formula=formula, status="failed", reason=str(error))
    except SHORTAGES as error:
        if not is_shortage(error):
            raise
        stopped = f"stopped at {count} atoms: out of memory"
        reason = type(error).__name__
        point = SpeedPoint(n_atoms=count, formula=formula, status="out-of-memory", reason=reason)
    return point, stopped


def _repeat(call: Callable[[], None], plan: TimingPlan, warmup: int = 4) -> list[float]:
    """Times of single calls, each synchronised; the warm-up is long enough for a CUDA graph to be recorded."""
    begin = time.perf_counter()
    for _ in range(warmup):
        call()
        synchronize()
        if time.perf_counter() - begin > plan.budget / 2:
            break
    seconds: list[float] = []
    begin = time.perf_counter()
    while plan.needs_more(seconds, time.perf_counter() - begin):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def _attach(student: Student, atoms: ase.Atoms) -> Any:
    from fastff.md.potentials import make_potential

    potential = make_potential(student)
    device = potential.device

    def put(values: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    potential.attach(
        put(atoms.positions, torch.float64),
        put(atoms.numbers, torch.int64),
        put(atoms.cell.array, torch.float64),
        put(atoms.pbc, torch.bool),
    )
    return potential


def _prepare_call(potential: Any) -> Callable[[], None]:
    """Evaluation by ``potential``, replayed where it can be, as in :class:`fastff.evaluator.FusedSession`."""
    from fastff.kernels.replay import Replay

    return (
        Replay(potential.compute, potential.device) if potential.capturable else potential.compute
    )


def _time_model(student: Student, atoms: ase.Atoms, plan: TimingPlan) -> list[float]:
    return _repeat(_prepare_call(_attach(student, atoms)), plan)


def _time_list(student: Student, atoms: ase.Atoms, plan: TimingPlan) -> list[float]:
    """List and evaluation as in calculators whose list is stale: what was recorded is kept unless buffers move."""
    potential = _attach(student, atoms)
    evaluate = _prepare_call(potential)

    def call() -> None:
        nonlocal evaluate
        if potential.rebuild():
            evaluate = _prepare_call(potential)
        evaluate()

    return _repeat(call, plan)


def _time_loop(
    student: Student, atoms: ase.Atoms, plan: TimingPlan, *, time_step: float, temperature: float
) -> list[float]:
    """Mean time per step of blocks of steps, after a warm-up."""
    from fastff.md.engine import Engine
    from fastff.md.potentials import make_potential
    from fastff.md.settings import MDSettings
    from fastff.md.skin import settle_skin
    from fastff.md.state import build_state

    settings = MDSettings(
        n_steps=10**9, timestep=time_step, ensemble="nve", temperature=temperature,
        interval=10_000,
    )  # fmt: skip
    settings = settle_skin(student, atoms, settings)
    potential = make_potential(student, settings.skin)
    engine = Engine(potential, build_state(atoms, settings, potential.device), settings)

    def run(n_steps: int) -> float:
        goal = engine.step + n_steps
        synchronize()
        start = time.perf_counter()
        while engine.step < goal:
            if engine.advance(goal).failed:
                raise SimulationUnstableError(
                    f"fastff's dynamics of {len(atoms)} atoms broke while it was timed, at step {engine.step}"
                )
        synchronize()
        return (time.perf_counter() - start) / n_steps

    first = run(2)
    # on a GPU a graph is recorded and the list is rebuilt within the first hundred steps
    share = plan.budget / 2
    run(min(100, max(2, int(0.2 * share / first))))
    single = run(2)
    block = max(1, min(200, int(0.1 * share / single)))
    seconds: list[float] = []
    begin = time.perf_counter()
    while plan.needs_more(seconds, time.perf_counter() - begin):
        seconds.append(run(block))
    return seconds
