"""What a finished ``fastff train`` came to, as a record: accuracy by group of test frames, gates, settings, teacher.

    python bench/teachers/describe_run.py runs/NAME/model.safetensors --commit COMMIT --out R.json

Everything is read from the header of the model file; ``--commit`` is that of the code which trained it. The machine
named is the one that runs this, and must be the one that trained; or, with ``--machine RECORD``, that of a record
written there at the same time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = str(ROOT / "bench" / "teachers")
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != HERE)]

from bench.teachers.orb_end_to_end import describe_student  # noqa: E402
from fastff.checkpoint import read_header  # noqa: E402
from fastff.report.provenance import collect_provenance  # noqa: E402


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", type=Path, help="a record of the machine that trained")
    arguments = parser.parse_args()
    header = read_header(arguments.model)
    where = collect_provenance().model_dump(mode="json")
    if arguments.machine is not None:
        there = json.loads(arguments.machine.read_text())["provenance"]
        where = {**there, "command": where["command"], "dirty": None, "date": header["created"]}
    if header["training"]["machine"].split(",")[0] not in (where["cpu"], where["gpu"]):
        known = where["gpu"] or where["cpu"]
        raise SystemExit(f"trained on {header['training']['machine']}, this is {known}")
    record = {
        "what": "A distillation by fastff train, as its model file tells of it.",
        "test": header["accuracy"]["test"],
        **describe_student(header),
        "gates": header["training"].get("rounds", []),
        "provenance": {**where, "commit": arguments.commit},
    }
    arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print({name: round(group["overall"], 4) for name, group in record["groups"].items()})


if __name__ == "__main__":
    main()
