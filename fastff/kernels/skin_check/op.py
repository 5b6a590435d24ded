"""Public functions of the skin check: the state a list was built in, and the comparison with it.

Here: :class:`Snapshot`, :func:`take_snapshot`, :func:`check_skin`. Not here: the criterion (``reference.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import dispatch, tuning
from fastff.kernels.moment_potential.layout import MAX_REACH
from fastff.kernels.neighbor_list.plan import Frame
from fastff.kernels.skin_check import reference

OP = dispatch.register(dispatch.Op("skin_check", derivative_order=0, deterministic=True))


@dataclass(frozen=True)
class Snapshot:
    """Positions and cell that a list was built in, on the device.

    Attributes
    ----------
    positions : (n_atoms, 3) float64 tensor, Å
    frame : (24,) float64 tensor
        Inverse of the completed cell (9), the completed cell (9), periodic (3), cut-off, cut-off plus skin, and the
        distance beyond which a listed pair may not move (:func:`find_span`).
    """

    positions: Tensor
    frame: Tensor


def find_span(cutoff: float) -> float:
    """How far apart, in Å, a listed pair may be for the position grid to tell that it is not within the cut-off."""
    return 2.0 * MAX_REACH - cutoff


def take_snapshot(
    positions: Tensor, frame: Frame, cutoff: float, skin: float, out: Snapshot | None = None
) -> Snapshot:
    """Copy the state in which a list of reach ``cutoff + skin`` was built, into ``out`` if it has the size."""
    numbers = [
        *frame.inverse.flatten().tolist(),
        *frame.rows.flatten().tolist(),
        *map(float, frame.periodic),
        cutoff,
        cutoff + skin,
        find_span(cutoff),
    ]
    scalars = torch.tensor(numbers, dtype=torch.float64)
    if out is None or out.positions.shape != positions.shape:
        return Snapshot(positions.detach().double().clone(), scalars.to(positions.device))
    out.positions.copy_(positions)
    out.frame.copy_(scalars)
    return out


def check_skin(positions: Tensor, cell: Tensor, snapshot: Snapshot, stale: Tensor) -> None:
    """Set ``stale`` to 1 if a pair that the list does not hold may be nearer than the cut-off; never to 0.

    Also where a pair that it holds may be so far apart that the position grid would wrap around it.

    Parameters
    ----------
    positions : (n_atoms, 3) float64 tensor, Å
    cell : (3, 3) float64 tensor, Å
        On the device.
    snapshot : Snapshot
    stale : () int32 tensor

    Raises
    ------
    DataError
        Shapes that do not fit.

    Notes
    -----
    The Triton kernel does not wait for the device and can be captured in a CUDA graph. It bounds the least singular
    value of the deformation from below, to 1e-8: it may ask for a list too early by that much, never too late.
    Positions that are not finite make the list stale.
    """
    if positions.shape != snapshot.positions.shape or cell.shape != (3, 3):
        raise DataError(
            f"skin_check: {len(positions)} atoms and a cell {tuple(cell.shape)}, the snapshot "
            f"{len(snapshot.positions)} and (3, 3); take a snapshot of the same atoms"
        )
    dispatch.run(
        OP,
        positions.device,
        lambda: launch_check(positions, cell, snapshot, stale),
        lambda: _check_torch(positions, cell, snapshot, stale),
    )


def check_skin_within(positions: Tensor, cell: Tensor, snapshot: Snapshot, stale: Tensor) -> None:
    """:func:`check_skin` as a part of an evaluation by the fused kernels: never in torch, which waits for the device.

    Arguments are not verified; a failure to compile is that of the evaluation.
    """
    dispatch.launch_part(OP, lambda: launch_check(positions, cell, snapshot, stale))


def launch_check(positions: Tensor, cell: Tensor, snapshot: Snapshot, stale: Tensor) -> None:
    """Launch ``check_kernel``."""
    from fastff.kernels.skin_check.kernels import CHECK_SPACE, check_kernel

    arguments = tuning.lookup(
        CHECK_SPACE, tuning.make_key(torch.float64), positions.device
    ).to_arguments()
    n_atoms = positions.shape[0]
    with dispatch.on_device(positions.device):
        check_kernel[(max(1, -(-n_atoms // arguments["BLOCK"])),)](
            positions.contiguous(),
            snapshot.positions,
            cell.contiguous(),
            snapshot.frame,
            stale,
            n_atoms,
            **arguments,
        )


def _check_torch(positions: Tensor, cell: Tensor, snapshot: Snapshot, stale: Tensor) -> None:
    frame = snapshot.frame
    cutoff, reach, span = frame[21:24].tolist()
    found = reference.is_stale(
        positions.double(),
        cell.double(),
        snapshot.positions,
        frame[9:18].view(3, 3),
        frame[18:21] > 0.5,
        cutoff,
        reach - cutoff,
        span,
    )
    stale.copy_(torch.maximum(stale, found.to(stale.dtype)))
