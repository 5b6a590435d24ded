"""CUDA graphs: a sequence of launches over fixed buffers, recorded once and replayed.

Here: recording, :class:`Replay`, and :class:`Fork`. Not here: what is recorded, or when buffers move. Recording takes a
tenth of a second, so it waits until a function has been called a few times on the same buffers.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

EAGER_CALLS = 2
"""Calls before recording; at least one, in which kernels are compiled and loaded."""


@contextmanager
def pause_collection() -> Iterator[None]:
    """No garbage collection inside: a graph that it freed while another is recorded would spoil the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_streams: dict[int, torch.cuda.Stream] = {}
"""Where each device records: torch's own stream for that belongs to the device that recorded first."""


def hold_weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Call a method without keeping its object alive: for a :class:`Replay` that belongs to that object."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        assert alive is not None
        alive()

    return call


@contextmanager
def record_graph(device: torch.device) -> Iterator[torch.cuda.CUDAGraph]:
    """Record what is launched inside instead of running it; other threads may use the device meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with pause_collection(), torch.cuda.device(device):
        place = torch.cuda.current_device()
        stream = _streams.setdefault(place, torch.cuda.Stream(place))
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield graph


class Replay:
    """A function without arguments that is replayed from a CUDA graph where there is a CUDA device.

    Parameters
    ----------
    function : callable
        Launches work on fixed buffers and never waits for the device.
    device : torch.device
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function, self._device = function, device
        self.forget()

    @property
    def recorded(self) -> bool:
        """Whether the next call is a replay."""
        return self._graph is not None

    def forget(self) -> None:
        """Drop the recording: buffers have moved."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self) -> None:
        """Run the function, or replay it."""
        if self._graph is None:
            self._calls += 1
            if self._device.type != "cuda" or self._calls <= EAGER_CALLS:
                self._function()
                return
            self._graph = self._record()
        self._graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        with record_graph(self._device) as graph:
            self._function()
        return graph


class Fork:
    """Work beside the current stream of a CUDA device, in a recording too; elsewhere in line.

    What is launched inside ``with`` may begin when everything launched before it is done, and runs beside what follows
    until :meth:`join`.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._inside: torch.cuda.StreamContext | None = None

    def __enter__(self) -> None:
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self._side.device))
            self._inside = torch.cuda.stream(self._side)
            self._inside.__enter__()

    def __exit__(self, *failure: object) -> None:
        if self._inside is not None:
            self._inside.__exit__(*failure)
            self._inside = None

    def join(self) -> None:
        """Let what is launched from here on wait for the work beside."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)
