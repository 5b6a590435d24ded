"""Labelling with several processes, started by Lightning's own launchers.

Here: a Lightning module whose prediction is labelling, one label file for each process, and their merge by the first.
Not here: starting processes (Lightning, torchrun or SLURM do), labelling itself (:mod:`fastff.distill.labelling`).

Processes never talk to each other before they are done. What killed runs left, with however many processes,
is found and not labelled again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from fastff.distill.callbacks import quiet_lightning
from fastff.distill.jobs import LabelJob, take_shard
from fastff.distill.label_report import COLD_BATCHES, LabelReport
from fastff.distill.labelling import Labeller, LabelListener, LabelSettings
from fastff.distill.merging import MergeReport, merge_labels
from fastff.distill.ranks import gather_from_ranks, share_cores
from fastff.distill.store import LabelStore
from fastff.errors import UsageError

if TYPE_CHECKING:
    from fastff.teachers import Teacher

LONGEST_WAIT = timedelta(days=7)
"""For the slowest process, at the end."""


class LabelModule(lightning.LightningModule):
    """Predicting a batch is labelling and storing it."""

    def __init__(
        self,
        load: Callable[[str], Teacher],
        jobs: Sequence[LabelJob],
        examples: Sequence[ase.Atoms],
        out: Path,
        settings: LabelSettings,
        listener: LabelListener,
    ) -> None:
        super().__init__()
        self._load, self._jobs, self._examples = load, jobs, examples
        self._out, self._settings, self._listener = out, settings, listener
        self.labeller: Labeller | None = None
        self._n_batches = 0

    def setup(self, stage: str) -> None:
        """Load this process's teacher on its own device and open its own label file."""
        rank, count = self.trainer.global_rank, self.trainer.world_size
        teacher = self._load(str(self.trainer.strategy.root_device))
        folder = name_folder(self._out)
        own = folder / f"{rank + 1}-of-{count}.h5"
        store = LabelStore(own, "a", teacher=teacher)
        self.labeller = Labeller(
            teacher,
            store,
            take_shard(self._jobs, rank, count),
            self._settings,
            known=find_stored([self._out, *sorted(folder.glob("*.h5"))], own, teacher),
            on_batch=self._listener.on_batch if rank == 0 else lambda done, total: None,
        )
        self._n_batches = len(self.labeller.batches)
        if rank == 0:
            self._listener.on_teacher(teacher)

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
        if first and batch_idx == 0 and (check := self.labeller.check_teacher(self._examples)):
            self._listener.on_check(check)
        if batch:
            self.labeller.label_batch(batch)
        if first and batch_idx + 1 == min(COLD_BATCHES, max(self._n_batches, 1)):
            self.labeller.store_labels()
            self._listener.on_plan(self.labeller.plan)
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
    accelerator: str,
    devices: str,
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
    accelerator : str
        ``"cpu"``, ``"gpu"`` or ``"auto"``.
    devices : str
        Number of devices of each node, or ``"auto"``.
    nodes : int
    listener : LabelListener, optional

    Returns
    -------
    (LabelReport, MergeReport or None)
        Of all processes together, and of the merge where this process made it.
    """
    if devices != "auto" and not (devices.isdigit() and int(devices) > 0):
        raise UsageError(f"--devices {devices!r} is not a number above 0 or auto")
    module = LabelModule(load, jobs, examples, out, settings, listener or LabelListener())
    with quiet_lightning():
        return _predict(module, out, accelerator, devices, nodes)


def _predict(
    module: LabelModule, out: Path, accelerator: str, devices: str, nodes: int
) -> tuple[LabelReport, MergeReport | None]:
    """Run the module in every process, wait for all, merge in the first."""
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices="auto" if devices == "auto" else int(devices),
        num_nodes=nodes,
        # gloo: a barrier needs no GPU, and NCCL would take memory on it
        strategy=DDPStrategy(process_group_backend="gloo", timeout=LONGEST_WAIT),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        with _use_threads(share_cores(trainer.num_devices)):
            trainer.predict(module, return_predictions=False)
    finally:
        module.close()  # also where a teacher failed, which ends prediction without a teardown
    trainer.strategy.barrier("labels are complete")
    assert module.labeller is not None
    reports = gather_from_ranks(module.labeller.report)
    merged = None
    if trainer.is_global_zero:
        folder = name_folder(out)
        sources = ([out] if out.exists() else []) + sorted(folder.glob("*.h5"))
        merged = merge_labels(sources, out, replace=True)
        shutil.rmtree(folder)
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


def name_folder(out: Path) -> Path:
    """Folder of the files of single processes."""
    return out.with_name(f"{out.name}.parts")


def find_stored(paths: Sequence[Path], own: Path, teacher: Teacher) -> set[bytes]:
    """Content hashes of all frames in other files of the same job.

    Raises
    ------
    DataError
        A file of another teacher.
    """
    found: set[bytes] = set()
    for path in paths:
        if path != own and path.exists():
            with LabelStore(path, "r", teacher=teacher) as store:
                for group in ("frames", "quarantine"):
                    found |= {row.tobytes() for row in store.read_column("hash", group)}
    return found


def _pass_on(batch: Any) -> Any:
    return batch
