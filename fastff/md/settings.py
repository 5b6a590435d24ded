"""What a run of molecular dynamics is, checked once.

Here: :class:`MDSettings` and its fingerprint. Not here: structures, models, where results go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastff.errors import UsageError

Ensemble = Literal["nve", "nvt", "npt"]
Thermostat = Literal["langevin", "rescale"]
Barostat = Literal["isotropic", "anisotropic"]
Velocities = Literal["draw", "file"]
OnExtrapolation = Literal["ignore", "warn", "stop"]

_CHOICES = {
    "ensemble": get_args(Ensemble),
    "thermostat": get_args(Thermostat),
    "barostat": get_args(Barostat),
    "velocities": get_args(Velocities),
    "on_extrapolation": get_args(OnExtrapolation),
}
_POSITIVE = (
    "timestep", "relaxation", "pressure_relaxation", "compressibility", "skin", "max_displacement",
    "interval", "frame_interval", "restart_interval", "extrapolation_limit",
)  # fmt: skip
_FREE = (
    "n_steps", "restart_interval", "max_temperature", "max_displacement", "min_distance", "on_extrapolation",
    "extrapolation_limit",
)  # fmt: skip
"""Settings that a continued run may change: they decide when a run ends, not where it goes."""


@dataclass(frozen=True)
class MDSettings:
    """How to integrate, what to record, when to stop.

    Attributes
    ----------
    n_steps : int
        Step at which the run ends, counted from its very beginning.
    timestep : float
        fs.
    ensemble : {"nve", "nvt", "npt"}
    thermostat : {"langevin", "rescale"}
        Of NVT and NPT, see :mod:`fastff.md.integrators`.
    temperature, final_temperature : float
        K. Of start velocities and thermostat; with a final one the thermostat's rises (or falls) linearly over the run.
    relaxation : float
        Time constant of the thermostat, fs; for Langevin the inverse of the friction.
    pressure : float
        GPa, of NPT.
    pressure_relaxation : float
        Time constant of the barostat, fs.
    compressibility : float
        Estimate for the material, 1/GPa; only its ratio to ``pressure_relaxation`` matters, and only for how fast the
        volume relaxes.
    barostat : {"isotropic", "anisotropic"}
        All cell vectors by one factor, or each by its own; angles stay.
    seed : int
        Of start velocities and noise.
    velocities : {"draw", "file"}
        Draw start velocities at ``temperature``, or take the structure's.
    skin : float
        Å by which the neighbor list reaches beyond the cut-off.
    interval, frame_interval, restart_interval : int
        Steps between rows of the log, frames of the trajectory, and restart files.
    compile_steps : bool
        Let torch compile the halves of a step into few kernels, where :mod:`fastff.kernels.md_step` has none for them
        (constant pressure, or no Triton). Starting takes longer; results differ in their last bits.
    max_temperature : float, optional
        K; a hotter system has blown up. By default ten times the highest set temperature, and at least 5000 K.
    max_displacement : float
        Å; the largest a coordinate may change in one step.
    min_distance : float
        Å; atoms nearer than this have collapsed. Zero turns the test off.
    on_extrapolation : {"ignore", "warn", "stop"}
        What to do about atoms in surroundings unlike those of the training data, looked for at every frame; needs a
        model file that holds an uncertainty.
    extrapolation_limit : float
        Extrapolation grade above which an atom counts; one is the edge of the training data.
    """

    n_steps: int
    timestep: float = 1.0
    ensemble: Ensemble = "nvt"
    thermostat: Thermostat = "langevin"
    temperature: float = 300.0
    final_temperature: float | None = None
    relaxation: float = 100.0
    pressure: float = 0.0
    pressure_relaxation: float = 1000.0
    compressibility: float = 0.02
    barostat: Barostat = "isotropic"
    seed: int = 0
    velocities: Velocities = "draw"
    skin: float = 1.0
    interval: int = 100
    frame_interval: int = 1000
    restart_interval: int = 10_000
    compile_steps: bool = False
    max_temperature: float | None = None
    max_displacement: float = 0.5
    min_distance: float = 0.5
    on_extrapolation: OnExtrapolation = "ignore"
    extrapolation_limit: float = 2.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}"
                )
        for name in _POSITIVE:
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} {value} must be positive")
        if self.max_temperature is not None and not self.max_temperature > 0.0:
            raise UsageError(f"max_temperature {self.max_temperature} K must be positive")
        if self.n_steps < 0:
            raise UsageError(f"n_steps {self.n_steps} must not be negative")
        if not (math.isfinite(self.pressure) and self.min_distance >= 0.0):
            raise UsageError(
                f"pressure {self.pressure} GPa must be finite and min_distance {self.min_distance} Å not negative"
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} must be an integer from 0 to 2^63 - 1")
        self._check_temperatures()

    def _check_temperatures(self) -> None:
        values = {"temperature": self.temperature, "final_temperature": self.final_temperature}
        for name, value in values.items():
            if value is not None and not (value >= 0.0 and math.isfinite(value)):
                raise UsageError(f"{name} {value} K must not be negative")
        if self.ensemble == "nve" and self.final_temperature is not None:
            raise UsageError(
                "a temperature ramp needs a thermostat; choose ensemble nvt or npt, or one temperature"
            )
        if self.ensemble != "nve" and self.temperature == 0.0 and self.thermostat == "rescale":
            raise UsageError("velocity rescaling from 0 K cannot start; set a temperature above 0")

    @property
    def temperature_limit(self) -> float:
        """K; a hotter system has blown up."""
        if self.max_temperature is not None:
            return self.max_temperature
        return max(5000.0, 10.0 * max(self.temperature, self.final_temperature or 0.0))

    def find_temperature(self, step: int) -> float:
        """Temperature of the thermostat at a step, K."""
        if self.final_temperature is None or self.n_steps == 0:
            return self.temperature
        share = min(step / self.n_steps, 1.0)
        return self.temperature + share * (self.final_temperature - self.temperature)

    def list_binding(self) -> dict[str, Any]:
        """Settings that a continued run must share with its beginning."""
        free = set(_FREE)
        if self.final_temperature is not None:
            free.remove("n_steps")
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in free}


def fingerprint(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
