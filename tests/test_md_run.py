"""Whole runs of ``fastff md``: files, kills and restarts, instability, the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from md_models import make_copper, write_copper

from fastff.checkpoint import save_model
from fastff.cli import main
from fastff.errors import DataError, SimulationUnstableError, UsageError
from fastff.inference import predict
from fastff.md.restart import read_restart
from fastff.md.run import RunResult, simulate
from fastff.md.settings import MDSettings
from fastff.md.summary import average_blocks, read_log
from fastff.md.torch_potential import StudentPotential
from fastff.models import Student
from fastff.models.uncertainty import fit_uncertainty
from fastff.neighbors import atoms_to_graph
from fastff.units import FEMTOSECOND

Run = Callable[..., tuple[int, str, str]]
SUFFIXES = ("extxyz", "h5", "traj")
OPTIONS = (
    "--ensemble", "npt", "--thermostat", "rescale", "--temperature", "900", "--timestep", "2", "--skin", "0.3",
    "--compressibility", "0.5", "--interval", "5", "--frame-interval", "10", "--restart-interval", "15",
    "--device", "cpu", "--repeat", "2", "2", "2", "--steps", "150",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model of copper and a cubic cell."""
    path = tmp_path_factory.mktemp("md")
    write_copper(path)
    return path


def build_command(folder: Path, out: Path, suffix: str, *more: str) -> list[str]:
    arguments = ["md", str(folder / "cu.safetensors"), str(folder / "cu.extxyz"), *OPTIONS]
    return [*arguments, "--out", str(out), "--trajectory", str(out / f"t.{suffix}"), *more]


def run_here(arguments: list[str]) -> None:
    """The program in this process, to its end."""
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert not ending.value.code


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, Path]:
    """The same run once per format, never stopped."""
    made = {}
    for suffix in SUFFIXES:
        out = folder / f"whole-{suffix}"
        run_here(build_command(folder, out, suffix))
        made[suffix] = out
    return made


def read_frames(path: Path) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Step, positions and cell of every frame of any format."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            group = file["particles/all"]
            parts = group["step"][:], group["position/value"][:], group["box/edges/value"][:]
            return [(int(step), x, h) for step, x, h in zip(*parts, strict=True)]
    return [(a.info["step"], a.positions, a.cell.array) for a in read(path, ":")]


def compare_runs(first: Path, second: Path, suffix: str) -> None:
    """Log, trajectory, last structure and restart file are the same, bit for bit."""
    assert (first / "log.csv").read_text() == (second / "log.csv").read_text()
    assert (first / "final.extxyz").read_text() == (second / "final.extxyz").read_text()
    frames = [read_frames(path / f"t.{suffix}") for path in (first, second)]
    assert [frame[0] for frame in frames[0]] == list(range(0, 151, 10))
    for a, b in zip(*frames, strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])
        np.testing.assert_array_equal(a[2], b[2])
    points = [read_restart(path / "restart.safetensors") for path in (first, second)]
    assert points[0].step == points[1].step == 150
    for name, value in points[0].tensors.items():
        assert torch.equal(value, points[1].tensors[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_run_continues_as_if_it_had_not_been(
    folder: Path, uninterrupted: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    """SIGKILL three times after a frame that no restart file knows, then --restart: nothing is lost or doubled."""
    out = tmp_path / "killed"
    arguments = build_command(folder, out, suffix, "--restart")
    command = [sys.executable, "-m", "fastff", *arguments]
    n_kills = 0
    for n_rows in (7, 19, 25):  # a frame has been written since the last restart file
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        log, end = out / "log.csv", time.monotonic() + 200
        while child.poll() is None and time.monotonic() < end:
            if log.exists() and log.read_bytes().count(b"\n") >= n_rows:
                child.send_signal(signal.SIGKILL)
                n_kills += 1
                break
            time.sleep(0.001)
        child.wait()
    assert n_kills >= 1
    (out / ".restart.safetensors.stray.tmp").write_bytes(b"left by a kill")
    run_here(arguments)
    compare_runs(uninterrupted[suffix], out, suffix)
    assert not list(out.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_flushes_and_continues(
    folder: Path, uninterrupted: dict[str, Path], tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "interrupted"
    arguments = build_command(folder, out, "h5")
    command = [sys.executable, "-m", "fastff", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log, end = out / "log.csv", time.monotonic() + 200
    while not (log.exists() and log.read_bytes().count(b"\n") >= 8):
        assert time.monotonic() < end
        time.sleep(0.001)
    child.send_signal(number)
    _, err = child.communicate(timeout=200)
    assert child.returncode == code
    assert "Traceback" not in err
    step = read_restart(out / "restart.safetensors").step
    assert 0 < step < 150
    assert len(read_frames(out / "t.h5")) == step // 10 + 1
    assert len(read_log(log)) == step // 5 + 1
    run_here([*arguments, "--restart"])
    compare_runs(uninterrupted["h5"], out, "h5")


def test_trajectories_are_read_by_ase(uninterrupted: dict[str, Path]) -> None:
    """Frames of all formats agree with each other and with the log."""
    log = read_log(uninterrupted["h5"] / "log.csv")
    text, binary = (read(uninterrupted[s] / f"t.{s}", ":") for s in ("extxyz", "traj"))
    with h5py.File(uninterrupted["h5"] / "t.h5") as file:
        group = file["particles/all"]
        for k, (a, b) in enumerate(zip(text, binary, strict=True)):
            np.testing.assert_allclose(a.positions, b.positions, atol=1e-7)
            np.testing.assert_array_equal(group["position/value"][k], b.positions)
            np.testing.assert_allclose(
                group["velocity/value"][k] / FEMTOSECOND, b.get_velocities(), atol=1e-12
            )
            np.testing.assert_array_equal(group["force/value"][k], b.get_forces())
            assert group["time"][k] == b.info["time_fs"] == 20.0 * k
            row = log[2 * k]
            assert row[0] == b.info["step"]
            assert b.get_potential_energy() == row[3]
            stress = b.get_stress(include_ideal_gas=True) * 160.21766208
            np.testing.assert_allclose(stress, row[7:13], atol=1e-5)
            assert a.get_potential_energy() == pytest.approx(row[3], abs=1e-6)


def test_log_has_every_row(uninterrupted: dict[str, Path]) -> None:
    log = read_log(uninterrupted["h5"] / "log.csv")
    assert log[:, 0].tolist() == list(range(0, 151, 5))
    np.testing.assert_allclose(log[:, 1], log[:, 0] * 0.002)
    assert np.isfinite(log).all()


def test_run_can_be_made_longer(
    folder: Path, uninterrupted: dict[str, Path], tmp_path: Path, run_cli: Run
) -> None:
    command = build_command(folder, tmp_path / "run", "h5")
    command[command.index("150")] = "75"
    assert run_cli(*command)[0] == 0
    code, out, _ = run_cli(*build_command(folder, tmp_path / "run", "h5", "--restart"))
    assert code == 0
    assert "stable to step 150" in out
    compare_runs(uninterrupted["h5"], tmp_path / "run", "h5")


def run_short(out: Path, atoms: Atoms | None = None, **changes: object) -> RunResult:
    student = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8))
    atoms = bulk("Cu", cubic=True) if atoms is None else atoms
    given = {"n_steps": 20, "interval": 5, "frame_interval": 10, "restart_interval": 10, **changes}
    settings = MDSettings(**given)  # type: ignore[arg-type]
    restart = (out / "restart.safetensors").exists()
    return simulate(StudentPotential(student), atoms, settings, out, model="one", restart=restart)


def test_restart_refuses_another_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_short(out)
    with pytest.raises(UsageError, match="settings temperature 300"):
        run_short(out, temperature=310.0)
    with pytest.raises(UsageError, match="system atoms 4, this one has 32"):
        run_short(out, bulk("Cu", cubic=True).repeat(2))
    restart = out / "restart.safetensors"
    whole = restart.read_bytes()
    restart.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="damaged"):
        run_short(out)
    restart.write_bytes(whole[:100])
    with pytest.raises(DataError, match="cannot be read"):
        run_short(out)
    restart.write_bytes(whole)
    log = out / "log.csv"
    log.write_bytes(log.read_bytes()[:50])
    with pytest.raises(DataError, match="50 bytes"):
        run_short(out)


def test_molecule_has_no_pressure(tmp_path: Path) -> None:
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    result = run_short(tmp_path / "run", atoms, n_steps=10)
    assert np.isnan(result.summary.pressure.mean)
    assert np.isnan(read_log(result.files.log)[:, 6:13]).all()
    assert np.isfinite(result.summary.temperature.mean)
    assert len(read(result.files.trajectory, ":")) == 2


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            {"max_temperature": 150.0, "relaxation": 5.0, "final_temperature": 900.0},
            "temperature .* above the limit of 150 K",
        ),
        ({"timestep": 300.0, "max_temperature": 1e9}, "a coordinate would move by more than 0.5"),
        ({"min_distance": 2.5, "n_steps": 40, "frame_interval": 5}, "closer than 2.5 Å"),
    ],
)
def test_unstable_dynamics_stop(tmp_path: Path, changes: dict[str, object], cause: str) -> None:
    """One line, last sound and bad structure saved, trajectory readable."""
    out = tmp_path / "run"
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.positions += np.random.default_rng(3).normal(scale=0.02, size=atoms.positions.shape)
    with pytest.raises(SimulationUnstableError, match=cause) as caught:
        run_short(out, atoms, temperature=50.0, **changes)
    assert "\n" not in str(caught.value)
    good, bad = read(out / "last-good.extxyz"), read(out / "unstable.extxyz")
    assert good.get_chemical_formula() == bad.get_chemical_formula() == "Cu32"
    assert good.info["step"] <= bad.info["step"]
    assert np.isfinite(bad.positions).all()
    assert len(read(out / "trajectory.extxyz", ":")) >= 1


@pytest.fixture(scope="module")
def graded() -> Student:
    """A student of copper whose uncertainty was fitted on a crystal rattled by 0.05 Å."""
    student = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8))
    frames = []
    for seed in range(16):
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    graphs = [atoms_to_graph(atoms, student.cutoff) for atoms in frames]
    energies = [labels.energy + 0.01 * k for k, labels in enumerate(predict(student, frames[10:]))]
    student.uncertainty = fit_uncertainty(student, graphs[:10], graphs[10:], energies)
    return student


def run_graded(student: Student, out: Path, policy: str, shift: float) -> RunResult:
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.03, seed=99)
    atoms.positions[5, 0] += shift
    settings = MDSettings(
        n_steps=20, interval=5, frame_interval=10, temperature=30.0, on_extrapolation=policy  # type: ignore[arg-type]
    )  # fmt: skip
    return simulate(StudentPotential(student), atoms, settings, out)


def test_extrapolation_stops_warns_or_is_ignored(graded: Student, tmp_path: Path) -> None:
    assert run_graded(graded, tmp_path / "calm", "stop", 0.0).n_extrapolations == 0
    with pytest.raises(SimulationUnstableError, match=r"at step 0 \d+ atoms .* grade .* limit 2"):
        run_graded(graded, tmp_path / "stop", "stop", 0.8)
    bad = read(tmp_path / "stop" / "unstable.extxyz")
    assert bad.info["step"] == 0
    assert bad.arrays["extrapolation_grades"].argmax() in (5, *range(32))
    assert bad.arrays["extrapolation_grades"].max() > 2.0
    assert (tmp_path / "stop" / "last-good.extxyz").exists()
    assert len(read(tmp_path / "stop" / "trajectory.extxyz", ":")) == 1
    with pytest.warns(UserWarning, match="later frames are counted") as seen:
        result = run_graded(graded, tmp_path / "warn", "warn", 0.8)
    assert result.step == 20
    assert 1 <= result.n_extrapolations <= 3
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_graded(graded, tmp_path / "ignore", "ignore", 0.8).n_extrapolations == 0


def test_extrapolation_needs_a_fitted_student(tmp_path: Path) -> None:
    student = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8))
    with pytest.raises(UsageError, match="holds an uncertainty"):
        run_graded(student, tmp_path / "run", "stop", 0.0)
    assert not (tmp_path / "run").exists()


def test_command_stops_outside_the_training_data(
    graded: Student, tmp_path: Path, run_cli: Run
) -> None:
    save_model(tmp_path / "cu.safetensors", graded, {"teacher": {"name": "none"}})
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.positions[5, 0] += 0.8
    atoms.write(tmp_path / "cu.extxyz")
    command = [
        "md",
        tmp_path / "cu.safetensors",
        tmp_path / "cu.extxyz",
        "--steps",
        "10",
        "--device",
        "cpu",
    ]
    code, _, err = run_cli(*command, "--out", tmp_path / "a", "--on-extrapolation", "stop")
    assert code == 6
    assert "outside what the student was trained on" in err
    code, out, _ = run_cli(*command, "--out", tmp_path / "b", "--on-extrapolation", "ignore")
    assert code == 0
    assert "frames outside" not in out
    with pytest.warns(UserWarning, match="outside what"):
        code, out, _ = run_cli(*command, "--out", tmp_path / "c")
    assert code == 0
    assert "1 frames outside the training data" in out


def test_close_contacts_are_seen_where_rows_are_recorded(tmp_path: Path) -> None:
    """Long before a frame is due; the pair is named and the bad structure saved."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.positions[7] = atoms.positions[3] + (0.9, 0.0, 0.0)
    with pytest.raises(
        SimulationUnstableError, match=r"atoms (3 and 7|7 and 3) are 0\.\d+ Å apart"
    ) as caught:
        run_short(
            tmp_path / "run", atoms, n_steps=40, frame_interval=1000, min_distance=1.0, temperature=1.0, timestep=0.1
        )  # fmt: skip
    assert "in the rows up to step 0" in str(caught.value)
    assert read(tmp_path / "run" / "unstable.extxyz").info["step"] == 0
    atoms.positions[7, 0] += 0.2
    assert (
        run_short(
            tmp_path / "calm", atoms, n_steps=5, min_distance=1.0, temperature=1.0, timestep=0.1
        ).step
        == 5
    )


def test_block_averages(rng: np.random.Generator) -> None:
    average = average_blocks(rng.normal(3.0, 2.0, 10_000))
    assert average.mean == pytest.approx(3.0, abs=0.08)
    assert average.error == pytest.approx(0.02, rel=0.5)
