"""How Lightning's trainers are kept quiet.

Here: what they say that does not apply. Not here: what they call (:mod:`fastff.distill.callbacks`), which needs all
that a training needs; labelling does not.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_lightning() -> Any:
    """Silence Lightning's start-up notes and the warnings that do not apply here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [entry.level for entry in loggers]
    for entry in loggers:
        entry.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            warnings.filterwarnings("ignore", message=".*stream.*AccumulateGrad.*")
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            warnings.filterwarnings("ignore", message=".*epoch parameter in `scheduler.step.*")
            yield
    finally:
        for entry, level in zip(loggers, levels, strict=True):
            entry.setLevel(level)
