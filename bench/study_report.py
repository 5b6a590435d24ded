"""Record and table of ``study.py``. Here: gathering and writing. Not here: measuring.

The record's lists hold flat rows, which ``tabulate.py`` shows; what rows are made from is kept whole, by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.study_schedule import read_probes
from bench.study_variants import ABLATIONS, STUDENTS

Row = dict[str, Any]
ORDER = {variant.name: k for k, variant in enumerate(STUDENTS + ABLATIONS)}


def gather_record(out: Path, label_folders: list[Path]) -> Row:
    """All that a study found, from the files of its jobs and probes and, where there is one, of its labels."""
    jobs = read_records(out)
    systems = {job["system"] for job in jobs}
    labels = {row["system"]: row for row in read_labelling([out, *label_folders])}
    labels = {system: row for system, row in labels.items() if system in systems}
    probes = sorted(read_probes(out).values(), key=lambda probe: find_place(probe["variant"]))
    return {
        "what": describe_study(jobs),
        "provenance": describe_machines(jobs),
        "students": [describe_job(job) for job in jobs],
        "probes": [keep_known(probe) for probe in probes],
        "labels": [row for summary in labels.values() for row in describe_labels(summary)],
        "label_files": labels,
        "jobs": {job["job"]: job for job in jobs},
    }


def read_records(out: Path) -> list[Row]:
    """Records of all jobs, those of a system together and its students in order."""
    records = [json.loads(path.read_text()) for path in sorted((out / "jobs").glob("*.json"))]
    return sorted(records, key=lambda r: (r["system"], find_place(r["variant"]["name"])))


def read_labelling(folders: list[Path]) -> list[Row]:
    """The first ``labels.json`` of ``study_labels.py`` in these folders."""
    found = (folder / "labels.json" for folder in folders)
    path = next((path for path in found if path.is_file()), None)
    return [] if path is None else json.loads(path.read_text())


def find_place(name: str) -> int:
    return ORDER.get(name, len(ORDER))


def keep_known(row: Row) -> Row:
    return {key: value for key, value in row.items() if value is not None}


def describe_study(jobs: list[Row]) -> str:
    teachers = sorted({job["teacher"].get("name", "unknown") for job in jobs})
    return (
        f"Students trained on stored labels of {', '.join(teachers) or 'no teacher'}. Accuracies and errors are those "
        "of the final weights on test frames, which are whole trajectories that neither training nor validation saw. "
        "Times of students were taken with as many jobs at once as the command says, those of probes with one on a GPU."
    )


def describe_machines(jobs: list[Row]) -> Row:
    """What all jobs say alike of where they ran; the device, versions and commits also where they differ."""
    runs = []
    for job in jobs:
        run = job["provenance"]
        packages = run.get("packages", {})
        runs.append({**run, **{name: packages.get(name) for name in ("torch", "triton")}})
    if not runs:
        return {}
    named = {
        key: ", ".join(sorted({str(run[key]) for run in runs if run.get(key)}))
        for key in ("gpu", "torch", "triton", "commit")
    }
    alike = {key: value for key, value in runs[0].items() if all(r.get(key) == value for r in runs)}
    commands = sorted({run["command"].split(" --job ")[0] for run in runs})
    last = max(run["date"] for run in runs)
    return {**named, **keep_known(alike), "date": last, "command": commands}


def describe_job(job: Row) -> Row:
    """One row: a student of one system, measured on test frames."""
    found, temperatures = job["accuracy"]["test"], job["test_temperatures"]

    def scale(key: str, factor: float) -> float | None:
        return None if found[key] is None else factor * found[key]

    row = {
        "system": job["system"],
        "student": job["variant"]["name"],
        "force_percent": scale("force", 100.0),
        "energy_percent": scale("energy", 100.0),
        "stress_percent": scale("stress", 100.0),
        "force_mae_meV_per_A": scale("force_mae", 1e3),
        "energy_mae_meV_per_atom": scale("energy_mae", 1e3),
        "architecture": job["variant"]["architecture"],
        "cutoff_A": job["config"]["cutoff"],
        "n_parameters": job["n_parameters"],
        "n_steps": job["n_steps"],
        "learning_rate": job["settings"]["learning_rate"],
        "optimizer": job["settings"].get("optimizer", "adamw"),
        "seconds": job.get("seconds", job["seconds_this_process"]),
        "ms_per_step": job.get("ms_per_step"),
        "n_train": job["n_frames"]["train"],
        "n_test": job["n_frames"]["test"],
        "test_low_K": min(temperatures, default=None),
        "test_high_K": max(temperatures, default=None),
    }
    return keep_known(row)


def describe_labels(summary: Row) -> list[Row]:
    """One row for each phase of a system: what its frames are, and how far atoms moved in them."""
    protocol = summary["protocol"]["study"]
    ladders = {ladder["phase"]: ladder for ladder in protocol["ladders"]}
    rows = []
    for phase in summary["phases"]:
        ladder = ladders[phase["phase"]]
        rows.append(
            {
                "system": summary["system"],
                "phase": phase["phase"],
                "atoms": summary["atoms"],
                "replicas": phase["replicas"],
                "frames": phase["frames"],
                "low_K": ladder["low"],
                "high_K": ladder["high"],
                "melted_at_K": ladder["melt"] or None,
                "least_strain": ladder["expansion"][0],
                "most_strain": ladder["expansion"][1],
                "timestep_fs": protocol["timestep_fs"],
                "steps_between_frames": protocol["stride"],
                "rms_from_start_A": phase["rms_from_start"],
                "rms_moved_A": phase["rms_moved"],
            }
        )
    return [keep_known(row) for row in rows]


def tabulate(rows: list[Row]) -> str:
    """Markdown of the rows of students."""
    lines = [
        "| system | student | A_F | force MAE (meV/Å) | A_E | energy MAE (meV/atom) | A_S "
        "| parameters | steps | s | ms/step |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def show(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for row in rows:
        cells = [
            row["system"],
            row["student"],
            show(row.get("force_percent"), 1),
            show(row.get("force_mae_meV_per_A"), 1),
            show(row.get("energy_percent"), 1),
            show(row.get("energy_mae_meV_per_atom"), 2),
            show(row.get("stress_percent"), 1),
            f"{row['n_parameters']:,}",
            f"{row['n_steps']:,}",
            f"{row['seconds']:.0f}",
            show(row.get("ms_per_step"), 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
