"""Model files: the same bits after saving and loading, here and in another process.

Here: round trips of a student. Not here: damaged files (their errors belong to :mod:`fastff.checkpoint`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms
from ase.io import write

from fastff.checkpoint import load_model, save_model
from fastff.models import Student
from fastff.testing.subject import evaluate, use_fixed_order

_PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from ase.io import read
from fastff.checkpoint import load_model
from fastff.testing import evaluate
model = load_model(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
for k, atoms in enumerate(read(sys.argv[2], index=":")):
    found = evaluate(model, [atoms])
    print("result", float(found.energy).hex(), *[float(f).hex() for f in found.forces.flatten()])
"""


@use_fixed_order()
def measure_saving(model: Student, structures: Sequence[Atoms]) -> float:
    """Number of tensors and of results that differ after a student was saved and loaded; exactly zero is asked for."""
    with tempfile.TemporaryDirectory(prefix="fastff-check-") as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, model, {})
        again = load_model(path, device=model.device, dtype=model.dtype)
    before, after = _list_tensors(model), _list_tensors(again)
    differing = sum(
        name not in after or not torch.equal(value, after[name].to(value))
        for name, value in before.items()
    )
    for atoms in structures:
        one, other = evaluate(model, [atoms]), evaluate(again, [atoms])
        differing += not torch.equal(one.energy, other.energy)
        differing += not torch.equal(one.forces, other.forces)
    return float(differing)


def _list_tensors(model: Student) -> dict[str, torch.Tensor]:
    """All that a model file keeps of a student, its uncertainty too."""
    extra = {} if model.uncertainty is None else model.uncertainty.to_tensors()
    return {**model.state_dict(), **{f"uncertainty.{name}": value for name, value in extra.items()}}


def measure_other_process(
    path: Path, structures: Sequence[Atoms], dtype: str = "float64", timeout: float = 300.0
) -> float:
    """Number of structures on which a model file gives other bits on the CPU of another process; nan if that fails."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_model(path, dtype=getattr(torch, dtype))
        expected = []
        with tempfile.TemporaryDirectory(prefix="fastff-check-") as folder:
            file = Path(folder) / "structures.traj"
            write(file, list(structures))
            for atoms in structures:
                found = evaluate(model, [atoms])
                values = [float(found.energy), *found.forces.flatten().tolist()]
                expected.append(" ".join(value.hex() for value in values))
            arguments = [sys.executable, "-c", _PROGRAM, str(path.resolve()), str(file), dtype]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            done = subprocess.run(
                arguments, capture_output=True, text=True, timeout=timeout, env=environment
            )
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    if done.returncode != 0 or len(lines) != len(expected):
        return float("nan")
    given = [line.removeprefix("result ") for line in lines]
    return float(sum(one != other for one, other in zip(given, expected, strict=True)))
