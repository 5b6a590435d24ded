"""What the comparison of physical properties leaves behind: raw curves of both sides, and quantities derived from them.

Here: the schema. Not here: deriving quantities (:mod:`fastff.report.physics.derive`), measuring
(:mod:`fastff.report.physics.run`). Units are in the names or docstrings; energies are per atom where they say so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fastff.report.stamps import Stamped

Row = tuple[float, ...]
Matrix = tuple[Row, ...]


class PhysicsBase(BaseModel):
    """Base of all parts: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantity(PhysicsBase):
    """One number of both sides; ``teacher_error`` and ``student_error`` are standard errors where there are any."""

    name: str
    unit: str
    teacher: float | None
    student: float | None
    teacher_error: float | None = None
    student_error: float | None = None


class Item(Stamped):
    """One property.

    Attributes
    ----------
    title : str
    description : str
        What was done, with its settings, in one sentence.
    seconds : float
        Wall time of both sides.
    quantities : tuple of Quantity
        Derived from the data of the item and nothing else.
    identity : dict or None
        Which models the entries called teacher and student are of.
    """

    title: str
    description: str
    seconds: float = 0.0
    quantities: tuple[Quantity, ...] = ()
    identity: dict[str, dict[str, Any]] | None = None


class EosItem(Item):
    """Energy against volume: ``volumes`` in Å^3/atom, energies in eV/atom less the lowest of each side."""

    kind: Literal["eos"] = "eos"
    volumes: Row
    teacher: Row
    student: Row


class ElasticItem(Item):
    """Stiffness matrices in Voigt order (xx, yy, zz, yz, xz, xy), GPa, each at its side's own relaxed cell."""

    kind: Literal["elastic"] = "elastic"
    cubic: bool
    teacher: Matrix
    student: Matrix


class PhononItem(Item):
    """Frequencies (n_q, n_bands) in THz along a path, imaginary ones negative, each at its side's own relaxed cell.

    ``interpolated`` names the points of the path that are not commensurate with the supercell; None, in older records,
    is unknown.
    """

    kind: Literal["phonons"] = "phonons"
    path: Row
    marks: tuple[tuple[float, str], ...]
    teacher: Matrix
    student: Matrix
    interpolated: tuple[str, ...] | None = None


class VacancyItem(Item):
    """Energies in eV of a perfect supercell and of one without an atom of each element, relaxed at constant cell."""

    kind: Literal["vacancy"] = "vacancy"
    formula: dict[str, int]
    n_atoms: int
    teacher_perfect: float
    student_perfect: float
    teacher_vacant: dict[str, float]
    student_vacant: dict[str, float]


class DimerCurve(PhysicsBase):
    """Energy of an isolated pair in eV less that at the largest distance; distances in Å."""

    pair: str
    distances: Row
    teacher: Row
    student: Row


class DimerItem(Item):
    """Isolated pairs of atoms.

    ``contact`` says at which distance the energy of a curve without a minimum is a quantity; None, in older records, is
    nowhere.
    """

    kind: Literal["dimers"] = "dimers"
    curves: tuple[DimerCurve, ...]
    contact: Literal["shortest"] | None = None


class RdfCurve(PhysicsBase):
    """g(r) of one pair of elements: mean over the run and standard error over blocks of it; ``radii`` in Å.

    The teacher's is None where its run was too dear.
    """

    pair: str
    radii: Row
    teacher: Row | None
    teacher_error: Row | None
    student: Row
    student_error: Row


class RdfItem(Item):
    """Radial distribution functions of two runs under the same thermostat.

    ``peak`` says which peak's place is a quantity; None, in older records, is the highest. ``heights`` are the
    distances between opposite faces of the cell in Å, half the smallest of which limits the curves; None, in older
    records, is unknown.
    """

    kind: Literal["rdf"] = "rdf"
    temperature: float
    n_blocks: int
    curves: tuple[RdfCurve, ...]
    peak: Literal["first"] | None = None
    heights: tuple[float, float, float] | None = None


class DiffusionCurve(PhysicsBase):
    """Mean square displacement in Å^2 at ``times`` in ps, and the diffusion coefficient of each block in Å^2/ps.

    The teacher's is None where its run was too dear.
    """

    element: str
    times: Row
    teacher: Row | None
    student: Row
    teacher_blocks: Row | None
    student_blocks: Row


class DiffusionItem(Item):
    """Diffusion in the runs of the radial distribution functions."""

    kind: Literal["diffusion"] = "diffusion"
    temperature: float
    curves: tuple[DiffusionCurve, ...]


class EnergyTrace(PhysicsBase):
    """Total energy in meV/atom less its first value, at ``times`` in ps."""

    times: Row
    energies: Row


class NveItem(Item):
    """Conservation of energy at a time step in fs; the teacher's is None where it was too dear.

    ``settling`` are the first ps of each trace, which quantities leave out; None, in older records, is nothing.
    """

    kind: Literal["nve"] = "nve"
    temperature: float
    time_step: float
    teacher: EnergyTrace | None
    student: EnergyTrace
    settling: float | None = None


class StabilityRun(PhysicsBase):
    """A run of the student: temperature in K, steps asked for and done, why it ended early."""

    temperature: float
    n_steps: int
    done: int
    reason: str = ""


class StabilityItem(Item):
    """Whether the student's own dynamics survives."""

    kind: Literal["stability"] = "stability"
    time_step: float
    runs: tuple[StabilityRun, ...]


AnyItem = Annotated[
    EosItem
    | ElasticItem
    | PhononItem
    | VacancyItem
    | DimerItem
    | RdfItem
    | DiffusionItem
    | NveItem
    | StabilityItem,
    Field(discriminator="kind"),
]


class LeftOut(PhysicsBase):
    """A property that was not measured, and why."""

    title: str
    reason: str


class PhysicsPart(PhysicsBase):
    """Everything about physical properties in a record.

    Attributes
    ----------
    mode : {"auto", "full"}
    material : str
        What the structure was taken for, in words.
    teacher, student : dict
        Which models gave the two sides: name and version; SHA-256 of the tensors.
    symmetry : dict or None
        Of crystals that were relaxed: space group of the unit cell of each side at a small and a large tolerance, see
        :data:`fastff.report.physics.rest.WITHIN`.
    given_symmetry : (str, float) or None
        Space group that the crystal had before it was relaxed, and the tolerance in Å; None, in older records, is
        unknown.
    """

    mode: Literal["auto", "full"]
    material: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    items: tuple[AnyItem, ...]
    left_out: tuple[LeftOut, ...]
    symmetry: dict[str, tuple[str, str]] | None = None
    given_symmetry: tuple[str, float] | None = None
