"""The main job end to end, on a laptop: distil SevenNet-0 into a student for silicon, then judge it.

Runs the same commands a user types, shows them, and ends with the verdict table and the time of each part. Takes the
teacher's weights from its wheel; needs no GPU and no network. Results go to ``demo-out/``, replaced at every run.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ase.build import bulk
from ase.io import write

from fastff.report.verdict import format_percent

OUT = Path("demo-out")
INSTALLED = Path(".venv/.installed")
"""Written by make: seconds that the installation took."""


def run(*arguments: str) -> float:
    """Show a fastff command, run it, and return its wall time in s; stop the demo where it fails."""
    print(f"\n$ fastff {shlex.join(arguments)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "fastff", *arguments]).returncode
    if code != 0:
        sys.exit(code)
    return time.perf_counter() - start


def main() -> None:
    """Make the crystal, train, bench, and print what it came to."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    crystal = OUT / "silicon.xyz"
    write(crystal, bulk("Si", "diamond", a=5.431, cubic=True))
    model = OUT / "student" / "model.safetensors"
    seconds = {}
    if INSTALLED.is_file():
        seconds["install"] = float(INSTALLED.read_text().strip() or "nan")
    seconds["label and train"] = run(
        "train", "--teacher", "sevennet", "--structures", str(crystal), "--temperature", "300-600",
        "--student", "m1", "--budget", "140", "--rounds", "0", "--max-atoms", "64", "--steps", "1200",
        "--out", str(model.parent),
    )  # fmt: skip
    seconds["bench"] = run(
        "bench", str(model), "--compare-teacher", "--quick", "--sizes", "64,512", "--budget", "4", "--physics", "12",
        "--out", str(OUT / "bench"),
    )  # fmt: skip
    print_summary(OUT / "bench" / "bench.json", seconds)


def print_summary(record: Path, seconds: dict[str, float]) -> None:
    """Accuracy, speed beside the teacher, and where the time went."""
    bench = json.loads(record.read_text())
    accuracy = bench["comparisons"][0]["accuracy"]
    print(
        "\nDemo: silicon, 300-600 K, student m1 against SevenNet-0, on frames of teacher dynamics"
    )
    print("never trained on")
    for name in ("force", "energy", "stress"):
        print(f"  {name + ' accuracy':<28}{format_percent(accuracy[name]):>8}")
    for ratio in (r for r in bench["ratios"] if r["mode"] == "ase-call"):
        label = f"speed at {ratio['n_atoms']} atoms"
        print(f"  {label:<28}{ratio['ratio']:6.0f} times the teacher's, both through ASE")
    for name, value in seconds.items():
        print(f"  {name + ' took':<28}{value:6.0f} s")
    print(f"  {'total':<28}{sum(seconds.values()):6.0f} s")
    print(
        f"\nReport: {record.parent / 'report.html'}   Model: {record.parent.parent}/student/model.safetensors"
    )


if __name__ == "__main__":
    main()
