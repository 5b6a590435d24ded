"""Students in TorchSim: batched relaxations and dynamics.

Here: :class:`FastFFModel`, a ``ModelInterface`` of both generations of torch-sim-atomistic: 0.3, whose ``pbc`` is one
bool and whose states may be dictionaries, and 0.4 to 0.6, whose ``pbc`` is a tensor. Not here: evaluation
(:mod:`fastff.batches`). Importing this module imports torch_sim: ``pip install "fastff[torchsim]"``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastff.batches import BatchEvaluator
from fastff.checkpoint import load_model
from fastff.errors import MissingDependencyError, UsageError
from fastff.evaluator import Choice
from fastff.models import Student
from fastff.packed import Systems
from fastff.placement import DTYPES, choose_device, place_student

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise MissingDependencyError(
        f'torch_sim cannot be imported ({error}); install it with pip install "fastff[torchsim]"'
    ) from error


class FastFFModel(ModelInterface):
    """Energies (eV), forces (eV/Å) and stress (eV/Å^3) of a student for batches of structures in TorchSim.

    Parameters
    ----------
    model : path or Student
        A model file written by ``fastff train``, or a loaded student; where precision or device differ, a copy is used.
    device : str or torch.device, optional
        By default cuda where there is one.
    dtype : torch.dtype
        Of states and results. float64 costs next to nothing and keeps the digits of positions and total energies.
    precision : str, optional
        ``"float32"`` or ``"float64"``, of the student; by default that of a loaded student, float32 for a file.
    skin : float
        Å added to the cut-off of stored neighbor lists, one per structure.
    compute_forces, compute_stress : bool
        Which results ``forward`` gives beside the energy; both may be changed later.

    Raises
    ------
    fastff.errors.ModelFileError
        If the model file cannot be used.
    fastff.errors.UsageError
        If an argument cannot be honoured.

    Notes
    -----
    Results are detached. Stress is NaN for a structure that is not periodic in all directions. Running out of memory
    raises what torch raises, by which TorchSim's automatic batching finds its limits. Not for several threads at once.

    Examples
    --------
    >>> import torch_sim as ts  # doctest: +SKIP
    >>> model = FastFFModel("si.safetensors")  # doctest: +SKIP
    >>> ts.optimize(list_of_atoms, model, optimizer=ts.Optimizer.fire)  # doctest: +SKIP
    """

    _memory_scales_with = "n_atoms_x_density"

    def __init__(
        self,
        model: str | Path | Student,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float64,
        precision: str | None = None,
        skin: float = 1.0,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise UsageError(f"dtype {dtype} is not torch.float32 or torch.float64")
        if precision is not None and precision not in DTYPES:
            raise UsageError(f"precision {precision!r} is not one of {', '.join(DTYPES)}")
        place = choose_device(None if device is None else str(device))
        if isinstance(model, Student):
            student = place_student(
                model, place, model.dtype if precision is None else DTYPES[precision]
            )
        else:
            student = load_model(model, device=place, dtype=DTYPES[precision or "float32"])
        self.student = student
        self.evaluator = BatchEvaluator(student, skin=skin)
        self._device, self._dtype = student.device, dtype
        self._compute_forces, self._compute_stress = bool(compute_forces), bool(compute_stress)

    @property
    def compute_forces(self) -> bool:
        """Whether ``forward`` gives forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = bool(value)

    @property
    def compute_stress(self) -> bool:
        """Whether ``forward`` gives stress."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = bool(value)

    def explain(self) -> Choice:
        """Which path evaluations take, fused kernels or torch, and why."""
        return self.evaluator.explain()

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Evaluate a state.

        Parameters
        ----------
        state : torch_sim.SimState, or a mapping with its fields
            ``positions`` (n_atoms, 3), ``cell`` (n_systems, 3, 3) with vectors as columns, ``pbc``, ``atomic_numbers``,
            ``system_idx``. Not changed.

        Returns
        -------
        dict of str to Tensor
            ``energy`` (n_systems,), ``forces`` (n_atoms, 3) and ``stress`` (n_systems, 3, 3), as asked, in ``dtype``.

        Raises
        ------
        fastff.errors.UnsupportedElementError, fastff.errors.DataError
            If an element is unknown to the student, or a structure cannot be used.
        """
        systems = read_state(state)
        found = self.evaluator.evaluate(systems)
        results = {"energy": found.energy.to(self._dtype)}
        if self._compute_forces:
            results["forces"] = found.forces.to(self._dtype)
        if self._compute_stress:
            device = found.virial.device
            cells = systems.cells.to(device, torch.float64)
            volume = torch.linalg.det(cells).abs()
            periodic = systems.pbc.to(device).all(dim=1)
            volume = torch.where(periodic, volume, torch.nan)
            results["stress"] = (found.virial / volume[:, None, None]).to(self._dtype)
        return results


def read_state(state: Any) -> Systems:
    """A TorchSim state of either generation, or a mapping with its fields, as a batch."""
    values = state if isinstance(state, dict) else read_fields(state)
    positions, columns = values["positions"], values["cell"]
    if columns.ndim == 2:
        columns = columns[None]
    batch = values.get("system_idx")
    if batch is None:
        batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
    pbc = torch.as_tensor(values.get("pbc", True), dtype=torch.bool, device=positions.device)
    return Systems(
        positions.detach(),
        values["atomic_numbers"],
        columns.detach().mT,
        pbc.expand(len(columns), 3),
        batch,
    )


def read_fields(state: Any) -> dict[str, Any]:
    """The fields of a state that an evaluation reads."""
    names = ("positions", "cell", "system_idx", "pbc", "atomic_numbers")
    return {name: getattr(state, name) for name in names}
