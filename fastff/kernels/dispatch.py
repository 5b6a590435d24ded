"""Which back end runs an op, and why.

Here: the record of an op, the registry, the choice between Triton and torch, and its explanation. Not here: the ops
themselves (one folder each), what a failure to compile is (``failures.py``), launch configurations (``tuning.py``),
ahead-of-time compilation (``aot.py``).

Nothing is chosen when a module is imported and Triton is imported only when a kernel is launched. The choice is taken
at every call from, in this order: :func:`use`, the environment variable ``FASTFF_BACKEND``, and ``"auto"``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, TypeVar

import torch
from torch.autograd import forward_ad

from fastff.errors import UsageError
from fastff.kernels.failures import Failure, describe_failure, has_triton, is_compile_failure

BACKENDS: Final = ("auto", "triton", "torch")
ENVIRONMENT_VARIABLE: Final = "FASTFF_BACKEND"
MIN_CAPABILITY: Final = (8, 0)
"""Least CUDA compute capability for which the kernels are compiled and tested."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class BackendError(UsageError):
    """The Triton back end was forced for an op that it cannot run."""


@dataclass(frozen=True)
class Op:
    """What an op declares about itself.

    Attributes
    ----------
    name : str
        Name of the op and of its folder.
    derivative_order : int or None
        How often the Triton implementation may be differentiated. One more raises; it never returns less. The reference
        is differentiable to any order, and ``None`` says that of the kernels too (linear ops).
    deterministic : bool
        Whether the Triton implementation gives the same bits for the same input.
    """

    name: str
    derivative_order: int | None
    deterministic: bool


@dataclass(frozen=True)
class Row:
    """One line of :func:`explain`."""

    op: str
    backend: str
    reason: str
    last_call: str | None
    """Back end and reason of the op's most recent call in this process, ``None`` before the first."""

    @property
    def is_error(self) -> bool:
        """Whether a call would raise."""
        return self.reason.startswith("error:")


_ops: dict[str, Op] = {}
_last_calls: dict[str, tuple[str, str]] = {}
_failures: dict[str, Failure] = {}
_selected: str | None = None


class _Restore:
    """Puts back the previous selection when a ``with`` block ends."""

    def __init__(self, previous: str | None) -> None:
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _selected
        _selected = self._previous


def use(backend: str) -> _Restore:
    """Select the back end of all ops, for the process or for a ``with`` block.

    Parameters
    ----------
    backend : {"auto", "triton", "torch"}
        ``"auto"`` takes Triton where it can run and torch elsewhere. ``"triton"`` raises where it cannot.

    Returns
    -------
    context manager
        ``use("torch")`` holds until the next call; ``with use("torch"): ...`` until the block ends.

    Raises
    ------
    UsageError
        ``backend`` is not one of the three.

    Notes
    -----
    The selection belongs to the process, not to a thread, because autograd runs backward passes on threads of its own.
    """
    global _selected
    restore = _Restore(_selected)
    _selected = _check_backend(backend, "kernels.use")
    return restore


def selected_backend() -> tuple[str, str]:
    """Return the selected back end and what selected it."""
    if _selected is not None:
        return _selected, "kernels.use"
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    if value:
        return _check_backend(value, ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE
    return "auto", "default"


def register(op: Op) -> Op:
    """Add an op to the registry that :func:`explain` lists, once, from its ``op.py``."""
    if op.name in _ops:
        raise ValueError(f"op {op.name!r} is already registered: give each op one registration")
    _ops[op.name] = op
    return op


def list_ops() -> tuple[Op, ...]:
    """Return all ops of the package, by name; imports every ``op.py`` (not Triton)."""
    package = importlib.import_module("fastff.kernels")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg and importlib.util.find_spec(f"fastff.kernels.{module.name}.op"):
            importlib.import_module(f"fastff.kernels.{module.name}.op")
    return tuple(_ops[name] for name in sorted(_ops))


def explain(device: torch.device | str | None = None) -> list[Row]:
    """Say which back end each op would take for float32 tensors on ``device``, and why.

    Parameters
    ----------
    device : torch.device or str, optional
        Default: the CUDA device if there is one, else the CPU.

    Returns
    -------
    list of Row
        ``op, backend, reason, last_call``. Under ``use("triton")`` on a machine without it the reason is the text of
        the error a call would raise.

    Raises
    ------
    UsageError
        ``device`` names no device, or CUDA where there is none.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r} is none; give cpu, cuda or cuda:N") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {str(place)!r}: there is no CUDA device here; give cpu")
    rows = []
    for op in list_ops():
        try:
            backend, reason = decide(op, place)
        except BackendError as error:
            backend, reason = "triton", f"error: {error}"
        last = _last_calls.get(op.name)
        rows.append(Row(op.name, backend, reason, f"{last[0]}: {last[1]}" if last else None))
    return rows


def decide(
    op: Op, device: torch.device, obstacle: str | None = None, preference: str | None = None
) -> tuple[str, str]:
    """Choose ``"triton"`` or ``"torch"`` for one call and give the reason.

    Parameters
    ----------
    op : Op
    device : torch.device
        Where the tensors of the call are.
    obstacle : str, optional
        Why the Triton implementation cannot take the arguments of this call (a dtype, a width), if it cannot.
    preference : str, optional
        Why torch is the better choice for this call, if it is; counts in auto mode alone.

    Raises
    ------
    BackendError
        Triton is forced and cannot run.
    """
    selected, source = selected_backend()
    if selected == "torch":
        return "torch", f"selected by {source}"
    if obstacle is None:
        obstacle = _find_transform_obstacle()
    if obstacle is None:
        obstacle = _find_device_obstacle(device, forced=selected == "triton")
    if selected == "triton":
        if obstacle is not None:
            raise BackendError(
                f"{op.name}: Triton was selected by {source} but cannot run: {obstacle}; "
                'select "auto" or "torch" instead'
            )
        return "triton", f"selected by {source}"
    if obstacle is None and op.name in _failures:
        obstacle = f"Triton failed to compile: {_failures[op.name].reason}"
    if obstacle is None:
        obstacle = preference
    if obstacle is not None:
        return "torch", obstacle
    return "triton", _describe_device(device)


def run(
    op: Op,
    device: torch.device,
    triton: Callable[[], T],
    reference: Callable[[], T],
    obstacle: str | None = None,
    preference: str | None = None,
) -> T:
    """Decide as :func:`decide` does, record the decision and call one of the two implementations.

    A kernel that does not compile raises :class:`BackendError` when Triton is forced. In auto mode the failure is
    logged once, kept for :func:`explain`, and the op stays on torch for the rest of the process.
    """
    backend, _ = _decide_and_record(op.name, device, obstacle, preference)
    return attempt(op, triton, reference) if backend == "triton" else reference()


def attempt(op: Op, triton: Callable[[], T], reference: Callable[[], T]) -> T:
    """Call ``triton``; on a failure to compile follow the rule described in :func:`run`."""
    try:
        return triton()
    except Exception as error:
        if not is_compile_failure(error):
            raise
        if selected_backend()[0] == "triton":
            raise BackendError(
                f"{op.name}: the Triton kernel failed to compile: {error}"
            ) from error
        if op.name not in _failures:
            _failures[op.name] = describe_failure(error)
            _log.warning(
                "%s: a Triton kernel failed to compile (%s); torch goes on in its place, slower; "
                "fastff doctor tells more",
                op.name,
                _failures[op.name].reason,
            )
        _record_failure(op.name)
    return reference()


def launch_part(op: Op, launch: Callable[[], None]) -> None:
    """Launch the kernels of ``op`` as a part of the evaluation of a larger op, which was decided for both.

    The record of the call is kept for :func:`explain`. A failure to compile is that of the larger op too, whose
    :func:`attempt` it reaches: torch then takes over as a whole, since what a CUDA graph is to hold must not wait for
    the device, as torch's part may.
    """
    try:
        launch()
    except Exception as error:
        if is_compile_failure(error) and selected_backend()[0] != "triton":
            _failures.setdefault(op.name, describe_failure(error))
            _record_failure(op.name)
        raise
    _last_calls[op.name] = ("triton", "part of a larger op")


def list_failures() -> dict[str, Failure]:
    """Ops with kernels that did not compile in this process, and why."""
    return dict(_failures)


def _record_failure(name: str) -> None:
    _last_calls[name] = ("torch", f"Triton failed to compile: {_failures[name].reason}")


def is_differentiated(*values: Any) -> bool:
    """Whether a call must go through its registered (differentiable, traceable) form.

    False in plain inference, where launching directly saves tens of microseconds per call.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level >= 0 and any(
        isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None
        for value in values
    ):
        return True
    return torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in values
    )


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make ``device`` the current CUDA device for a launch, if it is one and is not current already."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def is_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _decide_and_record(
    name: str, device: torch.device, obstacle: str | None, preference: str | None
) -> tuple[str, str]:
    """Decide for the registered op ``name`` (a record of it could not be passed while tracing)."""
    decision = decide(_ops[name], device, obstacle, preference)
    _last_calls[name] = decision
    return decision


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo (and Triton): while a function is
# traced by torch.compile the decision is taken once and becomes part of the compiled code.
_decide_and_record._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_backend(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise UsageError(
            f"{source}: unknown back end {backend!r}; use one of {', '.join(BACKENDS)}"
        )
    return backend


def _find_transform_obstacle() -> str | None:
    """Why the kernels cannot be called where torch.func transforms what is called, if it does.

    It would lose tangents of a kernel without a word (``jvp``), and refuses its gradients (``grad``).
    """
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active, which follows torch alone"
    return None


def _find_device_obstacle(device: torch.device, forced: bool) -> str | None:
    if not has_triton():
        return "the package triton is not installed"
    if is_interpreted():
        return None if forced else "Triton's interpreter is used only when Triton is forced"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, Triton needs a CUDA device"
    if torch.version.hip is None:
        capability = _find_capability(device.index)
        if capability < MIN_CAPABILITY:
            return (
                f"compute capability {capability[0]}.{capability[1]} is below "
                f"{MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
            )
    return None


def _describe_device(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "the tensors are on a ROCm device"
    capability = _find_capability(device.index)
    return f"the tensors are on a CUDA device of capability {capability[0]}.{capability[1]}"


@lru_cache
def _find_capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
