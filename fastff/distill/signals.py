"""SIGTERM and Ctrl-C while one process trains, or several together, and the loss of one of them.

Here: how a training ends. Not here: the processes that this one starts and ends (:mod:`fastff.distill.launch`,
:mod:`fastff.distill.siblings`), what else Lightning calls (:mod:`fastff.distill.callbacks`).

Lightning (2.6) broadcasts from within its handler of SIGTERM. A signal arrives at any time and at any of the
processes, whose next message is then taken for another one: they waited for each other until the time limit of the
process group, half an hour. Here a handler takes a note only, and between two steps the processes ask for notes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fastff.distill.ranks import count_ranks
from fastff.errors import FastFFError

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that ended because it was asked to."""


class SharedSignals(Callback):
    """Ends a training in all of its processes, between two steps, once one of them has received SIGTERM.

    Parameters
    ----------
    interval : int
        Steps between two questions to the other processes of a training on GPUs: the host waits for the GPU there, and
        the GPU then for the host. On CPUs nothing would be gained, and every step asks.

    Attributes
    ----------
    received : bool
        Whether this process has received SIGTERM.
    """

    def __init__(self, interval: int) -> None:
        self.received = False
        self._steps = self._interval = interval
        self._device = torch.device("cpu")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have notes taken from the moment on at which Lightning begins to listen."""
        connector = getattr(trainer, "_signal_connector", None)
        if hasattr(connector, "_sigterm_notifier_fn"):
            connector._sigterm_notifier_fn = self._note  # type: ignore[union-attr]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM over from Lightning, which restores what was before when the training ends."""
        self._device = trainer.strategy.root_device
        self._steps = self._interval if self._device.type == "cuda" else 1
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = lambda: None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """End here if one of the processes is to end."""
        if trainer.global_step % self._steps == 0 and self.ask():  # the same steps on all of them
            raise SIGTERMException

    def ask(self) -> bool:
        """Whether one of the processes has received SIGTERM; all of them have to ask."""
        if count_ranks() == 1:
            return self.received
        received = torch.tensor(int(self.received), device=self._device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return bool(received.item())

    def _note(self, *_: object) -> None:
        self.received = True


@contextmanager
def pass_signals_on() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM leave a training as such: Lightning makes silent exits of them, the latter with code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(TERMINATED) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def explain_loss() -> Iterator[None]:
    """Say in one line that another process of the training has ended, where this one fails for that reason.

    Raises
    ------
    FastFFError
        Instead of what torch says of a lost connection.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise FastFFError(
            "another process of this training has ended (the system sends SIGKILL where memory runs out); --resume "
            "continues"
        ) from error


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Leave the block by ``SystemExit`` on SIGTERM, so that what was started in it is ended.

    Where something else handles the signal, or in another thread than the main one, nothing is changed.
    """
    free = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not free:
        yield
        return

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows is short, and ends the others
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def choose_environment() -> list[SLURMEnvironment]:
    """Lightning's plugin for SLURM, where that has started this process, without its own way to begin again.

    On SIGUSR1 Lightning would write a checkpoint into the working folder and queue the same command anew.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]
