"""Copper frames to label, and ``fastff label`` as a process of its own with a teacher that can be slow or fail.

Not here: any test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ase
from ase.build import bulk
from ase.io import write

from fastff.distill.store import LabelStore
from fastff.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
TEACHER = ("cu.xyz", "--teacher", "ase:slow_teacher:SlowEMT", "--out", "labels.h5")
TWO = ("--device", "cpu", "--devices", "2")

SLOW_TEACHER = '''
import os, time
from ase.calculators.emt import EMT

class SlowEMT(EMT):
    """EMT that takes its time, and fails in one process if asked to."""
    def calculate(self, *args, **kwargs):
        time.sleep(float(os.environ["TEACHER_SECONDS"]))
        if os.environ["TEACHER_FAILS"] == os.environ.get("LOCAL_RANK", ""):
            raise ArithmeticError("this teacher has failed")
        super().calculate(*args, **kwargs)
'''


def make_frames(count: int) -> list[ase.Atoms]:
    frames = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True) * ((2, 1, 1) if seed % 2 else (1, 1, 1))
        atoms.rattle(0.08, seed=seed)
        frames.append(atoms)
    return frames


def write_copper(folder: Path) -> Path:
    """Twenty frames, and the first one again."""
    frames = make_frames(20)
    write(folder / "cu.xyz", [*frames, frames[0]])
    return folder / "cu.xyz"


def start(
    arguments: list[str], folder: Path, seconds: float, fails: str = "none"
) -> subprocess.Popen[bytes]:
    """Begin ``fastff label`` in a folder; ``fails`` is the rank whose teacher raises."""
    (folder / "slow_teacher.py").write_text(SLOW_TEACHER)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "TEACHER_SECONDS": str(seconds),
        "TEACHER_FAILS": fails,
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "fastff", "label", *arguments],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def count_frames(path: Path) -> int:
    """Sound frames of a label file; 0 if there is none yet."""
    try:
        with LabelStore(path) as store:
            return len(store)
    except DataError:
        return 0
