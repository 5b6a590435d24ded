"""Distils a small Orb model that is made here, since no published Orb weights were at hand.

    python bench/teachers/orb_end_to_end.py --labels si_7net-0.npz --out runs/orb-si [--device cuda]

Three steps: a model of Orb's v3 conservative architecture, with fewer and narrower layers, is trained with plain torch
on labelled frames (SevenNet-0's); it is saved as published checkpoints are, a bare state dict; and ``fastff train
--teacher orb --teacher-weights FILE`` distils it as a user would. Ends with a record in ``OUT/record.json`` and exit
code 6 if the student's test accuracy is below 95 %. What is judged is the student against this Orb model; how good the
Orb model itself is, is recorded beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = str(ROOT / "bench" / "teachers")
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != HERE)]

from fastff.checkpoint import read_header  # noqa: E402
from fastff.distill.formats import read_labels  # noqa: E402
from fastff.distill.split import split_frames  # noqa: E402
from fastff.labels import Frame  # noqa: E402
from fastff.report.metrics import measure_accuracy  # noqa: E402
from fastff.report.provenance import collect_provenance  # noqa: E402
from fastff.teachers import load_teacher  # noqa: E402
from fastff.teachers.isolation import preserve_global_state  # noqa: E402
from fastff.teachers.orb import OrbTeacher, _batch_graphs  # noqa: E402

SIZES = {
    "latent_dim": 64,
    "base_mlp_hidden_dim": 128,
    "head_mlp_hidden_dim": 64,
    "num_message_passing_steps": 3,
}
TARGET = 0.95


def save_untrained(
    path: Path,
    frames: list[Frame],
    seed: int,
    sizes: dict[str, int] | None = None,
    variant: str = "orb-v3-conservative-inf-omat",
) -> None:
    """A checkpoint with random weights, whose reference energies and energy scale fit the labels.

    ``sizes`` are those of :data:`SIZES` if left out, those published if empty.
    """
    pretrained = importlib.import_module("orb_models.forcefield.pretrained")
    with preserve_global_state():
        torch.manual_seed(seed)
        build = getattr(pretrained, f"orb_v3_{variant.split('-')[2]}_architecture")
        model = build(device="cpu", **(SIZES if sizes is None else sizes))
    counts = np.stack([np.bincount(frame.atoms.numbers, minlength=118) for frame in frames])
    energy = np.array([frame.labels.energy for frame in frames])
    reference = np.linalg.lstsq(counts.astype(float), energy, rcond=1e-9)[0]
    rest = (energy - counts @ reference) / counts.sum(axis=1)
    state = model.state_dict()
    weight = state["heads.energy.reference.linear.weight"]
    weight.copy_(torch.tensor(reference, dtype=weight.dtype).reshape(weight.shape))
    state["heads.energy.normalizer.bn.running_mean"][:] = float(rest.mean())
    state["heads.energy.normalizer.bn.running_var"][:] = float(rest.var())
    torch.save(state, path)


def train_orb(
    teacher: OrbTeacher, frames: list[Frame], steps: int, batch: int, rate: float, seed: int
) -> None:
    """Train the teacher's model in place: Huber losses of forces, energy per atom and stress, AdamW, one cycle."""
    model, device = teacher._model, teacher._device
    graphs = [teacher._make_graph(teacher._prepare(frame.atoms)) for frame in frames]
    forces = [torch.tensor(f.labels.forces, dtype=torch.float32, device=device) for f in frames]
    energy = torch.tensor(
        [f.labels.energy / len(f.atoms) for f in frames], dtype=torch.float64, device=device
    )
    stress = torch.stack([torch.tensor(f.labels.stress, dtype=torch.float32) for f in frames]).to(
        device
    )
    scales = (
        float(torch.cat(forces).square().mean().sqrt()),
        float(energy.std()),
        float(stress.square().mean().sqrt()),
    )
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.heads["energy"].reference.requires_grad_(False)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    huber = torch.nn.functional.huber_loss
    model.train()
    start = time.perf_counter()
    for step in range(steps):
        chosen = rng.choice(len(frames), size=min(batch, len(frames)), replace=False)
        graph = _batch_graphs([graphs[k] for k in chosen], teacher._adapter).to(device)
        output = model(graph)
        head = model.heads["energy"]
        per_atom = head.denormalize(output[model.energy_name], graph).reshape(-1) / graph.n_node
        targets = torch.cat([forces[k] for k in chosen])
        losses = (
            huber(output[model.grad_forces_name] / scales[0], targets / scales[0], delta=0.5),
            huber(per_atom.double() / scales[1], energy[chosen] / scales[1], delta=0.5),
            huber(read_stress(output, model) / scales[2], stress[chosen] / scales[2], delta=0.5),
        )
        loss = losses[0] + 0.1 * losses[1] + 0.1 * losses[2]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            parts = ", ".join(
                f"{name} {float(value):.4f}"
                for name, value in zip(("forces", "energy", "stress"), losses, strict=True)
            )
            print(f"step {step:6d}  {parts}  {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()


def read_stress(output: dict[str, torch.Tensor], model: Any) -> torch.Tensor:
    """Voigt stress, shape (n, 6), from whichever shape this version of orb-models gives."""
    stress = output[model.grad_stress_name]
    if stress.dim() == 3:
        rows, columns = zip((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1), strict=True)
        stress = stress[:, list(rows), list(columns)]
    return stress.reshape(-1, 6)


def judge(teacher: OrbTeacher, frames: list[Frame]) -> dict[str, Any]:
    """How the model agrees with labels it was not trained on."""
    structures = [frame.atoms for frame in frames]
    accuracy = measure_accuracy(
        [frame.labels for frame in frames], teacher.label(structures), structures
    )
    return accuracy.to_dict()


def describe_student(header: dict[str, Any]) -> dict[str, Any]:
    """What the header of a model file says of a student: accuracy by group of frames, training, teacher."""
    training = header["training"]
    kept = ("n_train", "n_validation", "n_test", "n_steps", "seconds", "machine", "stopped")
    accuracy = header["accuracy"].items()
    return {
        "groups": {k: found for k, found in accuracy if isinstance(found, dict) and k != "test"},
        "student": {
            "sha256": header["sha256"],
            "request": training["request"],
            **{key: training[key] for key in kept},
        },
        "teacher": header["teacher"],
    }


def main() -> None:
    """Train, save, distil, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument(
        "--structures", type=Path, default=ROOT / "train" / "structures" / "silicon.xyz"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--orb-steps", type=int, default=4000)
    parser.add_argument("--orb-batch", type=int, default=8)
    parser.add_argument("--orb-rate", type=float, default=1e-3)
    parser.add_argument("--temperature", default="300-600")
    parser.add_argument("--budget", type=int, default=1500)
    parser.add_argument("--max-atoms", type=int, default=64)
    parser.add_argument("--student", default="m1")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "orb-small.ckpt"
    labelled = read_labels(options.labels)
    split = split_frames(labelled.frames, validation=0.0, test=0.15, seed=options.seed)
    record: dict[str, Any] = {
        "what": "A small Orb model trained here on labels of another teacher, and a student of that Orb model.",
        "sizes": SIZES,
        "labels": options.labels.name,
        "provenance": collect_provenance().model_dump(mode="json"),
    }
    if not checkpoint.exists():
        untrained = options.out / "untrained.ckpt"
        save_untrained(untrained, split.train, options.seed)
        teacher = load_teacher(
            "orb",
            weights=untrained,
            device=options.device,
            options={"precision": "float32-highest"},
        )
        assert isinstance(teacher, OrbTeacher)
        with preserve_global_state():
            torch.manual_seed(options.seed)
            train_orb(
                teacher,
                split.train,
                options.orb_steps,
                options.orb_batch,
                options.orb_rate,
                options.seed,
            )
        state = {key: value.detach().cpu() for key, value in teacher._model.state_dict().items()}
        torch.save(state, checkpoint)
    teacher = load_teacher("orb", weights=checkpoint, device=options.device)
    assert isinstance(teacher, OrbTeacher)
    record["orb_against_labels"] = judge(teacher, split.test)
    print(f"Orb model against held-out labels: {record['orb_against_labels']['overall']:.3f}")
    out = options.out / "student"
    command = [sys.executable, "-m", "fastff", "train", "--teacher", "orb"]
    command += ["--teacher-weights", str(checkpoint), "--structures", str(options.structures)]
    command += ["--temperature", options.temperature, "--budget", str(options.budget)]
    command += ["--max-atoms", str(options.max_atoms), "--student", options.student]
    command += ["--device", options.device, "--out", str(out), "--seed", str(options.seed)]
    command += ["--steps", str(options.steps)] if options.steps else []
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    header = read_header(out / "model.safetensors")
    record["student_against_orb"] = header["accuracy"]["test"]
    record |= describe_student(header)
    (options.out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    overall = header["accuracy"]["test"]["overall"]
    print(f"student against the Orb model: {overall:.4f} on held-out frames (target {TARGET})")
    sys.exit(0 if overall >= TARGET else 6)


if __name__ == "__main__":
    main()
