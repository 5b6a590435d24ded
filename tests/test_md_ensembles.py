"""Ensembles of fastff's dynamics against known distributions. Not here: files, the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from md_models import AnalyticPotential, Bag, Springs
from scipy import stats

from fastff.md.engine import Engine
from fastff.md.observe import COLUMNS
from fastff.md.protocol import DevicePotential
from fastff.md.settings import MDSettings
from fastff.md.state import build_state
from fastff.units import BOLTZMANN_EV_PER_K, EV_PER_A3_TO_GPA

TEMPERATURE = 400.0
THERMAL = BOLTZMANN_EV_PER_K * TEMPERATURE


def make_gas(n_atoms: int, edge: float = 10.0) -> Atoms:
    """Argon atoms at random places of a cube."""
    rng = np.random.default_rng(0)
    return Atoms(f"Ar{n_atoms}", rng.uniform(0, edge, (n_atoms, 3)), cell=[edge] * 3, pbc=True)


def collect(
    potential: DevicePotential, atoms: Atoms, settings: MDSettings, settling: int
) -> dict[str, np.ndarray]:
    """Columns of all rows after settling."""
    engine = Engine(potential, build_state(atoms, settings), settings)
    rows = []
    while engine.step < settings.n_steps:
        progress = engine.advance(settings.n_steps)
        assert not progress.failed
        rows.append(progress.rows)
    table = np.concatenate(rows)[settling // settings.interval :]
    return {name: table[:, k] for k, name in enumerate(COLUMNS)}


def pick_independent(values: np.ndarray) -> np.ndarray:
    """Values so far apart that they are independent: two integrated correlation times, found with Sokal's window."""
    away = values - values.mean()
    spectrum = np.fft.rfft(away, 2 * len(away))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(away)]
    times = np.cumsum(correlation / correlation[0]) - 0.5
    window = int(np.argmax(np.arange(len(times)) > 6.0 * times))
    return values[:: max(1, int(np.ceil(2.0 * times[window])))]


def test_independent_values_of_a_known_process(rng: np.random.Generator) -> None:
    """An autoregressive process whose integrated correlation time is (1 + a) / 2 (1 - a)."""
    noise, values = rng.normal(size=40_000), np.zeros(40_000)
    for k in range(1, len(values)):
        values[k] = 0.9 * values[k - 1] + noise[k]
    assert len(values) / len(pick_independent(values)) == pytest.approx(19.0, rel=0.25)


@pytest.mark.parametrize("thermostat", ["langevin", "rescale"])
def test_kinetic_energy_is_canonical(thermostat: str) -> None:
    """2K/kT is chi-square distributed with the right degrees of freedom, away from its start value."""
    n_atoms = 4
    atoms = make_gas(n_atoms)
    settings = MDSettings(
        n_steps=9000, timestep=20.0, temperature=TEMPERATURE, thermostat=thermostat,  # type: ignore[arg-type]
        relaxation=30.0, interval=12, seed=5, max_displacement=50.0,
    )  # fmt: skip
    columns = collect(Springs(torch.tensor(atoms.positions), 0.05), atoms, settings, settling=300)
    # springs give momentum back, so the centre of mass of the rescaled system keeps none
    n_free = 3 * n_atoms if thermostat == "langevin" else 3 * n_atoms - 3
    samples = 2.0 * columns["kinetic_eV"] / THERMAL
    assert stats.kstest(samples, stats.chi2(n_free).cdf).pvalue > 0.01
    error = TEMPERATURE * np.sqrt(2.0 / n_free / len(samples))
    assert columns["temperature_K"].mean() == pytest.approx(TEMPERATURE, abs=4 * error)


def test_langevin_samples_positions_exactly() -> None:
    """BAOAB gives harmonic positions their exact variance even at a long step."""
    atoms = make_gas(6)
    sites = torch.tensor(atoms.positions)
    settings = MDSettings(
        n_steps=5000, timestep=60.0, temperature=TEMPERATURE, relaxation=200.0, interval=20, seed=2,
        max_displacement=50.0,
    )  # fmt: skip
    columns = collect(Springs(sites, 0.8), atoms, settings, settling=200)
    samples = 2.0 * columns["potential_eV"] / THERMAL
    assert stats.kstest(samples, stats.chi2(18).cdf).pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("barostat", ["isotropic", "anisotropic"])
def test_volume_of_an_ideal_gas(barostat: str) -> None:
    """P(V) of N free atoms under Langevin is a gamma distribution of order N + 1."""
    n_atoms, pressure = 8, 0.03
    settings = MDSettings(
        n_steps=9000 if barostat == "isotropic" else 14_000, timestep=10.0, ensemble="npt",
        temperature=TEMPERATURE, relaxation=20.0, pressure=pressure, pressure_relaxation=100.0,
        compressibility=10.0, barostat=barostat, interval=10, seed=11, max_displacement=50.0,  # type: ignore[arg-type]
    )  # fmt: skip
    unit = THERMAL / (pressure / EV_PER_A3_TO_GPA)
    atoms = make_gas(n_atoms, edge=float(np.cbrt(9 * unit)))
    volumes = collect(AnalyticPotential(), atoms, settings, settling=500)["volume_A3"]
    samples = pick_independent(volumes)
    assert len(samples) > 100
    exact = {order: stats.gamma(order, scale=unit) for order in (n_atoms, n_atoms + 1, n_atoms + 2)}
    assert stats.kstest(samples, exact[n_atoms + 1].cdf).pvalue > 0.01
    error = exact[n_atoms + 1].std() / np.sqrt(len(samples))
    assert abs(samples.mean() - exact[n_atoms + 1].mean()) < 3 * error
    for wrong in (n_atoms, n_atoms + 2):
        assert abs(samples.mean() - exact[wrong].mean()) > 2 * error, "the test could not tell"


@pytest.mark.slow
@pytest.mark.parametrize("thermostat", ["langevin", "rescale"])
def test_volume_of_an_elastic_bag(thermostat: str) -> None:
    """Virial and kinetic part together: the volume follows V^M exp(-(U + PV)/kT), the pressure its set value."""
    n_atoms, pressure, stiffness, rest = 8, 0.02, 2e-4, 4000.0
    settings = MDSettings(
        n_steps=8000, timestep=10.0, ensemble="npt", temperature=TEMPERATURE, relaxation=20.0,
        thermostat=thermostat, pressure=pressure, pressure_relaxation=100.0, compressibility=10.0,  # type: ignore[arg-type]
        interval=10, seed=3, max_displacement=50.0,
    )  # fmt: skip
    atoms = make_gas(n_atoms, edge=float(np.cbrt(rest)))
    columns = collect(Bag(stiffness, rest), atoms, settings, settling=500)
    # one power less where the centre of mass is at rest
    order = n_atoms if thermostat == "langevin" else n_atoms - 1
    grid = np.linspace(1.0, 4 * rest, 200_000)
    target = pressure / EV_PER_A3_TO_GPA
    exponent = (
        order * np.log(grid)
        - (0.5 * stiffness * (grid - rest) ** 2 / rest + target * grid) / THERMAL
    )
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    distribution = np.cumsum(weights)
    samples = pick_independent(columns["volume_A3"])
    assert len(samples) > 100
    assert stats.kstest(samples, lambda v: np.interp(v, grid, distribution)).pvalue > 0.01
    pressures = pick_independent(columns["pressure_GPa"])
    error = pressures.std(ddof=1) / np.sqrt(len(pressures))
    assert abs(pressures.mean() - pressure) < 3 * error
    assert error < 0.1 * pressure


def test_conserved_quantity_of_constant_pressure() -> None:
    """Thermostat and barostat book what they put in: enthalpy less heat and work stays, with the step's error."""
    spread = {}
    for timestep in (2.0, 1.0):
        settings = MDSettings(
            n_steps=int(800 / timestep), timestep=timestep, ensemble="npt", temperature=TEMPERATURE,
            thermostat="rescale", pressure=0.02, pressure_relaxation=200.0, compressibility=10.0,
            barostat="anisotropic", interval=int(20 / timestep), max_displacement=50.0,
        )  # fmt: skip
        columns = collect(Bag(2e-4, 4000.0), make_gas(8, 15.874), settings, settling=0)
        enthalpy = columns["potential_eV"] + columns["kinetic_eV"]
        spread[timestep] = np.ptp(columns["conserved_eV"])
        assert spread[timestep] < 0.02 * np.ptp(enthalpy)
    assert spread[1.0] < spread[2.0]


def test_temperature_ramp() -> None:
    """The thermostat's temperature rises linearly to its final value at the last step."""
    atoms = make_gas(64)
    settings = MDSettings(
        n_steps=2000, timestep=10.0, temperature=100.0, final_temperature=900.0, relaxation=20.0,
        interval=5, max_displacement=50.0,
    )  # fmt: skip
    columns = collect(AnalyticPotential(), atoms, settings, settling=0)
    slope, start = np.polyfit(columns["step"], columns["temperature_K"], 1)
    assert slope == pytest.approx(0.4, rel=0.06)
    assert start == pytest.approx(100.0, abs=25.0)
