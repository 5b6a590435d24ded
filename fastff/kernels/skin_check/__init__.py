"""Whether a neighbor list with a skin may miss a pair, decided on the device."""

from __future__ import annotations

from fastff.kernels.skin_check.op import Snapshot, check_skin, take_snapshot

__all__ = ["Snapshot", "check_skin", "take_snapshot"]
