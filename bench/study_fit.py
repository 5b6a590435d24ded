"""How well students of ``bench/study.py`` fit the frames that they were trained on, beside test frames.

    python bench/study_fit.py --models STUDY/models/si__*.safetensors --labels LABELS/si.npz --out R.json

Where both are alike, the student is too small or trained too badly; where they differ, more labels help. Training
frames are those without close contacts (no force above ``--force``), evenly chosen, as test frames have none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != HERE)]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.study_training import split_trajectories  # noqa: E402
from fastff.checkpoint import load_model, read_header  # noqa: E402
from fastff.distill.formats import read_labels  # noqa: E402
from fastff.distill.ladder import choose_evenly, measure_student  # noqa: E402
from fastff.report.provenance import collect_provenance  # noqa: E402


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=100, help="most of each kind")
    parser.add_argument("--force", type=float, default=6.0, help="eV/Å, of a training frame")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    labelled = read_labels(arguments.labels)
    train, _, test = split_trajectories(labelled.frames)
    calm = [f for f in train if np.abs(f.labels.forces).max() < arguments.force]
    groups = {"train": calm, "test": test}
    rows = []
    for path in arguments.models:
        student, header = load_model(path), read_header(path)
        row = {"student": path.stem, "sha256": header["sha256"], "n_train": len(train)}
        for name, frames in groups.items():
            found = measure_student(student, choose_evenly(frames, arguments.frames))
            row |= {f"{name}_force": found.force, f"{name}_force_mae": found.force_mae}
        rows.append(row)
        print(row, flush=True)
    record = {
        "what": "Force accuracy (fraction) and mean error (eV/Å) of students on frames trained on and on others.",
        "labels": arguments.labels.stem,
        "rows": rows,
        "provenance": collect_provenance().model_dump(mode="json"),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
