"""Parts of a model card that students of recipes have: what they were distilled from, what was measured of them since.

Here: Markdown of these parts. Not here: the card (:mod:`fastff.zoo.card`), any number that is not in the header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastff.units import show_percent

Header = Mapping[str, Any]


def describe_recipe(header: Header) -> dict[str, str]:
    """Rows of a card's first table: recipe, structures, evaluations of the teacher, rounds."""
    data, training = header["zoo"]["data"], header["training"]
    met = "met" if data["passed"] else "not met"
    kinds = [
        f"{row['phase']}: {_count(row['n_structures'], 'structure')}, {row['formula']}, "
        f"{_count(row['n_test'], 'test frame')}"
        for row in data["kinds"]
    ]
    return {
        "recipe": f"`{data['recipe']}`; its target of {show_percent(data['target'])} was {met}",
        "structures": "; ".join(kinds),
        "evaluations of the teacher": _count_evaluations(training),
        "rounds": _describe_rounds(training["rounds"]),
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _count_evaluations(training: Mapping[str, Any]) -> str:
    budget, rounds = training["request"]["budget"], training["rounds"]
    asked = f"{budget:,}" if isinstance(budget, int) else str(budget)
    return f"{rounds[-1]['evaluations']:,} of {asked} allowed" if rounds else f"at most {asked}"


def _describe_rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    if not rounds:
        return "none: never trained on dynamics of its own"
    last = rounds[-1]
    walkers, failed = last["dynamics"]["gate_walkers"], last["dynamics"]["gate_blown_up"]
    return (
        f"{len(rounds) - 1}, ended because: {last['decision']}; of {walkers} walkers of the last gate "
        f"{failed or 'none'} blew up"
    )


def explain_groups(header: Header) -> list[str]:
    """What the rows of the table of accuracies are, where there are groups."""
    data = (header.get("zoo") or {}).get("data") or {}
    if not any(name.startswith("student-driven") for name in header.get("accuracy") or {}):
        return []
    far = f", up to {data['overheat']:g} times the highest" if "overheat" in data else ""
    return [
        "",
        "Test frames are of trajectories that nothing was trained on. `test` holds all of them, dynamics of earlier "
        "rounds included; `teacher-driven` those of the teacher's dynamics, `student-driven` those of this student's "
        f"own within the temperature range, `hot` above it{far}, where energies spread too "
        "little for their accuracy to count.",
    ]


def name_row(row: Mapping[str, Any]) -> str:
    """Kind, temperature and source of some test frames."""
    sources = {"student-md": "own dynamics, all rounds", "teacher-md": "the teacher's dynamics"}
    kelvin = row["temperature"]
    words = (
        row["phase"],
        "" if kelvin is None else f"{kelvin:.0f} K",
        sources.get(row["source"], row["source"]),
    )
    return ", ".join(word for word in words if word)


def list_record(header: Header) -> list[str]:
    """What ``bench/recipes.py`` measured of this student."""
    record = ((header.get("zoo") or {}).get("data") or {}).get("record")
    if not record:
        return []
    where = record["provenance"]
    lines = [
        f"### Measured after training ([{record['name'].rpartition('/')[2]}](../{record['name']}))",
        "",
        f"{where['gpu'] or 'CPU'}, {where['date'][:10]}, commit {str(where['commit'])[:7]}; distillation and "
        f"measurements took {record['wall_seconds'] / 60:.0f} minutes. Accuracy on dynamics that the teacher made for "
        "this alone:",
        "",
        "| frames | number | forces | energy | stress |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in record["accuracy"]:
        values = (
            "-" if row[k] is None else show_percent(row[k]) for k in ("force", "energy", "stress")
        )
        lines.append(f"| {row['group']} | {row['n_frames']} | {' | '.join(values)} |")
    lines.append("")
    for row in record["endurance"]:
        lines.append(
            f"- {row['n_replicas']} replicas, {row['n_atoms']} atoms in all, {row['temperature']:g} K, "
            f"{row['timestep']:g} fs: {row['ps']:.0f} ps each, of {row['wanted_ps']:.0f} wanted; "
            f"{row['n_failed'] or 'none'} failed."
        )
    lines += [_describe_pair(row) for row in record["pairs"]]
    return [*lines, *(f"- {note}" for note in record["notes"])]


def _describe_pair(row: Mapping[str, Any]) -> str:
    start = f"- Pair distribution beside the teacher's, {row['kind']}, {row['temperature']:g} K"
    if "fault" in row:
        return f"{start}: {row['fault']}."
    noise = "unknown" if row["noise"] is None else f"{100 * row['noise']:.1f} %"
    difference = f"differs by {100 * row['difference']:.1f} % over {row['ps']:.3g} ps of {row['n_replicas']} replicas"
    return f"{start}, {row['pair']}: {difference} (noise {noise})."


def list_limits(header: Header) -> list[str]:
    """What was seen in training, and what was not tested."""
    zoo = header["zoo"]
    data = zoo["data"]
    record, low_high = data["record"] or {}, header["temperature"]
    kinds = "; ".join(f"{row['phase']} ({row['formula']})" for row in data["kinds"])
    longest = max((row["ps"] for row in zoo.get("stability", [])), default=0.0)
    far = max((row["ps"] for row in record.get("endurance", [])), default=0.0)
    followed = f"- Dynamics was followed for {longest:.1f} ps at most here"
    if far:
        followed += f", for {far:.0f} ps by `bench/recipes.py`"
    compared = (
        "Diffusion and phonons" if record.get("pairs") else "Structure (RDF), diffusion and phonons"
    )
    return [
        "### Limits",
        "",
        f"- Seen in training: {kinds}, at {low_high[0]:g} to {low_high[1]:g} K, in part up to "
        f"{data['overheat']:g} times that, cells strained by up to 5 %. Nothing else was tested: other phases, "
        "compositions and surfaces, vacancies and other defects, larger strains.",
        f"{followed}. {compared} were not compared.",
        "- Errors of the teacher against experiment or DFT are the student's too; nothing was fitted to either.",
        *(f"- {remark}" for remark in zoo.get("remarks", [])),
    ]
