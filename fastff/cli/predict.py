"""``fastff predict``: energies, forces and stress of the structures in a file.

Here: the command, its table and its output file. Not here: the evaluation (:mod:`fastff.inference`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastff.cli.terminal import (
    DeviceOption,
    DType,
    DTypeOption,
    ModelArgument,
    make_console,
    resolve_device,
    resolve_dtype,
)
from fastff.errors import UsageError

if TYPE_CHECKING:
    from ase import Atoms
    from rich.table import Table

    from fastff.labels import Labels

MAX_ROWS = 20
"""Most structures listed on the terminal; the output file has all of them."""


def predict(
    model: ModelArgument,
    structures: Annotated[
        Path,
        typer.Argument(help="Structures in any format ASE reads: extxyz, CIF, POSCAR, traj ..."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write structures with energy, forces and stress here (extended XYZ).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file.")] = False,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.FLOAT32,
    batch_atoms: Annotated[
        int, typer.Option("--batch-atoms", min=1, help="Most atoms evaluated together.")
    ] = 4096,
) -> None:
    """Compute energy, forces and stress of the structures in a file."""
    if out is not None:
        check_output(out, force=force)

    from fastff.checkpoint import load_model
    from fastff.inference import predict as evaluate
    from fastff.memory import keep_freed_memory
    from fastff.structures import read_structures

    frames = read_structures(structures)
    place = resolve_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    student = load_model(model, device=place, dtype=resolve_dtype(dtype))
    labels = evaluate(student, frames, batch_atoms=batch_atoms)
    console = make_console()
    console.print(make_table(frames, labels))
    if len(frames) > MAX_ROWS:
        console.print(f"... and {len(frames) - MAX_ROWS} more")
    if out is not None:
        write_labelled(out, frames, labels)
        console.print(f"wrote {len(frames)} structures to {out}", soft_wrap=True)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse, before any work is done, an output file that could not be written.

    Raises
    ------
    UsageError
        If the file exists and ``force`` is not set, it is a folder, or its folder is missing.
    """
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file in it")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; choose another --out, or add --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} of --out does not exist; make it first")


def make_table(frames: Sequence[Atoms], labels: Sequence[Labels]) -> Table:
    """Table of the first :data:`MAX_ROWS` structures; pressure is minus a third of the stress's trace."""
    import numpy as np
    from rich.table import Table

    from fastff.units import EV_PER_A3_TO_GPA

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("structure")
    for heading in ("atoms", "energy (eV)", "eV/atom", "max |F| (eV/Å)", "pressure (GPa)"):
        table.add_column(heading, justify="right")
    for k, (atoms, label) in enumerate(zip(frames[:MAX_ROWS], labels[:MAX_ROWS], strict=True)):
        pressure = "-"
        if label.stress is not None:
            pressure = f"{-label.stress[:3].mean() * EV_PER_A3_TO_GPA:.3f}"
        table.add_row(
            f"{k} {atoms.get_chemical_formula()}",
            str(len(atoms)),
            f"{label.energy:.4f}",
            f"{label.energy / len(atoms):.4f}",
            f"{np.linalg.norm(label.forces, axis=1).max():.4f}",
            pressure,
        )
    return table


def write_labelled(path: Path, frames: Sequence[Atoms], labels: Sequence[Labels]) -> None:
    """Write extended XYZ with the labels as ASE results, replacing ``path`` in one step when complete.

    Energies, forces and stress that the input file held are not carried over.
    """
    import io

    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from fastff.checkpoint import write_atomically

    labelled = []
    for atoms, label in zip(frames, labels, strict=True):
        copy = atoms.copy()
        results = {"energy": label.energy, "forces": label.forces}
        if label.stress is not None:
            results["stress"] = label.stress
        if label.energies is not None:
            results["energies"] = label.energies
        copy.calc = SinglePointCalculator(copy, **results)
        labelled.append(copy)
    text = io.StringIO()
    write(text, labelled, format="extxyz")
    write_atomically(path, text.getvalue().encode())
