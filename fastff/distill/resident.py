"""Training frames that stay on the device, gathered into batches there.

Here: :class:`ResidentBatches`, for GPUs, where a step of a small student takes less time than collating and copying
its batch. Not here: making the frames' tensors (:mod:`fastff.distill.data`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastff.errors import DataError

if TYPE_CHECKING:
    from fastff.distill.data import ResidualData

PER_ATOM = ("vectors", "senders", "species", "target_forces", "force_size")
PER_ATOM_HESSIAN = ("direction", "target_product")
PER_FRAME = ("volume", "n_atoms", "target_energy", "target_stress")


def count_bytes(data: Sequence[ResidualData]) -> int:
    """Memory of the padded frames, bytes."""
    n_slots = data[0].senders.shape[1]
    element = data[0].vectors.element_size()
    widest = max(int(frame.num_nodes) for frame in data)
    n_vectors = 3 if "direction" in data[0] else 1
    return len(data) * widest * (n_slots * (3 * element + 8) + 3 * n_vectors * element + 8)


class ResidentBatches:
    """Shuffled batches of one shape, padded with atoms without neighbors, all on one device.

    Iterating yields dictionaries with the fields of :class:`~fastff.distill.data.ResidualData` and ``batch``. The
    order depends on seed and epoch alone; the last, smaller batch of an epoch is left out. In a distributed run every
    rank gets its own part of every epoch's order.

    Parameters
    ----------
    data : sequence of ResidualData
        Of equally many slots.
    batch_size : int
        Frames per batch and rank.
    device : torch.device or str
    seed : int
    padding_vector : (3,) sequence of float, Å
        Vector in the slots of padding atoms; at the cut-off, where nothing counts.
    rank, n_ranks : int
    """

    def __init__(
        self,
        data: Sequence[ResidualData],
        batch_size: int,
        device: torch.device | str,
        *,
        seed: int,
        padding_vector: Sequence[float],
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        if batch_size * n_ranks > len(data):
            raise DataError(
                f"{len(data)} frames do not fill a batch of {batch_size} frames on {n_ranks} ranks"
            )
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.rank, self.n_ranks = rank, n_ranks
        self.n_frames = len(data)
        self.width = max(int(frame.num_nodes) for frame in data)
        self.device = torch.device(device)
        self._per_atom = PER_ATOM + (PER_ATOM_HESSIAN if "direction" in data[0] else ())
        self.fields = {name: self._stack(data, name) for name in (*self._per_atom, *PER_FRAME)}
        for k, frame in enumerate(data):  # padding atoms: no neighbors, no forces, first species
            n = int(frame.num_nodes)
            self.fields["vectors"][k, n:] = torch.tensor(padding_vector)
            self.fields["senders"][k, n:] = torch.arange(n, self.width)[:, None]
            if "target_product" in self.fields:
                self.fields["target_product"][k, n:] = torch.nan
        self.fields = {name: value.to(self.device) for name, value in self.fields.items()}
        frames = torch.arange(batch_size, device=self.device)
        self._offsets = (frames * self.width)[:, None, None]
        self._batch = frames.repeat_interleave(self.width)

    def _stack(self, data: Sequence[ResidualData], name: str) -> Tensor:
        if name in PER_FRAME:
            return torch.cat([frame[name] for frame in data])
        first = data[0][name]
        stacked = first.new_zeros(len(data), self.width, *first.shape[1:])
        for k, frame in enumerate(data):
            stacked[k, : int(frame.num_nodes)] = frame[name]
        return stacked

    @property
    def sampler(self) -> ResidentBatches:
        """Who is told the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.n_frames // (self.batch_size * self.n_ranks)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of this epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.n_frames, generator=generator)
        order = order[self.rank :: self.n_ranks].to(self.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._gather(order[start : start + self.batch_size])

    def _gather(self, chosen: Tensor) -> dict[str, Tensor]:
        batch = {name: value[chosen] for name, value in self.fields.items()}
        batch["senders"] += self._offsets
        for name in self._per_atom:
            batch[name] = batch[name].flatten(0, 1)
        return {**batch, "batch": self._batch, "frame_index": chosen}
