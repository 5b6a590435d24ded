"""Keep a teacher's side effects away from the process that calls it.

Here: saving and restoring process-wide state of torch, NumPy, Python and JAX around a teacher call, and keeping
a teacher's chatter off the user's terminal. Not here: anything a particular teacher does.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

CHATTER: tuple[str, ...] = (
    r"No tensor product accelerator is enabled",
    r"TorchScript type system doesn't support instance-level annotations",
    r"`?torch\.jit\.\w+`? is (deprecated|not supported)",
    r"`?torch_geometric\.distributed`? has been deprecated",
    r"The TorchScript",
    r"Setting global torch default dtype",
    r"Consider passing .precision=float32-high",
    r"pkg_resources is deprecated",
    r"Converting a tensor with requires_grad=True to a scalar",
)
"""Patterns of warnings that say nothing about the correctness of labels; every other warning is passed on."""


@contextlib.contextmanager
def preserve_global_state() -> Iterator[None]:
    """Restore process-wide settings on leaving, whatever the body or an error in it did to them.

    Covered: torch default dtype, float32 matmul precision, TF32 and cuDNN flags, deterministic mode, thread count,
    grad mode; the random states of torch (CPU), NumPy and Python; ``numpy.seterr``; the warning filters; and
    ``jax.config`` where JAX is loaded. The body runs with torch's factory settings of dtype and precision (float32, no
    TF32), gradients enabled and outside inference mode, so that labels do not depend on the caller's settings.
    """
    setters = _snapshot_torch() + _snapshot_rest()
    jax_before = _snapshot_jax()
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
            yield
    finally:
        for read, value, write in setters:
            if not _equal(read(), value):
                write(value)
        _restore_jax(jax_before)


Setting = tuple[Callable[[], Any], Any, Callable[[Any], Any]]
Accessors = tuple[Callable[[], Any], Callable[[Any], Any]]


def _snapshot_torch() -> list[Setting]:
    """Reader, present value and writer of each process-wide torch setting."""
    backends = torch.backends
    pairs: list[Accessors] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        _guard(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _flag(backends.cuda.matmul, "allow_tf32"),
        _flag(backends.cudnn, "allow_tf32"),
        # the older switches above also set the newer ones below, so these are put back last
        *[_flag(owner, "fp32_precision") for owner in _list_precision_owners()],
        _flag(backends.cudnn, "benchmark"),
        _flag(backends.cudnn, "deterministic"),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    return [(read, read(), write) for read, write in pairs]


def _snapshot_rest() -> list[Setting]:
    """Reader, present value and writer of NumPy's and Python's process-wide settings."""
    pairs: list[Accessors] = [
        (np.random.get_state, np.random.set_state),
        (random.getstate, random.setstate),
        (np.geterr, lambda value: np.seterr(**value)),
    ]
    return [(read, read(), write) for read, write in pairs]


def _list_precision_owners() -> list[Any]:
    """The parts of torch that have a float32 precision of their own, from the general to the particular."""
    backends = torch.backends
    owners = [backends.cuda.matmul]
    for backend, parts in (
        (backends.cudnn, ("conv", "rnn")),
        (backends.mkldnn, ("matmul", "conv")),
    ):
        owners += [getattr(backend, part) for part in parts if hasattr(backend, part)]
    return [owner for owner in owners if hasattr(owner, "fp32_precision")]


def _flag(owner: Any, name: str) -> Accessors:
    """Reader and writer of one attribute."""
    return _guard(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _guard(read: Callable[[], Any], write: Callable[[Any], Any]) -> Accessors:
    """A setting that torch may refuse to read, where older and newer switches contradict each other.

    Refused before the teacher ran: left alone. Refused after: written.
    """

    def read_or_none() -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    def write_unless_none(value: Any) -> None:
        if value is not None:
            write(value)

    return read_or_none, write_unless_none


def _equal(left: Any, right: Any) -> bool:
    """Compare two snapshots, which may hold arrays or tensors inside tuples."""
    if isinstance(left, torch.Tensor):
        return bool(torch.equal(left, right))
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)


def _snapshot_jax() -> dict[str, Any] | None:
    """Values of ``jax.config``, or None where JAX is not loaded."""
    jax = sys.modules.get("jax")
    return None if jax is None else dict(jax.config.values)


def _restore_jax(before: dict[str, Any] | None) -> None:
    """Put back every entry of ``jax.config`` that differs."""
    if before is None:
        return
    config = sys.modules["jax"].config
    for key, value in config.values.items():
        if key in before and before[key] != value:
            config.update(key, before[key])


@contextlib.contextmanager
def hush(chatter: Sequence[str] = CHATTER) -> Iterator[None]:
    """Keep printed lines and known chatter off the terminal, and pass every other warning on.

    Parameters
    ----------
    chatter : sequence of str
        Regular expressions, matched anywhere in a warning's text, of warnings to drop.

    Notes
    -----
    What was printed is dropped, unless the body raises: then it is appended to the error as a note.
    """
    printed = io.StringIO()
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always")
            yield
    except Exception as error:
        if printed.getvalue().strip():
            error.add_note("printed before the error: " + printed.getvalue().strip())
        raise
    finally:
        for entry in caught:
            text = str(entry.message)
            ignorable = issubclass(
                entry.category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
            )
            if not ignorable and not any(re.search(pattern, text) for pattern in chatter):
                warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
