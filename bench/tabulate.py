"""Results for people, made from the records in ``bench/results`` and nothing else.

``python bench/tabulate.py`` prints README's; ``python bench/tabulate.py --write`` puts them between the markers in
README.md, writes ``bench/results/README.md``, which shows every record, and beside every record of ``fastff bench`` its
page. Tests compare both READMEs with the output, so a number there cannot outlive its record; pages are not committed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # last: this folder has namesakes of packages

from tabulate_recipes import tabulate_recipes
from tabulate_reports import tabulate_reports
from tabulate_speed import (
    RESULTS,
    ROOT,
    read_result,
    tabulate_dynamics,
    tabulate_gpumd,
    tabulate_kernels,
    tabulate_ops,
    tabulate_race,
)

from fastff.report.html import render_report
from fastff.report.kernels import SCHEMA as KERNEL_SCHEMA
from fastff.report.kernels import read_kernels
from fastff.report.markdown import format_markdown, write_tables
from fastff.report.record import read_record
from fastff.report.schema import READABLE, BenchRecord
from fastff.report.tables import describe_kernels
from fastff.report.tables import tabulate_kernels as tabulate_kernel_record
from fastff.report.verdict import format_percent

BEGIN, END = "<!-- results: bench/tabulate.py -->", "<!-- end of results -->"

STUDENTS = {
    "silicon-demo": "Si, 300-600 K (`make demo`)",
    "mgo-sevennet": "MgO, 300-900 K (POSCAR, no options)",
    "cu3au-sevennet": "Cu3Au, 300-900 K (extxyz, no options)",
    "organics-ani1x": "46 organic molecules, 300-500 K (all eight models of ANI-1x)",
}
"""Records in ``results/NAME.json`` and what README calls them."""

MATERIALS = {
    "cuau": "Cu-Au alloy, 300-1600 K",
    "nacl": "NaCl and its melt, 200-1900 K",
    "si": "Si and its melt, 200-2600 K",
    "si-more": "the same with 6,432 frames of a student's own dynamics (`bench/study_more.py`)",
    "tio2": "TiO2 rutile, 300-2000 K",
    "water": "water, 280-700 K",
}
"""Systems of the study and what README calls them."""


def format_accuracies(record: BenchRecord) -> str:
    """Accuracies in percent, the force error, and the number of frames, as cells of a table."""
    a = record.main.read_accuracy()
    cells = [format_percent(value) for value in (a.force, a.energy, a.stress)]
    return " | ".join([*cells, f"{1e3 * a.force_mae:.0f} meV/Å", str(a.n_frames)])


def tabulate_students() -> list[str]:
    """One line a student: accuracy on held-out teacher dynamics, and speed where the teacher was timed."""
    lines = [
        "| material | student | forces | energy | stress | force MAE | frames | speed at about 500 atoms | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in STUDENTS.items():
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            continue
        record = read_record(path)
        ratio = record.headline
        speed = "not timed"
        if ratio is not None:
            speed = (
                f"{ratio.ratio:.0f} times the teacher's ({1e3 * ratio.student_seconds:.0f} ms against "
                f"{ratio.teacher_seconds:.1f} s, {record.provenance.cores} CPU cores)"
            )
        lines.append(
            f"| {title} | `{record.model.architecture}` | {format_accuracies(record)} | {speed} | "
            f"{record.provenance.date[:10]}, commit {(record.provenance.commit or '?')[:7]} |"
        )
    return lines


def has_usual_sizes(row: dict[str, Any]) -> bool:
    """Whether a student of the study has the sizes that `fastff train` gives it, at any cut-off."""
    extra = row["student"].removeprefix(row["architecture"])
    return re.fullmatch(r"(-rc[\d.]+)?(-adamw)?", extra) is not None


def tabulate_study() -> list[str]:
    """Students of one study: accuracy on trajectories that were never trained on."""
    records = [read_result("study", f"{name}.json") for name in ("7net-0-h200", "si-more-h200")]
    where = [record["provenance"] for record in records]
    found = [row for record in records for row in record["students"] if has_usual_sizes(row)]
    rows = sorted(found, key=lambda row: list(MATERIALS).index(row["system"]))
    least, most = (choose(row["seconds"] for row in rows) for choose in (min, max))
    lines = [
        "Students of SevenNet-0 by material, size and cut-off, trained on some thousand frames of its dynamics and "
        f"close contacts in {least:.0f} to {most:.0f} s each, most of them with others on one GPU, and judged on "
        "trajectories that were never trained on. Rows of more steps were trained again at half the rate "
        "([why](docs/distillation.md#training)); SOAP where nothing else is said. "
        f"{where[0]['gpu']}, commits {', '.join(w['commit'] for w in where)}, {where[-1]['date'][:10]}:",
        "",
        "| material | student | cut-off | forces | energy | stress | force MAE | steps, rate | trained, tested on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        other = "" if row["optimizer"] == "soap" else f" ({row['optimizer']})"
        cells = (
            MATERIALS[row["system"]],
            f"`{row['architecture']}`{other}",
            f"{row['cutoff_A']:g} Å",
            *(f"{row[f'{kind}_percent']:.1f} %" for kind in ("force", "energy", "stress")),
            f"{row['force_mae_meV_per_A']:.0f} meV/Å",
            f"{row['n_steps']:,}, {row['learning_rate']:g}",
            f"{row['n_train']:,}, {row['n_test']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def render() -> str:
    """The block of README between the markers."""
    blocks = (
        tabulate_students(),
        tabulate_reports(),
        tabulate_recipes(),
        tabulate_study(),
        tabulate_kernels(),
        tabulate_ops(),
        tabulate_dynamics(),
        tabulate_gpumd(),
        tabulate_race(),
    )
    return "\n\n".join("\n".join(block) for block in blocks if block)


def list_records() -> list[Path]:
    """Every JSON file under ``results``, those of students first."""
    return sorted(RESULTS.glob("*.json")) + sorted(RESULTS.glob("*/*.json"))


def describe_record(path: Path) -> list[str]:
    """One record as Markdown: its tables if it is one of ``fastff bench``, else where and on what it was measured."""
    content: dict[str, Any] = json.loads(path.read_text())
    name = path.relative_to(RESULTS).as_posix()
    version = content.get("schema_version")
    if version in READABLE:
        tables = write_tables(read_record(path)).strip()
        return [
            tables,
            "",
            f"From [{name}]({name}); `fastff bench bench/results/{name}` makes its page.",
        ]
    if version == KERNEL_SCHEMA:
        record = read_kernels(path)
        return [
            f"## Kernels: {name}",
            "",
            describe_kernels(record),
            "",
            format_markdown(tabulate_kernel_record(record)),
        ]
    if "benchmarks" in content:
        return [f"## [{name}]({name})", "", *describe_benchmarks(content)]
    where = content.get("provenance") or {}
    packages = where.get("packages") or {}
    versions = [
        where.get(name) or (f"{name} {packages[name]}" if packages.get(name) else None)
        for name in ("torch", "triton")
    ]
    named = [
        where.get("gpu") or where.get("cpu"),
        *versions,
        where.get("commit"),
        where.get("date"),
    ]
    parts = [str(part) for part in named if part]
    lines = [
        f"## [{name}]({name})",
        "",
        f"Measured on {', '.join(parts) or 'a machine it does not name'}.",
    ]
    if isinstance(content.get("what"), str):
        lines += ["", content["what"]]
    if "evaluations" in content:
        return [*lines, "", *tabulate_evaluations(content)]
    for key, value in content.items():
        flat = isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
        if flat and key != "failures":
            lines += ["", f"{key}:", "", *tabulate_rows(value)]
    return lines


def describe_benchmarks(content: dict[str, Any]) -> list[str]:
    """A record of ``pytest bench/kernels``: a line for each op and direction, – for what was not run."""
    where = content["machine_info"]
    versions = [f"{name} {where['packages'][name]}" for name in ("torch", "triton")]
    lines = [
        f"Measured on {', '.join([where['gpu'], *versions, where['commit'], where['date']])}.",
        "",
        "Medians of single synchronised calls, and of one call by the device's clock from a cleared cache, from which "
        "follows the share of the floor; the error is relative to float64.",
        "",
        "| op | rows | Triton | by the device | share of the floor | error | torch.compile takes | eager torch takes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for one in content["benchmarks"]:
        info = one["extra_info"]
        key = (info["op"], info["direction"], info["rows"])
        found.setdefault(key, {})[info["variant"]] = {**info, "median": one["stats"]["median"]}
    for (op, direction, rows), variants in found.items():
        triton = variants.get("triton")
        cells = ["–"] * 4
        if triton is not None:
            cells = [
                f"{1e3 * triton['median']:.3g} ms",
                f"{triton['device_ms']:.3g} ms",
                f"{100.0 * triton['roofline_fraction']:.2g} %",
                f"{triton['relative_error']:.1e}",
            ]
        for variant in ("compiled", "eager"):
            other = variants.get(variant)
            known = triton is not None and other is not None
            cells.append(f"{other['median'] / triton['median']:.3g} times" if known else "–")
        name = op if direction == "forward" else f"{op} with gradient"
        lines.append(f"| {' | '.join([name, f'{rows:,}', *cells])} |")
    return lines


def tabulate_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Records of one kind as they are: a column for each plain field of any of them."""
    plain = (str, int, float, bool)
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, plain))
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        shown = [f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def tabulate_evaluations(content: dict[str, Any]) -> list[str]:
    """Every evaluation of a record of fused kernels that was replayed from a graph."""
    rows = [
        "| hops | channels | hidden layers | atoms | listed neighbors | scatter | virial | ms | 10 to 90 % "
        "| M atom-steps/s |",
        "|---:|---:|---|---:|---:|---|---|---:|---|---:|",
    ]
    for entry in content["evaluations"]:
        graph = entry.get("graph") or {}
        if "median_ms" not in graph or "atom_steps_per_s" not in entry:
            continue
        channels, hidden = entry.get("channels", 16), entry.get("hidden", (64, 64))
        rows.append(
            f"| {entry['hops']} | {channels} | {hidden[0]}, {hidden[1]} | {entry['atoms']:,} | "
            f"{entry['listed_neighbors']} | {entry['scatter']} | "
            f"{'yes' if entry['virial'] else 'no'} | {graph['median_ms']:.4g} | {graph['q10_ms']:.4g} to "
            f"{graph['q90_ms']:.4g} | {entry['atom_steps_per_s'] / 1e6:.3g} |"
        )
    return rows if len(rows) > 2 else ["No evaluation in it was replayed from a graph."]


def render_page() -> str:
    """``bench/results/README.md``: every record, one after the other."""
    lines = [
        "# Results",
        "",
        "Made by `python bench/tabulate.py --write` from the records in this folder; every number below is in "
        "the record named with it. What the numbers mean: [bench/README.md](../README.md).",
    ]
    for path in list_records():
        lines += ["", *describe_record(path)]
    return "\n".join(lines) + "\n"


def write_pages() -> list[Path]:
    """``NAME.html`` beside every ``NAME.json`` of ``fastff bench``."""
    pages = []
    for path in list_records():
        if json.loads(path.read_text()).get("schema_version") in READABLE:
            pages.append(path.with_suffix(".html"))
            pages[-1].write_text(render_report(read_record(path)), encoding="utf-8")
    return pages


def main() -> None:
    """Print the block, or write it into README, with the page of all records and that of each."""
    block = render()
    if "--write" not in sys.argv[1:]:
        print(block)
        return
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    (RESULTS / "README.md").write_text(render_page(), encoding="utf-8")
    readme.write_text(f"{text[:start]}\n{block}\n{text[end:]}", encoding="utf-8")
    for page in write_pages():
        print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
