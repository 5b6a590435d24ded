"""Model cards: what a model file's header says of it, as Markdown.

Here: the card of one file, and its line in a list. Not here: any number that is not in the header.
Works for every model file; those of shipped students hold more (the key ``zoo``, written by ``bench/zoo.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastff.units import show_percent
from fastff.zoo.recipe_card import (
    describe_recipe,
    explain_groups,
    list_limits,
    list_record,
    name_row,
)

Header = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One model in a list.

    Attributes
    ----------
    name : str
    elements : tuple of str
    student : str
        Architecture.
    teacher, licence : str
        Empty if the file names none.
    temperature : tuple of float or None
        K, of the training data.
    accuracy : float or None
        Smallest of force, energy and stress accuracy on test frames; without stress where none of these has one.
    size : int
        Bytes.
    """

    name: str
    elements: tuple[str, ...]
    student: str
    teacher: str
    licence: str
    temperature: tuple[float, float] | None
    accuracy: float | None
    size: int


def summarize_header(name: str, header: Header, size: int) -> Summary:
    """A model's line in a list."""
    teacher = header.get("teacher") or {}
    limits = header.get("temperature")
    return Summary(
        name=name,
        elements=name_elements(header["config"]["elements"]),
        student=str(header["config"]["architecture"]),
        teacher=str(teacher.get("name", "")),
        licence=str(teacher.get("licence", "")),
        temperature=(float(limits[0]), float(limits[1])) if limits else None,
        accuracy=find_accuracy(header),
        size=size,
    )


def name_elements(numbers: Iterable[int]) -> tuple[str, ...]:
    """Chemical symbols of atomic numbers."""
    from ase.data import chemical_symbols

    return tuple(chemical_symbols[z] for z in numbers)


def find_accuracy(header: Header, part: str = "test") -> float | None:
    """Smallest of force, energy and stress accuracy; None if one of them is not known.

    Stress does not count where no frame has one.
    """
    found = (header.get("accuracy") or {}).get(part) or {}
    keys = ("force", "energy", "stress")[: 2 if found.get("n_stresses") == 0 else 3]
    values = [found.get(key) for key in keys]
    return None if any(value is None for value in values) else min(map(float, values))  # type: ignore[arg-type]


def render_card(name: str, header: Header, size: int) -> str:
    """The model card.

    Parameters
    ----------
    name : str
    header : mapping
        As :func:`fastff.checkpoint.read_header` gives it.
    size : int
        Bytes of the file.

    Returns
    -------
    str
        Markdown, ending in a line break.
    """
    parts = [
        _describe(name, header, size),
        _tabulate_accuracy(header),
        _tabulate_trajectories(header),
        list_record(header),
        _judge_gate(header),
        _tabulate_pushes(header),
        _tabulate_stability(header),
        _list_speed(header),
        _list_limits(header),
        _list_commands(header),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _describe(name: str, header: Header, size: int) -> list[str]:
    zoo, teacher, config = header.get("zoo") or {}, header.get("teacher") or {}, header["config"]
    data, training = zoo.get("data") or {}, header.get("training") or {}
    student = f"`{config['architecture']}`, cut-off {config['cutoff']:g} Å"
    if "n_parameters" in zoo:
        student += f", {zoo['n_parameters']:,} parameters"
    rows = {
        "elements": ", ".join(name_elements(config["elements"])),
        "student": student,
        "file": f"{size / 1000:.0f} kB, format {header['format']}, tensors' SHA-256 {header['sha256'][:16]}...",
        "teacher": _join(teacher.get("name"), _prefix("version ", teacher.get("version"))),
        "teacher's weights": _join(
            teacher.get("weights"), _cut("SHA-256 ", teacher.get("weights_sha256"))
        ),
        "licence": _prefix("", teacher.get("licence"), " (the teacher's; the student's follow it)"),
        "cite": teacher.get("citation") or "",
        "phases and temperatures": "; ".join(map(_name_phase, data.get("phases", []))),
        **(describe_recipe(header) if "recipe" in data else {}),
        "frames": _count_frames(data, training),
        "temperature range": _name_range(header.get("temperature")),
    }
    lines = [f"## {name}", ""]
    if zoo.get("about"):
        lines += [zoo["about"], ""]
    lines += ["| | |", "|---|---|"]
    return [*lines, *(f"| {key} | {value} |" for key, value in rows.items() if value)]


def _count_frames(data: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if "n_train" not in training:
        return ""
    text = f"{training['n_train']:,} training, {training['n_validation']:,} validation, {training['n_test']:,} test"
    if "recipe" in data:
        text += "; of the test frames no trajectory was trained on"
    elif data:
        text += (
            f", of {data['n_atoms']} atoms ({data['formula']}) each; "
            "test and validation frames are whole trajectories"
        )
    return text


def _name_phase(phase: Mapping[str, Any]) -> str:
    low, high = (100 * value for value in phase["expansion"])
    return f"{phase['phase']}, {phase['low']:g} to {phase['high']:g} K, lengths {low:+g} to {high:+g} %"


def _name_range(limits: Sequence[float] | None) -> str:
    return f"{limits[0]:g} to {limits[1]:g} K" if limits else ""


def _tabulate_accuracy(header: Header) -> list[str]:
    found = header.get("accuracy") or {}
    rows = []
    groups = [name for name in found if name not in ("test", "validation")]
    for part in ("test", "validation", *groups):
        row = found.get(part)
        if row:
            rows.append(
                f"| {part} | {format_percent(find_accuracy(header, part))} | {format_percent(row.get('force'))} | "
                f"{format_percent(row.get('energy'))} | {format_percent(row.get('stress'))} | "
                f"{_scale(row.get('force_mae'), 1e3, 1)} | {_scale(row.get('energy_mae'), 1e3, 2)} |"
            )
    if not rows:
        return []
    return [
        "### Accuracy against the teacher",
        "",
        "| frames | accuracy | forces | energy | stress | force MAE (meV/Å) | energy MAE (meV/atom) |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        *explain_groups(header),
    ]


def _tabulate_trajectories(header: Header) -> list[str]:
    rows = (header.get("zoo") or {}).get("trajectories")
    if not rows:
        return []
    return [
        "| test trajectory | frames | force accuracy | force MAE (meV/Å) | RMS force (meV/Å) |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {_name_row(row)} | {row['n_frames']} | {format_percent(row['force'])} | "
            f"{1e3 * row['force_mae']:.1f} | {1e3 * row['force_rms']:.0f} |"
            for row in rows
        ),
    ]


def _name_row(row: Mapping[str, Any]) -> str:
    return name_row(row) if "source" in row else f"{row['phase']}, {row['temperature']:.0f} K"


def _judge_gate(header: Header) -> list[str]:
    record = header.get("check")
    lines = ["### Physics gate (`fastff check`)", ""]
    if not record:
        return [*lines, "Never run."]
    checks = record.get("checks", [])
    failed = sorted({row["test"] for row in checks if _fails(row)})
    skipped = sorted({row["test"] for row in checks if row["value"] is None})
    lines.append(
        f"{'Passed' if record['passed'] else 'Failed: ' + ', '.join(failed)}; {len(checks)} checks, dynamics at "
        f"{record['temperature']:g} K over {'20' if record['full'] else '0.5'} ps; on the {record['device'].upper()}, "
        f"{record['created'][:10]}."
    )
    if skipped:
        lines.append(f"Not applicable there: {', '.join(skipped)}.")
    reasons = (header.get("zoo") or {}).get("accepted") or {}
    lines += [
        f"\n{test}, {_name_worst(checks, test)}: {reasons[test]}"
        for test in failed
        if test in reasons
    ]
    return lines


def _fails(row: Mapping[str, Any]) -> bool:
    """Whether a stored check failed; a value that is not finite is stored as text."""
    return row["value"] is not None and not float(row["value"]) <= row["limit"]


def _name_worst(checks: Sequence[Mapping[str, Any]], test: str) -> str:
    """Largest violation of a test that failed, with its limit."""
    rows = [row for row in checks if row["test"] == test and _fails(row)]
    worst = max(rows, key=lambda row: float(row["value"]))
    where = ", ".join(word for word in (worst["structure"], worst["reason"]) if word)
    return f"{float(worst['value']):.2g} {worst['unit']} ({where}; limit {worst['limit']:g})"


def _tabulate_pushes(header: Header) -> list[str]:
    rows = (header.get("zoo") or {}).get("pushes")
    if not rows:
        return []
    return [
        "Pairs of near atoms in the hottest test frames pushed straight to 0.3 Å, all others at rest; a fall is one of "
        "1 eV or more:",
        "",
        "| pair | pushed | fall | least barrier before it (eV) | lowest after it (eV) |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {pair} | {row['n_pushed']} | {row['n_falling']} | {_scale(row['barrier'], 1.0, 1)} | "
            f"{_scale(row['lowest'], 1.0, 1)} |"
            for pair, row in rows.items()
        ),
    ]


def _tabulate_stability(header: Header) -> list[str]:
    rows = (header.get("zoo") or {}).get("stability")
    if not rows:
        return []
    return [
        "### Dynamics (NVT, Langevin, volume of the start frame)",
        "",
        "| start | set | mean | step | length | atoms | outcome | frames outside the training data |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
        *(
            f"| {row['phase']} | {row['temperature']:g} K | {row['mean_temperature']:.0f} K | {row['timestep']:g} fs | "
            f"{row['ps']:.1f} ps | {row['n_atoms']} | stable | {row['outside']} of {row['n_frames']} |"
            for row in rows
        ),
    ]


def _list_speed(header: Header) -> list[str]:
    speed = (header.get("zoo") or {}).get("speed") or {}
    lines = []
    cpu = speed.get("cpu")
    if cpu:
        lines.append(
            f"- {cpu['machine']}: {cpu['ms']:.3g} ms for energy, forces and stress of {cpu['n_atoms']} atoms through "
            f"ASE, neighbor list made anew; load of the machine {cpu['load']:g}, so rather an upper bound."
        )
    for row in speed.get("gpu", []):
        lines.append(
            f"- {row['gpu']}, untrained student of the same size, fcc copper, {row['n_atoms']:,} "
            f"atoms{_name_neighbors(row)}: {row['ms']:.3g} ms ({_name_millions(row)} atoms a second), fused kernels, "
            f"neighbor list not included ({row['record']}, commit {row['commit']})."
        )
    return ["### Speed", "", *lines] if lines else []


def _name_neighbors(row: Mapping[str, Any]) -> str:
    return f" with {row['neighbors']} neighbors each" if "neighbors" in row else ""


def _name_millions(row: Mapping[str, Any]) -> str:
    millions = row["atom_steps_per_s"] / 1e6
    return f"{millions:.{0 if millions > 5 else 1}f} million"


def _list_limits(header: Header) -> list[str]:
    zoo = header.get("zoo") or {}
    data = zoo.get("data")
    if not data:
        return []
    if "recipe" in data:
        return list_limits(header)
    longest = max((row["ps"] for row in zoo.get("stability", [])), default=0.0)
    phases = " and ".join(phase["phase"] for phase in data["phases"])
    lines = [
        "### Limits",
        "",
        f"- Seen in training: {phases} of {data['formula']} in periodic boxes of {data['n_atoms']} atoms, at the "
        "temperatures and strains above. Nothing else was tested: other phases, compositions, surfaces, vacancies and "
        "other defects, larger strains.",
        f"- Dynamics was followed for {longest:.1f} ps at most. Structure (RDF), diffusion and phonons were not "
        "compared.",
        "- Errors of the teacher against experiment or DFT are the student's too; nothing was fitted to either.",
    ]
    return [*lines, *(f"- {remark}" for remark in zoo.get("remarks", []))]


def _list_commands(header: Header) -> list[str]:
    zoo = header.get("zoo") or {}
    steps = (
        ("labels", (zoo.get("data") or {}).get("provenance")),
        ("training", header.get("provenance")),
        ("zoo entry", zoo.get("provenance")),
    )
    lines = []
    for step, where in steps:
        if where:
            lines += [
                f"- {step}: {where.get('gpu') or where.get('cpu')}, {where['date'][:10]}, {_name_commit(where)}, "
                f"{_name_versions(where)}",
                "",
                f"      {where['command']}",
                "",
            ]
    return ["### Made by", "", *lines[:-1]] if lines else []


def _name_commit(where: Mapping[str, Any]) -> str:
    if not where.get("commit"):
        return "commit unknown"
    changed = " with changes not committed" if where.get("dirty") else ""
    return f"commit {where['commit'][:7]}{changed}"


def _name_versions(where: Mapping[str, Any], names: Iterable[str] = ("torch", "sevenn")) -> str:
    packages = where.get("packages") or {}
    return ", ".join(f"{name} {packages[name]}" for name in names if name in packages)


def format_percent(value: float | None) -> str:
    """As :func:`~fastff.units.show_percent`, or a dash where there is no value."""
    return "-" if value is None else show_percent(value)


def _scale(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _prefix(before: str, value: str | None, after: str = "") -> str:
    return f"{before}{value}{after}" if value else ""


def _cut(before: str, value: str | None) -> str:
    return f"{before}{value[:16]}..." if value else ""


def _join(*words: str | None) -> str:
    return ", ".join(word for word in words if word)
