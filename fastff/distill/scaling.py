"""Labelling with several processes, started by Lightning's own launchers.

Here: a Lightning module whose prediction is labelling, one label file for each process, and their merge by the first.
Not here: starting processes (Lightning, torchrun or SLURM do) and watching them (:mod:`fastff.distill.siblings`), the
files of processes (:mod:`fastff.distill.parts`), labelling itself (:mod:`fastff.distill.labelling`).

Processes never talk to each other before they are done. What killed runs left, with however many processes,
is found and not labelled again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import lightning
import torch
from torch.utils.data import DataLoader

from fastff.distill.jobs import LabelJob, drop_repeats, take_shard
from fastff.distill.label_report import COLD_BATCHES, LabelPlan, LabelReport
from fastff.distill.labelling import Labeller, LabelListener, LabelSettings, plan_labels
from fastff.distill.merging import MergeReport
from fastff.distill.parts import drop_empty, find_stored, join_parts, list_parts, name_folder
from fastff.distill.quiet import quiet_lightning
from fastff.distill.ranks import check_group, gather_from_ranks, place_trainer, share_cores
from fastff.distill.siblings import GRACE, WatchingLauncher, WatchingStrategy, follow_launcher
from fastff.distill.signals import choose_environment
from fastff.distill.store import LabelStore
from fastff.errors import FastFFError

if TYPE_CHECKING:
    from fastff.teachers import Teacher

LONGEST_WAIT = timedelta(days=7)
"""For the slowest process, at the end."""


class LabelModule(lightning.LightningModule):
    """Predicting a batch is labelling and storing it.

    Parameters
    ----------
    teacher : Teacher
        On the device of this process.
    jobs : sequence of LabelJob
        All of them, no structure twice.
    examples, out, settings, listener
        As in :func:`label_with_launcher`.
    plan : LabelPlan
        Of all processes together.

    Attributes
    ----------
    labeller : Labeller or None
        Of the part of this process, once there is one.
    error : Exception or None
        What this process itself has raised.
    """

    def __init__(
        self,
        teacher: Teacher,
        jobs: Sequence[LabelJob],
        examples: Sequence[ase.Atoms],
        out: Path,
        settings: LabelSettings,
        listener: LabelListener,
        plan: LabelPlan,
    ) -> None:
        super().__init__()
        self._teacher, self._jobs, self._examples = teacher, jobs, examples
        self._out, self._settings, self._listener = out, settings, listener
        self._plan = plan
        self.labeller: Labeller | None = None
        self.error: Exception | None = None
        self._n_batches = 0

    @contextmanager
    def _own_work(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def setup(self, stage: str) -> None:
        """Open this process's own label file."""
        rank, count = self.trainer.global_rank, self.trainer.world_size
        own = name_folder(self._out) / f"{rank + 1}-of-{count}.h5"
        with self._own_work():
            others = [path for path in (self._out, *list_parts(self._out)) if path != own]
            self.labeller = Labeller(
                self._teacher,
                LabelStore(own, "a", teacher=self._teacher),
                take_shard(self._jobs, rank, count),
                self._settings,
                known=find_stored(others, self._teacher),
                on_batch=self._listener.on_batch if rank == 0 else lambda done, total: None,
            )
        self._n_batches = len(self.labeller.batches)
        if rank == 0:
            self._listener.on_teacher(self._teacher)

    def on_predict_start(self) -> None:
        """Let SIGTERM end this process at once, as SIGKILL would: Lightning notes it and goes on predicting.

        The processes that wait for this one notice, and labels are stored while it works.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def predict_dataloader(self) -> Any:
        """The batches that are left to this process."""
        assert self.labeller is not None
        batches = self.labeller.batches or [[]]  # Lightning refuses to predict nothing at all
        return DataLoader(batches, batch_size=None, collate_fn=_pass_on)  # type: ignore[arg-type]

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Structures stay where they are."""
        return batch

    def predict_step(self, batch: list[LabelJob], batch_idx: int) -> int:
        """Label and store one batch; return how many frames that were.

        The first process measures the teacher and tells the plan here, after the last point where the others wait.
        """
        assert self.labeller is not None
        first = self.trainer.is_global_zero
        with self._own_work():
            if first and batch_idx == 0 and (check := self.labeller.check_teacher(self._examples)):
                self._listener.on_check(check)
            if batch:
                self.labeller.label_batch(batch)
            if first and batch_idx + 1 == min(COLD_BATCHES, max(self._n_batches, 1)):
                self.labeller.store_labels()
                measured = self.labeller.plan.seconds_per_atom
                self._listener.on_plan(replace(self._plan, seconds_per_atom=measured))
        return len(batch)

    def close(self) -> None:
        """Store what is labelled and close this process's label file."""
        if self.labeller is not None:
            try:
                self.labeller.store_labels()
            finally:
                self.labeller.store.close()


def label_with_launcher(
    load: Callable[[str], Teacher],
    jobs: Sequence[LabelJob],
    examples: Sequence[ase.Atoms],
    out: Path,
    settings: LabelSettings,
    *,
    device: str,
    devices: int,
    nodes: int = 1,
    listener: LabelListener | None = None,
) -> tuple[LabelReport, MergeReport | None]:
    """Label with one process for each device; every process runs this function.

    Parameters
    ----------
    load : callable
        Loads the teacher on a device given by name.
    jobs : sequence of LabelJob
        All of them, the same in every process.
    examples : sequence of ase.Atoms
        For the teacher's self-check.
    out : Path
        The merged label file. Each process writes its own in a folder beside it, which is removed in the end.
    settings : LabelSettings
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    devices, nodes : int
        Devices of each node, and nodes; more than one device in all.
    listener : LabelListener, optional

    Returns
    -------
    (LabelReport, MergeReport or None)
        Of all processes together, and of the merge where this process made it.

    Raises
    ------
    UsageError
        Fewer devices than asked for, or a launcher started another number of processes.
    DataError
        Elements that the teacher does not know, or files of another teacher; found before any process is started.
    FastFFError
        Another process has ended.
    """
    listener = listener or LabelListener()
    placement = place_trainer(device, devices, nodes)
    check_group(devices, nodes)
    follow_launcher()
    with quiet_lightning():
        # gloo: a barrier needs no GPU, and NCCL would take memory on it
        strategy = WatchingStrategy(process_group_backend="gloo", timeout=LONGEST_WAIT)
        trainer = lightning.Trainer(
            **{**placement, "strategy": strategy},
            default_root_dir=name_folder(out),  # under SLURM it looks for checkpoints to go on from
            plugins=choose_environment(),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        with _use_threads(share_cores(trainer.num_devices)):
            teacher = load(str(strategy.root_device))
            stored = find_stored([out, *list_parts(out)], teacher)
            plan, _ = plan_labels(jobs, teacher, stored.__contains__, settings)
            plan = replace(plan, n_processes=trainer.world_size)
            module = LabelModule(
                teacher, drop_repeats(jobs), examples, out, settings, listener, plan
            )
            report, merged = _predict(trainer, module, out, listener)
    return replace(report, n_repeated=plan.n_repeated), merged


def _predict(
    trainer: lightning.Trainer, module: LabelModule, out: Path, listener: LabelListener
) -> tuple[LabelReport, MergeReport | None]:
    """Run the module in every process, wait for all, merge in the first."""
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, WatchingLauncher)
    launcher.on_failure = listener.on_failure
    try:
        try:
            trainer.predict(module, return_predictions=False)
        finally:
            module.close()  # also where a teacher failed, which ends prediction without a teardown
        trainer.strategy.barrier("labels are complete")
        assert module.labeller is not None
        reports = gather_from_ranks(module.labeller.report)
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and error is not module.error
        if lost:
            time.sleep(GRACE)
        launcher.end_all()
        drop_empty(out)
        if not lost:
            raise
        raise FastFFError(
            "another process has ended before it had labelled its part; the same command goes on with what is stored"
        ) from error
    merged = join_parts(out) if trainer.is_global_zero else None
    return LabelReport.join(reports), merged


@contextmanager
def _use_threads(number: int) -> Iterator[None]:
    """As many threads in this process and those that it starts; afterwards what was said before."""
    said, before = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(number)
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if said is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = said


def _pass_on(batch: Any) -> Any:
    return batch
