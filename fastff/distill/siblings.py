"""Processes that Lightning starts beside this one, and what becomes of them.

Here: a strategy whose launcher watches them, and ends all when one fails. Not here: what they do
(:mod:`fastff.distill.scaling`), the processes of a training (:mod:`fastff.distill.launch`).

Lightning's own launcher kills this process too when another one fails, without a word.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from fastff.distill.worker import follow_parent
from fastff.errors import FastFFError

PARENT = "FASTFF_PARENT"
"""Variable that tells a process which one started it."""
POLL = 0.2
"""Seconds between looks at the other processes."""
GRACE = 10.0
"""Seconds in which a process that has lost another one is ended by the launcher, and need not say so itself."""


class WatchingLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher; when a process that it started fails, the others end, and so does this one.

    Attributes
    ----------
    on_failure : callable
        Called before with what happened, or with nothing if the process has said so itself.
    """

    on_failure: Callable[[str], None] = staticmethod(lambda text: None)

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the other processes unless a launcher has done so, watch them, and call a function."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            self._ending = threading.Event()
            os.environ[PARENT] = str(os.getpid())
            self._call_children_scripts()
            threading.Thread(target=self._watch, name="watch-siblings", daemon=True).start()
        return function(*args, **kwargs)

    def end_all(self) -> None:
        """End the processes that this one has started."""
        if self.procs:
            self._ending.set()
            for process in self.procs:
                process.kill()
                process.wait()

    def _watch(self) -> None:
        while not self._ending.wait(POLL):
            codes = [process.poll() for process in self.procs]
            for number, code in enumerate(codes, start=2):
                if code:
                    self._end_with(number, code)
            if all(code == 0 for code in codes):
                return

    def _end_with(self, number: int, code: int) -> None:
        """End everything since one process has ended; the main thread may wait for it where no exception arrives."""
        self.end_all()
        self.on_failure(describe_end(number, self.num_processes, code) if code < 0 else "")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if code > 0 else FastFFError.exit_code)


class WatchingStrategy(DDPStrategy):
    """DDP whose launcher is :class:`WatchingLauncher`."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WatchingLauncher(
            self.cluster_environment, self.num_processes, self.num_nodes
        )


def follow_launcher() -> None:
    """If :class:`WatchingLauncher` has started this process, end it as soon as the one that did is gone."""
    if os.environ.get(PARENT) == str(os.getppid()):
        follow_parent()


def describe_end(number: int, count: int, code: int) -> str:
    """One line about a process that a signal has ended."""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return (
        f"process {number} of {count} was ended by {name} (the system sends SIGKILL where memory runs out); the same "
        "command goes on with what is stored"
    )
